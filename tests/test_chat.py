"""The chat describer against an endpoint that is down, slow, busy or talks nonsense."""

import copy
import json
import logging
import pickle
import socket
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tsllm_estimators.llm import chat, text_cache, wording
from tsllm_estimators.llm.chat import ChatDescriber
from tsllm_estimators.llm.describe import StatisticalDescriber, check_describer, load_describer
from tsllm_estimators.llm.wording import clear_descriptions

STATISTICAL = StatisticalDescriber()
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Begin without any text, key or proxy; returns the file of this test's cache."""
    monkeypatch.setenv("TSLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(text_cache, "_unusable", set())
    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    clear_descriptions()
    yield tmp_path / "cache" / "texts" / "v1.sqlite"
    clear_descriptions()


@pytest.fixture
def waits(monkeypatch):
    """Return a list of the seconds that were waited between tries; no time passes."""
    waited = []
    monkeypatch.setattr(chat, "_sleep", lambda seconds, stop: waited.append(seconds))
    return waited


def answer(content="It is so."):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


class Endpoint:
    """A server on a free port of this machine that answers what it is told.

    ``script`` holds (status, body, headers) of the next answers, then come good ones. A body may
    be a function that is given the handler and talks by itself.
    """

    def __init__(self):
        self.script = []
        self.requests = []
        self.at_once = self.most_at_once = 0
        self.delay = 0.0
        self.meeting = None  # of requests that must be there at the same time
        self.lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                endpoint.serve(self)

            do_GET = do_POST

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def serve(self, handler):
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length) or "{}")
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.requests.append((handler.path, dict(handler.headers), body))
            status, told, headers = self.script.pop(0) if self.script else (200, None, {})
        time.sleep(self.delay)
        if self.meeting:
            self.meeting.wait(30)
        with self.lock:
            self.at_once -= 1
        if callable(told):
            told(handler)
            return
        if told is None:  # words the request, so that answers differ
            told = answer(f"In words: {body['messages'][0]['content'].split('Facts: ')[1]}")
        data = told if isinstance(told, bytes) else told.encode()
        handler.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def endpoint():
    one = Endpoint()
    yield one
    one.close()


def describer(endpoint, **kwargs):
    kwargs = {"base_url": endpoint.url, "model": "small", "timeout": 10, **kwargs}
    return load_describer("chat", kwargs)


def worded(codes):
    return [f"In words: {STATISTICAL.text(code)}" for code in codes]


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# What is asked and how often


def test_a_request_says_all_it_should(endpoint):
    one = describer(endpoint, max_tokens=9, temperature=0.5, seed=3)
    assert one.text(7) == worded([7])[0]
    ((path, headers, body),) = endpoint.requests
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    message = {"role": "user", "content": wording._INSTRUCTION + STATISTICAL.text(7)}
    assert body == {
        **{"model": "small", "max_tokens": 9, "temperature": 0.5, "seed": 3, "stream": False},
        "messages": [message],
    }


def test_each_code_is_asked_for_once(endpoint):
    one = describer(endpoint)
    codes = [3, 1, 3, 2, 1]
    assert one.texts(codes) == worded(codes)
    assert one.texts([1, 2, 3, 4]) == worded([1, 2, 3, 4])
    assert len(endpoint.requests) == 4
    for twin in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), describer(endpoint)):
        assert twin.texts(codes) == worded(codes)
    clear_descriptions()  # as a new process
    assert describer(endpoint).texts(codes) == worded(codes)
    assert len(endpoint.requests) == 4


@pytest.mark.parametrize(
    "other", [{"model": "large"}, {"max_tokens": 7}, {"temperature": 1.0}, {"seed": 1}]
)
def test_another_setting_is_another_text(endpoint, other):
    describer(endpoint).text(1)
    describer(endpoint, **other).text(1)
    assert len(endpoint.requests) == 2


def test_what_does_not_change_an_answer_asks_nothing(endpoint):
    describer(endpoint).text(1)
    same = {"timeout": 1, "max_retries": 0, "max_concurrency": 1, "api_key_env": "OTHER"}
    describer(endpoint, base_url=endpoint.url + "/", on_error="statistical", **same).text(1)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("most", [1, 3])
def test_so_many_requests_at_the_same_time(endpoint, most):
    endpoint.meeting = threading.Barrier(most)
    codes = list(range(9))
    assert describer(endpoint, max_concurrency=most).texts(codes) == worded(codes)
    assert endpoint.most_at_once == most


def test_a_proxy_of_the_environment_is_used(endpoint, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", endpoint.url.removesuffix("/v1"))
    one = describer(endpoint, base_url="http://models.invalid/v1")
    assert one.text(1) == worded([1])[0]
    assert endpoint.requests[0][0] == "http://models.invalid/v1/chat/completions"


# The key


def test_the_key_is_sent_and_nowhere_else(endpoint, monkeypatch, caplog, cache, waits):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY)
    one = describer(endpoint, api_key_env="MY_KEY", max_retries=1)
    endpoint.script = [(200, answer(f"The key is {KEY}."), {})]
    assert one.text(1) == "The key is ***."
    assert endpoint.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    told = [repr(one), str(vars(one)), str(pickle.dumps(one)), str(cache.read_bytes())]

    def drop(handler):
        handler.wfile.write(f"{KEY} is no status line\r\n\r\n".encode())

    for script in (
        [(401, f"Incorrect API key provided: {KEY}", {})],
        [(500, KEY, {})] * 2,
        [(200, KEY, {})],
        [(302, KEY, {"Location": f"{endpoint.url}/{KEY}"})],
        [(200, drop, {})] * 2,
    ):
        endpoint.script = list(script)
        with pytest.raises(OSError, match="MY_KEY is set") as caught:
            one.text(2)
        told.append("".join(traceback.format_exception(caught.value)))
        endpoint.script = list(script)
        with pytest.warns(UserWarning, match="1 descriptions") as warned:
            describer(endpoint, api_key_env="MY_KEY", max_retries=1, on_error="statistical").text(2)
        told.append(str(warned[0].message))
        clear_descriptions()
    told.append(caplog.text)
    assert not [text for text in told if KEY in text]


def test_a_key_of_the_default_variable(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    describer(endpoint).text(1)
    assert endpoint.requests[0][1]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", [f"{KEY}\nX-Other: 1", "sch\u00fcssel", "two words"])
def test_a_key_that_no_header_can_hold(endpoint, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="OPENAI_API_KEY must hold a key of ASCII") as caught:
        describer(endpoint).text(1)
    assert key not in str(caught.value)
    assert not endpoint.requests


@pytest.mark.parametrize(
    "kwargs",
    [
        {"api_key": KEY},
        {"api_key_env": KEY},
        {"base_url": f"https://user:{KEY}@host/v1"},
        {"base_url": f"https://host/v1?key={KEY}"},
        {"base_url": f"ftp://{KEY}/v1"},
        {"base_url": f"http://host:{KEY}/v1"},
    ],
)
def test_a_key_in_the_arguments_is_refused_and_not_repeated(kwargs):
    kwargs = {"base_url": "http://host/v1", "model": "m", **kwargs}
    with pytest.raises(ValueError, match="describer_kwargs") as caught:
        check_describer("chat", kwargs)
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_no_redirect_takes_the_key_along(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    other = Endpoint()
    try:
        for status in (301, 302, 303, 307, 308):
            endpoint.script = [(status, "", {"Location": f"{other.url}/chat/completions"})]
            with pytest.raises(OSError, match=f"in 1 try: status {status}, without a text"):
                describer(endpoint).text(1)
        assert not other.requests
    finally:
        other.close()


# What goes wrong


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(endpoint, waits, status):
    endpoint.script = [(status, "wait", {})] * 3
    assert describer(endpoint).text(1) == worded([1])[0]
    assert len(endpoint.requests) == 4
    assert [0.25 <= waits[0] <= 0.5, 0.5 <= waits[1] <= 1, 1 <= waits[2] <= 2] == [True] * 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_will_not_pass_is_an_error_at_once(endpoint, waits, status):
    endpoint.script = [(status, '{"error": "no  such\n model"}', {})]
    with pytest.raises(
        OSError,
        match=rf"model 'small' at {endpoint.url}/chat/completions gave no answer in 1 try: status "
        rf"{status}, .*no such model.* \(OPENAI_API_KEY is not set\)",
    ):
        describer(endpoint).text(1)
    assert not waits


@pytest.mark.parametrize("max_retries", [0, 2])
def test_tries_are_counted(endpoint, waits, max_retries):
    endpoint.script = [(500, "<html>" + "x" * 1000, {})] * 9
    tries = max_retries + 1
    with pytest.raises(OSError, match=f"in {tries} tr.*: status 500, '<html>x.*") as caught:
        describer(endpoint, max_retries=max_retries).text(1)
    assert len(endpoint.requests) == tries
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("7", 7.0), ("99999", 60.0), ("soon", 0.25), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.25)],
)
def test_an_endpoint_says_how_long_to_wait(endpoint, waits, told, seconds):
    endpoint.script = [(429, "", {"Retry-After": told})]
    describer(endpoint).text(1)
    assert seconds <= waits[0] <= max(seconds, 0.5)


def test_a_date_to_wait_for(endpoint, waits):
    from email.utils import formatdate

    endpoint.script = [(503, "", {"Retry-After": formatdate(time.time() + 30, usegmt=True)})]
    describer(endpoint).text(1)
    assert 20 < waits[0] <= 30


def test_an_endpoint_that_is_down(waits):
    kwargs = {"base_url": f"http://127.0.0.1:{closed_port()}/v1", "model": "m", "max_retries": 2}
    with pytest.raises(OSError, match=r"in 3 tries: ConnectionRefusedError: .*server runs"):
        load_describer("chat", kwargs).text(1)
    assert len(waits) == 2


def test_an_endpoint_that_is_slow(endpoint, waits):
    endpoint.delay = 0.5
    with pytest.raises(OSError, match=r"in 2 tries: TimeoutError: timed out.*raise timeout"):
        describer(endpoint, timeout=0.1, max_retries=1).text(1)
    assert describer(endpoint, timeout=10).text(1) == worded([1])[0]


def test_an_answer_that_drips(endpoint, waits):
    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(20):
            try:
                handler.wfile.write(b" ")
            except OSError:  # hung up
                return
            time.sleep(0.05)

    endpoint.script = [(200, drip, {})]
    with pytest.raises(OSError, match="TimeoutError: the answer came too slowly"):
        describer(endpoint, timeout=0.2, max_retries=0).text(1)


def test_an_answer_that_breaks_off(endpoint, waits):
    def hang_up(handler):
        handler.close_connection = True

    endpoint.script = [(200, hang_up, {}), (200, answer()[:9], {"Content-Length": 99})]
    assert describer(endpoint).text(1) == worded([1])[0]
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "<html>Welcome</html>",
        b"\xff\xfe\x00",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": [{"message": 3}]}',
        '{"choices": [{"message": {"content": ["a"]}}]}',
        "[" * 100_000,
    ],
)
def test_an_answer_that_is_none(endpoint, waits, garbage):
    endpoint.script = [(200, garbage, {})]
    with pytest.raises(OSError, match=r"expected JSON with a text in choices\[0\]"):
        describer(endpoint).text(1)
    assert len(endpoint.requests) == 1


def test_an_answer_that_does_not_end(endpoint, waits):
    endpoint.script = [(200, b" " * 2**21, {})]
    with pytest.raises(OSError, match="an answer of more than 1048576 bytes"):
        describer(endpoint).text(1)


@pytest.mark.parametrize("content", [None, "", " \n", "<think>so much to think of"])
def test_an_empty_answer(endpoint, content):
    endpoint.script = [(200, answer(content), {})]
    with pytest.raises(ValueError, match=r"expected a text for code 5 .* found an empty answer"):
        describer(endpoint).text(5)
    endpoint.script = [(200, answer(content), {})]
    with pytest.warns(UserWarning, match="1 descriptions are the statistical ones: .*code 5"):
        assert describer(endpoint, on_error="statistical").text(5) == STATISTICAL.text(5)
    assert describer(endpoint).text(5) == worded([5])[0]


def test_answers_are_cleaned(endpoint):
    endpoint.script = [(200, answer("<think>hm</think>\n  So \ud800 it\tgoes. " + "x" * 999), {})]
    text = describer(endpoint).text(1)
    assert text.startswith("So ? it goes. xxx")
    assert len(text) == 400


# Without an answer the statistical text


def test_statistical_texts_where_the_endpoint_fails(endpoint, waits):
    endpoint.script = [(500, "", {})] * 99
    one = describer(endpoint, on_error="statistical", max_retries=2, max_concurrency=2)
    with pytest.warns(UserWarning, match=r"50 descriptions are the stat.*status 500") as caught:
        assert one.texts(range(50)) == STATISTICAL.texts(range(50))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    asked = len(endpoint.requests)
    assert asked <= 2 * 3  # two at the same time, three times; not for each of the codes
    with pytest.warns(UserWarning, match="gave no answer less than 60 seconds ago"):
        assert one.text(60) == STATISTICAL.text(60)
    assert len(endpoint.requests) == asked


def test_statistical_texts_are_not_kept(endpoint, waits, monkeypatch):
    endpoint.script = [(500, "", {})]
    one = describer(endpoint, on_error="statistical", max_retries=0)
    with pytest.warns(UserWarning, match="1 descriptions"):
        one.text(1)
    monkeypatch.setattr(wording, "_resting", {})  # a minute later
    assert one.text(1) == worded([1])[0]


def test_what_was_answered_before_a_failure_is_kept(endpoint, waits):
    endpoint.script = [(200, None, {}), (200, None, {}), (404, "gone", {})]
    with pytest.raises(OSError, match="gone"):
        describer(endpoint, max_concurrency=1).texts([1, 2, 3, 4])
    assert describer(endpoint).texts([1, 2]) == worded([1, 2])
    bodies = [body["messages"][0]["content"] for _, _, body in endpoint.requests]
    assert len(set(bodies[:2])) == 2
    assert not set(bodies[:2]) & set(bodies[3:])


def test_a_failure_ends_the_waiting_of_the_others(endpoint):
    endpoint.script = [(404, "gone", {})] + [(429, "", {"Retry-After": "60"})] * 3
    begin = time.monotonic()
    with pytest.raises(OSError, match="gone"):
        describer(endpoint, max_concurrency=4).texts(range(40))
    assert time.monotonic() - begin < 50
    assert len(endpoint.requests) <= 8


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"base_url": 3}, TypeError, r"\['base_url'\] must be like"),
        ({"base_url": "localhost:8000/v1"}, ValueError, r"\['base_url'\] must be like"),
        ({"base_url": "file:///etc/passwd"}, ValueError, r"\['base_url'\] must be like"),
        ({"base_url": "http:///v1"}, ValueError, r"\['base_url'\] must be like"),
        ({"base_url": "http://a b/v1"}, ValueError, "in ASCII and without spaces"),
        ({"base_url": "http://host:99999/v1"}, ValueError, r"\['base_url'\] must be like"),
        ({"model": None}, TypeError, r"\['model'\] must be a name"),
        ({"api_key_env": "A B"}, ValueError, r"\['api_key_env'\] must be the name"),
        ({"timeout": 0}, ValueError, r"\['timeout'\] must be a number"),
        ({"max_retries": -1}, ValueError, r"\['max_retries'\] must be an integer >= 0"),
        ({"max_concurrency": 0}, ValueError, r"\['max_concurrency'\] must be an integer >= 1"),
        ({"max_tokens": 0}, ValueError, r"\['max_tokens'\] must be an integer >= 1"),
        ({"temperature": "hot"}, TypeError, r"\['temperature'\] must be a number"),
        ({"seed": 0.5}, TypeError, r"\['seed'\] must be an integer"),
        ({"on_error": None}, ValueError, r"\['on_error'\] must be one of"),
        ({"retries": 3}, ValueError, r"must be among \['base_url', .*found \['retries'\]"),
    ],
)
def test_wrong_arguments_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        check_describer("chat", {"base_url": "http://host/v1", "model": "m", **kwargs})


def test_needed_arguments_are_named():
    with pytest.raises(
        ValueError, match=r"must hold \['base_url', 'model'\], found no \['model'\]"
    ):
        check_describer("chat", {"base_url": "http://host/v1"})


def test_nothing_is_asked_before_a_text_is_needed(endpoint):
    kwargs = {"base_url": endpoint.url, "model": "small"}
    check_describer("chat", kwargs)
    one = load_describer("chat", kwargs)
    assert isinstance(one, ChatDescriber)
    assert repr(one) == "ChatDescriber(model='small')"
    assert one.texts([]) == []
    assert not endpoint.requests

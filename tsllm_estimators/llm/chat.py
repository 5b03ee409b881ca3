"""A describer that asks a chat endpoint with OpenAI's interface, on premises or elsewhere.

The key is read from the environment for each request. It is in no attribute, message or file, and
answers that repeat it lose it.
"""

import json
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Generator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tsllm_estimators._validate import check_integer, check_number
from tsllm_estimators.llm.wording import DescriberError, WordingDescriber

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds between tries
_MAX_BYTES = 2**20  # of an answer
_EXCERPT = 200  # characters of an answer in a message

_jitter = random.Random()  # of its own: the global generator belongs to the user


def _sleep(seconds: float, stop: threading.Event) -> None:
    """Wait, unless the whole request is given up."""
    stop.wait(seconds)


class ChatDescriber(WordingDescriber):
    """A chat endpoint words the statistics of each code.

    Parameters
    ----------
    base_url : str
        Address up to the version, for instance ``"http://localhost:8000/v1"``; http or https.
        Proxies are those of the environment, as always in Python; redirects are not followed.
    model : str
        Name of the model, as the endpoint knows it.
    api_key_env : str
        NAME of the environment variable with the key. Where it is not set, no key is sent.
    timeout : float
        Seconds to wait for an endpoint at each try.
    max_retries : int
        Tries after the first one, at longer and longer intervals, of what may pass: no connection,
        no answer in time, status 408, 409, 429 or 500 and above. ``Retry-After`` is honoured.
    max_concurrency : int
        Requests at the same time.
    max_tokens : int
        Most tokens of an answer.
    temperature, seed : float, int
        Of the answers, as far as the endpoint honours them.
    on_error : str
        ``"raise"``, or ``"statistical"``: a warning and the statistical text where there is no
        answer.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 30.0,
        max_retries: int = 3,
        max_concurrency: int = 4,
        max_tokens: int = 48,
        temperature: float = 0.0,
        seed: int = 0,
        on_error: str = "raise",
    ) -> None:
        super().__init__(model, on_error)
        _check_url(base_url)
        if not isinstance(api_key_env, str) or not re.fullmatch(r"[A-Za-z_]\w*", api_key_env):
            raise ValueError(
                "describer_kwargs['api_key_env'] must be the name of an environment variable: "
                "letters, digits and underscores. What was found is not shown, it may be a key."
            )
        check_number("describer_kwargs['timeout']", timeout, exclusive="()")
        check_integer("describer_kwargs['max_retries']", max_retries, 0)
        check_integer("describer_kwargs['max_concurrency']", max_concurrency, 1)
        check_integer("describer_kwargs['max_tokens']", max_tokens, 1)
        check_number("describer_kwargs['temperature']", temperature)
        check_integer("describer_kwargs['seed']", seed, 0)
        self.base_url = base_url.rstrip("/")
        self.api_key_env = api_key_env
        self.timeout = float(timeout)
        self.max_retries = max_retries
        self.max_concurrency = max_concurrency
        self.max_tokens = max_tokens
        self.temperature = float(temperature)
        self.seed = seed

    def _identity(self) -> dict[str, Any]:
        return {"kind": "chat", "base_url": self.base_url, **self._settings()}

    def _settings(self) -> dict[str, Any]:
        names = ("model", "max_tokens", "temperature", "seed")
        return {name: getattr(self, name) for name in names}

    def _answers(self, requests: dict[int, str]) -> Generator[tuple[int, str]]:
        key = _key_of(self.api_key_env)
        stop, failure = threading.Event(), None
        pool = ThreadPoolExecutor(min(self.max_concurrency, len(requests)))
        futures = {pool.submit(self._answer, r, key, stop): code for code, r in requests.items()}
        try:
            for future in as_completed(futures):
                try:
                    answer = future.result()
                except CancelledError:
                    continue  # of which another failure is the reason
                except DescriberError as error:
                    failure = failure or error
                else:
                    yield futures[future], answer
            if failure is not None:
                raise failure
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _answer(self, request: str, key: str, stop: threading.Event) -> str:
        """Return the answer to one request, tried again while that may help."""
        body = {
            **self._settings(),
            "messages": [{"role": "user", "content": request}],
            "stream": False,
        }
        data = json.dumps(body).encode()
        for n_tries in range(1, self.max_retries + 2):
            if stop.is_set():
                raise CancelledError
            try:
                return _content(self._post(data, key))
            except _Failure as failed:
                failure = failed
            if not failure.may_pass or n_tries > self.max_retries:
                break
            wait = _FIRST_WAIT * 2 ** (n_tries - 1) * _jitter.uniform(0.5, 1.0)
            _sleep(min(max(wait, failure.wait), _LONGEST_WAIT), stop)
        stop.set()  # what one request meets the others would meet, too
        known = "is set" if key else "is not set"
        raise DescriberError(
            f"describer='chat': model {self.model!r} at {self._url} gave no answer in {n_tries} "
            f"{'try' if n_tries == 1 else 'tries'}: {failure}. Check that the server runs and that "
            f"base_url, model and the key fit ({self.api_key_env} {known}); raise timeout or "
            "max_retries, or pass describer_kwargs={..., 'on_error': 'statistical'}."
        )

    @property
    def _url(self) -> str:
        return f"{self.base_url}/chat/completions"

    def _post(self, data: bytes, key: str) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = Request(self._url, data=data, headers=headers, method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with build_opener(_NoRedirect).open(request, timeout=self.timeout) as response:
                return _without(key, _read(response, deadline))
        except HTTPError as error:
            with error:
                told = _excerpt(_without(key, _read_error(error, deadline)))
            may_pass = error.code in (408, 409, 429) or error.code >= 500
            wait = _retry_after(error.headers)
            raise _Failure(f"status {error.code}, {told}", may_pass, wait) from None
        except (OSError, HTTPException) as error:
            cause = error.reason if isinstance(error, URLError) else error
            may_pass = not isinstance(cause, ssl.SSLCertVerificationError)
            told = _without(key, f"{type(cause).__name__}: {cause}")
            raise _Failure(told, may_pass) from None


class _Failure(Exception):
    """One try that failed: whether it may pass, and the seconds that the endpoint asks for."""

    def __init__(self, reason: str, may_pass: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        self.wait = wait


class _NoRedirect(HTTPRedirectHandler):
    """Redirects are answers like others: a key must not follow them to another host."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _check_url(url: str) -> None:
    expected = (
        "describer_kwargs['base_url'] must be like 'http://host:port/v1' or 'https://host/v1'"
    )
    hidden = "What was found is not shown, it may hold a secret."
    if not isinstance(url, str):
        raise TypeError(f"{expected}, found an object of type {type(url).__name__}.")
    if re.search(r"[\s\x00-\x20\x7f]", url) or not url.isascii():
        raise ValueError(f"{expected}, in ASCII and without spaces. {hidden}")
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname)
        parts.port  # noqa: B018  # raises unless it is a number
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"{expected}. {hidden}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"{expected}, without a user, a password, '?' or '#'. {hidden} Put a key into an "
            "environment variable and the variable's name into 'api_key_env'."
        )


def _key_of(name: str) -> str:
    """Return the key that an environment variable holds, or nothing."""
    key = os.environ.get(name, "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", key):  # http.client would repeat it in its error
        raise ValueError(
            f"the environment variable {name} must hold a key of ASCII characters without spaces "
            "or line breaks, found others (not shown)."
        )
    return key


def _without(key: str, told: str) -> str:
    return told.replace(key, "***") if key else told


def _read(response: HTTPResponse, deadline: float) -> str:
    """Return an answer that comes in time and is not too long."""
    data = b""
    while chunk := response.read1(2**16):
        data += chunk
        if len(data) > _MAX_BYTES:
            raise _Failure(f"an answer of more than {_MAX_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("the answer came too slowly")
    if response.length:
        raise IncompleteRead(data, response.length)
    return data.decode(errors="replace")


def _read_error(error: HTTPError, deadline: float) -> str:
    """Return what comes with a status, as far as it comes."""
    try:
        return _read(error.fp, deadline)  # type: ignore[arg-type]
    except (OSError, HTTPException, _Failure):
        return ""  # the status tells enough


def _excerpt(told: str) -> str:
    """Return the beginning of an answer, for a message."""
    told = "".join(c for c in " ".join(told.split()) if c.isprintable())
    return repr(told[:_EXCERPT] + "..." * (len(told) > _EXCERPT)) if told else "without a text"


def _content(told: str) -> str:
    """Return the text of an answer, empty if it has none."""
    try:
        content = json.loads(told)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        content = 0
    if not isinstance(content, str | None):
        raise _Failure(
            f"expected JSON with a text in choices[0].message.content, found {_excerpt(told)}"
        )
    return content or ""


def _retry_after(headers: Message) -> float:
    """Return the seconds that an endpoint asks to wait, given as a number or a date."""
    told = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", told):
        return float(told)
    try:
        date = parsedate_to_datetime(told)
    except ValueError:
        return 0.0
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())

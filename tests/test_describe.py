"""Describers: what one sees in a window is what its text says, and each code is asked for once."""

import copy
import math
import pickle
import shutil
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch

import tsllm_estimators
from tsllm_estimators.llm import huggingface, text_cache, wording
from tsllm_estimators.llm.describe import StatisticalDescriber, check_describer, load_describer
from tsllm_estimators.llm.text import clear_text_cache
from tsllm_estimators.llm.wording import DescriberError, clear_descriptions

STATISTICAL = StatisticalDescriber()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Begin without any text."""
    monkeypatch.setenv("TSLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(text_cache, "_unusable", set())
    clear_descriptions()
    yield
    clear_descriptions()


def said(window):
    """Return what is said of one window (L,)."""
    window = torch.as_tensor(window, dtype=torch.float32)
    return STATISTICAL.text(int(STATISTICAL.codes(window.reshape(1, -1, 1))))


def ramp(length=24):
    return torch.linspace(-1.7, 1.7, length)


def sine(n_cycles, length=96, phase=0.0):
    return torch.sin(2 * math.pi * n_cycles * torch.arange(length) / length + phase)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spike(place, length=24):
    window = 0.1 * noise(length)
    window[place] = 6.0
    return window


# What the codes say


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (ramp(), ["rises steadily", "smooth", "few swings", "highest late", "lowest early"]),
        (-ramp(), ["falls steadily", "smooth", "highest early", "lowest late"]),
        (ramp() + 1.7 * noise(24), ["tends to rise and ends higher"]),
        (-ramp() - 1.7 * noise(24), ["tends to fall and ends lower"]),
        (sine(1, phase=math.pi / 2), ["one slow wave", "few swings", "smooth", "lowest midway"]),
        (sine(3), ["a few cycles", "no clear trend and ends near its start"]),
        (sine(8), ["many short cycles", "many swings", "smooth"]),
        (sine(12) + 2 * ramp(96), ["rises steadily", "many short cycles"]),
        (noise(96), ["no clear trend", "rough", "many swings", "no clear cycle"]),
        (spike(2), ["highest early", "few swings"]),
        (spike(12), ["highest midway"]),
        (-spike(22), ["lowest late"]),
        (
            torch.tensor([0.0] * 12 + [1.0] * 12),
            ["rises steadily", "highest midway", "lowest early"],
        ),
        (torch.tensor([1.0, -1.0] * 12), ["rough", "many swings", "many short cycles"]),
    ],
)
def test_a_text_says_what_one_sees(window, expected):
    text = said(window)
    assert not [part for part in expected if part not in text], text


def test_no_cycle_is_seen_in_a_line_or_a_step():
    assert "no clear cycle" in said(ramp())
    assert "no clear cycle" in said(noise(96).cumsum(0) * 1e-4 + 10 * ramp(96))


@pytest.mark.parametrize("length", [1, 2, 3, 12, 720])
@pytest.mark.parametrize("value", [0.0, 3.0, -7.3])
def test_what_hardly_moves_is_flat(length, value):
    assert said(torch.full((length,), value)) == "The series stays flat."
    assert said(value + 0.005 * noise(length).clamp(-1, 1)) == "The series stays flat."


@pytest.mark.parametrize("length", [2, 3, 4, 5, 7, 12, 36, 96, 336, 720])
def test_codes_are_of_the_alphabet_at_any_length(length):
    codes = STATISTICAL.codes(noise(64, length, 3))
    assert codes.shape == (64, 3)
    assert codes.dtype == torch.int64
    assert (codes >= 0).all()
    assert (codes < STATISTICAL.n_codes).all()
    assert len(codes.unique()) > 1


def test_distinct_codes_have_distinct_plain_texts():
    texts = STATISTICAL.texts(range(STATISTICAL.n_codes))
    assert len(set(texts)) == len(texts) == STATISTICAL.n_codes < 2000
    assert max(len(text.split()) for text in texts) <= 32
    assert not any(character.isdigit() for text in texts for character in text)
    assert texts == [STATISTICAL.text(code) for code in range(len(texts))]


@pytest.mark.parametrize("code", [-1, STATISTICAL.n_codes])
def test_a_code_that_is_none(code):
    with pytest.raises(ValueError, match=rf"code must be in \[0, 1945\), found {code}"):
        STATISTICAL.text(code)


@pytest.mark.parametrize("length", [12, 96])
@pytest.mark.parametrize("walk", [False, True])
def test_level_and_scale_do_not_matter(length, walk):
    windows = noise(500, length, 3)
    windows = windows.cumsum(1) if walk else windows
    codes = STATISTICAL.codes(windows)
    other = (1000 * windows.double() + 7).float()
    same = STATISTICAL.codes(other) == codes
    assert same.float().mean() > 0.999
    turned = STATISTICAL.codes(-windows)
    assert (turned != codes).float().mean() > 0.5


def test_rounding_decides_nothing_where_values_are_equal():
    windows = torch.randint(0, 3, (500, 12, 1), generator=torch.Generator().manual_seed(1)).float()
    codes = STATISTICAL.codes(windows)
    for seed in range(3):
        moved = 1000 * windows.double() + 7
        moved = moved * (1 + 1e-6 * noise(500, 12, 1, seed=seed))
        assert (STATISTICAL.codes(moved.float()) == codes).float().mean() > 0.995


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_say_nearly_the_same(dtype):
    windows = noise(500, 12, 3).to(dtype)
    codes = STATISTICAL.codes(windows)
    assert (codes == STATISTICAL.codes(windows.float())).float().mean() > 0.999


def test_a_window_speaks_for_itself():
    windows = noise(6, 24, 3)
    together = STATISTICAL.codes(windows)
    for i in range(6):
        for c in range(3):
            assert STATISTICAL.codes(windows[i : i + 1, :, c : c + 1]) == together[i, c]


def test_codes_have_no_gradient_and_no_break_in_a_graph():
    windows = noise(8, 24, 2).requires_grad_()
    assert not STATISTICAL.codes(windows).requires_grad
    with torch.inference_mode():
        expected = STATISTICAL.codes(windows)
    compiled = torch.compile(STATISTICAL.codes, backend="eager", fullgraph=True)
    assert torch.equal(compiled(windows), expected)
    # on a device without values nothing can be read back to the host
    assert STATISTICAL.codes(torch.empty(8, 24, 2, device="meta")).shape == (8, 2)


def test_the_levels_are_used_on_real_data(data_folder):
    def standard(name, columns):
        values = torch.tensor(pd.read_csv(data_folder / name).iloc[:, columns:].to_numpy()).float()
        return (values - values.mean(0)) / values.std(0)

    for values, length, least in (
        (standard("los_speed.csv", 0), 12, 7.5),
        (standard("ETTh1.csv", 1), 96, 6.5),
    ):
        windows = values.unfold(0, length, 1).transpose(1, 2)
        codes = torch.cat([STATISTICAL.codes(part) for part in windows.split(1000)])
        shares = codes.flatten().bincount() / codes.numel()
        shares = shares[shares > 0]
        assert len(shares) < 2000
        assert -(shares * shares.log2()).sum() > least  # bits


# Arguments


def test_the_kinds_of_describers():
    check_describer("statistical", None)
    assert isinstance(load_describer("statistical", {}), StatisticalDescriber)
    assert load_describer("statistical", None).is_reproducible
    chat = load_describer("chat", {"base_url": "http://localhost:1/v1", "model": "m"})
    assert not chat.is_reproducible
    assert chat.n_codes == STATISTICAL.n_codes
    windows = noise(4, 12, 2)
    assert torch.equal(chat.codes(windows), STATISTICAL.codes(windows))


@pytest.mark.parametrize(
    ("kind", "kwargs", "error", "message"),
    [
        ("oracle", None, ValueError, "describer must be one of"),
        ("statistical", [1], TypeError, "describer_kwargs must be a dict or None"),
        ("statistical", {"model": "x"}, ValueError, r"must be among \[\], found \['model'\]"),
        ("huggingface", None, ValueError, r"must hold \['model'\], found no \['model'\]"),
        ("huggingface", {"model": ""}, TypeError, r"describer_kwargs\['model'\] must be a name"),
        ("huggingface", {"max_new_tokens": 0}, ValueError, r"\['max_new_tokens'\] must be an int"),
        ("huggingface", {"batch_size": 1.5}, TypeError, r"\['batch_size'\] must be an integer"),
        ("huggingface", {"temperature": -1}, ValueError, r"\['temperature'\] must be a number"),
        ("huggingface", {"seed": -1}, ValueError, r"\['seed'\] must be an integer >= 0"),
        ("huggingface", {"model_kwargs": "x"}, TypeError, r"\['model_kwargs'\] must be a dict"),
        ("huggingface", {"device": "moon"}, ValueError, r"\['device'\] must be a device"),
        ("huggingface", {"on_error": "skip"}, ValueError, r"\['on_error'\] must be one of"),
    ],
)
def test_wrong_arguments_are_named(kind, kwargs, error, message):
    if kind == "huggingface" and kwargs:
        kwargs = {"model": "x", **kwargs}
    with pytest.raises(error, match=message):
        check_describer(kind, kwargs)


# A causal language model


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    """Return directories of tiny random causal models: plain, and with a chat template."""
    import transformers as hf

    folders = {}
    for name in ("plain", "chat"):
        folders[name] = tmp_path_factory.mktemp(name)
        config = hf.GPT2Config(
            vocab_size=128, n_embd=16, n_layer=2, n_head=2, n_positions=512, eos_token_id=0
        )
        torch.manual_seed(3)
        model = hf.AutoModelForCausalLM.from_config(config)
        model.generation_config.update(do_sample=True, temperature=3.0)  # habits to leave out
        model.save_pretrained(folders[name])
        tiny = Path(tsllm_estimators.__file__).parent / "llm" / "tiny"
        for file in tiny.glob("tokenizer*.json"):
            shutil.copy(file, folders[name])
    template = "{% for m in messages %}value of {{ m['content'] }} the{% endfor %}"
    tokenizer = hf.AutoTokenizer.from_pretrained(folders["chat"])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folders["chat"])
    return {name: str(folder) for name, folder in folders.items()}


def writer(folder, **kwargs):
    return load_describer("huggingface", {"model": folder, "max_new_tokens": 8, **kwargs})


@pytest.fixture
def asked(monkeypatch):
    """Return a list that grows by the codes of each batch that a model writes."""
    batches, write = [], huggingface.HuggingFaceDescriber._write

    def counted(self, model, requests, codes):
        batches.append(list(codes))
        return write(self, model, requests, codes)

    monkeypatch.setattr(huggingface.HuggingFaceDescriber, "_write", counted)
    return batches


def test_a_language_model_words_each_code_once(writers, asked):
    describer = writer(writers["plain"], batch_size=2)
    texts = describer.texts([3, 1, 3, 700, 1])
    assert asked == [[3, 1], [700]]
    assert texts[0] == texts[2] == describer.text(3)
    assert texts[1] == texts[4]
    assert all(text and text == " ".join(text.split()) for text in texts)
    assert texts != STATISTICAL.texts([3, 1, 3, 700, 1])
    assert len(asked) == 2


def test_texts_are_found_by_copies_and_by_other_processes(writers, asked):
    describer = writer(writers["plain"])
    texts = describer.texts([5, 6])
    twins = [copy.deepcopy(describer), pickle.loads(pickle.dumps(describer))]
    assert [twin.texts([6, 5]) for twin in twins] == [texts[::-1]] * 2
    clear_descriptions()  # as a new process
    assert writer(writers["plain"]).texts([5, 6]) == texts
    assert asked == [[5, 6]]
    text_cache.clear()
    clear_descriptions()
    assert writer(writers["plain"]).texts([5, 6]) == texts
    assert asked == [[5, 6]] * 2


def test_clearing_the_cache_of_texts_forgets_descriptions_too(writers, asked):
    describer = writer(writers["plain"])
    describer.text(5)
    clear_text_cache(disk=False)
    describer.text(5)
    assert asked == [[5]]
    clear_text_cache()
    describer.text(5)
    assert asked == [[5]] * 2


def test_threads_ask_once_for_the_same(writers, asked):
    describer = writer(writers["plain"])
    threads = [threading.Thread(target=describer.texts, args=([8, 9],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [[8, 9]]


def test_a_pickle_has_no_weights_and_a_model_is_loaded_once(writers, monkeypatch):
    loaded, load = [], huggingface._load
    monkeypatch.setattr(huggingface, "_load", lambda *args: loaded.append(args) or load(*args))
    describer = writer(writers["plain"])
    describer.text(1)
    twin = copy.deepcopy(describer)
    assert len(pickle.dumps(describer)) < 2000
    twin.text(2)
    writer(writers["plain"], temperature=1.0).text(2)
    assert len(loaded) == 1
    del describer, twin
    assert not huggingface._writers


def test_settings_that_change_an_answer(writers):
    codes = [1, 2, 3, 4]
    plain = writer(writers["plain"]).texts(codes)
    assert writer(writers["plain"], max_new_tokens=2).texts(codes) != plain
    assert writer(writers["chat"]).texts(codes) != plain
    assert writer(writers["plain"], seed=1).texts(codes) == plain  # nothing is drawn
    drawn = writer(writers["plain"], temperature=1.0).texts(codes)
    assert drawn != plain
    assert writer(writers["plain"], temperature=1.0, seed=1).texts(codes) != drawn
    assert writer(writers["plain"], temperature=5.0).texts(codes) != drawn


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_neighbours_in_a_batch_do_not_change_a_text(writers, temperature):
    codes = [0, 9, 700, 1500]  # requests of different length
    together = writer(writers["plain"], temperature=temperature).texts(codes)
    text_cache.clear()
    clear_descriptions()
    alone = writer(writers["plain"], temperature=temperature, batch_size=1).texts(codes[::-1])
    assert alone[::-1] == together


def test_greedy_text_is_that_of_transformers_itself(writers):
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(writers["chat"])
    model = hf.AutoModelForCausalLM.from_pretrained(writers["chat"])
    request = f"value of {wording._INSTRUCTION}{STATISTICAL.text(7)} the"
    inputs = tokenizer(request, return_tensors="pt")
    given = model.generate(
        inputs.input_ids,
        attention_mask=inputs.attention_mask,
        do_sample=False,
        temperature=None,
        max_new_tokens=8,
    )
    expected = tokenizer.decode(given[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert writer(writers["chat"]).text(7) == " ".join(expected.split())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_global_generator_stays_where_it_is(writers, temperature):
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    writer(writers["plain"], temperature=temperature).text(11)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_rewritten_directory_is_another_model(writers, tmp_path):
    import transformers as hf

    folder = tmp_path / "model"
    shutil.copytree(writers["plain"], folder)
    first = writer(str(folder)).texts(range(4))
    config = hf.AutoConfig.from_pretrained(folder)
    torch.manual_seed(4)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    assert writer(str(folder)).texts(range(4)) != first


def test_a_text_within_a_forecast_and_after_it(writers):
    describer = writer(writers["plain"])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        first = describer.text(1)
    text_cache.clear()
    clear_descriptions()
    assert describer.text(1) == first


def test_a_request_that_is_too_long_for_the_model(writers):
    with pytest.raises(ValueError, match=r"\['max_new_tokens'\] must be at most \d+: model .* 512"):
        writer(writers["plain"], max_new_tokens=500, on_error="statistical").text(1)


@pytest.mark.parametrize("reason", ["absent", "no head", "no tokenizer", "no hub"])
def test_a_model_that_cannot_be_had(language_models, writers, tmp_path, reason):
    import transformers as hf

    folder = tmp_path / "model"
    if reason == "no head":
        shutil.copytree(language_models["llama"], folder)
    elif reason == "no tokenizer":
        hf.AutoModelForCausalLM.from_pretrained(writers["plain"]).save_pretrained(folder)
    name = "nobody/nothing" if reason == "no hub" else str(folder)
    with pytest.raises(OSError, match=r"cannot be loaded: .* Ways out: a local directory"):
        writer(name).text(1)
    with pytest.warns(UserWarning, match="2 descriptions are the statistical ones: .*cannot be"):
        texts = writer(name, on_error="statistical").texts([1, 2, 1])
    assert texts == STATISTICAL.texts([1, 2, 1])


def test_an_answer_without_text(writers, monkeypatch, asked):
    answers = {1: "good", 2: " \n<think>what is", 3: "<think>a b</think>also\n\n good "}
    monkeypatch.setattr(
        huggingface.HuggingFaceDescriber,
        "_write",
        lambda s, w, r, codes: [answers[c] for c in codes],
    )
    with pytest.raises(
        ValueError, match=r"expected a text for code 2 \('The series .*found an emp"
    ):
        writer(writers["plain"]).texts([1, 2, 3])
    with pytest.warns(UserWarning, match=r"1 descriptions are the statistical ones: .*code 2"):
        texts = writer(writers["plain"], on_error="statistical").texts([1, 2, 3])
    assert texts == ["good", STATISTICAL.text(2), "also good"]
    answers[2] = "x" * 1000
    assert writer(writers["plain"]).texts([1, 2]) == ["good", "x" * 400]


def test_a_bar_is_shown_where_it_is_wanted(writers, monkeypatch, capsys):
    from tsllm_estimators.llm import progress

    monkeypatch.setattr(progress, "_BAR_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_TRIAL_SECONDS", 0.0)
    writer(writers["plain"], batch_size=1).texts([1, 2, 3])
    assert "Describing" not in capsys.readouterr().err
    writer(writers["plain"], batch_size=1).texts([4, 5, 6], progress=True)
    assert "Describing windows" in capsys.readouterr().err


def test_the_error_of_a_describer_is_an_oserror():
    assert issubclass(DescriberError, OSError)

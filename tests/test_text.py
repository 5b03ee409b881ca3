"""Texts as vectors: what they are, encoded once, kept in memory and on disk, and never fatal."""

import os
import pickle
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tsllm_estimators.llm import progress, text, text_cache, tokens
from tsllm_estimators.llm.pristine import (
    DEFAULT_BACKBONE,
    clear_backbone_cache,
    pristine,
    source_of,
)
from tsllm_estimators.llm.text import clear_text_cache, load_text_encoder

TEXTS = ["load", "The load is 12 .", "rise and fall, 7 of them", "a", "high 3", "low 3"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Begin without any vector; returns the file of this test's cache."""
    monkeypatch.setenv("TSLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(text_cache, "_unusable", set())
    clear_text_cache()
    yield tmp_path / "cache" / "texts" / "v1.sqlite"
    clear_text_cache()


@pytest.fixture
def count_texts(monkeypatch):
    """Return a list that grows by the number of texts of each forward pass."""
    counts, run = [], text._run

    def counted(model, words, rows, *rest):
        counts.append(len(rows))
        return run(model, words, rows, *rest)

    monkeypatch.setattr(text, "_run", counted)
    return counts


def forget():
    """Forget what is in memory, as a new process would."""
    clear_text_cache(disk=False)


def close(first, second):
    return torch.allclose(first.float(), second.float(), rtol=2e-3, atol=2e-3)


def direct(folder, texts):
    """Return the hidden states and the mask that transformers itself gives."""
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    return states, inputs["attention_mask"].bool()


def mean(states, mask):
    return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def last(states, mask):
    return states[torch.arange(len(states)), mask.sum(1) - 1]


# What the vectors are


@pytest.mark.parametrize(("name", "pool"), [("bert", mean), ("gpt2", last), ("llama", last)])
def test_vectors_are_those_of_transformers_itself(language_models, name, pool):
    encoder = load_text_encoder(language_models[name])
    states, mask = direct(language_models[name], TEXTS)
    assert encoder.pooled(TEXTS).dtype == torch.float16
    assert close(encoder.pooled(TEXTS), pool(states, mask))
    found, real = encoder.tokens(TEXTS)
    assert found.dtype == torch.float16
    assert torch.equal(real, mask)
    assert close(found, states * mask.unsqueeze(-1))
    assert not found[~real].any()


def test_the_default_pools_over_its_special_tokens_too():
    encoder = load_text_encoder(DEFAULT_BACKBONE)
    states, mask = direct(source_of(DEFAULT_BACKBONE), ["Friday, 1 July 2016", "", "a"])
    assert mask.sum(1).tolist() == [7, 2, 3]
    found = encoder.pooled(["Friday, 1 July 2016", "", "a"])
    assert encoder.width == found.shape[1] == 384
    assert close(found, mean(states, mask))


@pytest.mark.parametrize("causal", [None, True, False])
@pytest.mark.parametrize("name", [DEFAULT_BACKBONE, "gpt2", "llama"])
def test_neighbours_in_a_batch_do_not_change_a_vector(language_models, name, causal):
    encoder = load_text_encoder(language_models.get(name, name), layers=2, causal=causal)
    together = encoder.pooled(TEXTS)
    clear_text_cache()
    alone = torch.cat([encoder.pooled([one]) for one in TEXTS])
    assert close(together, alone)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_direction_of_attention_chooses_pooling_and_vectors(language_models, name):
    encoders = {c: load_text_encoder(language_models[name], causal=c) for c in (None, True, False)}
    pooled = {c: encoder.pooled(TEXTS).float() for c, encoder in encoders.items()}
    for causal, pool in ((True, last), (False, mean)):
        states, mask = encoders[causal].tokens(TEXTS)
        assert close(pooled[causal], pool(states.float(), mask))
    states = [encoders[causal].tokens(["rise and fall"])[0][0, 0] for causal in (True, False)]
    assert not close(*states)  # the first word hears of the others, or not
    own = name == "gpt2"
    assert torch.equal(pooled[None], pooled[own])
    assert encoders[None].fingerprint == encoders[own].fingerprint != encoders[not own].fingerprint


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_in_half_precision_gives_about_the_same(language_models, dtype):
    full = load_text_encoder(language_models["bert"])
    half = load_text_encoder(language_models["bert"], kwargs={"dtype": dtype})
    assert full.fingerprint != half.fingerprint
    assert torch.allclose(full.pooled(TEXTS), half.pooled(TEXTS), atol=0.1)


def test_values_beyond_half_precision_are_its_largest(language_models, tmp_path):
    folder = changed(language_models["llama"], tmp_path / "model", "last norm")
    assert load_text_encoder(folder).pooled(["load"]).abs().max() == 65504


def test_order_and_duplicates(language_models, count_texts):
    encoder = load_text_encoder(language_models["gpt2"])
    order = [3, 1, 1, 0, 5, 3]
    found = encoder.pooled([TEXTS[i] for i in order])
    assert sum(count_texts) == 4
    assert torch.equal(found, encoder.pooled(TEXTS)[order])
    assert sum(count_texts) == 6
    states, mask = encoder.tokens([TEXTS[i] for i in order])
    assert sum(count_texts) == 10  # tokens are another thing than pooled vectors
    whole, real = encoder.tokens(TEXTS)
    assert torch.equal(mask, real[order][:, : mask.shape[1]])
    assert torch.equal(states, whole[order][:, : mask.shape[1]])


def test_a_text_without_a_token_is_zero(count_texts):
    encoder = load_text_encoder("tiny")
    assert not encoder.pooled(["", " "]).any()
    states, mask = encoder.tokens(["", "Time of", " "])
    assert mask.tolist() == [[False, False], [True, True], [False, False]]
    assert not states[0].any()
    assert states[1].any()
    assert encoder.tokens([""])[0].shape == (1, 0, 16)
    assert count_texts == [1]


def test_no_texts_are_no_vectors(count_texts):
    encoder = load_text_encoder("tiny")
    assert encoder.pooled([]).shape == (0, 16)
    assert [tensor.shape for tensor in encoder.tokens([])] == [(0, 0, 16), (0, 0)]
    assert not count_texts


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_long_texts_are_cut_with_one_warning(language_models, name):
    encoder = load_text_encoder(language_models[name])
    expected = r"^2 of 3 texts are longer than the 32 tokens that backbone '.*' takes"
    with pytest.warns(UserWarning, match=expected) as caught:
        found, mask = encoder.tokens(["a " * 33, "a " * 40, "a " * 32])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert mask.all()
    assert mask.shape == (3, 32)
    assert torch.equal(found[0], found[2])


def test_a_cut_text_keeps_its_last_special_token():
    source = text.pristine(load_text_encoder(DEFAULT_BACKBONE, layers=1)._request)
    cut, short = tokens.many_token_ids(["load " * 600, "a"], source.request, 30522, limit=512)
    assert (len(cut), cut[0], cut[-2], cut[-1]) == (512, 101, 7170, 102)
    assert short == [101, 1037, 102]
    encoder = load_text_encoder(DEFAULT_BACKBONE, layers=1)
    with pytest.warns(UserWarning, match="512 tokens"):
        found = encoder.pooled(["load " * 600])
    assert torch.equal(found, encoder.pooled(["load " * 510]))


def test_tokens_from_after_the_paddings_place_are_fewer(tmp_path, language_models):
    import transformers as hf

    shape = {"vocab_size": 128, "hidden_size": 16, "num_hidden_layers": 1}
    config = hf.RobertaConfig(
        **shape, num_attention_heads=2, max_position_embeddings=34, pad_token_id=1
    )
    hf.AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    for file in Path(language_models["bert"]).glob("tokenizer*"):
        shutil.copy(file, tmp_path / "model")
    with pytest.warns(UserWarning, match="longer than the 32 tokens"):
        load_text_encoder(str(tmp_path / "model")).pooled(["a " * 33])


# What is refused


@pytest.mark.parametrize("name", ["none", "attention", "transformer"])
def test_a_stand_in_is_refused(name):
    with pytest.raises(ValueError, match=rf"must be a language model.*stand-in '{name}'.*'tiny'"):
        load_text_encoder(name)


@pytest.mark.parametrize("texts", ["load", ["a", None], ["a", float("nan")], [b"a"]])
def test_what_is_no_text_is_refused(texts):
    for encode in (load_text_encoder("tiny").pooled, load_text_encoder("tiny").tokens):
        with pytest.raises(TypeError, match="texts must be a list of strings, '' where there is"):
            encode(texts)


def test_wrong_arguments_are_those_of_a_backbone(language_models, tmp_path):
    with pytest.raises(ValueError, match="backbone_layers must be at most 3"):
        load_text_encoder(language_models["bert"], layers=4)
    with pytest.raises(ValueError, match="backbone_weights must be one of"):
        load_text_encoder("tiny", weights="none")
    with pytest.raises(OSError, match="cannot be loaded"):
        load_text_encoder(str(tmp_path / "none"))
    shutil.copytree(
        language_models["bert"], tmp_path / "m", ignore=shutil.ignore_patterns("tokenizer*")
    )
    with pytest.raises(OSError, match="a text needs its tokenizer"):
        load_text_encoder(str(tmp_path / "m"))


# Memory


def test_a_text_is_encoded_once_for_all_encoders_of_a_model(language_models, count_texts):
    encoder = load_text_encoder(language_models["bert"])
    first = encoder.pooled(TEXTS)
    assert sum(count_texts) == len(TEXTS)
    assert torch.equal(load_text_encoder(language_models["bert"]).pooled(TEXTS), first)
    assert torch.equal(pickle.loads(pickle.dumps(encoder)).pooled(TEXTS), first)
    assert sum(count_texts) == len(TEXTS)
    assert len(pickle.dumps(encoder)) < 2000


def test_what_is_returned_may_be_changed():
    encoder = load_text_encoder("tiny")
    expected = encoder.pooled(TEXTS).clone()
    encoder.pooled(TEXTS).zero_()
    assert torch.equal(encoder.pooled(TEXTS), expected)


def test_memory_is_bounded_and_drops_what_was_not_used_for_longest(monkeypatch, count_texts):
    encoder = load_text_encoder("tiny")
    entry = 2 * 16 + text_cache._ENTRY_BYTES
    monkeypatch.setattr(text, "TEXT_CACHE_BYTES", 3 * entry)
    monkeypatch.setattr(text_cache, "_use", lambda action: None)  # no disk
    for one in ("a", "of", "the", "a", "load"):  # "of" is dropped
        encoder.pooled([one])
    assert len(count_texts) == 4
    encoder.pooled(["a", "the", "load"])
    assert len(count_texts) == 4
    encoder.pooled(["of"])
    assert len(count_texts) == 5
    assert encoder.pooled(TEXTS).shape == (6, 16)  # more at once than it holds
    assert text._memory._n_bytes == sum(map(len, text._memory._entries.values())) + 600
    assert len(text._memory._entries) == 3
    monkeypatch.setattr(text, "TEXT_CACHE_BYTES", 0)
    assert encoder.tokens(TEXTS)[1].any()
    assert not text._memory._entries


def test_threads_encode_a_text_once_and_agree(language_models, count_texts):
    encoder = load_text_encoder(language_models["gpt2"])
    texts = [f"load {i}" for i in range(50)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: encoder.pooled(texts[i : i + 40]), range(10)))
    assert sum(count_texts) == 49
    whole = encoder.pooled(texts)
    assert all(torch.equal(part, whole[i : i + 40]) for i, part in enumerate(found))


def test_known_texts_need_no_weights(language_models, monkeypatch):
    encoder = load_text_encoder(language_models["llama"])
    expected = encoder.pooled(TEXTS)
    clear_backbone_cache()
    monkeypatch.setattr(text, "pristine", None)
    assert torch.equal(encoder.pooled(TEXTS), expected)


# Disk


def test_another_process_reads_what_was_encoded(language_models, tmp_path):
    folder = language_models["bert"]
    encoder = load_text_encoder(folder)
    torch.save((encoder.pooled(TEXTS), encoder.tokens(TEXTS)), tmp_path / "vectors.pt")
    code = f"""
import torch
from tsllm_estimators.llm import text
text._run = None  # nothing can be encoded
encoder = text.load_text_encoder({folder!r})
pooled, (tokens, mask) = torch.load({str(tmp_path / "vectors.pt")!r})
assert encoder.fingerprint == {encoder.fingerprint!r}
assert torch.equal(encoder.pooled({TEXTS!r}), pooled)
assert all(map(torch.equal, encoder.tokens({TEXTS!r}), (tokens, mask)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "begin", ["no file", pytest.param("a damaged file", marks=pytest.mark.slow)]
)
def test_processes_write_at_once(language_models, tmp_path, cache, begin, count_texts):
    if begin == "a damaged file":
        cache.parent.mkdir(parents=True)
        cache.write_bytes(b"no database" * 1000)
    code = f"""
import sys, time
from pathlib import Path
import torch
from tsllm_estimators.llm import text
text._BATCH_TOKENS, text._WRITE_SECONDS = 16, 0  # many transactions
encoder = text.load_text_encoder({language_models["bert"]!r})
number, folder = int(sys.argv[1]), Path({str(tmp_path)!r})
(folder / f"ready{{number}}").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
texts = [f"load {{i}}" for i in range(40 * number, 40 * number + 80)]
torch.save(encoder.pooled(texts), folder / f"{{number}}.pt")
"""
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], stderr=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    while len(list(tmp_path.glob("ready*"))) < 3:
        assert all(process.poll() is None for process in started)
        time.sleep(0.05)
    (tmp_path / "go").touch()
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "Warning" not in errors
        assert not errors or begin == "a damaged file"
    found = load_text_encoder(language_models["bert"]).pooled([f"load {i}" for i in range(160)])
    if begin == "no file":  # of a damaged one's successor a process may have lost a few entries
        assert not count_texts
    for number in range(3):
        theirs = torch.load(tmp_path / f"{number}.pt")
        assert close(theirs, found[40 * number : 40 * number + 80])
    with sqlite3.connect(cache) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize(
    "damage",
    [
        "data = zeroblob(32)",
        "data = substr(data, 2)",
        "data = CAST(x'80ff' AS TEXT)",
        "data = NULL, checksum = NULL",
        "data = 12",
        "checksum = checksum + 1",
        "checksum = 'x'",
    ],
)
def test_a_damaged_entry_is_encoded_again(cache, count_texts, damage):
    encoder = load_text_encoder("tiny")
    expected = encoder.pooled(TEXTS)
    with sqlite3.connect(cache) as connection:
        connection.execute(f"UPDATE vectors SET {damage} WHERE rowid = 2")
    for n_encoded in (1, 0):
        forget()
        count_texts.clear()
        assert close(encoder.pooled(TEXTS), expected)
        assert sum(count_texts) == n_encoded


def test_entries_that_changed_places_are_encoded_again(cache, count_texts):
    encoder = load_text_encoder("tiny")
    expected = encoder.pooled(TEXTS)
    with sqlite3.connect(cache) as connection:
        rows = connection.execute("SELECT * FROM vectors").fetchall()
        connection.executemany(
            "UPDATE vectors SET data = ?, checksum = ? WHERE key = ?",
            [(*rows[i][1:], rows[1 - i][0]) for i in range(2)],
        )
    forget()
    count_texts.clear()
    assert close(encoder.pooled(TEXTS), expected)
    assert sum(count_texts) == 2


def overwritten(path):
    path.write_bytes(b"no database" * 1000)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-3000])


def scribbled_on(path):
    content = bytearray(path.read_bytes())
    content[100:] = bytes([255]) * (len(content) - 100)
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [overwritten, cut_short, scribbled_on, emptied])
def test_a_damaged_file_is_begun_anew(cache, count_texts, damage):
    encoder = load_text_encoder("tiny")
    texts = [f"load {i}" for i in range(200)]
    expected = encoder.pooled(texts)
    damage(cache)
    for n_encoded in (200, 0):
        forget()
        count_texts.clear()
        assert close(encoder.pooled(texts), expected)
        assert sum(count_texts) == n_encoded


def locked(path, monkeypatch):
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(text_cache, "_TIMEOUT", 0.05)
    return "database is locked"


def read_only(path, monkeypatch):
    connect = sqlite3.connect
    source = f"file:{path}?mode=ro"
    monkeypatch.setattr(sqlite3, "connect", lambda _, **kw: connect(source, uri=True, **kw))
    return "attempt to write a readonly database"


def full(path, monkeypatch):
    connect = sqlite3.connect

    def small(*arguments, **kwargs):
        connection = connect(*arguments, **kwargs)
        connection.execute("PRAGMA max_page_count = 3")
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    return "database or disk is full"


def no_directory(path, monkeypatch):
    shutil.rmtree(path.parent)
    path.parent.write_text("")
    return "File exists"


@pytest.mark.parametrize("trouble", [locked, read_only, full, no_directory])
def test_a_disk_that_cannot_be_used_is_one_warning(cache, monkeypatch, count_texts, trouble):
    encoder = load_text_encoder("tiny")
    encoder.pooled(["a"])
    message = trouble(cache, monkeypatch)
    texts = [f"load {i}" for i in range(300)]
    expected = rf"text vectors in .*texts cannot be used \(.*{message}.*Point TSLLM_CACHE to"
    with pytest.warns(UserWarning, match=expected) as caught:
        first = encoder.pooled(texts)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(encoder.pooled(texts), first)  # from memory
        forget()
        count_texts.clear()
        assert close(encoder.pooled(texts), first)
    assert sum(count_texts) == 300
    if trouble is no_directory:
        cache.parent.unlink()


def test_an_interrupted_encoding_keeps_what_is_done(monkeypatch, count_texts):
    encoder = load_text_encoder("tiny")
    run = text._run

    def interrupted(*arguments):
        if len(count_texts) == 2:  # of three batches
            raise KeyboardInterrupt
        return run(*arguments)

    texts = [f"week {letter}" for letter in "abcdefghijklmno"]
    monkeypatch.setattr(text, "_BATCH_TOKENS", 10)
    with monkeypatch.context() as patch:
        patch.setattr(text, "_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encoder.pooled(texts)
    forget()
    encoder.pooled(texts)
    assert count_texts == [5, 5, 5]


def test_a_long_encoding_is_written_on_the_way(monkeypatch, count_texts):
    encoder = load_text_encoder("tiny")
    sizes = []
    monkeypatch.setattr(text_cache, "write", lambda entries: sizes.append(len(entries)))
    monkeypatch.setattr(text, "_BATCH_TOKENS", 10)
    monkeypatch.setattr(text, "_WRITE_SECONDS", 0)
    encoder.pooled([f"week {i}" for i in range(10)])
    assert sizes == [5, 5, 0]


def changed(folder, destination, name):
    """Return a copy of a model with one thing changed."""
    import transformers as hf

    shutil.copytree(folder, destination)
    model = hf.AutoModel.from_pretrained(folder)
    if name == "words":
        model.get_input_embeddings().weight.data *= 1.5
    elif name == "weights":
        model.encoder.layer[1].output.dense.weight.data *= 1.5
    elif name == "last norm":
        model.norm.weight.data *= 1e6
    elif name == "activation":
        model.config.hidden_act = "relu"
    elif name == "tokenizer":
        file = destination / "tokenizer.json"
        file.write_text(file.read_text().replace('"about"', '"load"'))
    model.save_pretrained(destination)
    return str(destination)


@pytest.mark.parametrize("name", ["words", "weights", "activation", "tokenizer"])
def test_another_model_shares_no_vectors(language_models, tmp_path, count_texts, name):
    encoder = load_text_encoder(language_models["bert"])
    first = encoder.pooled(TEXTS)
    other = load_text_encoder(changed(language_models["bert"], tmp_path / "model", name))
    assert other.fingerprint != encoder.fingerprint
    assert not torch.equal(other.pooled(TEXTS), first)
    assert sum(count_texts) == 2 * len(TEXTS)


def test_the_same_model_elsewhere_shares_them(language_models, tmp_path, count_texts):
    expected = load_text_encoder(language_models["bert"]).pooled(TEXTS)
    shutil.copytree(language_models["bert"], tmp_path / "model")
    assert torch.equal(load_text_encoder(str(tmp_path / "model")).pooled(TEXTS), expected)
    assert sum(count_texts) == len(TEXTS)


def test_layers_weights_and_seeds_share_no_vectors(language_models):
    folder = language_models["gpt2"]
    random = [{"weights": "random", "kwargs": {"seed": seed}} for seed in (0, 1)]
    settings = [{}, {"layers": 1}, {"layers": 2}, *random]
    encoders = [load_text_encoder(folder, **setting) for setting in settings]
    assert len({encoder.fingerprint for encoder in encoders}) == len(settings)
    found = [tuple(encoder.pooled(["load"])[0].tolist()) for encoder in encoders]
    assert len(set(found)) == len(settings)


def test_a_rewritten_directory_is_another_model(language_models, tmp_path, count_texts):
    folder = tmp_path / "model"
    shutil.copytree(language_models["bert"], folder)
    encoder = load_text_encoder(str(folder))
    first, name = encoder.pooled(TEXTS), encoder.fingerprint
    changed(language_models["bert"], tmp_path / "other", "weights")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    assert encoder.fingerprint != name
    assert not torch.equal(encoder.pooled(TEXTS), first)


def test_the_cache_is_private_and_where_it_is_wanted(cache, monkeypatch, tmp_path):
    before = os.umask(0)
    try:
        load_text_encoder("tiny").pooled(TEXTS)
    finally:
        os.umask(before)
    assert text.cache_directory() == tmp_path / "cache"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (cache.parent, cache)]
    assert modes == [0o700, 0o600]
    cache.parent.chmod(0o755)
    load_text_encoder("tiny").pooled(["week"])
    assert stat.S_IMODE(cache.parent.stat().st_mode) == 0o700
    monkeypatch.delenv("TSLLM_CACHE")
    assert text.cache_directory().is_relative_to(os.environ["XDG_CACHE_HOME"])
    assert "tsllm" in text.cache_directory().name


def test_clearing_forgets_memory_and_deletes_the_files(cache, count_texts):
    encoder = load_text_encoder("tiny")
    encoder.pooled(TEXTS)
    neighbour = cache.parent.parent / "other.txt"
    neighbour.write_text("stays")
    clear_text_cache(disk=False)
    assert cache.exists()
    encoder.pooled(TEXTS)
    assert sum(count_texts) == len(TEXTS)
    (cache.parent / "v1.sqlite.damaged").touch()
    clear_text_cache()
    assert not list(cache.parent.iterdir())
    assert neighbour.exists()
    encoder.pooled(TEXTS)
    assert sum(count_texts) == 2 * len(TEXTS)


# Around it


def test_a_bar_appears_only_where_it_is_asked_for_and_long(monkeypatch, capsys):
    encoder = load_text_encoder("tiny")
    monkeypatch.setattr(text, "_BATCH_TOKENS", 10)
    texts = [f"load {i}" for i in range(10, 40)]
    encoder.pooled(texts, progress=True)  # milliseconds
    assert capsys.readouterr() == ("", "")
    run = text._run
    monkeypatch.setattr(text, "_run", lambda *a: time.sleep(0.02) or run(*a))
    monkeypatch.setattr(progress, "_TRIAL_SECONDS", 0.03)
    monkeypatch.setattr(progress, "_BAR_SECONDS", 0.05)
    clear_text_cache()
    encoder.pooled(texts)
    assert capsys.readouterr() == ("", "")
    clear_text_cache()
    encoder.pooled(texts, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Encoding texts: 100%" in err
    assert "30/30" in err
    encoder.pooled(texts, progress=True)  # known
    assert capsys.readouterr() == ("", "")


def test_the_pristine_weights_stay_as_they_are(language_models):
    encoder = load_text_encoder(language_models["bert"])
    model = text.pristine(encoder._request).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = encoder.pooled(TEXTS, device="cpu")
    clear_text_cache()
    assert torch.equal(encoder.pooled(TEXTS, device=torch.device("cpu")), expected)
    assert text.pristine(encoder._request).model is model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_another_device_encodes_the_same_and_the_pristine_model_stays(language_models):
    for name in ("bert", "gpt2"):
        encoder = load_text_encoder(language_models[name])
        expected = encoder.pooled(TEXTS)
        clear_text_cache()
        assert close(encoder.pooled(TEXTS, device="cuda"), expected)
        assert text.pristine(encoder._request).model.device.type == "cpu"


def test_the_global_generator_is_left_alone(language_models):
    state = torch.get_rng_state()
    load_text_encoder(language_models["bert"]).pooled(TEXTS)
    assert torch.equal(torch.get_rng_state(), state)


def test_mixed_precision_of_a_training_does_not_reach_the_vectors():
    encoder = load_text_encoder("tiny")
    plain = encoder.pooled(TEXTS)
    clear_text_cache()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = encoder.pooled(TEXTS)
    assert torch.equal(plain, mixed)


def test_vectors_that_are_not_finite_are_an_error_and_not_kept(monkeypatch):
    encoder = load_text_encoder("tiny")
    embed = text._run

    def spoiled(model, words, *rest):
        return embed(model, words * float("nan"), *rest)

    monkeypatch.setattr(text, "_run", spoiled)
    with pytest.raises(ValueError, match="expected finite vectors of texts, found others"):
        encoder.pooled(["spoiled"])
    monkeypatch.setattr(text, "_run", embed)
    assert encoder.pooled(["spoiled"]).isfinite().all()


def test_a_setting_more_in_the_config_changes_the_cache_but_not_the_identity(monkeypatch):
    plain = load_text_encoder("tiny")
    before = plain.identity, plain.fingerprint
    config = type(pristine(plain._request).model.config)
    to_dict = config.to_dict
    monkeypatch.setattr(config, "to_dict", lambda self: {**to_dict(self), "added_later": None})
    clear_text_cache()
    assert plain.identity == before[0]
    assert plain.fingerprint != before[1]
    assert load_text_encoder("tiny", layers=1).identity != before[0]

"""Texts as word embeddings: the model's own tokens, and nothing of the tokenizer left behind."""

import copy
import json
import pickle
import random
import shutil
import string
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tsllm_estimators.llm import pristine, tokens
from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE, load_backbone

TEXT = "The task is to forecast 12 time steps ahead."


@pytest.fixture
def count_loads(monkeypatch):
    tokens._tokenizers.clear()
    loads, load = [], tokens._load
    monkeypatch.setattr(tokens, "_load", lambda request: loads.append(request) or load(request))
    return loads


def without_tokenizer(folder, destination):
    """Return a copy of a model's directory without its tokenizer."""
    shutil.copytree(folder, destination, ignore=shutil.ignore_patterns("tokenizer*"))
    return str(destination)


def test_embeddings_of_the_default_are_the_rows_of_its_word_embeddings():
    backbone = load_backbone(DEFAULT_BACKBONE, layers=1)
    # [CLS] forecast the load . [SEP] in the vocabulary of BERT
    ids = [101, 19939, 1996, 7170, 1012, 102]
    found = backbone.embed_text("Forecast the load.")
    assert torch.equal(found, backbone.word_embeddings[ids])
    assert not found.requires_grad


def test_a_long_text_is_neither_cut_nor_filled():
    backbone = load_backbone(DEFAULT_BACKBONE, layers=1)
    assert backbone.embed_text("load " * 1000).shape == (1002, 384)  # its limit is 512
    assert backbone.embed_text("").shape == (2, 384)  # [CLS] [SEP]


def test_tiny_has_words_and_can_spell_all_others():
    backbone = load_backbone("tiny")
    assert backbone.embed_text(TEXT).shape == (11, 16)  # ten words, 12 in two digits, a stop
    assert backbone.embed_text("zebra").shape == (5, 16)
    assert backbone.embed_text("").shape == (0, 16)


def test_tiny_knows_every_printable_character_and_has_a_vector_for_each_token():
    from transformers import AutoTokenizer

    n_words = json.loads((pristine._TINY / "config.json").read_text())["vocab_size"]
    tokenizer = AutoTokenizer.from_pretrained(pristine._TINY)
    assert len(tokenizer) <= n_words
    for character in string.printable.strip():
        assert tokenizer.unk_token_id not in tokenizer.encode(character), character
    assert tokenizer.unk_token_id not in tokenizer.encode(string.printable)
    assert tokenizer.encode("日") == [tokenizer.unk_token_id]


@pytest.mark.parametrize("name", ["none", "attention", "transformer"])
def test_words_of_a_stand_in_are_a_stable_hash(name):
    kwargs = {"hidden_size": 8, "num_attention_heads": 2}
    backbone = load_backbone(name, kwargs=kwargs)
    ids = [zlib.crc32(word) % 32 for word in (b"load", b"of", b"load")]
    assert len(set(ids)) == 2
    assert torch.equal(backbone.embed_text("Load of\n LOAD"), backbone.word_embeddings[ids])
    assert backbone.embed_text("").shape == (0, 8)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "bert"])
def test_a_directory_without_a_tokenizer_is_an_error_that_says_what_to_do(
    language_models, tmp_path, name
):
    folder = without_tokenizer(language_models[name], tmp_path / "model")
    with pytest.raises(OSError, match=r"expected tokenizer\.json .*save_pretrained.*'none'") as e:
        load_backbone(folder).embed_text(TEXT)
    assert repr(folder) in str(e.value)


def test_a_broken_tokenizer_is_the_same_error(language_models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(language_models["bert"], folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(OSError, match="found none that works"):
        load_backbone(str(folder)).embed_text(TEXT)


def test_a_tokenizer_of_another_model_is_refused(language_models, tmp_path):
    folder = without_tokenizer(language_models["bert"], tmp_path / "model")
    shutil.copy(Path(pristine.source_of(DEFAULT_BACKBONE), "tokenizer.json"), folder)
    with pytest.raises(ValueError, match=r"must give ids below 128.*found \d{4}.*another model"):
        load_backbone(folder).embed_text(TEXT)


def test_a_tokenizer_that_came_later_is_found(language_models, tmp_path):
    folder = without_tokenizer(language_models["llama"], tmp_path / "model")
    backbone = load_backbone(folder)
    with pytest.raises(OSError, match="found none"):
        backbone.embed_text("a")
    shutil.rmtree(folder)
    shutil.copytree(language_models["llama"], folder)
    assert backbone.embed_text("abc").shape == (3, 16)


def test_released_word_embeddings_are_an_error():
    backbone = load_backbone("tiny")
    backbone.release_word_embeddings()
    with pytest.raises(ValueError, match=r"found them released.*Call embed_text before"):
        backbone.embed_text(TEXT)


def test_random_weights_keep_the_tokens_and_change_their_vectors():
    backbones = [load_backbone("tiny", weights="random", kwargs={"seed": seed}) for seed in (0, 1)]
    first, second = (backbone.embed_text(TEXT) for backbone in backbones)
    assert first.shape == second.shape
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("name", ["tiny", "none", DEFAULT_BACKBONE])
def test_a_copied_or_pickled_backbone_embeds_the_same(name):
    backbone = load_backbone(name)
    expected = backbone.embed_text(TEXT)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(twin.embed_text(TEXT), expected)


def test_no_tokenizer_is_in_a_pickle():
    backbone = load_backbone("tiny")
    before = len(pickle.dumps(backbone))
    backbone.embed_text(TEXT)
    assert len(pickle.dumps(backbone)) == before
    assert b"okenizer" not in pickle.dumps(backbone)


def test_a_tokenizer_is_loaded_once_when_a_text_is_asked_for(count_loads):
    backbones = [load_backbone("tiny", layers=layers) for layers in (None, 1)]
    assert count_loads == []
    for backbone in backbones:
        backbone.embed_text(TEXT)
    assert len(count_loads) == 1


def test_the_least_recently_used_tokenizer_is_dropped(count_loads, monkeypatch):
    monkeypatch.setattr(tokens, "_MAX_TOKENIZERS", 2)
    for revision in ("a", "b", "a", "c", "a", "b"):
        load_backbone("tiny", kwargs={"revision": revision}).embed_text(TEXT)
    assert [request.kwargs["revision"] for request in count_loads] == ["a", "b", "c", "b"]


def test_arguments_that_say_where_files_are_reach_the_tokenizer(monkeypatch):
    from transformers import AutoTokenizer

    tokens._tokenizers.clear()
    asked, load = [], AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda source, **kw: asked.append(kw) or load(source)
    )
    kwargs = {"revision": "main", "local_files_only": True, "hidden_dropout_prob": 0.5}
    load_backbone("tiny", kwargs=kwargs).embed_text(TEXT)
    expected = {"revision": "main", "local_files_only": True, "trust_remote_code": False}
    assert asked == [expected]


def test_threads_share_one_tokenizer_and_embed_as_one_after_another(count_loads, monkeypatch):
    backbone = load_backbone(DEFAULT_BACKBONE, layers=1)
    texts = [f"{TEXT} {'load ' * i}" for i in range(64)]
    expected = [backbone.embed_text(text) for text in texts]
    tokens._tokenizers.clear()
    count_loads.clear()
    load = tokens._load
    monkeypatch.setattr(tokens, "_load", lambda request: time.sleep(0.05) or load(request))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(backbone.embed_text, texts))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(count_loads) == 1


def test_the_global_generators_are_left_alone():
    tokens._tokenizers.clear()
    backbone = load_backbone("tiny")
    states = random.getstate(), torch.get_rng_state()
    backbone.embed_text(TEXT)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_nothing_is_printed_even_of_long_texts_and_forks():
    code = f"""
import os
from tsllm_estimators.llm.backbone import load_backbone
backbone = load_backbone({DEFAULT_BACKBONE!r}, layers=1)
backbone.embed_text("load " * 1000)
child = os.fork()
if not child:
    os._exit(len(backbone.embed_text("load")))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
"""
    # From Python 3.12 on every fork of a process with threads is a DeprecationWarning
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

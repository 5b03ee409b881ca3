"""Principal words: the right components, computed once, whatever happens to the cache."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from tsllm_estimators.llm import words as module
from tsllm_estimators.llm.words import cache_directory, principal_words


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TSLLM_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def embeddings():
    return torch.randn(60, 8, generator=torch.Generator().manual_seed(0))


def forbid_computing(monkeypatch):
    monkeypatch.setattr(module, "_components", lambda _: pytest.fail("computed again"))


def test_components_are_those_of_scikit_learn(cache, embeddings):
    found = principal_words(embeddings, 5)
    reference = PCA(5)
    expected = reference.fit_transform(embeddings.T.double().numpy()).T
    signs = np.sign((found.vectors.numpy() * expected).sum(1, keepdims=True))
    np.testing.assert_allclose(found.vectors.numpy() * signs, expected, atol=1e-5)
    np.testing.assert_allclose(
        found.explained_variance, reference.explained_variance_ratio_, atol=1e-6
    )


def test_signs_do_not_depend_on_the_solver(cache, embeddings):
    vectors = principal_words(embeddings).vectors
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    assert (largest >= 0).all()


def test_default_number_is_500_or_as_many_as_there_are(cache, embeddings):
    assert principal_words(embeddings).vectors.shape == (8, 8)
    assert principal_words(torch.randn(5, 8)).vectors.shape == (5, 8)
    assert principal_words(torch.randn(510, 505)).vectors.shape == (500, 505)


def test_more_words_than_there_are_is_an_error(cache, embeddings):
    with pytest.raises(ValueError, match=r"n_principal_words must be at most 8.*found 9"):
        principal_words(embeddings, 9)


def test_second_call_reads_the_disk(cache, embeddings, monkeypatch):
    first = principal_words(embeddings, 4)
    forbid_computing(monkeypatch)
    second = principal_words(embeddings, 6)
    assert torch.equal(first.vectors, second.vectors[:4])
    assert cache_directory() == cache
    assert [p.suffix for p in cache.rglob("*") if p.is_file()] == [".safetensors"]


def test_other_embeddings_have_another_entry(cache, embeddings):
    first = principal_words(embeddings).vectors
    assert not torch.allclose(first, principal_words(embeddings + embeddings.roll(1, 1)).vectors)


def test_a_corrupted_entry_is_rebuilt(cache, embeddings, monkeypatch):
    expected = principal_words(embeddings).vectors
    (entry,) = (p for p in cache.rglob("*") if p.is_file())
    entry.write_bytes(b"not safetensors")
    assert torch.equal(principal_words(embeddings).vectors, expected)
    forbid_computing(monkeypatch)
    assert torch.equal(principal_words(embeddings).vectors, expected)


def test_a_cache_that_cannot_be_written_costs_time_only(cache, embeddings, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    assert principal_words(embeddings).vectors.shape == (8, 8)
    assert "TSLLM_CACHE" in caplog.text
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_without_a_setting_the_users_cache_is_used(monkeypatch):
    monkeypatch.delenv("TSLLM_CACHE")
    assert cache_directory().name == "tsllm_estimators"

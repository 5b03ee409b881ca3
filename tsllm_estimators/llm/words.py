"""Principal components of a language model's word embeddings."""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tsllm_estimators._validate import check_integer

_VERSION = 1  # of the cached files
_logger = logging.getLogger(__name__)


def cache_directory() -> Path:
    """Return the directory of derived tensors: ``TSLLM_CACHE``, else the user's cache.

    Everything in it can be deleted at any time and is then computed again.
    """
    chosen = os.environ.get("TSLLM_CACHE")
    if chosen:
        return Path(chosen)
    from platformdirs import user_cache_path

    return user_cache_path("tsllm_estimators")


@dataclass(frozen=True)
class PrincipalWords:
    """Principal components of the word embeddings.

    Attributes
    ----------
    vectors : Tensor
        Shape (K, d), float32, the first component first.
    explained_variance : Tensor
        Share of the variance that each component explains, shape (K,), float32.
    """

    vectors: Tensor
    explained_variance: Tensor


def principal_words(word_embeddings: Tensor, n_words: int | None = None) -> PrincipalWords:
    """Return the first principal components of a matrix of word embeddings.

    The dimensions of the embedding are the samples and the words the features: K components are
    K vectors of width d that stand for the whole vocabulary. They are computed once per matrix
    and kept in :func:`cache_directory`.

    Parameters
    ----------
    word_embeddings : Tensor
        Shape (V, d).
    n_words : int, optional
        K, at most min(d, V); by default 500 or as many as there are.

    Raises
    ------
    ValueError
        If ``n_words`` is more than there are.

    Notes
    -----
    Source: CALF (arXiv 2403.07300), "Principal word embedding extraction".
    """
    n_available = min(word_embeddings.shape)
    check_integer("n_principal_words", n_words, 1, optional=True)
    if n_words is not None and n_words > n_available:
        raise ValueError(
            f"n_principal_words must be at most {n_available} for word embeddings of shape "
            f"{tuple(word_embeddings.shape)} (words, width), found {n_words}."
        )
    path = cache_directory() / "principal_words" / f"{_key(word_embeddings)}.safetensors"
    found = _read(path, n_available)
    if found is None:
        found = _components(word_embeddings)
        _write(path, found)
    n_words = n_words or min(500, n_available)
    return PrincipalWords(found.vectors[:n_words].clone(), found.explained_variance[:n_words])


def _components(word_embeddings: Tensor) -> PrincipalWords:
    """Return all min(d, V) components, from the d x d Gram matrix of the centred embeddings."""
    samples = word_embeddings.detach().to("cpu", torch.float64).T  # (d, V)
    samples = samples - samples.mean(0)
    variances, directions = torch.linalg.eigh(samples @ samples.T)
    n_available = min(word_embeddings.shape)
    variances = variances.flip(0)[:n_available].clamp_min(0)
    scores = directions.flip(1)[:, :n_available] * variances.sqrt()  # (d, K)
    # The sign of a component is arbitrary: its entry of largest size is made positive.
    largest = scores.gather(0, scores.abs().argmax(0, keepdim=True))
    scores = scores * torch.where(largest < 0, -1.0, 1.0)
    total = variances.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return PrincipalWords(scores.T.float().contiguous(), (variances / total).float())


def _key(word_embeddings: Tensor) -> str:
    values = word_embeddings.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(json.dumps([_VERSION, list(values.shape)]).encode())
    digest.update(values.numpy().data)
    return digest.hexdigest()


def _read(path: Path, n_available: int) -> PrincipalWords | None:
    """Return a cached entry, or None if there is none that can be used."""
    try:
        with safe_open(path, framework="pt") as file:
            entry = PrincipalWords(
                file.get_tensor("vectors"), file.get_tensor("explained_variance")
            )
    except (OSError, SafetensorError):
        return None
    return entry if len(entry.vectors) == n_available else None


def _write(path: Path, words: PrincipalWords) -> None:
    """Write an entry so that other processes see all of it or nothing.

    A cache that cannot be written (read-only home, full disk) costs time, not the fit.
    """
    tensors = {"vectors": words.vectors, "explained_variance": words.explained_variance}
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(handle)
        save_file(tensors, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        _logger.warning(
            "cannot write %s (%s): principal words will be computed again; point TSLLM_CACHE to a "
            "directory that can be written.",
            path,
            error,
        )
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)

"""Texts as frozen vectors: each distinct text runs through a language model once.

What was encoded is kept in memory (at most ``TEXT_CACHE_BYTES``, the least recently used goes
first) and on disk, in ``cache_directory() / "texts"``. Everything there can be deleted at any
time, by :func:`clear_text_cache` or by hand.
"""

import copy
import hashlib
import inspect
import json
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tsllm_estimators.llm import text_cache
from tsllm_estimators.llm.backbone import position_names
from tsllm_estimators.llm.pristine import (
    Pristine,
    Request,
    fingerprint_of,
    is_causal,
    pristine,
    request_for,
    source_of,
)
from tsllm_estimators.llm.progress import ProgressBar
from tsllm_estimators.llm.stand_ins import STAND_INS
from tsllm_estimators.llm.tokens import many_token_ids, tokenizer_fingerprint
from tsllm_estimators.llm.words import cache_directory

__all__ = [
    "TEXT_CACHE_BYTES",
    "TextEncoder",
    "cache_directory",
    "clear_text_cache",
    "load_text_encoder",
]

_Rows = list[list[int]]  # ids of the tokens of some texts
_Ids = dict[bytes, list[int]]  # the same by the text's key

TEXT_CACHE_BYTES = 256 * 2**20

_VERSION = 1  # of how a text becomes a vector
_BATCH_TOKENS = 2048  # on two cores MiniLM is as fast with 1024 to 4096, and slower beyond
_WRITE_SECONDS = 5.0  # so much of an encoding may be lost if the process is killed


def load_text_encoder(
    backbone: str,
    *,
    layers: int | None = None,
    weights: str = "pretrained",
    causal: bool | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> "TextEncoder":
    """Return the encoder of texts that a frozen language model is.

    The arguments are those of :func:`~tsllm_estimators.llm.backbone.load_backbone`.

    Raises
    ------
    OSError
        If the model or its tokenizer cannot be had; the message names the ways out.
    ValueError
        If an argument does not fit the model, or the backbone is a stand-in.
    """
    request = request_for(backbone, layers, None, weights, causal, kwargs)
    if backbone in STAND_INS:
        raise ValueError(
            f"backbone must be a language model where texts are encoded, found the stand-in "
            f"{backbone!r}. Choose a Hugging Face id, a local directory or 'tiny', or leave the "
            "texts out."
        )
    _traits(request)
    return TextEncoder(request)


class TextEncoder:
    """Texts to vectors of a frozen language model.

    Made by :func:`load_text_encoder`. It holds no weights: they are the process's pristine ones,
    and needed only for texts that no cache knows. It can be pickled.
    """

    def __init__(self, request: Request) -> None:
        self._asked = request

    @property
    def width(self) -> int:
        """Width d of the vectors."""
        return _traits(self._request).width

    @property
    def identity(self) -> str:
        """Hash of the weights, the tokenizer and how they are used: tells one model from another.

        Unlike the fingerprint it leaves out the settings of the model's config, to which a new
        version of transformers may add some.
        """
        return _traits(self._request).identity

    @property
    def fingerprint(self) -> str:
        """Hash of all that shapes the vectors of a text: equal ones share cached vectors."""
        return _traits(self._request).fingerprint

    def pooled(
        self,
        texts: Sequence[str],
        *,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Return one vector for each text, shape (n, d), float16, on the CPU.

        It is the last token's hidden state of a causal model, and of others the mean over all
        tokens, special ones included. A text without any token is the zero vector.

        Parameters
        ----------
        texts : sequence of str
            The n texts; equal ones are encoded once.
        device : str or torch.device, optional
            Where the model runs, by default where it lies (the CPU).
        progress : bool
            Show a bar on stderr if several seconds lie ahead.

        Raises
        ------
        TypeError
            If something else than strings is among the texts.

        Warns
        -----
        UserWarning
            If texts that are encoded now are longer than the model can take, and cut; once per
            process if the cache on disk cannot be used.
        """
        texts = _check_texts(texts)
        vectors = self._vectors(texts, True, device, progress)
        return _tensor(b"".join(vectors)).reshape(len(texts), self.width)

    def tokens(
        self,
        texts: Sequence[str],
        *,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return the hidden states of each text's tokens, and which of them are real.

        Parameters, errors and warnings are those of :meth:`pooled`.

        Returns
        -------
        tokens : Tensor
            Shape (n, T, d), float16, on the CPU; T is the longest text's number of tokens. Zero
            after the end of a text.
        mask : Tensor
            Shape (n, T), bool; True where a token is real.
        """
        texts = _check_texts(texts)
        width = self.width
        vectors = [_tensor(v) for v in self._vectors(texts, False, device, progress)]
        lengths = torch.tensor([len(v) // width for v in vectors], dtype=torch.long)
        longest = int(lengths.max()) if len(lengths) else 0
        tokens = torch.zeros(len(texts), longest, width, dtype=torch.float16)
        for row, values in zip(tokens, vectors, strict=True):
            row.view(-1)[: len(values)] = values
        return tokens, torch.arange(longest) < lengths.unsqueeze(1)

    @property
    def _request(self) -> Request:
        # anew: a pickle may come from another machine
        return replace(self._asked, source=source_of(self._asked.backbone))

    def _vectors(self, texts: list[str], pool: bool, device: Any, progress: bool) -> list[bytes]:
        """Return each text's vectors as float16 bytes, from the caches or the model."""
        request = self._request
        traits = _traits(request)
        kind = ("last" if traits.causal else "mean") if pool else "tokens"
        model = json.dumps([traits.fingerprint, kind])
        keys = {text: hashlib.sha256((model + text).encode()).digest() for text in texts}
        found = _memory.get(keys.values())
        if len(found) < len(keys):
            with _encoding:  # threads that need the same texts wait for the first one's
                found |= _memory.get(key for key in keys.values() if key not in found)
                stored = text_cache.read(key for key in keys.values() if key not in found)
                _memory.put(stored, TEXT_CACHE_BYTES)
                found |= stored
                missing = {text: key for text, key in keys.items() if key not in found}
                if missing:
                    source = pristine(request)
                    ids = _ids(missing, source, traits.limit)
                    found |= _encode(ids, source, traits.causal, kind, device, progress)
        return [found[keys[text]] for text in texts]


def clear_text_cache(disk: bool = True) -> None:
    """Forget the vectors that this process holds and, with ``disk``, delete the files of all.

    Other processes may go on using the cache meanwhile; what they need is encoded again.
    """
    _memory.clear()
    with _traits_lock:
        _known.clear()
    if disk:
        text_cache.clear()


@dataclass(frozen=True)
class _Traits:
    """What a model is to texts, found once per model."""

    width: int
    causal: bool
    limit: int | None
    identity: str
    fingerprint: str


_known: dict[str, _Traits] = {}
_traits_lock = threading.Lock()


def _traits(request: Request) -> _Traits:
    with _traits_lock:
        key = request.key
        if key not in _known:
            _known[key] = _examine(request)
        return _known[key]


def _examine(request: Request) -> _Traits:
    source = pristine(request)
    model: Any = source.model
    causal = is_causal(model)
    without = {"_name_or_path", "transformers_version", "is_causal"}  # no matter, or said below
    settings = {k: v for k, v in model.config.to_dict().items() if k not in without}
    identity = [
        source.fingerprint,
        fingerprint_of(nn.Embedding.from_pretrained(source.word_embeddings)),
        tokenizer_fingerprint(request),
        causal,
        str(model.dtype),
    ]
    content = [_VERSION, *identity, settings]
    hashes = [
        hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
        for told in (identity, content)
    ]
    return _Traits(source.width, causal, _position_limit(model), *hashes)


def _position_limit(model: Any) -> int | None:
    """Return how many tokens a model takes, as far as it says."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        return None
    # the likes of RoBERTa count positions from after the padding's
    padding = [model.get_submodule(name).padding_idx for name in position_names(model)]
    return limit - max((place + 1 for place in padding if place is not None), default=0)


_memory = text_cache.Memory()
_encoding = threading.Lock()


def _check_texts(texts: Sequence[str]) -> list[str]:
    wrong = [texts] if isinstance(texts, str) else [t for t in texts if not isinstance(t, str)]
    if wrong:
        raise TypeError(
            "texts must be a list of strings, '' where there is none, found "
            f"{wrong[0]!r} of type {type(wrong[0]).__name__}."
        )
    return list(texts)


def _tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, "<f2").astype(np.float16))


def _ids(keys: dict[str, bytes], source: Pristine, limit: int | None) -> _Ids:
    """Return the ids of each text's tokens by key, cut to the model's limit with a warning."""
    n_words = len(source.word_embeddings)
    ids = dict(zip(keys, many_token_ids(list(keys), source.request, n_words), strict=True))
    long = [text for text, row in ids.items() if limit is not None and len(row) > limit]
    if long:
        warnings.warn(
            f"{len(long)} of {len(ids)} texts are longer than the {limit} tokens that backbone "
            f"{source.request.backbone!r} takes, and are cut to these.",
            UserWarning,
            stacklevel=4,
        )
        cut = many_token_ids(long, source.request, n_words, limit)
        ids |= zip(long, cut, strict=True)
    return {keys[text]: row for text, row in ids.items()}


def _encode(
    ids: _Ids, source: Pristine, causal: bool, kind: str, device: Any, progress: bool
) -> dict[bytes, bytes]:
    """Return the vectors of tokenised texts; on the way they go into the caches."""
    model: Any = source.model
    if device is not None and torch.device(device) != model.device:
        model = copy.deepcopy(model).to(device)  # the pristine one serves others where it lies
    nothing = b"" if kind == "tokens" else bytes(2 * source.width)
    done = {key: nothing for key, row in ids.items() if not row}
    pending = dict(done)
    written = time.monotonic()
    n_tokens, n_run = sum(map(len, ids.values())), 0
    bar = ProgressBar(progress, len(ids))
    try:
        for keys in _batches(ids):
            rows = [ids[key] for key in keys]
            vectors = _run(model, source.word_embeddings, rows, causal, kind)
            new = dict(zip(keys, vectors, strict=True))
            _memory.put(new, TEXT_CACHE_BYTES)
            done |= new
            pending |= new
            if time.monotonic() - written > _WRITE_SECONDS:
                text_cache.write(pending)
                pending, written = {}, time.monotonic()
            n_run += sum(map(len, rows))
            bar.show(len(done), n_run / n_tokens)
    finally:  # an interrupted encoding keeps what is done
        bar.close()
        text_cache.write(pending)
    return done


def _batches(ids: _Ids) -> Iterator[list[bytes]]:
    """Return keys of texts of about the same length, the longest first, by batches."""
    order = sorted((key for key in ids if ids[key]), key=lambda key: len(ids[key]), reverse=True)
    begin = 0
    while begin < len(order):
        end = begin + max(1, _BATCH_TOKENS // len(ids[order[begin]]))
        yield order[begin:end]
        begin = end


@torch.no_grad()
def _run(model: Any, words: Tensor, rows: _Rows, causal: bool, kind: str) -> list[bytes]:
    """Return the vectors of the token ids of some texts, each as float16 bytes."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)  # (b, t)
    tokens = words[ids].to(model.device)  # (b, t, d)
    lengths, mask = lengths.to(model.device), mask.to(model.device)
    # What stands after a text does not reach it in a causal model; and with a mask an encoder that
    # was made causal would turn back into one that looks both ways
    own: dict[str, Any] = {} if causal else {"attention_mask": mask.long()}
    if "use_cache" in inspect.signature(model.forward).parameters:
        own["use_cache"] = False  # keys and values are for those who write on
    # as it is, also where a training computes in mixed precision
    with torch.autocast(model.device.type, enabled=False):
        states = model(inputs_embeds=tokens, **own).last_hidden_state.float()  # (b, t, d)
    if not states[mask].isfinite().all():
        raise ValueError(
            f"backbone: expected finite vectors of texts, found others in {model.dtype}; choose "
            "another dtype, for instance backbone_kwargs={'dtype': 'float32'}."
        )
    if kind == "last":
        states = states[torch.arange(len(rows), device=model.device), lengths - 1]  # (b, d)
    elif kind == "mean":
        states = (states * mask.unsqueeze(-1)).sum(1) / lengths.unsqueeze(1)  # (b, d)
    largest = torch.finfo(torch.float16).max
    values = states.clamp(-largest, largest).half().cpu().numpy().astype("<f2")
    if kind == "tokens":
        return [values[i, : len(row)].tobytes() for i, row in enumerate(rows)]
    return [vector.tobytes() for vector in values]

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
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tsllm_estimators.llm import text_cache
from tsllm_estimators.llm.backbone import Backbone
from tsllm_estimators.llm.pristine import Pristine, Request, pristine, request_for, source_of
from tsllm_estimators.llm.progress import ProgressBar
from tsllm_estimators.llm.stand_ins import STAND_INS
from tsllm_estimators.llm.tokens import many_token_ids
from tsllm_estimators.llm.traits import forget_traits, traits
from tsllm_estimators.llm.wording import clear_descriptions
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
    traits(request)
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
        return traits(self._request).width

    @property
    def identity(self) -> str:
        """Hash of the weights, the tokenizer and how they are used: tells one model from another.

        Unlike the fingerprint it leaves out the settings of the model's config, to which a new
        version of transformers may add some.
        """
        return traits(self._request).identity

    @property
    def fingerprint(self) -> str:
        """Hash of all that shapes the vectors of a text: equal ones share cached vectors."""
        return traits(self._request).fingerprint

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
        model: Backbone | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the hidden states of each text's tokens, and which of them are real.

        The other parameters, errors and warnings are those of :meth:`pooled`.

        Parameters
        ----------
        model : Backbone, optional
            Runs in place of the pristine weights: the same language model, fine-tuned. Nothing
            is read from the caches or written to them, which know the pristine weights only.

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
        if model is None:
            found = self._vectors(texts, False, device, progress)
        else:
            found = self._vectors_of(model, texts, device, progress)
        vectors = [_tensor(v) for v in found]
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
        own = traits(request)
        kind = ("last" if own.causal else "mean") if pool else "tokens"
        model = json.dumps([own.fingerprint, kind])
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
                    ids = _ids(missing, source, own.limit)
                    found |= _encode_and_keep(ids, source, own.causal, kind, device, progress)
        return [found[keys[text]] for text in texts]

    def _vectors_of(
        self, backbone: Backbone, texts: list[str], device: Any, progress: bool
    ) -> list[bytes]:
        """Return the vectors of each text's tokens from a model that is not the pristine one."""
        request = self._request
        own, source = traits(request), pristine(request)
        keys = {text: text.encode() for text in texts}
        ids = _ids(keys, source, own.limit)
        found = {key: b"" for key in ids}
        with _evaluating(backbone.model) as model:
            words = source.word_embeddings
            for new in _encode(model, words, ids, own.causal, "tokens", device, progress):
                found |= new
        return [found[keys[text]] for text in texts]


def clear_text_cache(disk: bool = True) -> None:
    """Forget the vectors and descriptions that this process holds; with ``disk``, the files of all.

    Other processes may go on using the cache meanwhile; what they need is encoded again.
    """
    _memory.clear()
    forget_traits()
    clear_descriptions()
    if disk:
        text_cache.clear()


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


def _encode_and_keep(
    ids: _Ids, source: Pristine, causal: bool, kind: str, device: Any, progress: bool
) -> dict[bytes, bytes]:
    """Return the vectors of tokenised texts; on the way they go into the caches."""
    nothing = b"" if kind == "tokens" else bytes(2 * source.width)
    done = {key: nothing for key, row in ids.items() if not row}
    pending = dict(done)
    written = time.monotonic()
    words = source.word_embeddings
    try:
        for new in _encode(source.model, words, ids, causal, kind, device, progress):
            _memory.put(new, TEXT_CACHE_BYTES)
            done |= new
            pending |= new
            if time.monotonic() - written > _WRITE_SECONDS:
                text_cache.write(pending)
                pending, written = {}, time.monotonic()
    finally:  # an interrupted encoding keeps what is done
        text_cache.write(pending)
    return done


def _encode(
    model: Any, words: Tensor, ids: _Ids, causal: bool, kind: str, device: Any, progress: bool
) -> Iterator[dict[bytes, bytes]]:
    """Yield the vectors of tokenised texts by batches; texts without a token have none."""
    if device is not None and torch.device(device) != model.device:
        model = copy.deepcopy(model).to(device)  # this one serves others where it lies
    n_tokens, n_run = sum(map(len, ids.values())), 0
    n_done = sum(not row for row in ids.values())
    bar = ProgressBar(progress, len(ids))
    try:
        for keys in _batches(ids):
            rows = [ids[key] for key in keys]
            vectors = _run(model, words, rows, causal, kind)
            yield dict(zip(keys, vectors, strict=True))
            n_done, n_run = n_done + len(keys), n_run + sum(map(len, rows))
            bar.show(n_done, n_run / n_tokens)
    finally:
        bar.close()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Run a model without dropout, and leave every module in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, mode in modes:
            module.training = mode


def _batches(ids: _Ids) -> Iterator[list[bytes]]:
    """Return keys of texts of the same length, the longest first, by batches.

    Beside a longer text the vectors of a short one would differ by rounding.
    """
    order = sorted((key for key in ids if ids[key]), key=lambda key: len(ids[key]), reverse=True)
    for length, keys in groupby(order, key=lambda key: len(ids[key])):
        same, n = list(keys), max(1, _BATCH_TOKENS // length)
        yield from (same[begin : begin + n] for begin in range(0, len(same), n))


@torch.no_grad()
def _run(model: Any, words: Tensor, rows: _Rows, causal: bool, kind: str) -> list[bytes]:
    """Return the vectors of the token ids of some texts, each as float16 bytes."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)  # (b, t)
    tokens = words[ids].to(model.device, next(model.parameters()).dtype)  # (b, t, d)
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

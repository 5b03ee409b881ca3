"""What a language model is to texts: its direction, its limit, and what tells it from others."""

import hashlib
import json
import threading
from dataclasses import dataclass
from typing import Any

from torch import nn

from tsllm_estimators.llm.backbone import position_names
from tsllm_estimators.llm.pristine import Request, fingerprint_of, is_causal, pristine
from tsllm_estimators.llm.tokens import tokenizer_fingerprint

_VERSION = 1  # of how a text becomes a vector


@dataclass(frozen=True)
class Traits:
    """What a model is to texts, found once per model.

    Attributes
    ----------
    width : int
        Width d of its token vectors.
    causal : bool
        Whether a later token leaves an earlier one untouched.
    limit : int or None
        Tokens that it takes, as far as it says.
    identity, fingerprint : str
        Hashes of the model, without and with the settings of its config.
    """

    width: int
    causal: bool
    limit: int | None
    identity: str
    fingerprint: str


_known: dict[str, Traits] = {}
_lock = threading.Lock()


def traits(request: Request) -> Traits:
    """Return what the language model of a request is to texts."""
    with _lock:
        key = request.key
        if key not in _known:
            _known[key] = _examine(request)
        return _known[key]


def forget_traits() -> None:
    """Examine every model anew."""
    with _lock:
        _known.clear()


def _examine(request: Request) -> Traits:
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
    return Traits(source.width, causal, _position_limit(model), *hashes)


def _position_limit(model: Any) -> int | None:
    """Return how many tokens a model takes, as far as it says."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        return None
    # the likes of RoBERTa count positions from after the padding's
    padding = [model.get_submodule(name).padding_idx for name in position_names(model)]
    return limit - max((place + 1 for place in padding if place is not None), default=0)

"""Token ids of a text, as a language model's own tokenizer gives them."""

import hashlib
import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from tsllm_estimators.llm.pristine import Request, first_line, quiet_transformers, source_of
from tsllm_estimators.llm.stand_ins import STAND_INS

# The arguments of a model that say where its files are, and so where its tokenizer's are.
WHERE = {
    *("revision", "code_revision", "subfolder", "cache_dir"),
    *("local_files_only", "token", "trust_remote_code"),
}
_MAX_TOKENIZERS = 4  # held by this process, the most recently used ones

_tokenizers: "OrderedDict[str, Any]" = OrderedDict()
_lock = threading.Lock()


def token_ids(text: str, request: Request, n_words: int) -> list[int]:
    """Return the ids of a text's tokens, with the special tokens of the model, cut to no length.

    Parameters
    ----------
    text : str
        The text.
    request : Request
        The language model. A stand-in has no tokenizer: each word, in lower case, gets an id by a
        stable hash.
    n_words : int
        Number of the model's word embeddings V; ids are below it.

    Raises
    ------
    OSError
        If the model's tokenizer cannot be had.
    ValueError
        If it is the tokenizer of another model, with more words than V.
    """
    if request.backbone in STAND_INS:
        return [zlib.crc32(word.encode()) % n_words for word in text.lower().split()]
    return many_token_ids([text], request, n_words)[0]


def many_token_ids(
    texts: Sequence[str], request: Request, n_words: int, limit: int | None = None
) -> list[list[int]]:
    """Return the ids of the tokens of each text, as :func:`token_ids` of a language model.

    A text of more than ``limit`` tokens is cut to them; special tokens at its end stay.
    """
    cut = {"truncation": limit is not None, "max_length": limit}
    with _lock:  # a tokenizer changes its own settings at each call
        tokenizer = _tokenizer(request)
        # One by one: a tokenizer's own threads would make every later fork print a warning.
        # verbose=False: whether a text longer than the model's limit is fine, the caller knows
        ids = [tokenizer.encode(text, padding=False, verbose=False, **cut) for text in texts]
    largest = max((max(row) for row in ids if row), default=0)
    if largest >= n_words:
        raise ValueError(
            f"backbone {request.backbone!r}: its tokenizer must give ids below {n_words}, the "
            f"number of its word embeddings, found {largest}. It belongs to another model: save "
            "the model's own one beside its weights with `AutoTokenizer.from_pretrained(ID)"
            ".save_pretrained(DIRECTORY)`."
        )
    return ids


def special_ids(request: Request) -> tuple[int | None, list[int]]:
    """Return the id of the tokenizer's mask token, if it has one, and those of all special ones.

    Raises
    ------
    OSError
        If the model's tokenizer cannot be had.
    """
    with _lock:
        tokenizer = _tokenizer(request)
        return tokenizer.mask_token_id, sorted(set(tokenizer.all_special_ids))


def tokenizer_fingerprint(request: Request) -> str:
    """Return a hash of what a language model's tokenizer does to a text.

    Raises
    ------
    OSError
        If the model's tokenizer cannot be had.
    """
    with _lock:
        tokenizer = _tokenizer(request)
        # its settings for cutting and padding are part of its content until a first call
        tokenizer.encode("", truncation=False, padding=False)
        if hasattr(tokenizer, "backend_tokenizer"):
            content = tokenizer.backend_tokenizer.to_str()
        else:  # one without a part in Rust
            words = [tokenizer.get_vocab(), tokenizer.special_tokens_map]
            content = json.dumps([type(tokenizer).__name__, *words], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _tokenizer(request: Request) -> Any:
    """Return the tokenizer of a request, loaded at most once while it stays in the cache."""
    where = {name: value for name, value in request.kwargs.items() if name in WHERE}
    request = Request(
        backbone=request.backbone,
        layers=None,  # the same tokenizer whatever is made of the model
        default_layers=None,
        weights="pretrained",
        causal=None,
        kwargs={"trust_remote_code": False, **where},
        source=source_of(request.backbone),  # anew: a pickle may come from another machine
    )
    key = request.key
    if key not in _tokenizers:
        _tokenizers[key] = _load(request)
    _tokenizers.move_to_end(key)
    while len(_tokenizers) > _MAX_TOKENIZERS:
        _tokenizers.popitem(last=False)
    return _tokenizers[key]


def _load(request: Request) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(request.source, **request.kwargs)
        # Where there are no files, transformers makes a tokenizer that knows no word
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError("The tokenizer has no vocabulary.")
    except Exception as error:  # what goes wrong in tokenizers is a bare Exception
        raise OSError(
            f"backbone {request.backbone!r}: a text needs its tokenizer, expected tokenizer.json "
            "(or the other files of a tokenizer) beside config.json, found none that works "
            f"({first_line(error)}). Save it there with `AutoTokenizer.from_pretrained(ID)"
            ".save_pretrained(DIRECTORY)`, or choose a setting without texts and prompts, such as "
            "alignment='none'."
        ) from error
    return tokenizer

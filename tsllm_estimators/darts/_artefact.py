"""Trained models as directories to share: JSON, safetensors, PEFT's adapter format, no pickle.

config.json            what the model is: arguments, likelihood, shapes, data, training
model.safetensors      every tensor that trains or was measured, but the adapters
adapters/<branch>/     the adapter of a language model, as PEFT writes it
README.md              the model card
"""

import inspect
import json
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import darts.utils.likelihood_models.torch as likelihoods
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tsllm_estimators.darts._card import model_card
from tsllm_estimators.llm.backbone import Backbone

FORMAT = "tsllm-estimators/1"
_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"
_TORCH_CLASSES = {"optimizer_cls": torch.optim, "lr_scheduler_cls": torch.optim.lr_scheduler}
_PRECISIONS = {torch.float64: "64-true", torch.bfloat16: "bf16-true"}
_LIBRARIES = ("darts", "peft", "torch", "transformers")
# Which machine runs a model is no part of it, nor where it keeps its files.
_MACHINE = {"accelerator", "devices", "num_nodes", "strategy", "plugins", "default_root_dir"}
_PLACES = {"checkpoint", "work_dir", "model_name", "save_checkpoints", "force_reset"}


def write(model: Any, directory: str | os.PathLike, extra: dict[str, Any]) -> None:
    """Write a fitted darts model of this package; ``extra`` goes into ``config.json``."""
    encoders = model.model_params.get("add_encoders")
    if encoders is not None and (not is_plain(encoders) or model.encoders.requires_fit):
        raise ValueError(
            "add_encoders with functions, transformers or positions cannot be saved without "
            "pickle; compute their covariates beforehand, or use save()."
        )
    arguments = _plain_arguments(model.model_params, model.model.network.config.defaults())
    likelihood = None if model.likelihood is None else _likelihood_config(model.likelihood)
    module = model.model
    weights: dict[str, Tensor] = {}
    backbones: dict[str, Any] = {}
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            weights[name] = value.detach().cpu().contiguous()
        else:
            backbones[name] = value
    # a model that darts loaded has lost the precision that it was trained with
    precision = model.trainer_params.get("precision", _PRECISIONS.get(module.dtype, "32-true"))
    config = {
        "format": FORMAT,
        "method": model.method,
        "arguments": arguments,
        "likelihood": likelihood,
        "dtype": str(module.dtype).removeprefix("torch."),
        "precision": precision,
        "series_dtype": model.train_sample.past_target.dtype.name,
        "sample_shapes": module.train_sample_shape,
        "text_columns": model.text_columns,
        "backbones": backbones,
        "training": model.training_summary,
        "versions": {name: version(name) for name in ("tsllm-estimators", *_LIBRARIES)},
        **extra,
    }
    content = json.dumps(config, indent=2)

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for name, backbone in _backbones(module).items():
        for key in backbone.save_adapter(folder / "adapters" / name.split(".")[-1]):
            del weights[f"{name}.{key}"]
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _CONFIG).write_text(content + "\n")
    (folder / _CARD).write_text(model_card(config, _size(weights), type(model).__name__))


def read_config(directory: str | os.PathLike, method: str) -> dict[str, Any]:
    """Return ``config.json`` of a directory, once it is known to be one of ours.

    Raises
    ------
    OSError
        If there is none, or it cannot be read.
    ValueError
        If it belongs to something else.
    """
    path = Path(directory) / _CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint: expected a directory that save_pretrained wrote, found no {_CONFIG} in "
            f"{str(directory)!r}; give the directory itself, not a file in it."
        )
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise OSError(f"checkpoint: {str(path)!r} is not JSON, so it is damaged: {error}") from None
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"checkpoint: expected the format {FORMAT!r}, found {found!r} in {str(path)!r}; it was "
            "not written by save_pretrained of this version of tsllm_estimators."
        )
    if config["method"] != method:
        raise ValueError(
            f"checkpoint: expected a model of {method!r}, found one of {config['method']!r} in "
            f"{str(directory)!r}; load it with its own class."
        )
    return config


def arguments_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments that a configuration holds."""
    arguments = dict(config["arguments"])
    for name, home in _TORCH_CLASSES.items():
        if name in arguments:
            arguments[name] = getattr(home, arguments[name])
    spec = config["likelihood"]
    if spec is not None:
        arguments["likelihood"] = getattr(likelihoods, spec["class"])(**spec["arguments"])
    return arguments


def load_state(module: nn.Module, directory: str | os.PathLike, config: dict[str, Any]) -> None:
    """Load the weights of a directory into a module of the same shape."""
    folder = Path(directory)
    state: dict[str, Any] = dict(config["backbones"])
    try:
        state |= load_file(folder / _WEIGHTS)
        for name, backbone in _backbones(module).items():
            backbone.set_extra_state(state[f"{name}._extra_state"])  # refuses another model
            adapter = backbone.load_adapter(folder / "adapters" / name.split(".")[-1])
            state |= {f"{name}.{key}": value for key, value in adapter.items()}
    except (FileNotFoundError, SafetensorError, KeyError) as error:
        raise OSError(
            f"checkpoint: the weights in {str(folder)!r} are damaged or incomplete ({error}); copy "
            "the whole directory again."
        ) from None
    own = module.state_dict()
    odd = sorted(own.keys() ^ state.keys()) + sorted(
        name
        for name in own.keys() & state.keys()
        if isinstance(own[name], Tensor) and own[name].shape != state[name].shape
    )
    if odd:
        raise ValueError(
            f"checkpoint: the weights in {str(folder)!r} do not fit this model, {len(odd)} tensors "
            f"differ, the first is {odd[0]!r}. Use the settings they were trained with "
            "(from_pretrained does) on data of the same shape; config.json lists both."
        )
    module.load_state_dict(state)


def _backbones(module: nn.Module) -> dict[str, Backbone]:
    return {name: m for name, m in module.named_modules() if isinstance(m, Backbone)}


def _size(weights: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())


def _plain_arguments(model_params: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Return the arguments that JSON can say; loggers, callbacks and losses stay behind.

    ``settings`` are those without which the network cannot be rebuilt.
    """
    for name in settings:
        if not is_plain(model_params[name]):
            raise ValueError(
                f"{name}={model_params[name]!r} cannot be saved without pickle; give plain values "
                "(a dtype as 'bfloat16', a quantization_config as its dict), or use save()."
            )
    arguments = {k: v for k, v in model_params.items() if k not in _PLACES | {"likelihood"}}
    for name, home in _TORCH_CLASSES.items():
        chosen = arguments.pop(name, None)
        known = [key for key, value in vars(home).items() if value is chosen]
        if chosen is not None and known:
            arguments[name] = known[0]
    trainer = arguments.get("pl_trainer_kwargs") or {}
    arguments["pl_trainer_kwargs"] = {
        k: v for k, v in trainer.items() if k not in _MACHINE and is_plain(v)
    }
    return {name: value for name, value in arguments.items() if is_plain(value)}


def is_plain(value: Any) -> bool:
    """Return whether JSON can say a value."""
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _likelihood_config(likelihood: Any) -> dict[str, Any]:
    cls = type(likelihood)
    if getattr(likelihoods, cls.__name__, None) is not cls:
        raise ValueError(
            f"likelihood {cls.__name__} is not one of darts' own, so its parameters cannot be "
            "saved without pickle; use save()."
        )
    names = [p for p in inspect.signature(cls.__init__).parameters if p != "self"]
    return {"class": cls.__name__, "arguments": {n: getattr(likelihood, n) for n in names}}


def torch_dtype(config: dict[str, Any], precision: Any = None) -> torch.dtype:
    """Return the dtype of Lightning's ``precision``, by default that of the saved weights."""
    wanted = {"32-true": torch.float32, **{name: dtype for dtype, name in _PRECISIONS.items()}}
    return wanted.get(precision, getattr(torch, config["dtype"]))


def series_dtype(config: dict[str, Any], dtype: torch.dtype) -> np.dtype:
    """Return the dtype of the series that weights of a dtype expect."""
    double = dtype == torch.float64
    trained = np.dtype(config["series_dtype"])
    same = double == (trained == np.float64)
    return trained if same else np.dtype("float64" if double else "float32")

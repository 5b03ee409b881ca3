"""LeMoLE on windows of a series, as it is and with parts of it replaced."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tsllm_estimators.explain._windows import (
    N_WINDOWS,
    arguments_of,
    check_length,
    check_method,
    model_of,
)
from tsllm_estimators.networks.base import Batch
from tsllm_estimators.networks.blocks import normalize_window

_AT_ONCE = 32  # windows, as a table of experts asks for many forecasts of each

Replaced = Mapping[nn.Module, Callable[[Tensor], Tensor]]


@dataclass
class Shown:
    """A network in double precision, what windows show it, and the names of its text columns.

    The network is a copy: whatever is done to it, the estimator stays as it is.
    """

    network: Any
    batches: list[Batch]
    text_columns: dict[str, list[str]]


def shown_to_lemole(
    estimator: Any, series: Any, X: Any, past_covariates: Any, future_covariates: Any
) -> Shown:
    """Return the network of a LeMoLE of either face, and windows of a series with their texts.

    Windows are those that a training on the series would see, at most twice 256 of them.
    """
    from darts.utils.data.torch_datasets.training_dataset import SequentialTorchTrainingDataset

    from tsllm_estimators.darts._windows import measured_windows

    model = model_of(estimator)
    check_method(model, "lemole", "LeMoLEModel or LeMoLEForecaster")
    module, shapes = model.model, model.model.network.shapes
    found, columns = arguments_of(estimator, series, X, past_covariates, future_covariates)
    series, past, future = (
        None if found.get(name) is None else [found[name]]
        for name in ("series", "past_covariates", "future_covariates")
    )
    if len(columns) != shapes.n_variates:
        raise ValueError(
            f"series must have {shapes.n_variates} columns, as in the training, found {columns!r}."
        )
    check_length(series[0], shapes.context_length + model.output_chunk_shift + shapes.horizon)
    past, future = model._with_digits(series, past, future, 0)
    dataset = SequentialTorchTrainingDataset(
        series=series,
        past_covariates=past,
        future_covariates=future,
        input_chunk_length=shapes.context_length,
        output_chunk_length=shapes.horizon,
        output_chunk_shift=model.output_chunk_shift,
        use_static_covariates=model.uses_static_covariates,
    )
    windows = measured_windows(dataset, module.as_batch, N_WINDOWS)
    windows.past_target = windows.past_target[:, : shapes.context_length]
    network = copy.deepcopy(module.network).cpu().double().eval()
    names = model.text_columns if network.config.texts_read >= {"columns"} else None
    return Shown(network, _split(windows), names or {"past": [], "future": []})


def _split(windows: Batch) -> list[Batch]:
    parts = {
        field.name: values.split(_AT_ONCE)
        for field in fields(windows)
        if (values := getattr(windows, field.name)) is not None
    }
    return [
        Batch(**dict(zip(parts, one, strict=True))) for one in zip(*parts.values(), strict=True)
    ]


@contextmanager
def _replacing(replaced: Replaced) -> Iterator[None]:
    def hook(
        new: Callable[[Tensor], Tensor], module: nn.Module, inputs: Any, out: Tensor
    ) -> Tensor:
        return new(out)

    handles = [module.register_forward_hook(partial(hook, new)) for module, new in replaced.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def forecast(network: Any, batch: Batch, replaced: Replaced | None = None) -> Tensor:
    """Return the point forecast (b, H, c) without the unit and the level of its window.

    Parameters
    ----------
    network : LeMoLE
    batch : Batch
    replaced : mapping, optional
        From parts of the network to what is to be made of their outputs.
    """
    with _replacing(replaced or {}):
        values = network(batch).parameters[..., network.shapes.location]
    if network.shapes.parameters[network.shapes.location] != "location":  # has no unit
        return values
    _, (location, scale) = normalize_window(
        batch.past_target, network.unit, network.config.normalization
    )
    return (values - location) / scale

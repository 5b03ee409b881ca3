"""From a fitted estimator of either face to its network and what that is shown."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tsllm_estimators.networks.base import Batch

N_WINDOWS = 256  # as many windows of the series, evenly spread, are looked at


def model_of(estimator: Any) -> Any:
    """Return the fitted darts model of an estimator of either face."""
    if hasattr(estimator, "forecasters_"):
        raise ValueError(
            "estimator holds one forecaster for each series (broadcasting): look at one of its "
            "forecasters_."
        )
    if _is_forecaster(estimator):
        estimator.check_is_fitted()
        return estimator._engine.model
    if estimator.model is None:
        raise ValueError("estimator must be fitted, found one without weights.")
    return estimator


def check_method(model: Any, method: str, expected: str) -> None:
    """Raise unless a darts model is of a method."""
    if model.method != method:
        raise ValueError(f"estimator must be a fitted {expected}, found {type(model).__name__}.")


def arguments_of(
    estimator: Any,
    series: Any = None,
    X: Any = None,
    past_covariates: Any = None,
    future_covariates: Any = None,
) -> tuple[dict[str, Any], list[Any]]:
    """Return a series with what is beside it, as arguments of the darts model, and its columns.

    By default they are those of the training, as far as the estimator has kept them.
    """
    given = {"past_covariates": past_covariates, "future_covariates": future_covariates}
    if _is_forecaster(estimator):
        for name, covariates in given.items():
            if covariates is not None:
                raise ValueError(f"{name} must be None: a forecaster takes its covariates as X.")
        found, columns = estimator._explainable(series, X)
        return {name: values[0] for name, values in found.items()}, columns
    if X is not None:
        raise ValueError("X must be None: a darts model takes past and future_covariates.")
    if series is not None:
        encoders = estimator.encoders
        if encoders is not None and encoders.encoding_available:
            past, future = estimator.generate_fit_encodings(series, *given.values())
            given = {"past_covariates": past, "future_covariates": future}
    else:
        series = estimator.training_series
        if series is None:
            raise ValueError("series must be given: the model has not kept a single one.")
        for name in given:
            if given[name] is None:
                given[name] = getattr(estimator, name.replace("covariates", "covariate_series"))
    return {"series": estimator._observed(series), **given}, list(series.components)


def network_and_windows(
    estimator: Any, series: Any, with_target: bool = False, target_only: bool = False
) -> tuple[Any, torch.Tensor, Sequence[Any]]:
    """Return the network of an estimator of either face and windows (b, L, c) of a series.

    With targets, windows go on over the horizon. With ``target_only`` covariates do not matter.
    """
    network = model_of(estimator).model.network
    if network.covariates.n_tokens and not target_only:
        raise ValueError(
            "estimator uses covariates, explain looks at models without; fit one on the target."
        )
    arguments, columns = arguments_of(estimator, series)
    shapes, values = network.shapes, arguments["series"].values()
    length = shapes.context_length + (shapes.horizon if with_target else 0)
    check_length(values, length)
    windows = np.lib.stride_tricks.sliding_window_view(values, length, axis=0)
    windows = windows[:: max(1, len(windows) // N_WINDOWS)].transpose(0, 2, 1)
    parameter = next(network.parameters())
    return network, torch.tensor(windows.copy()).to(parameter), columns


def check_length(series: Any, length: int) -> None:
    """Raise if a series has less points."""
    if len(series) < length:
        raise ValueError(f"series must have {length} points or more, found {len(series)}.")


@torch.no_grad()
def in_batches(network: Any, windows: torch.Tensor) -> torch.Tensor:
    """Return the parameters (b, H, c, p) that a network forecasts for windows (b, L, c)."""
    batches = [network(Batch(past_target=batch)).parameters for batch in windows.split(N_WINDOWS)]
    return torch.cat(batches)


def _is_forecaster(estimator: Any) -> bool:
    return hasattr(estimator, "_explainable")

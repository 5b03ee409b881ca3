"""Training windows that stand for all of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tsllm_estimators.darts._compat import TorchTrainingSample
from tsllm_estimators.networks.base import Batch

_MEASURED_WINDOWS = 1024  # as many, evenly spread, measure the unit of the data


def _weighed(sample: TorchTrainingSample) -> TorchTrainingSample:
    """Return a sample that misses the targets, and if these are all, the context of no weight."""
    if sample.sample_weight is None:
        return sample
    counts = sample.sample_weight != 0
    return dataclasses.replace(
        sample,
        past_target=sample.past_target if counts.any() else np.nan * sample.past_target,
        future_target=np.where(counts, sample.future_target, np.nan),
    )


def measured_windows(
    dataset: Any, as_batch: Callable[..., Batch], n_windows: int = _MEASURED_WINDOWS
) -> Batch:
    """Return training windows, evenly spread over the dataset, their horizon included.

    ``as_batch`` makes a batch of the target and of the covariates of each kind; there are less
    than twice ``n_windows``.
    """
    step = max(1, len(dataset) // n_windows)
    samples = [_weighed(dataset[index]) for index in range(0, len(dataset), step)]

    def stacked(*names: str) -> torch.Tensor | None:
        if getattr(samples[0], names[0]) is None:
            return None
        windows = [np.concatenate([getattr(s, name) for name in names]) for s in samples]
        return torch.from_numpy(np.stack(windows).astype(np.float64))

    return as_batch(
        stacked("past_target", "future_target"),
        stacked("past_covariates"),
        stacked("historic_future_covariates", "future_covariates"),
        stacked("static_covariates"),
    )

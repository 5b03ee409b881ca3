"""What a darts model does to series on their way to windows: mark, check, cut."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from tsllm_estimators.darts._checks import check_dtype, check_finite, check_observed

_Method = TypeVar("_Method", bound=Callable[..., Any])


class BuildsDatasets:
    """The part of a darts model that makes datasets of windows of series."""

    def _observed(self: Any, series: Any) -> Any:
        """Return a series or several, in which NaN stands for ``missing_marker``."""
        marker = self._options.missing_marker
        if marker is None:
            return series
        if hasattr(series, "with_values"):
            return _without_marker(series, marker)
        return [_without_marker(one, marker) for one in series]

    def _setup_for_fit_from_dataset(
        self: Any,
        series: Any,
        past_covariates: Any = None,
        future_covariates: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Cut the training part of each series for ``few_shot``."""
        inputs, parameters = super()._setup_for_fit_from_dataset(  # type: ignore[misc]
            series, past_covariates, future_covariates, **kwargs
        )
        data = {
            "n_series": len(inputs[0]),
            "n_points": sum(map(len, inputs[0])),
            "components": list(inputs[0][0].components),
        }
        self.training_summary = {**self.training_summary, "data": data}
        share = self._options.few_shot
        if share is not None:
            series, past_covariates, future_covariates = inputs
            parameters["train_dataset"] = self._build_train_dataset(
                series=[one[: math.ceil(share * len(one))] for one in series],
                past_covariates=past_covariates,
                future_covariates=future_covariates,
                sample_weight=kwargs.get("sample_weight"),
                max_samples_per_ts=kwargs.get("max_samples_per_ts"),
                stride=kwargs.get("stride", 1),
            )
        return inputs, parameters

    def _check_dtype(self: Any, series: Any) -> None:
        if self.model is not None:
            check_dtype("series", series, self.train_sample.past_target.dtype)

    def _build_train_dataset(
        self: Any,
        series: Any,
        past_covariates: Any,
        future_covariates: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        series = self._observed(series)
        check_observed("series", series)
        self._check_dtype(series)
        check_finite("past_covariates", past_covariates)
        check_finite("future_covariates", future_covariates)
        covariates = self._with_digits(series, past_covariates, future_covariates, 0)
        return super()._build_train_dataset(series, *covariates, *args, **kwargs)  # type: ignore[misc]

    def _build_inference_dataset(
        self: Any,
        n: int,
        series: Any,
        past_covariates: Any,
        future_covariates: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        series = self._observed(series)
        check_finite("series", series)
        self._check_dtype(series)
        check_finite("past_covariates", past_covariates)
        check_finite("future_covariates", future_covariates)
        n_ahead = n + self.output_chunk_length + self.output_chunk_shift
        covariates = self._with_digits(series, past_covariates, future_covariates, n_ahead)
        return super()._build_inference_dataset(n, series, *covariates, *args, **kwargs)  # type: ignore[misc]


def on_observed(method: _Method) -> _Method:
    """Run a method of a darts model on series in which NaN stands for ``missing_marker``.

    For methods that transform series before they train, or compare them with forecasts.
    """

    @functools.wraps(method)
    def run(self: Any, series: Any, *args: Any, **kwargs: Any) -> Any:
        if self._options.missing_marker is None:
            return method(self, series, *args, **kwargs)
        # a transformer may move an observation to where the marker was
        twin = object.__new__(type(self))
        unmarked = {**self.model_params, "missing_marker": None}
        vars(twin).update({**vars(self), "_model_params": unmarked})
        return method(twin, self._observed(series), *args, **kwargs)

    return run  # type: ignore[return-value]


def _without_marker(series: Any, marker: float) -> Any:
    values = series.all_values(copy=False)
    marked = values == marker
    return series.with_values(np.where(marked, np.nan, values)) if marked.any() else series

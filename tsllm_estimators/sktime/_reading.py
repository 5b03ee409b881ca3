"""What a forecaster reads in a frame: observations, their scale, series for the engine."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from tsllm_estimators.sktime._covariates import rows_at
from tsllm_estimators.sktime._engine import Engine
from tsllm_estimators.sktime._index import (
    check_regular,
    extended,
    frequency_of,
    split_instances,
)
from tsllm_estimators.sktime._scales import Scale, check_values, scale_of
from tsllm_estimators.sktime._series import Series
from tsllm_estimators.sktime._texts import series_texts


class ReadsSeries:
    """The part of a forecaster that checks and scales frames on their way to the engine."""

    def _observed(self: Any, y: pd.DataFrame) -> pd.DataFrame:
        """Return a frame in which NaN stands for ``missing_marker``."""
        if self.missing_marker is None:
            return y
        return y.astype(np.float64).mask(y == float(self.missing_marker))

    def _series(
        self: Any,
        engine: Engine,
        y: pd.DataFrame,
        X: pd.DataFrame | None,
        scales: Mapping[Hashable, Scale],
        ahead: int = 0,
        within: int | None = None,
    ) -> dict[Hashable, Series]:
        """Return the series of every instance, scaled, with covariates up to ``ahead`` steps.

        ``within`` leaves out all but the last points, which is all that a forecast looks at.
        """
        past, future = engine.covariates
        rows = {} if X is None else split_instances(X)
        instances, series = split_instances(y), {}
        tells = self._reads_text and self.text != "none"
        freq = frequency_of(instances)
        for key, frame in instances.items():
            frame = frame if within is None else frame.iloc[-within:]
            mean, deviation = scales[key]
            target = (frame.to_numpy(np.float64) - mean) / deviation
            if key not in rows and (past or future):
                raise ValueError(f"X: expected rows for the instance {key!r} of y, found none.")
            own, known, rows_ahead = rows.get(key, X), frame.index, None
            if future or tells:  # all that is known up to the end of the last horizon
                n_ahead = -(-max(ahead, 1) // engine.horizon) * engine.horizon
                index = extended(known, n_ahead, freq)
                rows_ahead = rows_at(own, index, future, needed=index[: len(known) + ahead])
            series[key] = Series(target, rows_at(own, known, past, needed=known), rows_ahead)
            if tells:
                series[key] = series[key].told(series_texts(self, key, index, freq))
        return series

    def _check_series(self: Any, y: pd.DataFrame) -> None:
        instances = split_instances(y)
        freq = frequency_of(instances)
        for key, frame in instances.items():
            check_regular(frame.index, freq)
            check_values(frame, key)

    def _check_context(self: Any, key: Hashable, series: Series) -> None:
        """Raise if a column has no observation in the steps that a forecast starts from."""
        length = self._engine.context_length
        empty = np.isnan(series.target[-length:]).all(axis=0)
        if empty.any():
            where = "" if key is None else f" of instance {key!r}"
            raise ValueError(
                f"y: column {self._cur_y.columns[empty.argmax()]!r}{where} has no observation in "
                f"the {length} steps up to the start of a forecast; fill the gap, or choose a "
                "context_length that reaches back beyond it."
            )

    def _scales_of(self: Any, y: pd.DataFrame, engine: Engine) -> dict[Hashable, Scale]:
        """Return the mean and the deviation of every instance's columns in its training part."""
        instances = split_instances(y)
        if self.scaling is None:
            one = np.zeros(y.shape[1]), np.ones(y.shape[1])
            return dict.fromkeys(instances, one)
        scales = {}
        for key, frame in instances.items():
            trained = (self.few_shot or 1) * self._training_length(len(frame), engine.horizon)
            scales[key] = scale_of(frame.to_numpy(np.float64)[: math.ceil(trained)])
        return scales

    def _training_length(self: Any, n_points: int, horizon: int) -> int:
        """Return how many points of a series are not kept for validation, one at least."""
        if self.validation_split is None:
            return n_points
        kept = max(horizon, math.ceil(self.validation_split * n_points))
        return max(1, n_points - kept)

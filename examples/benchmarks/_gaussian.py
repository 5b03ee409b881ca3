"""How often readings lie inside the intervals of a Gaussian forecast."""

from statistics import NormalDist
from typing import Any

import numpy as np
from darts import TimeSeries


def parameters(model: Any, series: TimeSeries, **arguments: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return means and deviations of every window's forecast, shape (windows, H, variates) each.

    Parameters
    ----------
    model
        A fitted darts model with a Gaussian likelihood.
    series : TimeSeries
        What the windows lie in.
    **arguments
        Of ``historical_forecasts``, such as ``future_covariates``.
    """
    forecasts = model.historical_forecasts(
        series,
        forecast_horizon=model.output_chunk_length,
        retrain=False,
        last_points_only=False,
        predict_likelihood_parameters=True,
        **arguments,
    )
    values = np.stack([one.values() for one in forecasts])  # mean and deviation in turn
    return values[..., 0::2], values[..., 1::2]


def coverage(
    means: np.ndarray,
    deviations: np.ndarray,
    readings: np.ndarray,
    level: float = 0.9,
    counted: np.ndarray | None = None,
) -> float:
    """Return the share of the readings that lie inside the central interval of a level.

    ``counted`` says which readings there are; by default all.
    """
    half = NormalDist().inv_cdf(0.5 + level / 2) * deviations
    inside = np.abs(readings - means) <= half
    return float(inside.mean() if counted is None else inside[counted].mean())

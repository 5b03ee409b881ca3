"""What must hold of series before they become windows."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np


def check_finite(name: str, series: Sequence[Any] | None) -> None:
    """Raise ``ValueError`` if any value is infinite; NaN is a missing value.

    Parameters
    ----------
    name : str
        The argument, for the message.
    series : sequence of TimeSeries, optional
    """
    for number, one in enumerate(series or []):
        infinite = np.isinf(one.all_values(copy=False)).any(axis=2)
        if infinite.any():
            step, component = (int(i) for i in np.argwhere(infinite)[0])
            raise ValueError(
                f"{name}: {_where(one, number, component)} is infinite at {one.time_index[step]}; "
                "replace the value, or mark it as missing (NaN)."
            )


def check_observed(name: str, series: Sequence[Any]) -> None:
    """Raise ``ValueError`` if any value is infinite or a component has none at all."""
    check_finite(name, series)
    for number, one in enumerate(series):
        missing = np.isnan(one.all_values(copy=False)).all(axis=(0, 2))
        if missing.any():
            raise ValueError(
                f"{name}: {_where(one, number, int(missing.argmax()))} has no observation at all, "
                f"{len(one)} of {len(one)} values are NaN; leave it out, or give it values."
            )


def check_dtype(name: str, series: Sequence[Any] | None, trained: np.dtype) -> None:
    """Raise ``ValueError`` if a series is of another precision than the training series."""
    for number, one in enumerate(series or []):
        if one.dtype != trained:
            raise ValueError(
                f"{name}: expected {trained}, in which the model was trained, found {one.dtype} in "
                f"series {number}; use series.astype(np.{trained})."
            )


def warn_of_sizes(windows: np.ndarray, unit: float) -> None:
    """Warn if windows (b, t, c) that vary are so small that they count as constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of windows without an observation
        deviations = np.nanstd(windows, axis=1)
        varying = deviations > 1e-6 * np.abs(np.nanmean(windows, axis=1))
    if (varying & (deviations < 3e-3 * unit)).sum() > 0.05 * varying.sum():
        warnings.warn(
            "series: sizes differ so much that windows of the small ones count as constant (their "
            f"deviation is below 0.003 of {unit:.3g}, that of all); scale the series, for instance "
            "with darts' Scaler.",
            UserWarning,
            stacklevel=2,
        )


def _where(series: Any, number: int, component: int) -> str:
    return f"component {series.components[component]!r} of series {number}"

"""Values and their size, column by column."""

from collections.abc import Hashable

import numpy as np
import pandas as pd

#: Mean and deviation of columns.
Scale = tuple[np.ndarray, np.ndarray]


def check_values(frame: pd.DataFrame, key: Hashable) -> None:
    """Raise ``ValueError`` where a value is infinite, or a column has no value at all."""
    values = frame.to_numpy(np.float64)
    where = "" if key is None else f" of instance {key!r}"
    infinite = np.argwhere(np.isinf(values))
    if len(infinite):
        row, column = infinite[0]
        raise ValueError(
            f"y: column {frame.columns[column]!r}{where} is infinite at {frame.index[row]}; "
            "replace the value, or mark it as missing (NaN)."
        )
    empty = np.isnan(values).all(axis=0)
    if empty.any():
        raise ValueError(
            f"y: column {frame.columns[empty.argmax()]!r}{where} has no observation at all, "
            f"{len(frame)} of {len(frame)} values are NaN; leave it out, or give it values."
        )


def scale_of(values: np.ndarray) -> Scale:
    """Return the mean and the standard deviation of columns (t, c), of what was observed.

    A column without an observation here, or without any deviation, is left as large as it is.
    """
    observed = ~np.isnan(values)
    n_observed = np.maximum(observed.sum(axis=0), 1)
    known = np.where(observed, values, 0.0)
    mean = known.sum(axis=0) / n_observed
    centred = np.where(observed, values - mean, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / n_observed)
    # a constant column has a deviation of rounding errors, if not of 0
    negligible = deviation <= 1e-12 * np.abs(known).max(axis=0)
    return mean, np.where(negligible, 1.0, deviation)

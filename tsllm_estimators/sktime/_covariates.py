"""Which columns of X are used, and their rows beside a series."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

#: Names of the past and of the future covariates.
Columns = tuple[tuple[Hashable, ...], tuple[Hashable, ...]]


def choose_columns(X: pd.DataFrame | None, past: Any) -> Columns:
    """Return the columns that are known of the past only, and those known ahead.

    Parameters
    ----------
    X : DataFrame or None
    past : list of column names or None
        The forecaster's argument ``past_covariates``.
    """
    if past is not None and (isinstance(past, str) or not isinstance(past, Sequence)):
        raise TypeError(
            f"past_covariates must be a list of column names or None, found {past!r}; write "
            f"[{past!r}] for one column."
        )
    past = tuple(past or ())
    if X is None:
        if past:
            raise ValueError(
                f"past_covariates={list(past)!r} names columns of X, found no X; pass X to fit."
            )
        return (), ()
    missing = [name for name in past if name not in X.columns]
    if missing:
        raise ValueError(
            f"past_covariates must name columns of X, found no {missing!r} among "
            f"{list(X.columns)!r}."
        )
    return past, tuple(name for name in X.columns if name not in past)


def check_columns(X: pd.DataFrame | None, columns: Columns, ahead: bool) -> None:
    """Raise unless X has the columns of the fit; past covariates may be left out ahead."""
    past, future = columns
    expected = [*past, *future]
    needed = list(future) if ahead else expected
    if X is None:
        if needed:
            raise ValueError(
                f"X: expected the columns {needed!r}, with which the forecaster was fitted, found "
                "no X; pass their values for the steps ahead."
            )
        return
    found = list(X.columns)
    missing = [name for name in needed if name not in found]
    unknown = [name for name in found if name not in expected]
    if missing or unknown:
        raise ValueError(
            f"X: expected the columns {expected!r}, with which the forecaster was fitted, found "
            f"{found!r}: missing {missing!r}, unknown {unknown!r}."
        )
    for name in found:
        if not pd.api.types.is_numeric_dtype(X[name]):  # booleans are numeric
            raise TypeError(
                f"X: column {name!r} must be numeric, found dtype {X[name].dtype}; encode "
                "categories and texts as numbers, for instance with pandas.get_dummies."
            )


def joined(known: pd.DataFrame | None, new: pd.DataFrame | None) -> pd.DataFrame | None:
    """Return all rows of X so far; where two have the same index, the new one."""
    if known is None or new is None:
        return known if new is None else new
    rows = pd.concat([known, new])
    return rows[~rows.index.duplicated(keep="last")]


def rows_at(
    X: pd.DataFrame, index: pd.Index, columns: tuple[Hashable, ...], needed: pd.Index
) -> np.ndarray | None:
    """Return the values (t, k) of columns at an index, NaN where X has no row.

    Raises
    ------
    ValueError
        If X has no row at one of ``needed``.
    """
    if not columns:
        return None
    missing = needed.difference(X.index)
    if len(missing):
        raise ValueError(
            f"X: expected a row for each of the {len(needed)} steps from {needed[0]} to "
            f"{needed[-1]}, found none at {len(missing)} of them, the first is {missing[0]}; give "
            "X without gaps, NaN where a value is not known."
        )
    return X.reindex(index)[list(columns)].to_numpy(np.float64)

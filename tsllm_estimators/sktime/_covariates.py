"""Which columns of X are used, and their rows beside a series."""

from collections.abc import Collection, Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tsllm_estimators.llm.vocabulary import column_codes

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


def text_columns(X: pd.DataFrame | None) -> frozenset[Hashable]:
    """Return the columns of texts: of dtype ``str``, ``string``, ``object`` or ``category``."""
    return frozenset() if X is None else frozenset(n for n in X.columns if _is_text(X[n]))


def check_columns(
    X: pd.DataFrame | None, columns: Columns, ahead: bool, texts: Collection[Hashable] | None
) -> None:
    """Raise unless X has the columns of the fit; past covariates may be left out ahead.

    ``texts`` are those of them that are texts; None refuses any.
    """
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
        _check_column(X[name], texts)


def _check_column(column: pd.Series, texts: Collection[Hashable] | None) -> None:
    """Raise ``TypeError`` unless a column holds what it held in the fit, texts or numbers."""
    name, types = column.name, pd.api.types
    if texts is not None and name in texts:
        expected = "text"
        values = column.dropna()
        fits = not len(values) or _is_text(column)
        odd = [value for value in values if not isinstance(value, str)] if fits else []
    else:
        expected = "numeric" if texts is None or _is_text(column) else "numeric or text"
        fits, odd = types.is_numeric_dtype(column), []  # booleans are numeric
    if fits and not odd:
        return
    found = f"{odd[0]!r} of type {type(odd[0]).__name__}" if odd else f"dtype {column.dtype}"
    if isinstance(column.dtype, pd.PeriodDtype) or types.is_datetime64_any_dtype(column):
        advice = (
            "take from dates what you know of them, as numbers or as text (dt.strftime); the "
            "calendar of the index is known without a column."
        )
    elif texts is None:
        advice = (
            "encode categories and texts as numbers, for instance with pandas.get_dummies, or use "
            "LeMoLEForecaster, which reads texts."
        )
    else:
        advice = "give it what it held in fit, and only texts or missing values in a text column."
    raise TypeError(f"X: column {name!r} must be {expected}, found {found}; {advice}")


def _is_text(column: pd.Series) -> bool:
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        dtype = dtype.categories.dtype
    return pd.api.types.is_object_dtype(dtype) or pd.api.types.is_string_dtype(dtype)


def joined(known: pd.DataFrame | None, new: pd.DataFrame | None) -> pd.DataFrame | None:
    """Return all rows of X so far; where two have the same index, the new one.

    Columns that the new rows leave out, which are of the past, stay as they were known.
    """
    if known is None or new is None:
        return known if new is None else new
    left_out = [name for name in known.columns if name not in new.columns]
    if left_out:
        new = new.join(known[left_out])
    rows = pd.concat([known, new])
    return rows[~rows.index.duplicated(keep="last")]


def rows_at(
    X: pd.DataFrame | None, index: pd.Index, columns: tuple[Hashable, ...], needed: pd.Index
) -> np.ndarray | None:
    """Return the values (t, k) of columns at an index, NaN where X has no row; of texts, codes.

    Raises
    ------
    ValueError
        If X has no row at one of ``needed``.
    """
    if not columns or X is None:
        return None
    missing = needed.difference(X.index)
    if len(missing):
        raise ValueError(
            f"X: expected a row for each of the {len(needed)} steps from {needed[0]} to "
            f"{needed[-1]}, found none at {len(missing)} of them, the first is {missing[0]}; give "
            "X without gaps, NaN where a value is not known."
        )
    rows = X.reindex(index)[list(columns)]
    values = [_codes(rows[n]) if _is_text(rows[n]) else rows[n].to_numpy(float) for n in columns]
    return np.stack(values, 1)


def _codes(column: pd.Series) -> np.ndarray:
    return column_codes(
        None if missing else text for text, missing in zip(column, column.isna(), strict=True)
    )

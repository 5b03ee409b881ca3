"""What an index tells: its series, its end, its season."""

import re
from collections.abc import Hashable

import numpy as np
import pandas as pd

# Steps of one season, by the unit of the frequency; the horizon when nobody asks for another.
_SEASONS = {"Y": 4, "Q": 4, "M": 12, "W": 13, "B": 5, "D": 7, "h": 24, "min": 60, "s": 60}
_DAYS = {"h": 24, "min": 1440, "s": 86_400}  # of steps that are multiples of these units
_SEASON = 12
_MAX_CONTEXT = 512


def split_instances(y: pd.DataFrame) -> dict[Hashable, pd.DataFrame]:
    """Split a panel or hierarchy into its series; a single series has the key None."""
    if not isinstance(y.index, pd.MultiIndex):
        return {None: y}
    levels: list[Hashable] = list(range(y.index.nlevels - 1))
    groups = y.groupby(level=levels if len(levels) > 1 else 0, sort=False)
    return {key: group.droplevel(levels) for key, group in groups}


def check_regular(index: pd.Index) -> None:
    """Raise ``ValueError`` unless every row is one step after the row before it."""
    if isinstance(index, pd.DatetimeIndex):
        if len(index) > 2 and index.freq is None and pd.infer_freq(index) is None:
            raise ValueError(
                f"y: expected dates of one frequency, found irregular ones between {index[0]} and "
                f"{index[-1]}; y.asfreq(...) makes missing dates rows of NaN, which are masked, "
                "y.reset_index(drop=True) counts rows instead."
            )
        return
    positions = index.asi8 if isinstance(index, pd.PeriodIndex) else index.to_numpy()
    steps = np.diff(positions)
    odd = np.flatnonzero(steps != 1)
    if len(odd):
        kind = "periods" if isinstance(index, pd.PeriodIndex) else "integers"
        raise ValueError(
            f"y: expected an index of consecutive {kind}, found a step of {steps[odd[0]]} after "
            f"{index[odd[0]]}; y.reindex(...) makes missing rows NaN, which are masked, "
            "y.reset_index(drop=True) counts rows instead."
        )


def last_of(index: pd.Index, known: pd.Index) -> pd.Index:
    """Return the last element of an index, with the frequency that sktime needs."""
    if not isinstance(index, pd.DatetimeIndex):
        return index[-1:]
    freq = index.freq or getattr(known, "freq", None) or pd.infer_freq(index)
    return pd.DatetimeIndex(index[-1:], freq=freq)  # type: ignore[arg-type]


def default_horizon(index: pd.Index, n_points: int) -> int:
    """Return one season of the index in steps, at most a quarter of the points."""
    season = _SEASON
    if isinstance(index, pd.PeriodIndex | pd.DatetimeIndex):
        freq = index.freqstr
        if freq is None and len(index) > 2:
            freq = pd.infer_freq(index)  # type: ignore[arg-type]
        multiple, unit = re.fullmatch(r"(\d*)([a-zA-Z]*).*", freq or "").groups()  # type: ignore[union-attr]
        unit = unit if unit in _SEASONS else unit.rstrip("ES")  # month end and start: ME, MS
        if multiple and unit in _DAYS:
            season = max(1, _DAYS[unit] // int(multiple))
        else:
            season = _SEASONS.get(unit, season)
    return max(1, min(season, n_points // 4))


def default_context(horizon: int, n_points: int) -> int:
    """Return four horizons, less where that leaves too few training windows."""
    windows = max(min(32, n_points // 3), n_points // 4)
    longest = n_points - horizon + 1 - windows
    return max(min(4 * horizon, longest, _MAX_CONTEXT), min(horizon, 8))

"""What an index tells: its series, its end, its season."""

import re
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from sktime.forecasting.base import ForecastingHorizon

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


def frequency_of(instances: Mapping[Hashable, pd.DataFrame]) -> Any:
    """Return the frequency of dates that all instances share, of the longest one; else None."""
    index = max(instances.values(), key=len).index
    if not isinstance(index, pd.DatetimeIndex):
        return None
    return index.freq or (pd.infer_freq(index) if len(index) > 2 else None)


def check_regular(index: pd.Index, freq: Any) -> None:
    """Raise ``ValueError`` unless every row is one step after the row before it.

    ``freq`` is that of :func:`frequency_of`.
    """
    advice = (
        "y.asfreq(...) makes missing rows NaN, which are masked, y.reset_index(drop=True) counts "
        "rows instead."
    )
    if isinstance(index, pd.DatetimeIndex):
        if freq is None and len(index) < 3:
            raise ValueError(
                f"y: expected dates of a known frequency, found {len(index)} without one; use "
                "y.asfreq(...) or a PeriodIndex."
            )
        if freq is None or not index.equals(pd.date_range(index[0], periods=len(index), freq=freq)):
            raise ValueError(
                "y: expected dates of one frequency, found irregular ones between "
                f"{index[0]} and {index[-1]}; {advice}"
            )
        return
    positions, unit, kind = index.to_numpy(), 1, "integers"
    if isinstance(index, pd.PeriodIndex):
        period: Any = index.freq  # 15 minutes are 15 units of a minute
        positions, unit, kind = index.asi8, period.n, "periods"
    steps = np.diff(positions)
    odd = np.flatnonzero(steps != unit)
    if len(odd):
        raise ValueError(
            f"y: expected an index of consecutive {kind}, found "
            f"a step of {steps[odd[0]] / unit:g} after {index[odd[0]]}; {advice}"
        )


def last_of(index: pd.Index, freq: Any) -> pd.Index:
    """Return the last element of an index, with the frequency that sktime needs."""
    if not isinstance(index, pd.DatetimeIndex):
        return index[-1:]
    return pd.DatetimeIndex(index[-1:], freq=freq)


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


def steps_of(fh: ForecastingHorizon, cutoff: pd.Index) -> tuple[np.ndarray, pd.Index]:
    """Return the steps of ``fh`` from the end of an instance, and the index they stand at."""
    steps = np.asarray(fh.to_relative(cutoff).to_pandas(), dtype=int)
    return steps, fh.to_absolute_index(cutoff)


def extended(index: pd.Index, n: int, freq: Any) -> pd.Index:
    """Return an index and the ``n`` steps after it."""
    if n <= 0:
        return index
    return index.append(ForecastingHorizon(range(1, n + 1)).to_absolute_index(last_of(index, freq)))


def longest_step(fh: ForecastingHorizon, instances: Mapping[Hashable, pd.DataFrame]) -> int | None:
    freq = frequency_of(instances)
    longest = max(int(steps_of(fh, last_of(f.index, freq))[0].max()) for f in instances.values())
    return longest if longest > 0 else None

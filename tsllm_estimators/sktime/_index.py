"""What an index tells: its series, its end, its season."""

import re
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from sktime.datatypes import update_data
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
    *levels, times = (y.index.get_level_values(level) for level in range(y.index.nlevels))
    # without its levels before it is split: every part would copy all of them
    groups = y.set_axis(times).groupby(levels if len(levels) > 1 else levels[0], sort=False)
    return dict(iter(groups))


def frequency_of(instances: Mapping[Hashable, pd.DataFrame]) -> Any:
    """Return the frequency of dates that all instances share, of the longest one; else None."""
    index = max(instances.values(), key=len).index
    if not isinstance(index, pd.DatetimeIndex):
        return None
    return index.freq or (pd.infer_freq(index) if len(index) > 2 else None)


def followed(known: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with newer rows; where two have the same index, the new one, unless NaN.

    As sktime's ``update_data``, which takes longer than a forecast where the new rows are the end.
    """
    before, kept = known.index, known
    if not isinstance(before, pd.MultiIndex) and not new.isna().to_numpy().any():
        kept = known[before < new.index[0]]
        if new.index.isin(before).sum() == len(known) - len(kept):  # of the rest, none is left out
            return pd.concat([kept, new]) if len(kept) else new.copy()
    return update_data(known, new)


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
    return steps, _at(cutoff, steps) if fh.is_relative else fh.to_absolute_index(cutoff)


def _at(last: pd.Index, steps: np.ndarray) -> pd.Index:
    """Return the index some steps after the last element of an index.

    As sktime's ``to_absolute_index``, which adds step by step to a date: that takes longer than a
    forecast.
    """
    freq: Any = getattr(last, "freq", None)
    if not isinstance(last, pd.DatetimeIndex) or freq is None or freq.n < 1:
        return ForecastingHorizon(steps).to_absolute_index(last)
    first, end = min(steps.min(), 0), max(steps.max(), 0)
    before = pd.date_range(end=last[0], periods=1 - first, freq=freq)
    line = before.append(pd.date_range(last[0], periods=1 + end, freq=freq)[1:])
    if (np.diff(steps) == 1).all():
        return line[steps[0] - first : steps[-1] - first + 1]
    return line[steps - first]


def extended(index: pd.Index, n: int, freq: Any) -> pd.Index:
    """Return an index and the ``n`` steps after it."""
    if n <= 0:
        return index
    return index.append(_at(last_of(index, freq), np.arange(1, n + 1)))


def steps_of_each(
    fh: ForecastingHorizon, instances: Mapping[Hashable, pd.DataFrame]
) -> dict[Hashable, tuple[np.ndarray, pd.Index]]:
    """Return :func:`steps_of` every instance; sktime is asked once for all that end alike."""
    freq, of_ends, found = frequency_of(instances), {}, {}
    for key, frame in instances.items():
        end = frame.index[-1]
        if end not in of_ends:
            of_ends[end] = steps_of(fh, last_of(frame.index, freq))
        found[key] = of_ends[end]
    return found


def longest_step(fh: ForecastingHorizon, instances: Mapping[Hashable, pd.DataFrame]) -> int | None:
    longest = max(int(steps.max()) for steps, _ in steps_of_each(fh, instances).values())
    return longest if longest > 0 else None

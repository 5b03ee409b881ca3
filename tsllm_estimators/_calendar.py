"""The calendar of an index: what to say of its rows, by how far apart they are."""

from typing import Any

import numpy as np
import pandas as pd

from tsllm_estimators.llm.calendar import Stamp

_DAY = np.timedelta64(1, "D")
_MINUTE = np.timedelta64(60, "s")
# The shortest month and year of any offset: business months whose last days are holidays, and the
# time from a late Easter to an early one.
_MONTH = np.timedelta64(25, "D")
_YEAR = np.timedelta64(350, "D")

# What recurs, by the step; a part that is constant or unique at a step would only cost tokens.
_SECONDS = ("hour", "minute", "second")
_HOURS = ("weekday", "hour", "minute")
_DAYS = ("month", "day", "weekday")
_DATES = ("month", "day")
_WEEKS = ("week",)
_MONTHS = ("month",)
_QUARTERS = ("quarter",)
_YEARS: tuple[str, ...] = ()

# More values than each part has; the year is not bounded and leads.
_RADIX = {
    **{"quarter": 5, "month": 13, "week": 54, "day": 32, "weekday": 7},
    **{"hour": 24, "minute": 60, "second": 60},
}
_N_STEPS = 24  # of a frequency: two years of months, which tell them from steps of 30 days
_REFERENCE = pd.Timestamp("2017-01-01")


def stamps_of(
    index: pd.Index, freq: Any = None, *, dated: bool = False
) -> tuple[list[Stamp | None], np.ndarray]:
    """Return the distinct stamps of an index and the position of each row's stamp among them.

    ====================  ==============  =============================
    step                  said            said where dated
    ====================  ==============  =============================
    under a minute        13:00:05        Monday, 3 July 2017, 13:00:05
    under a day           Monday, 13:00   Monday, 3 July 2017, 13:00
    days, business days   Monday, 3 July  Monday, 3 July 2017
    weeks                 week 27         week 27 of 2017
    half months, 10 days  15 July         15 July 2017
    months                July            July 2017
    quarters, half years  third quarter   third quarter of 2017
    years and more        nothing         2017
    ====================  ==============  =============================

    The step counts and not its spelling: 24 hours are a day, 7 days a week, 3 months a quarter.

    Parameters
    ----------
    index : pandas.Index
        Dates, of which the wall time is said where they have a time zone; or periods, of which
        the start is said. Other indexes have no calendar.
    freq : str, pandas offset, timedelta or None
        Frequency of dates whose index carries none. None takes the steps between the dates.
    dated : bool
        Say all that is known of a step, with its year. By default what never comes back is left
        out, so that there are few stamps however long the index.

    Returns
    -------
    stamps : list of Stamp or None
        None stands for rows of which nothing is said: without a calendar, NaT, or years.
    positions : numpy.ndarray
        Shape (t,), int64, of the stamp of each row in ``stamps``.

    Raises
    ------
    ValueError
        If ``freq`` is needed and is not a frequency.
    """
    if isinstance(index, pd.PeriodIndex):
        dates = index.asfreq("s", how="S").asi8.view("datetime64[s]")
        known: Any = index.freq
    elif isinstance(index, pd.DatetimeIndex):
        dates = index.tz_localize(None).to_numpy()
        known = freq if index.freq is None else index.freq
    else:
        return [None], np.zeros(len(index), np.int64)
    missing = np.isnat(dates)
    said = _recurring(dates[~missing] if known is None else _dates_of(known))
    if dated:
        days = _DAYS if "hour" in said else ()
        said = ("year", *dict.fromkeys((*days, *said)))
    if not said:
        return [None], np.zeros(len(index), np.int64)

    parts = _parts(np.where(missing, np.datetime64(0, "s"), dates.astype("datetime64[s]")), said)
    keys = np.zeros(len(index), np.int64)
    for name in said:
        keys = keys * _RADIX.get(name, 1) + parts[name]
    keys[missing] = np.iinfo(np.int64).min
    _, rows, positions = np.unique(keys, return_index=True, return_inverse=True)
    values = zip(*(parts[name][rows].tolist() for name in said), strict=True)
    stamps = [
        None if nat else Stamp(**dict(zip(said, row, strict=True)))
        for nat, row in zip(missing[rows], values, strict=True)
    ]
    return stamps, positions.astype(np.int64, copy=False)


def _dates_of(freq: Any) -> np.ndarray:
    """Return dates that follow each other by ``freq``."""
    if isinstance(freq, np.timedelta64):
        freq = pd.Timedelta(freq)
    expected = "freq must be a frequency such as 'h', '15min' or 'MS', a pandas offset or None"
    try:
        offset = pd.tseries.frequencies.to_offset(freq)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{expected}, found {freq!r}: {error}") from error
    dates = [_REFERENCE + offset]
    for _ in range(_N_STEPS):
        dates.append(dates[-1] + offset)
        if abs(dates[-1].year - _REFERENCE.year) > _N_STEPS:
            break  # centuries of steps would leave the calendar of pandas
    if dates[0] == dates[-1]:
        raise ValueError(f"{expected}, found {freq!r}, by which dates do not move on.")
    return np.array([date.to_datetime64() for date in dates])


def _recurring(dates: np.ndarray) -> tuple[str, ...]:
    """Return the parts that recur and differ, by the steps between neighbouring ``dates``."""
    steps = np.abs(np.diff(dates))
    moves = steps > np.timedelta64(0, "s")  # the hour that clocks repeat is no step
    if not moves.any():
        return _of_one_date(dates)
    dates, steps = dates[np.append(True, moves)], steps[moves]
    smallest = steps.min()
    if smallest < _MINUTE:
        return _SECONDS
    if smallest < _DAY or np.any(steps % _DAY):
        return _HOURS
    if smallest >= _YEAR:
        return _YEARS
    n_months = _months_between(dates) if smallest >= _MONTH else 0
    if n_months:
        return _MONTHS if n_months % 3 else _QUARTERS
    if np.gcd.reduce(steps // _DAY) % 7 == 0:
        return _WEEKS
    return _DAYS if smallest < 7 * _DAY else _DATES


def _of_one_date(dates: np.ndarray) -> tuple[str, ...]:
    """Return the parts that one date without a frequency needs, by its last that is not zero."""
    clock = (dates[:1] - dates[:1].astype("datetime64[D]")).astype("timedelta64[s]")
    if not clock.any():
        return _DAYS
    return _SECONDS if np.any(clock % _MINUTE) else _HOURS


def _months_between(dates: np.ndarray) -> int:
    """Return the months that all steps are a multiple of; 0 unless steps are whole months.

    They are where all dates lie in the same seven days of their month, counted from its start or
    from its end, such as first working days or last Fridays.
    """
    months = dates.astype("datetime64[M]")
    steps = np.abs(np.diff(months)).astype(np.int64)
    days = dates.astype("datetime64[D]")
    from_start = days - months.astype("datetime64[D]")
    from_end = (months + 1).astype("datetime64[D]") - days
    spread = min(np.ptp(from_start.astype(np.int64)), np.ptp(from_end.astype(np.int64)))
    return int(np.gcd.reduce(steps)) if spread < 7 else 0


def _parts(dates: np.ndarray, said: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return all parts of ``dates``, in seconds, as integers."""
    days = dates.astype("datetime64[D]")
    weekday = (days.astype(np.int64) + 3) % 7  # 1970 began on a Thursday
    # An ISO week belongs to the year of its Thursday.
    thursday = days + (3 - weekday)
    years = (thursday if "week" in said else days).astype("datetime64[Y]")
    months = days.astype("datetime64[M]")
    month = months.astype(np.int64) % 12
    week = (thursday - thursday.astype("datetime64[Y]")).astype(np.int64) // 7
    clock = (dates - days).astype(np.int64)
    return {
        "year": years.astype(np.int64) + 1970,
        "quarter": month // 3 + 1,
        "month": month + 1,
        "week": week + 1,
        "day": (days - months).astype(np.int64) + 1,
        "weekday": weekday,
        "hour": clock // 3600,
        "minute": clock // 60 % 60,
        "second": clock % 60,
    }

"""Calendars: what is said of a time step, as a short text or as numbers, and of a window."""

import math
from typing import NamedTuple

_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_QUARTERS = ("first", "second", "third", "fourth")

# First value and number of values of each part that comes back.
_CYCLES = {
    "quarter": (1, 4),
    "month": (1, 12),
    "week": (1, 53),
    "day": (1, 31),
    "weekday": (0, 7),
    "hour": (0, 24),
    "minute": (0, 60),
    "second": (0, 60),
}
_NEEDS = {"day": "month", "minute": "hour", "second": "minute"}
# Half a year off, so that no year is 0, which stands for a year that is not said.
_MIDDLE_YEAR = 1999.5

N_NUMBERS = 1 + 2 * len(_CYCLES)


class Stamp(NamedTuple):
    """What is said of a time step, by the clock and calendar of its place; None is not said.

    Attributes
    ----------
    year : int or None
        The ISO year where ``week`` is said: 1 January 2017 is in week 52 of 2016.
    quarter : int or None
        Calendar quarter, 1 to 4.
    month : int or None
        1 to 12.
    week : int or None
        ISO week, 1 to 53.
    day : int or None
        Day of the month, 1 to 31.
    weekday : int or None
        0 (Monday) to 6 (Sunday).
    hour, minute, second : int or None
        From 0.
    """

    year: int | None = None
    quarter: int | None = None
    month: int | None = None
    week: int | None = None
    day: int | None = None
    weekday: int | None = None
    hour: int | None = None
    minute: int | None = None
    second: int | None = None


def stamp_text(stamp: Stamp) -> str:
    """Return what is said of a time step in as few words as are unambiguous.

    Raises
    ------
    ValueError
        If the stamp says nothing, a value is not on the calendar, or a part misses the larger one
        it belongs to (a minute without its hour).

    Examples
    --------
    >>> stamp_text(Stamp(weekday=0, hour=13, minute=0))
    'Monday, 13:00'
    >>> stamp_text(Stamp(year=2017, month=7, day=3, weekday=0, hour=13, minute=0))
    'Monday, 3 July 2017, 13:00'
    >>> stamp_text(Stamp(year=2017, quarter=3))
    'third quarter of 2017'
    """
    _check(stamp)
    if stamp == Stamp():
        raise ValueError(
            "stamp must say at least one part of a date or time, found none; give a time step of "
            "which nothing is said no text."
        )
    for part, larger in _NEEDS.items():
        if getattr(stamp, part) is not None and getattr(stamp, larger) is None:
            raise ValueError(
                f"stamp must say its {larger} where it says its {part}, found {stamp}; add the "
                f"{larger} or leave out the {part}."
            )
    parts = [_weekday(stamp), _date(stamp), _time(stamp)]
    return ", ".join(part for part in parts if part)


def window_text(start: Stamp, end: Stamp) -> str:
    """Return one sentence that tells from when to when a window of a time series reaches.

    Parameters
    ----------
    start, end : Stamp
        Of the first and the last time step of the window.

    Raises
    ------
    ValueError
        As :func:`stamp_text` does.

    Examples
    --------
    >>> window_text(Stamp(year=2017, month=7), Stamp(year=2018, month=6))
    'A time series from July 2017 to June 2018.'
    """
    return f"A time series from {stamp_text(start)} to {stamp_text(end)}."


def stamp_numbers(stamp: Stamp) -> tuple[float, ...]:
    """Return what is said of a time step as ``N_NUMBERS`` numbers, none of them large.

    The first is the year, in centuries from the turn of the millennium. Then quarter, month, week,
    day, weekday, hour, minute and second have two each, the sine and the cosine of their place in
    their cycle, so that 23:00 is as near to 00:00 as to 22:00. What is not said is 0.

    Raises
    ------
    ValueError
        If a value is not on the calendar.
    """
    _check(stamp)
    numbers = [0.0 if stamp.year is None else (stamp.year - _MIDDLE_YEAR) / 100]
    for part, (first, length) in _CYCLES.items():
        value = getattr(stamp, part)
        angle = 0.0 if value is None else 2 * math.pi * (value - first) / length
        numbers += [0.0, 0.0] if value is None else [math.sin(angle), math.cos(angle)]
    return tuple(numbers)


def _check(stamp: Stamp) -> None:
    for part, (first, length) in _CYCLES.items():
        value, last = getattr(stamp, part), first + length - 1
        if value is not None and not first <= value <= last:
            raise ValueError(f"stamp.{part} must be in {first} to {last} or None, found {value}.")


def _weekday(stamp: Stamp) -> str:
    return "" if stamp.weekday is None else _WEEKDAYS[stamp.weekday]


def _date(stamp: Stamp) -> str:
    periods = []
    if stamp.week is not None:
        periods.append(f"week {stamp.week}")
    if stamp.quarter is not None:
        periods.append(f"{_QUARTERS[stamp.quarter - 1]} quarter")
    if stamp.month is not None:
        day = "" if stamp.day is None else f"{stamp.day} "
        periods.append(f"{day}{_MONTHS[stamp.month - 1]}")
    text = ", ".join(periods)
    if stamp.year is None:
        return text
    between = " of " if text and stamp.month is None else " " if text else ""
    return f"{text}{between}{stamp.year}"


def _time(stamp: Stamp) -> str:
    if stamp.hour is None:
        return ""
    text = f"{stamp.hour:02}:{stamp.minute or 0:02}"
    return text if stamp.second is None else f"{text}:{stamp.second:02}"

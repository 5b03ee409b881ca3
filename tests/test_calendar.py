"""Calendars: what is said of the rows of an index, in words and in numbers."""

import datetime
import math

import numpy as np
import pandas as pd
import pytest

from tsllm_estimators import _calendar
from tsllm_estimators._calendar import stamps_of
from tsllm_estimators.llm.calendar import (
    N_NUMBERS,
    Stamp,
    stamp_numbers,
    stamp_text,
    window_text,
)

OFFSETS = pd.offsets
QUARTERS = ["third quarter", "fourth quarter", "first quarter"]
QUARTERS_DATED = ["third quarter of 2017", "fourth quarter of 2017", "first quarter of 2018"]
DATES = ["Monday, 3 July", "Tuesday, 4 July"]
WEEKS = ["week 27", "week 28"]
MONTHS = ["July", "August"]

# From Monday, 3 July 2017, 13:00: frequency, first texts, first texts where dated.
TABLE = [
    ("s", ["13:00:00", "13:00:01"], ["Monday, 3 July 2017, 13:00:00"]),
    ("30s", ["13:00:00", "13:00:30"], ["Monday, 3 July 2017, 13:00:00"]),
    ("ms", ["13:00:00", "13:00:00"], ["Monday, 3 July 2017, 13:00:00"]),
    ("us", ["13:00:00"], ["Monday, 3 July 2017, 13:00:00"]),
    ("ns", ["13:00:00"], ["Monday, 3 July 2017, 13:00:00"]),
    ("min", ["Monday, 13:00", "Monday, 13:01"], ["Monday, 3 July 2017, 13:00"]),
    ("15min", ["Monday, 13:00", "Monday, 13:15"], ["Monday, 3 July 2017, 13:00"]),
    ("h", ["Monday, 13:00", "Monday, 14:00"], ["Monday, 3 July 2017, 13:00"]),
    ("2h", ["Monday, 13:00", "Monday, 15:00"], ["Monday, 3 July 2017, 13:00"]),
    ("36h", ["Monday, 13:00", "Wednesday, 01:00"], ["Monday, 3 July 2017, 13:00"]),
    ("bh", ["Monday, 13:00", "Monday, 14:00"], ["Monday, 3 July 2017, 13:00"]),
    ("cbh", ["Monday, 13:00", "Monday, 14:00"], ["Monday, 3 July 2017, 13:00"]),
    (pd.Timedelta("30min"), ["Monday, 13:00", "Monday, 13:30"], ["Monday, 3 July 2017, 13:00"]),
    (pd.DateOffset(hours=6), ["Monday, 13:00", "Monday, 19:00"], ["Monday, 3 July 2017, 13:00"]),
    ("D", DATES, ["Monday, 3 July 2017", "Tuesday, 4 July 2017"]),
    ("2D", ["Monday, 3 July", "Wednesday, 5 July"], ["Monday, 3 July 2017"]),
    ("24h", DATES, ["Monday, 3 July 2017"]),
    ("B", DATES, ["Monday, 3 July 2017"]),
    ("C", DATES, ["Monday, 3 July 2017"]),
    (datetime.timedelta(days=1), DATES, ["Monday, 3 July 2017"]),
    (pd.DateOffset(), DATES, ["Monday, 3 July 2017"]),
    ("10D", ["3 July", "13 July"], ["3 July 2017", "13 July 2017"]),
    ("30D", ["3 July", "2 August"], ["3 July 2017", "2 August 2017"]),
    ("31D", ["3 July", "3 August"], ["3 July 2017", "3 August 2017"]),
    ("SME", ["15 July", "31 July"], ["15 July 2017", "31 July 2017"]),
    ("SMS", ["15 July", "1 August"], ["15 July 2017", "1 August 2017"]),
    ("W", WEEKS, ["week 27 of 2017", "week 28 of 2017"]),
    ("W-SUN", WEEKS, ["week 27 of 2017"]),
    ("W-WED", WEEKS, ["week 27 of 2017"]),
    ("2W", ["week 27", "week 29"], ["week 27 of 2017"]),
    ("4W", ["week 27", "week 31"], ["week 27 of 2017"]),
    ("7D", WEEKS, ["week 27 of 2017"]),
    ("5B", WEEKS, ["week 27 of 2017"]),
    (pd.DateOffset(weeks=1), WEEKS, ["week 27 of 2017"]),
    ("ME", MONTHS, ["July 2017", "August 2017"]),
    ("MS", ["August", "September"], ["August 2017"]),
    ("BME", MONTHS, ["July 2017"]),
    ("BMS", MONTHS, ["July 2017"]),
    ("CBME", MONTHS, ["July 2017"]),
    ("WOM-1MON", MONTHS, ["July 2017"]),
    (OFFSETS.LastWeekOfMonth(weekday=4), MONTHS, ["July 2017"]),
    (OFFSETS.CustomBusinessMonthEnd(holidays=["2018-02-28"]), MONTHS, ["July 2017"]),
    (pd.DateOffset(months=1), MONTHS, ["July 2017"]),
    ("2ME", ["July", "September"], ["July 2017"]),
    ("5ME", ["July", "December"], ["July 2017"]),
    ("QE", QUARTERS, QUARTERS_DATED),
    ("QE-DEC", QUARTERS, QUARTERS_DATED),
    ("QE-NOV", QUARTERS, QUARTERS_DATED),
    ("QS-OCT", ["fourth quarter", "first quarter"], ["fourth quarter of 2017"]),
    ("BQE", QUARTERS, QUARTERS_DATED),
    ("BQS-AUG", QUARTERS, QUARTERS_DATED),
    ("3ME", QUARTERS, QUARTERS_DATED),
    ("3MS", ["third quarter", "fourth quarter"], ["third quarter of 2017"]),
    ("2QE", ["third quarter", "first quarter"], ["third quarter of 2017"]),
    (pd.DateOffset(months=3), QUARTERS, QUARTERS_DATED),
    ("YE", [None, None], ["2017", "2018"]),
    ("YE-JAN", [None, None], ["2018", "2019"]),
    ("YS-JUL", [None, None], ["2018", "2019"]),
    ("BYE", [None], ["2017"]),
    ("12ME", [None], ["2017", "2018"]),
    ("4QE", [None], ["2017", "2018"]),
    ("10YS", [None, None], ["2018", "2028"]),
    ("RE-N-JAN-MON", [None], ["2018", "2019"]),
    (OFFSETS.Easter(), [None, None], ["2018", "2019"]),
    (pd.DateOffset(years=1), [None], ["2017", "2018"]),
]
# The same series, as dates and as periods.
PERIODS = [
    *[("s", "s"), ("15min", "15min"), ("h", "h"), ("D", "D"), ("W-SUN", "W-MON")],
    *[("M", "MS"), ("2M", "2MS"), ("Q", "QS"), ("Q-DEC", "QS-OCT"), ("Q-JAN", "QS-FEB")],
    *[("Y", "YS"), ("Y-JUN", "YS-JUL")],
]
YEAR_OF = ["h", "6h", "15min", "D", "B", "SME", "W", "MS", "BME", "QE", "2QE", "YE"]


def dates(freq, periods=30, start="2017-07-03 13:00", **arguments):
    return pd.date_range(start, periods=periods, freq=freq, **arguments)


def without_freq(index):
    return pd.DatetimeIndex(list(index), tz=index.tz)


def texts(index, freq=None, **arguments):
    """Return the text of each row, None where nothing is said."""
    stamps, positions = stamps_of(index, freq, **arguments)
    assert positions.shape == (len(index),)
    assert positions.dtype == np.int64
    assert len(set(stamps)) == len(stamps) == len(set(positions.tolist())) or not len(index)
    return [stamps[i] and stamp_text(stamps[i]) for i in positions]


@pytest.mark.parametrize(("freq", "recurring", "dated"), TABLE, ids=[str(row[0]) for row in TABLE])
def test_rows_are_told_by_how_far_apart_they_are(freq, recurring, dated):
    index = dates(freq, periods=20)
    assert texts(index)[: len(recurring)] == recurring
    assert texts(index, dated=True)[: len(dated)] == dated


@pytest.mark.parametrize("freq", [row[0] for row in TABLE], ids=str)
def test_a_frequency_that_is_given_or_seen_says_what_a_carried_one_does(freq):
    index = dates(freq, periods=20)
    bare = without_freq(index)
    assert bare.freq is None
    for dated in (False, True):
        expected = texts(index, dated=dated)
        assert texts(bare, freq, dated=dated) == expected
        assert texts(bare, dated=dated) == expected
        assert texts(bare[:1], freq, dated=dated) == expected[:1]


def test_the_frequency_of_the_index_comes_before_the_one_given():
    assert texts(dates("h", 1), "MS") == ["Monday, 13:00"]
    assert texts(pd.period_range("2017-07", periods=1, freq="M"), "h") == ["July"]


@pytest.mark.parametrize(("period", "date"), PERIODS)
@pytest.mark.parametrize("dated", [False, True])
def test_periods_say_what_their_first_moments_do(period, date, dated):
    periods = pd.period_range("2015-02-02", periods=60, freq=period)
    index = pd.date_range(periods[0].start_time, periods=60, freq=date)
    assert texts(periods, dated=dated) == texts(index, dated=dated)


@pytest.mark.parametrize(
    ("freq", "n_rows", "n_stamps"),
    [
        *[("h", 5000, 168), ("2h", 5000, 84), ("15min", 5000, 672), ("bh", 5000, 40)],
        *[("10s", 20_000, 8640), ("W", 1000, 53), ("MS", 1000, 12), ("SME", 1000, 25)],
        *[("QE", 400, 4), ("2QE", 200, 2), ("YE", 100, 1), ("D", 365, 365), ("D", 20_000, 2562)],
    ],
)
def test_recurring_stamps_are_few_however_long_the_index(freq, n_rows, n_stamps):
    stamps, _ = stamps_of(dates(freq, n_rows))
    assert len(stamps) == n_stamps
    assert len(stamps_of(dates(freq, n_rows), dated=True)[0]) == n_rows


def test_stamps_are_built_for_the_distinct_ones_only(monkeypatch):
    built = []
    monkeypatch.setattr(_calendar, "Stamp", lambda **parts: built.append(parts) or Stamp(**parts))
    _, positions = stamps_of(dates("h", 17_420))
    assert len(built) == 168
    assert len(positions) == 17_420


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_parts_are_those_of_pandas_before_1970_too(unit):
    index = dates("4937h", 400, start="1931-12-28").as_unit(unit)
    stamps, positions = stamps_of(index, dated=True)
    names = ["year", "month", "day", "weekday", "hour", "minute"]
    for name in names:
        found = [getattr(stamps[i], name) for i in positions]
        assert found == getattr(index, name).tolist()


def test_weeks_are_iso_weeks_of_iso_years():
    index = dates("W", 700, start="1990-01-01")
    stamps, positions = stamps_of(index, dated=True)
    iso = index.isocalendar()
    assert [stamps[i].year for i in positions] == iso.year.tolist()
    assert [stamps[i].week for i in positions] == iso.week.tolist()
    sunday = pd.DatetimeIndex(["2017-01-01"])
    assert texts(sunday, "W", dated=True) == ["week 52 of 2016"]


def test_times_of_a_zone_are_said_as_its_clocks_show_them():
    utc = dates("h", 2, start="2017-07-03 22:00", tz="UTC")
    assert texts(utc.tz_convert("Europe/Berlin")) == ["Tuesday, 00:00", "Tuesday, 01:00"]
    assert texts(utc) == ["Monday, 22:00", "Monday, 23:00"]


@pytest.mark.parametrize(
    ("day", "hours"),
    [("2017-03-26", ["00", "01", "03", "04"]), ("2017-10-29", ["00", "01", "02", "02", "03"])],
)
def test_hours_that_clocks_skip_or_repeat_are_no_error(day, hours):
    index = dates("h", len(hours), start=day, tz="Europe/Berlin")
    expected = [f"Sunday, {hour}:00" for hour in hours]
    assert texts(index) == expected
    assert texts(without_freq(index)) == expected
    daily = dates("D", 10, start=pd.Timestamp(day) - pd.Timedelta(days=5), tz="Europe/Berlin")
    assert texts(without_freq(daily)) == texts(daily) == texts(daily.tz_localize(None))


def test_gaps_duplicates_and_order_do_not_change_what_is_said():
    for freq in ["h", "D", "B", "MS", "QE", "W"]:
        index = without_freq(dates(freq, 40))
        rows = [*range(12), 14, 15, 15, 20, *range(25, 40)]
        expected = texts(index)
        assert texts(index[rows]) == [expected[i] for i in rows]
        assert texts(index[rows[::-1]]) == [expected[i] for i in rows[::-1]]


def test_one_date_without_a_frequency_says_what_is_not_zero():
    said = {"2017-07-03": "Monday, 3 July", "2017-07-03 13:00": "Monday, 13:00"}
    said |= {"2017-07-03 00:15": "Monday, 00:15", "2017-07-03 00:00:07": "00:00:07"}
    for date, text in said.items():
        assert texts(pd.DatetimeIndex([date])) == [text]
        assert texts(pd.DatetimeIndex([date, date])) == [text, text]


def test_two_dates_without_a_frequency_are_enough():
    said = {"2017-07-03 01:00": "Monday, 00:00", "2017-07-10": "week 27", "2017-08-03": "July"}
    said |= {"2017-07-05": "Monday, 3 July", "2017-10-03": "third quarter", "2018-07-03": None}
    for second, text in said.items():
        assert texts(pd.DatetimeIndex(["2017-07-03", second]))[0] == text
    assert texts(pd.DatetimeIndex(["2017-01-31", "2017-02-28"])) == ["January", "February"]


def test_missing_dates_have_no_stamp():
    index = pd.DatetimeIndex(["2017-07-03 13:00", None, "2017-07-03 14:00", None])
    for dated in (False, True):
        stamps, positions = stamps_of(index, dated=dated)
        assert stamps.count(None) == 1
        assert [stamps[i] is None for i in positions] == [False, True, False, True]
    thursday = pd.DatetimeIndex([None, "1970-01-01", "1970-01-01 01:00"])
    assert texts(thursday) == [None, "Thursday, 00:00", "Thursday, 01:00"]
    months = pd.DatetimeIndex(["2017-07-03", None, "2017-08-03", None])
    assert texts(months) == ["July", None, "August", None]
    assert texts(pd.PeriodIndex(["2017-07", None], freq="M")) == ["July", None]
    assert texts(pd.DatetimeIndex([None, None])) == [None, None]


@pytest.mark.parametrize(
    "index", [pd.RangeIndex(5), pd.Index([3, 4]), pd.Index(["a"]), pd.to_timedelta([1, 2], "h")]
)
def test_an_index_without_dates_has_no_calendar(index):
    for dated in (False, True):
        stamps, positions = stamps_of(index, 1, dated=dated)
        assert stamps == [None]
        assert positions.tolist() == [0] * len(index)


@pytest.mark.parametrize("dated", [False, True])
def test_an_empty_index_has_no_rows(dated):
    for index in [pd.DatetimeIndex([]), dates("h", 0), pd.PeriodIndex([], freq="M")]:
        assert texts(index, dated=dated) == []


def test_frequencies_may_be_numpy_timedeltas_or_centuries():
    index = pd.DatetimeIndex(["2017-07-03"])
    assert texts(index, np.timedelta64(15, "m")) == ["Monday, 00:00"]
    assert texts(index, "1000YS") == [None]
    assert texts(index, "1000YS", dated=True) == ["2017"]


@pytest.mark.parametrize("freq", ["fortnight", 1, "0h", pd.DateOffset(day=3)])
def test_what_is_no_frequency_is_refused(freq):
    with pytest.raises(ValueError, match=r"freq must be a frequency such as 'h'.*found"):
        stamps_of(pd.DatetimeIndex(["2017-07-03"]), freq)


@pytest.mark.parametrize("dated", [False, True])
@pytest.mark.parametrize("freq", YEAR_OF)
def test_distinct_stamps_have_distinct_texts_and_numbers(freq, dated):
    index = pd.date_range("2016-01-01", "2017-03-01", freq=freq)
    stamps = [stamp for stamp in stamps_of(index, dated=dated)[0] if stamp]
    assert len({stamp_text(stamp) for stamp in stamps}) == len(stamps)
    rounded = {tuple(round(number, 3) for number in stamp_numbers(stamp)) for stamp in stamps}
    assert len(rounded) == len(stamps)


def test_stamps_that_say_other_parts_have_other_texts():
    stamps = [stamp for freq in YEAR_OF for stamp in stamps_of(dates(freq, 200))[0] if stamp]
    stamps += [stamp for freq in YEAR_OF for stamp in stamps_of(dates(freq), dated=True)[0]]
    stamps = set(stamps)
    assert len({stamp_text(stamp) for stamp in stamps}) == len(stamps)


def test_texts_name_every_month_weekday_and_quarter():
    months = [stamp_text(Stamp(month=m)) for m in range(1, 13)]
    assert months == pd.date_range("2017", periods=12, freq="MS").month_name().tolist()
    weekdays = [stamp_text(Stamp(weekday=d)) for d in range(7)]
    assert weekdays == pd.date_range("2017-07-03", periods=7).day_name().tolist()
    quarters = [stamp_text(Stamp(quarter=q)).split()[0] for q in range(1, 5)]
    assert quarters == ["first", "second", "third", "fourth"]
    assert stamp_text(Stamp(hour=13)) == "13:00"


def test_a_window_is_told_from_its_first_to_its_last_step():
    stamps, _ = stamps_of(dates("h", 96))
    first, last = Stamp(weekday=0, hour=13, minute=0), Stamp(weekday=4, hour=12, minute=0)
    assert {first, last} <= set(stamps)
    assert window_text(first, last) == "A time series from Monday, 13:00 to Friday, 12:00."


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        (Stamp(), "stamp must say at least one part"),
        (Stamp(weekday=7), "stamp.weekday must be in 0 to 6 or None, found 7"),
        (Stamp(month=0), "stamp.month must be in 1 to 12 or None, found 0"),
        (Stamp(minute=5), "stamp must say its hour where it says its minute"),
        (Stamp(hour=5, second=5), "stamp must say its minute where it says its second"),
        (Stamp(year=2017, day=5), "stamp must say its month where it says its day"),
    ],
)
def test_stamps_off_the_calendar_have_no_text(stamp, message):
    with pytest.raises(ValueError, match=message):
        stamp_text(stamp)


def test_numbers_have_one_width_and_are_small():
    everything = [s for freq in YEAR_OF for s in stamps_of(dates(freq), dated=True)[0]]
    for stamp in [Stamp(), *everything]:
        numbers = stamp_numbers(stamp)
        assert len(numbers) == N_NUMBERS == 17
        assert all(isinstance(number, float) and abs(number) <= 1 for number in numbers)
    with pytest.raises(ValueError, match=r"stamp.hour must be in 0 to 23 or None, found 24"):
        stamp_numbers(Stamp(hour=24))


def test_numbers_of_parts_that_are_not_said_are_zero():
    assert stamp_numbers(Stamp()) == (0.0,) * N_NUMBERS
    places = {"year": [0]}
    cyclic = ["quarter", "month", "week", "day", "weekday", "hour", "minute", "second"]
    places |= {part: [2 * i + 1, 2 * i + 2] for i, part in enumerate(cyclic)}
    for part, place in places.items():
        numbers = stamp_numbers(Stamp(**{part: 2 if part != "year" else 2000}))
        assert any(numbers[i] for i in place)
        assert not any(number for i, number in enumerate(numbers) if i not in place)


def test_numbers_go_round_in_their_cycles():
    hours = [stamp_numbers(Stamp(hour=hour)) for hour in range(24)]
    step = math.dist(hours[3], hours[4])
    assert math.dist(hours[23], hours[0]) == pytest.approx(step)
    assert math.dist(hours[0], hours[12]) == pytest.approx(2)
    months = [stamp_numbers(Stamp(month=month)) for month in range(1, 13)]
    assert math.dist(months[11], months[0]) == pytest.approx(math.dist(months[5], months[6]))

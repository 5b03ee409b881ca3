"""Calendars, descriptions and columns of text of sktime reach the network, each at its step."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from darts import TimeSeries
from sktime.forecasting.base import ForecastingHorizon
from sktime.forecasting.compose import ForecastingPipeline, TransformedTargetForecaster
from sktime.forecasting.model_evaluation import evaluate
from sktime.forecasting.model_selection import ForecastingGridSearchCV
from sktime.split import ExpandingWindowSplitter
from sktime.transformations.series.detrend import Detrender
from sktime.transformations.series.subset import ColumnSelect
from spying import H, L, Spy, check, ends
from support import METHODS

from tsllm_estimators.darts import LeMoLEModel, text_covariates
from tsllm_estimators.llm import vocabulary
from tsllm_estimators.networks.lemole import LeMoLE
from tsllm_estimators.sktime import LeMoLEForecaster

N, AHEAD = 24, 12
ALL = [*range(1, 9)]  # steps of the forecast, in three chunks
WINDOWS = range(L - 1, N - H)

INDICES = {
    "hours": pd.date_range("2018-01-01 07:00", periods=N + AHEAD, freq="h"),
    "quarter hours": pd.date_range("2018-01-01 07:00", periods=N + AHEAD, freq="15min"),
    "spring": pd.date_range("2021-03-27 06:00", periods=N + AHEAD, freq="h", tz="Europe/Berlin"),
    "autumn": pd.date_range("2021-10-30 06:00", periods=N + AHEAD, freq="h", tz="Europe/Berlin"),
    "days of a zone": pd.date_range("2021-03-15", periods=N + AHEAD, freq="D", tz="Europe/Berlin"),
    "business days": pd.date_range("2018-01-01", periods=N + AHEAD, freq="B"),
    "weeks": pd.date_range("2018-01-03", periods=N + AHEAD, freq="W-WED"),
    "month ends": pd.date_range("2018-01-31", periods=N + AHEAD, freq="ME"),
    "quarters": pd.period_range("2018Q1", periods=N + AHEAD, freq="Q"),
    "months": pd.period_range("2018-01", periods=N + AHEAD, freq="M"),
    "periods of hours": pd.period_range("2018-01-01 07:00", periods=N + AHEAD, freq="h"),
    "positions": pd.RangeIndex(N + AHEAD),
    "integers": pd.Index(range(1000, 1000 + N + AHEAD)),
}
by_index = pytest.mark.parametrize("times", INDICES.values(), ids=INDICES)
SOME = ["spring", "business days", "quarters", "positions"]
by_some = pytest.mark.parametrize("times", [INDICES[name] for name in SOME], ids=SOME)
MONTHS, HOURS = INDICES["months"], INDICES["hours"]


@pytest.fixture
def shown(monkeypatch):
    """Replace the network by one that counts on; returns the spy in its place."""
    spy = Spy()
    monkeypatch.setattr(LeMoLE, "forward", lambda network, batch: spy.forward(network, batch))
    return spy


def lemole(**changes):
    settings = {"context_length": L, "horizon": H, "backbone": "tiny", "text_encoder": "hash"}
    host = {"max_steps": None, "num_epochs": 1, "device": "cpu", "random_state": 0}
    return LeMoLEForecaster(**{**settings, **host, **changes})


def spied(**changes):
    """Return a forecaster whose network sees the values as they are."""
    return lemole(scaling=None, **changes)


def counting(times=MONTHS, n=N, number=0, start=0):
    values = 1000.0 * number + np.arange(start, n)
    return pd.DataFrame({"y": values}, index=times[start:n])


def told(times=MONTHS, n=N + AHEAD, start=0, foreseen=None):
    """Return texts that tell each row its own position, and numbers."""
    rows = range(start, n)
    news = [f"news {i}" if foreseen is None or i <= foreseen else None for i in rows]
    columns = {"event": [f"event {i}" for i in rows], "price": np.linspace(0, 9, len(rows))}
    return pd.DataFrame({**columns, "news": news}, index=times[start:n])


def panel(frames, names=None):
    return pd.concat(frames, names=[*(names or ["key"]), "time"])


# The calendar, whatever the path ----------------------------------------------------------------


@by_index
def test_every_step_is_told_its_own_time(shown, times):
    y = counting(times)
    forecaster = spied(stamps="dated")
    _, windows = shown.of(lambda: forecaster.fit(y))
    assert check(windows, times) == ends(WINDOWS)
    last = {1: [0], H: [0], 6: [0, 3], 8: [0, 3, 6]}
    for n, chunks in last.items():
        fh = list(range(1, n + 1))
        forecast, windows = shown.of(lambda: forecaster.predict(fh))  # noqa: B023
        assert check(windows, times) == ends([N - 1 + chunk for chunk in chunks])
        np.testing.assert_allclose(forecast["y"], range(N, N + n))
        assert forecast.index.equals(times[N : N + n])
    absolute = ForecastingHorizon(times[[N + 1, N + 4]], is_relative=False)
    forecast, windows = shown.of(lambda: forecaster.predict(absolute))
    check(windows, times)
    np.testing.assert_allclose(forecast["y"], [N + 1, N + 4])


@by_some
@pytest.mark.parametrize("used", [False, True], ids=["alone", "X"])
def test_fitted_values_are_told_their_own_times(shown, times, used):
    y, X = counting(times), told(times) if used else None
    past = ["news"] if used else None
    forecaster = spied(past_covariates=past).fit(y, None if X is None else X[:N])
    _, windows = shown.of(lambda: forecaster.predict([-(N - 2), -9, 0, 2], X))
    assert check(windows, times) == ends([0, N - 11, N - 2, N - 1])
    if isinstance(times, pd.DatetimeIndex) and times.tz is not None and times.freqstr == "h":
        return  # sktime itself counts absolute steps wrongly where clocks change
    residuals, windows = shown.of(lambda: forecaster.predict_residuals(y, X))
    assert check(windows, times) == ends(range(N - 1))
    np.testing.assert_allclose(residuals["y"][1:], 0)


@by_some
@pytest.mark.parametrize("update_params", [False, True])
def test_updates_go_on_with_the_calendar_and_the_texts(shown, times, update_params):
    X = told(times)
    forecaster = spied(past_covariates=["news"]).fit(counting(times, 18), X[:18])
    trained, windows = ends(range(L - 1, 21 - H)), []
    if update_params:
        _, windows = shown.of(lambda: forecaster.update(counting(times, 21, start=18), X[18:21]))
        assert check(windows, times) == trained
    else:
        forecaster.update(counting(times, 21, start=18), X[18:21], update_params=False)
    _, windows = shown.of(lambda: forecaster.predict(ALL, X[21:]))
    assert check(windows, times, foreseen=20) == ends([20, 23, 26])


def test_update_predict_is_told_its_own_times(shown):
    y, X = counting(), told()
    forecaster = spied(likelihood=None).fit(y[:14], X[:14], fh=[1, 2, 3])
    splitter = ExpandingWindowSplitter(fh=[1, 2, 3], initial_window=15, step_length=2)
    _, windows = shown.of(lambda: forecaster.update_predict(y, splitter, X, update_params=False))
    assert check(windows, MONTHS) == ends(range(14, N - H, 2))


@pytest.mark.filterwarnings("ignore:series. sizes differ so much")
def test_instances_have_calendars_of_their_own(shown):
    """Other starts and other ends in one panel, relative and absolute steps."""
    times = [HOURS, HOURS[5:], HOURS[9:]]
    lengths = [N, N - 4, N - 9]
    y = panel(
        {f"k{i}": counting(t, n, i) for i, (t, n) in enumerate(zip(times, lengths, strict=True))}
    )
    X = panel({f"k{i}": told(t, len(t)) for i, t in enumerate(times)})
    forecaster = spied(past_covariates=["news"])
    _, windows = shown.of(lambda: forecaster.fit(y, X))
    expected = [ends(range(L - 1, n - H), number=i) for i, n in enumerate(lengths)]
    assert check(windows, times) == [*expected[0], *expected[1], *expected[2]]
    forecast, windows = shown.of(lambda: forecaster.predict([1, 2], X))
    assert check(windows, times) == [(i, n - 1) for i, n in enumerate(lengths)]
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(forecast.loc[f"k{i}", "y"], [1000 * i + n, 1000 * i + n + 1])
        assert forecast.loc[f"k{i}"].index.equals(times[i][n : n + 2])


@pytest.mark.filterwarnings("ignore:series. sizes differ so much")
def test_instances_have_rows_of_their_own_in_hierarchies(shown):
    keys = [("a", "x"), ("a", "y"), ("b", "x")]
    y = panel({key: counting(number=i) for i, key in enumerate(keys)}, ["top", "low"])
    X = panel({key: told(n=N + i) for i, key in enumerate(keys)}, ["top", "low"])
    forecaster = spied()
    _, windows = shown.of(lambda: forecaster.fit(y, X))
    assert len(check(windows, MONTHS)) == 3 * len(WINDOWS)


@pytest.mark.parametrize("n", [L, L + 1, L + H])
def test_a_short_series_is_told_nothing_before_it_begins(shown, n):
    X = told()
    forecaster = spied(past_covariates=["news"])
    _, windows = shown.of(lambda: forecaster.fit(counting(n=n), X[:n]))
    assert check(windows, MONTHS) == ends([n - H - 1])
    _, windows = shown.of(lambda: forecaster.predict(ALL, X))
    assert check(windows, MONTHS, foreseen=n - 1) == ends([n - 1, n + 2, n + 5])


@pytest.mark.parametrize("likelihood", [None, "quantile"])
def test_texts_of_columns_go_on_past_the_horizon(shown, likelihood):
    forecaster = spied(likelihood=likelihood, past_covariates=["news"])
    _, windows = shown.of(lambda: forecaster.fit(counting(), told()))
    assert check(windows, MONTHS) == ends(WINDOWS)
    _, windows = shown.of(lambda: forecaster.predict(ALL, told(start=N)))
    expected = [0, 3, 5] if likelihood is None else [0, 3, 6]
    # beyond the rows of X nothing is known
    known = {N - 1 + chunk for chunk in expected[:2]}
    check([one for one in windows if one.end in known], MONTHS, foreseen=N - 1)
    assert {one.end for one in windows} == {N - 1 + chunk for chunk in expected}


@pytest.mark.parametrize("few_shot", [None, 0.6])
def test_validation_is_told_the_same(shown, few_shot):
    forecaster = spied(validation_split=0.25, few_shot=few_shot)
    _, windows = shown.of(lambda: forecaster.fit(counting(), told()))
    trained = check([one for one in windows if one.trained], MONTHS)
    assert trained == ends(range(L - 1, (18 if few_shot is None else 11) - H))
    assert check([one for one in windows if not one.trained], MONTHS) == ends(range(17, N - H))


def test_a_shorter_fh_does_not_change_the_first_step():
    y, X = wave(), events()
    forecaster = learner().fit(y, X[: len(y)])
    whole = forecaster.predict([1, 2, 3], X)
    pd.testing.assert_frame_equal(forecaster.predict([1], X), whole[:1], check_freq=False)


# What is said -----------------------------------------------------------------------------------

EVENTS = ["sale", "", "strike of the drivers", "public holiday", None, "rain"]
DAYS = pd.date_range("2020-01-01", periods=80, freq="D")
M = 60


def wave():
    noise = np.random.default_rng(0).normal(scale=0.05, size=M)
    return pd.DataFrame({"y": np.sin(np.arange(M) / 2) + noise}, index=DAYS[:M])


def events(change=None, name="event", dtype=object, n=80):
    texts = [EVENTS[i % 7 % 6] for i in range(n)]
    if change is not None:
        texts[change] = "an earthquake"
    return pd.DataFrame({name: pd.Series(texts, index=DAYS[:n], dtype=dtype)})


def both(**changes):
    """Return X of which ``event`` is known ahead and ``news`` of the past."""
    return events(changes.get("event")).join(events(changes.get("news"), "news"))


def learner(**changes):
    return lemole(**{"lr": 3e-3, "num_epochs": 4, **changes})


@pytest.fixture(scope="module")
def heard():
    return learner(past_covariates=["news"]).fit(wave(), both()[:M])


def values_of(forecaster, X, fh=(1, 2, 3)):
    return forecaster.predict(list(fh), X).to_numpy()


@pytest.mark.parametrize("fh", [[1, 2, 3], ALL])
def test_texts_known_ahead_are_heard_within_the_window_and_not_beyond(heard, fh):
    plain = values_of(heard, both(), fh)
    for step in (M - L, M - 1, M, M + 2):
        assert not np.array_equal(values_of(heard, both(event=step), fh), plain), step
    reach = M + 9 if len(fh) > H else M + H
    for step in (M - L - 1, reach):
        assert np.array_equal(values_of(heard, both(event=step), fh), plain), step
    if len(fh) > H:  # a later chunk does not change an earlier one
        other = values_of(heard, both(event=M + 4), fh)
        assert np.array_equal(other[:H], plain[:H])
        assert not np.array_equal(other[H:], plain[H:])


@pytest.mark.parametrize("likelihood", [None, "quantile"])
@pytest.mark.parametrize("fh", [[1], ALL, [-20, -7, 0], [-3, 2, 8]], ids=str)
def test_texts_of_the_past_are_never_looked_ahead_at(heard, fh, likelihood):
    forecaster = heard
    if likelihood is None:
        forecaster = learner(past_covariates=["news"], likelihood=None).fit(wave(), both()[:M])
    plain = values_of(forecaster, both(), fh)
    for change in range(max(max(fh), 0) and M, 80, 4):
        if change >= M:
            assert np.array_equal(values_of(forecaster, both(news=change), fh), plain)
    for step in [s for s in fh if s <= 0]:  # in-sample, from the step itself on
        position = M - 1 + step
        changed = values_of(forecaster, both(news=position), fh)[fh.index(step)]
        assert np.array_equal(changed, plain[fh.index(step)])
        before = values_of(forecaster, both(news=position - 1), fh)[fh.index(step)]
        assert not np.array_equal(before, plain[fh.index(step)])
    if max(fh) > 0:
        last = values_of(forecaster, both(news=M - 1), fh)
        assert not np.array_equal(last[-1], plain[-1])


def test_intervals_hear_texts_too(heard):
    for method in ("predict_interval", "predict_quantiles", "predict_var"):
        plain, other = (getattr(heard, method)(fh=ALL, X=X) for X in (both(), both(event=M + 1)))
        assert not np.array_equal(plain.to_numpy(), other.to_numpy())
        news = getattr(heard, method)(fh=ALL, X=both(news=M))
        assert np.array_equal(news.to_numpy(), plain.to_numpy())


@pytest.mark.parametrize("dtype", ["str", "string", "object", "category", "string[python]"])
def test_texts_of_every_dtype_say_the_same(heard, dtype):
    X = both().astype(dtype)
    plain = values_of(heard, both())
    assert np.array_equal(values_of(heard, X), plain)
    forecaster = learner(past_covariates=["news"]).fit(wave(), X[:M])
    assert np.array_equal(values_of(forecaster, X), plain)
    assert np.array_equal(values_of(forecaster, both()), plain)


def test_no_text_has_many_spellings(heard):
    forecasts = []
    for nothing in (None, np.nan, pd.NA, pd.NaT, ""):
        X = both().astype(object)
        X.iloc[M:, 0] = nothing
        forecasts.append(values_of(heard, X))
    X = both()
    X["event"] = X["event"].where(np.arange(80) < M).astype("string")
    forecasts.append(values_of(heard, X))
    silent = both()[M:].assign(event=np.nan)
    assert silent["event"].dtype == float
    forecasts.append(values_of(heard, silent))
    forecasts.append(values_of(heard, silent.assign(event=None)))
    for forecast in forecasts[1:]:
        assert np.array_equal(forecast, forecasts[0])
    assert not np.array_equal(forecasts[0], values_of(heard, both()))


def test_a_column_without_any_text_is_no_error():
    silent = both().assign(event=pd.Series([None] * 80, index=DAYS, dtype=object))
    forecaster = learner(past_covariates=["news"]).fit(wave(), silent[:M])
    assert np.isfinite(values_of(forecaster, both(), ALL)).all()


def test_texts_of_the_past_need_no_future(heard):
    plain = values_of(heard, both(), ALL)
    assert np.array_equal(values_of(heard, both()[["event"]], ALL), plain)
    assert np.array_equal(values_of(heard, both()[M:].assign(news=np.nan), ALL), plain)
    alone = learner(past_covariates=["news"]).fit(wave(), both()[["news"]][:M])
    assert np.isfinite(alone.predict(ALL).to_numpy()).all()


def test_texts_never_seen_in_training_are_encoded(heard):
    said = heard._engine.model.model.network.texts.vocabulary
    X = both()
    X.loc[DAYS[M + 1], "event"] = "nobody said so"
    assert "nobody said so" not in said
    assert not np.array_equal(values_of(heard, X), values_of(heard, both()))
    assert "nobody said so" in said


def test_columns_may_come_in_any_order_and_have_any_names():
    X = both().assign(price=np.arange(80.0), flag=np.arange(80) % 2 == 0)
    forecasts = []
    for names in (["event", "price", "news", "flag"], [0, "0", ("a", 1), "text:x"]):
        own = X.rename(columns=dict(zip(["event", "price", "news", "flag"], names, strict=True)))
        forecaster = learner(past_covariates=[names[2]]).fit(wave(), own[:M])
        shapes = forecaster._engine.model.model.network.shapes
        assert (shapes.n_past_texts, shapes.n_future_texts) == (1, 1)
        assert (shapes.n_past_covariates, shapes.n_future_covariates) == (0, 2)
        forecasts.append(values_of(forecaster, own[names[::-1]], ALL))
    assert np.array_equal(*forecasts)


def test_columns_of_text_that_are_called_alike_are_told_apart():
    X = events(name=1).join(events(40, name="1"))
    X.loc[DAYS[M + 1], "1"] = "an earthquake"
    forecaster = learner().fit(wave(), X[:M])
    swapped = X.rename(columns={1: "1", "1": 1})
    assert not np.array_equal(values_of(forecaster, X), values_of(forecaster, swapped))


@pytest.mark.parametrize("text", ["none", "static", "calendar"])
def test_columns_that_are_not_read_do_not_matter(text):
    forecaster = learner(text=text, past_covariates=["news"]).fit(wave(), both()[:M])
    plain = values_of(forecaster, both(), ALL)
    for name in ("event", "news"):
        other = both().assign(**{name: "an earthquake"})
        assert np.array_equal(values_of(forecaster, other, ALL), plain)
    without = learner(text=text).fit(wave())
    assert np.array_equal(values_of(without, None, ALL), plain)


# What is refused --------------------------------------------------------------------------------

MIXED = pd.Series(["sale", 3, "rain"] * 30, dtype=object)[:80]
REFUSED = {
    "mixed": (MIXED, "must be text, found 3 of type int; give it what it held in fit, and only"),
    "numbers as objects": (pd.Series(range(80), dtype=object), "must be text, found 0 of type int"),
    "booleans as objects": (pd.Series([True] * 80, dtype=object), "found True of type bool"),
    "lists": (pd.Series([["a"]] * 80), r"found \['a'\] of type list"),
    "bytes": (pd.Series([b"a"] * 80), r"found b'a' of type bytes"),
    "categories of numbers": (pd.Series([1, 2] * 40, dtype="category"), "found dtype category"),
    "dates": (pd.Series(DAYS), "found dtype datetime64.*take from dates what you know of them, as"),
    "zoned dates": (pd.Series(DAYS.tz_localize("UTC")), "found dtype datetime64.*take from dates"),
    "periods": (pd.Series(DAYS.to_period()), r"period\[D\]"),
    "dates as objects": (pd.Series(DAYS, dtype=object), "of type Timestamp"),
    "durations": (pd.Series(DAYS - DAYS[0]), "found dtype timedelta64"),
    "complex": (pd.Series([1j] * 80), "complex"),
}


@pytest.mark.parametrize(("column", "message"), REFUSED.values(), ids=REFUSED)
def test_columns_of_other_things_are_refused(column, message):
    X = events().assign(odd=column.set_axis(DAYS[: len(column)]))
    with pytest.raises((TypeError, ValueError), match=message):
        learner().fit(wave(), X[:M])


def test_a_text_must_stay_a_text_and_a_number_a_number(heard):
    forecaster = learner().fit(wave(), both().assign(price=1.0)[:M])
    X = both().assign(price=1.0)
    plain = values_of(forecaster, X)
    with pytest.raises(TypeError, match="column 'event' must be text, found dtype int64"):
        forecaster.predict([1], X.assign(event=1))
    with pytest.raises(TypeError, match="column 'price' must be numeric, found dtype str"):
        forecaster.predict([1], X.assign(price="dear"))
    with pytest.raises(TypeError, match="column 'event' must be text, found dtype bool"):
        forecaster.update(wave()[-1:].shift(1, "D"), X.assign(event=True)[M : M + 1])
    assert np.array_equal(values_of(forecaster, X), plain)


def test_booleans_stay_numbers():
    forecaster = learner().fit(wave(), events().assign(flag=True)[:M])
    shapes = forecaster._engine.model.model.network.shapes
    assert (shapes.n_future_texts, shapes.n_future_covariates) == (1, 1)


@pytest.mark.parametrize("other", [m for m in METHODS if not m.network.reads_text], ids=str)
@pytest.mark.parametrize("dtype", ["string", "category"])
def test_a_method_that_reads_no_text_refuses_it(other, dtype):
    with pytest.raises((TypeError, ValueError), match=r"categor|must be numeric.*LeMoLEForecaster"):
        other.sktime(context_length=12, horizon=6).fit(wave(), events(dtype=dtype)[:M])


# What the instances are -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:series. sizes differ so much")
@pytest.mark.parametrize("keys", [["a", "b", "c"], [0, 1, 2], [("a", "x"), ("a", "y"), ("b", "x")]])
def test_descriptions_go_by_the_key_of_the_instance(shown, keys):
    names = ["top", "low"] if isinstance(keys[0], tuple) else ["key"]
    described = {keys[0]: "power in MW", keys[1]: "euros per MWh", "unknown": "?"}
    y = panel({key: counting(number=i) for i, key in enumerate(keys)}, names)
    forecaster = spied(description=described)
    _, windows = shown.of(lambda: forecaster.fit(y))
    _, later = shown.of(lambda: forecaster.predict([-3, 1, 8]))
    for one in windows + later:
        expected = described.get(keys[one.series])
        assert one.description == forecaster._engine.model.model.network.prompt(expected)


def test_one_description_for_each_cannot_be_told_where_each_has_a_forecaster():
    y = panel({key: wave() for key in "ab"})
    message = "description must be one text where broadcasting=True.* found a dict"
    with pytest.raises(ValueError, match=message):
        learner(broadcasting=True, description={"a": "power"}).fit(y)
    forecaster = learner(broadcasting=True, description="power", num_epochs=1).fit(y)
    assert np.isfinite(forecaster.predict([1, 8]).to_numpy()).all()


def test_broadcasting_hears_the_texts_of_each_instance():
    y = panel({key: wave() for key in "ab"})
    X = panel({"a": events(), "b": events()})
    other = panel({"a": events(), "b": events(M)})
    forecaster = learner(broadcasting=True).fit(y, X)
    plain, moved = (forecaster.predict([1, 2, 3], rows) for rows in (X, other))
    pd.testing.assert_frame_equal(moved.loc[["a"]], plain.loc[["a"]])
    assert not np.array_equal(moved.loc["b"], plain.loc["b"])


@pytest.mark.parametrize("keys", [["a", "b"], [0, 1], [("a", "x"), ("a", "y")]])
def test_descriptions_of_instances_are_shared(keys, tmp_path):
    names = ["top", "low"] if isinstance(keys[0], tuple) else ["key"]
    described = {keys[0]: "power in MW", keys[1]: "euros per MWh"}
    y = panel({key: wave() for key in keys}, names)
    forecaster = learner(description=described, num_epochs=8).fit(y)
    plain = forecaster.predict([1, 2, 3])
    first, second = (plain.loc[key].to_numpy() for key in keys)
    assert not np.array_equal(first, second)  # of equal numbers
    forecaster.save_pretrained(tmp_path)
    loaded = LeMoLEForecaster.from_pretrained(tmp_path, device="cpu").fit(y)
    pd.testing.assert_frame_equal(loaded.predict([1, 2, 3]), plain, atol=1e-5)


# Around a forecaster ----------------------------------------------------------------------------


def test_pipelines_and_searches_pass_texts_on(shown):
    y, X = counting(), told()
    steps = {"pipeline": ForecastingPipeline([("all", ColumnSelect([0, 1, 2])), ("f", spied())])}
    steps["target"] = TransformedTargetForecaster([("f", spied())])
    for forecaster in steps.values():
        _, windows = shown.of(lambda: forecaster.fit(y, X[:N], fh=ALL))  # noqa: B023
        assert check(windows, MONTHS) == ends(WINDOWS)
        _, windows = shown.of(lambda: forecaster.predict(X=X[N:]))  # noqa: B023
        assert (0, N - 1) in check([one for one in windows if one.end < N + 3], MONTHS)
    cv = ExpandingWindowSplitter(fh=[1, 2, 3], initial_window=15, step_length=3)
    result, windows = shown.of(lambda: evaluate(spied(), cv, y, X[:N]))
    assert {(0, 14), (0, 17), (0, 20)} <= set(check(windows, MONTHS))
    np.testing.assert_allclose(result.iloc[:, 0], 0, atol=1e-6)
    search = ForecastingGridSearchCV(spied(), cv, {"stamps": ["dated"]}, backend="None")
    _, windows = shown.of(lambda: search.fit(y, X[:N]))
    check(windows, MONTHS)


def test_detrended_targets_keep_their_texts():
    y, X, changed = wave(), events().fillna(""), events(M).fillna("")
    forecaster = Detrender() * learner()
    plain, other = (forecaster.clone().fit(y, X[:M]).predict([1], rows) for rows in (X, changed))
    assert not np.array_equal(plain, other)


@pytest.mark.parametrize("how", ["pickle", "elsewhere", "deepcopy", "clone", "refit"])
def test_copies_hear_the_same(heard, how, monkeypatch):
    if how == "elsewhere":  # in a process that has seen none of the texts
        monkeypatch.setattr(vocabulary, "_columns", {})
        copied = pickle.loads(pickle.dumps(heard))
    elif how in ("pickle", "deepcopy"):
        copied = pickle.loads(pickle.dumps(heard)) if how == "pickle" else copy.deepcopy(heard)
    else:
        copied = heard.clone() if how == "clone" else pickle.loads(pickle.dumps(heard))
        copied.fit(wave(), both()[:M])
    for X in (both(), both(event=M + 1), both().assign(event="unheard of")):
        found, expected = values_of(copied, X, ALL), values_of(heard, X, ALL)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_directories_keep_their_texts(heard, tmp_path):
    heard.save_pretrained(tmp_path)
    loaded = LeMoLEForecaster.from_pretrained(tmp_path, device="cpu").fit(wave(), both()[:M])
    for X in (both(), both(event=M + 1)):
        found, expected = values_of(loaded, X, ALL), values_of(heard, X, ALL)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    other, X = LeMoLEForecaster.from_pretrained(tmp_path), both().assign(event=1.0)[:M]
    with pytest.raises(ValueError, match="X: columns of text: the weights to start from were"):
        other.fit(wave(), X)


def test_pretraining_keeps_its_texts():
    y = panel({key: wave() for key in "ab"})
    X = panel({key: both() for key in "ab"})
    forecaster = learner(past_covariates=["news"]).pretrain(y, X)
    forecaster = forecaster.clone().set_config(warnings="off")
    forecaster.fit(wave(), both()[:M])
    assert not np.array_equal(values_of(forecaster, both()), values_of(forecaster, both(event=M)))


def test_the_other_face_reads_a_directory(heard, tmp_path):
    heard.save_pretrained(tmp_path)
    trainer = {"accelerator": "cpu"}
    model = LeMoLEModel.from_pretrained(tmp_path, pl_trainer_kwargs=trainer)
    y = wave()["y"]
    series = TimeSeries.from_series((y - y.mean()) / y.std(ddof=0)).astype(np.float32)
    used = {
        "past_covariates": text_covariates(both()["news"], DAYS, "news"),
        "future_covariates": text_covariates(both()["event"], DAYS, "event"),
    }
    quantiles = model.predict(H, series=series, predict_likelihood_parameters=True, **used)
    found = np.median(quantiles.values(), axis=1)
    expected = heard.predict([1, 2, 3], both())["y"].to_numpy()
    np.testing.assert_allclose(found * y.std(ddof=0) + y.mean(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("used", [False, True], ids=["calendar", "texts"])
def test_a_directory_of_the_other_face_is_read(tmp_path, used):
    series = TimeSeries.from_dataframe(wave().astype(np.float32))
    settings = {"backbone": "tiny", "text_encoder": "hash", "n_epochs": 2, "random_state": 0}
    model = LeMoLEModel(L, H, pl_trainer_kwargs={"accelerator": "cpu"}, **settings)
    given, X = {}, None
    if used:
        given["past_covariates"] = text_covariates(both()["news"], DAYS, "news")
        given["future_covariates"] = text_covariates(both()["event"], DAYS, "event")
        X = both()
    model.fit(series, **given).save_pretrained(tmp_path)
    loaded = LeMoLEForecaster.from_pretrained(tmp_path, device="cpu")
    loaded.fit(wave(), None if X is None else X[:M])
    expected = model.predict(8, **given).values()
    np.testing.assert_allclose(values_of(loaded, X, ALL), expected, rtol=0, atol=1e-5)

"""Texts reach the network for the steps that they belong to, on every path of darts."""

import copy
import pickle
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch
from darts import TimeSeries, concatenate
from darts.dataprocessing.transformers import Scaler
from darts.models import ConformalNaiveModel, NaiveEnsembleModel
from darts.utils.data.torch_datasets.inference_dataset import SequentialTorchInferenceDataset
from darts.utils.data.torch_datasets.training_dataset import SequentialTorchTrainingDataset
from darts.utils.likelihood_models.torch import GaussianLikelihood
from spying import H, L, Spy, check, ends, says
from support import METHODS, sine

from tsllm_estimators.darts import LeMoLEModel, covariate_texts, text_covariates
from tsllm_estimators.llm import vocabulary
from tsllm_estimators.llm.calendar import Stamp
from tsllm_estimators.llm.vocabulary import POSITION, Span
from tsllm_estimators.networks.lemole import LeMoLE

N, AHEAD = 24, 12
STARTS = {"ME": "2018-01-31", "W-WED": "2018-01-03", "B": "2018-01-01", "YE": "2018-12-31"}


@pytest.fixture
def shown(monkeypatch):
    """Replace the network by one that counts on; returns the spy in its place."""
    spy = Spy()
    monkeypatch.setattr(LeMoLE, "forward", lambda network, batch: spy.forward(network, batch))
    return spy


def index(freq="ME", n=N + AHEAD, number=0):
    """Return times that go on after the series."""
    if freq is None:
        return pd.RangeIndex(5, 5 + 2 * n, 2)
    return pd.date_range(STARTS.get(freq, "2018-01-01 07:00"), periods=n + number, freq=freq)[
        number:
    ]


def counting(times=None, n=N, number=0, dtype=np.float32):
    times = index() if times is None else times
    return TimeSeries(times[:n], (1000 * number + np.arange(n, dtype=dtype)).reshape(-1, 1))


def told(times, name="event", n=None, **kwargs):
    """Return a covariate that tells each step its own position."""
    n = len(times) if n is None else n
    return text_covariates([f"{name} {i}" for i in range(n)], times[:n], name, **kwargs)


def numbers(times, dtype=np.float32):
    return TimeSeries(times, np.linspace(0, 9, len(times), dtype=dtype).reshape(-1, 1))


def lemole(**changes):
    trainer = {"accelerator": "cpu", **changes.pop("pl_trainer_kwargs", {})}
    settings = {"backbone": "tiny", "text_encoder": "hash", "n_epochs": 1, "random_state": 0}
    return LeMoLEModel(L, H, **{**settings, "pl_trainer_kwargs": trainer, **changes})


WINDOWS = range(L - 1, N - H)  # of the training


# The calendar, whatever the path ---------------------------------------------------------------

FREQUENCIES = ["s", "15min", "h", "6h", "B", "D", "W-WED", "SME", "MS", "ME", "QE", "2h", None]


@pytest.mark.parametrize("stamps", ["recurring", "dated"])
@pytest.mark.parametrize("freq", FREQUENCIES)
def test_every_step_is_told_its_own_time(shown, freq, stamps):
    times = index(freq)
    series = counting(times)
    model = lemole(stamps=stamps)
    _, windows = shown.of(lambda: model.fit(series))
    assert check(windows, times) == ends(WINDOWS)
    for n, chunks in [(1, [0]), (H, [0]), (2 * H, [0, 3]), (8, [0, 3, 5])]:
        forecast, windows = shown.of(lambda n=n: model.predict(n))
        assert check(windows, times) == ends([N - 1 + chunk for chunk in chunks])
        assert forecast.values()[:, 0].tolist() == list(range(N, N + n))
        assert forecast.time_index.equals(times[N : N + n])


def test_years_are_told_apart_only_where_dates_are_said(shown):
    times = index("YE")
    model = lemole()
    _, windows = shown.of(lambda: model.fit(counting(times)))
    assert {stamp for one in windows for stamp in one.stamps} == {POSITION}
    _, windows = shown.of(lambda: lemole(stamps="dated").fit(counting(times)))
    assert check(windows, times) == ends(WINDOWS)


@pytest.mark.parametrize("carried", ["alone", "texts", "numbers", "mixed"])
@pytest.mark.parametrize("path", ["fast", "slow", "retrain", "backtest", "residuals"])
def test_backtests_are_told_their_own_times_and_texts(shown, path, carried):
    times = index()
    series, used = counting(times), covariates(carried, times)
    model = lemole()
    if path != "retrain":
        model.fit(series, **used)
    settings = {"start": 10, "forecast_horizon": H, "retrain": path == "retrain", **used}
    if path in ("fast", "slow", "retrain"):
        settings |= {"last_points_only": False, "enable_optimization": path == "fast"}
        result, windows = shown.of(lambda: model.historical_forecasts(series, **settings))
        for forecast in result:
            position = times.get_loc(forecast.start_time())
            assert forecast.values()[:, 0].tolist() == list(range(position, position + H))
    elif path == "backtest":
        result, windows = shown.of(lambda: model.backtest(series, **settings))
        assert result == 0
    else:
        result, windows = shown.of(lambda: model.residuals(series, **settings))
        assert not result.values().any()
    found = check([one for one in windows if not one.trained], times)
    assert found == ends(range(9, N - H))
    check(windows, times)


def covariates(carried, times, foreseen=None):
    """Return covariates that carry texts, numbers, both in either order, or none."""
    number, event, news = numbers(times), told(times), told(times, "news", foreseen)
    if carried == "alone":
        return {}
    if carried == "texts":
        return {"past_covariates": news, "future_covariates": event}
    if carried == "numbers":
        return {"past_covariates": number, "future_covariates": number}
    return {"past_covariates": number.stack(news), "future_covariates": event.stack(number)}


@pytest.mark.parametrize("carried", ["texts", "mixed"])
@pytest.mark.parametrize("n", [1, H, 8])
def test_texts_of_columns_go_on_past_the_horizon_and_those_of_the_past_do_not(shown, carried, n):
    times = index()
    used = covariates(carried, times)
    model = lemole()
    _, windows = shown.of(lambda: model.fit(counting(times), **used))
    assert check(windows, times) == ends(WINDOWS)
    _, windows = shown.of(lambda: model.predict(n, **used))
    assert check(windows, times, foreseen=N - 1) == ends([N - 1, N + 2, N + 4][: -(-n // H)])
    history, windows = shown.of(
        lambda: model.historical_forecasts(
            counting(times), start=10, forecast_horizon=8, retrain=False, **used
        )
    )
    assert len(history) == N - 10 - 7
    for one in windows:  # of windows from n_after steps past the origin
        n_after = one.past[0].count(None)
        assert n_after in (0, 3, 4) or one.past[0] == [None] * L
        check([one], times, foreseen=one.end - n_after)


@pytest.mark.parametrize("freq", ["ME", "B", "2h", None])
def test_texts_of_the_past_need_not_be_known_ahead(shown, freq):
    times = index(freq)
    model = lemole()
    model.fit(counting(times), past_covariates=told(times, n=N))
    _, windows = shown.of(lambda: model.predict(8, past_covariates=told(times, n=N)))
    assert check(windows, times, foreseen=N - 1) == ends([N - 1, N + 2, N + 4])
    with pytest.raises(ValueError, match="past_covariates"):
        model.predict(8, past_covariates=told(times, n=N - 1))


def test_shifted_forecasts_are_told_of_the_steps_that_they_are_about(shown):
    times = index()
    shown.shift = 2
    for carried in ("alone", "mixed"):
        used = covariates(carried, times)
        model = lemole(output_chunk_shift=2)
        _, windows = shown.of(lambda: model.fit(counting(times), **used))  # noqa: B023
        assert shifted(windows, times) == ends(range(L - 1, N - H - 2))
        forecast, windows = shown.of(lambda: model.predict(H, **used))  # noqa: B023
        assert shifted(windows, times) == ends([N - 1])
        assert forecast.values()[:, 0].tolist() == [N + 2, N + 3, N + 4]
        _, windows = shown.of(
            lambda: model.historical_forecasts(  # noqa: B023
                counting(times),
                retrain=False,
                forecast_horizon=H,
                **used,  # noqa: B023
            )
        )
        shifted(windows, times)


def shifted(windows, times):
    return check(windows, times, shift=2)


@pytest.mark.filterwarnings("ignore:series. sizes differ so much")
def test_series_have_calendars_of_their_own(shown):
    """Unequal lengths, other starts and other frequencies, in one list."""
    times = [index("ME"), index("ME", number=5), index("D"), index("h")]
    series = [counting(t, N - 2 * i, i) for i, t in enumerate(times)]
    used = {"future_covariates": [told(t) for t in times]}
    model = lemole()
    _, windows = shown.of(lambda: model.fit(series, **used))
    expected = [ends(range(L - 1, N - 2 * i - H), number=i) for i in range(4)]
    assert check(windows, times) == [*chain(*expected)]
    _, windows = shown.of(lambda: model.predict(8, series=series, **used))
    last = [N - 2 * i - 1 for i in range(4)]
    assert check(windows, times) == sorted(
        (i, e + k) for i, e in enumerate(last) for k in (0, 3, 5)
    )


def test_calendars_and_positions_are_told_apart_in_one_list(shown):
    times = [index("ME"), index(None)]
    series = [counting(t, number=i) for i, t in enumerate(times)]
    model = lemole()
    _, windows = shown.of(lambda: model.fit(series))
    assert check(windows, times) == ends(WINDOWS) + ends(WINDOWS, number=1)
    _, windows = shown.of(lambda: model.predict(8, series=series))
    check(windows, times)


@pytest.mark.parametrize("workers", [0, 1])
def test_validation_few_shot_and_workers_are_told_the_same(shown, workers):
    times = index()
    used = covariates("mixed", times)
    validation = {f"val_{name}": value for name, value in used.items()}
    loading = {"dataloader_kwargs": {"num_workers": workers}} if workers else {}
    model = lemole(few_shot=0.5)
    _, windows = shown.of(
        lambda: model.fit(
            counting(times), val_series=counting(times), **used, **validation, **loading
        )
    )
    trained = [one for one in windows if one.trained]
    assert check(trained, times) == ends(range(L - 1, N // 2 - H))
    assert check(windows, times) == ends(WINDOWS)
    _, windows = shown.of(lambda: model.predict(8, **used, **loading))
    assert check(windows, times, foreseen=N - 1) == ends([N - 1, N + 2, N + 4])
    _, windows = shown.of(lambda: model.lr_find(counting(times), num_training=3, **used))
    check(windows, times)


def test_encoders_stand_beside_texts(shown):
    times = index()
    encoders = {"cyclic": {"future": ["month"]}, "position": {"past": ["relative"]}}
    for used in ({}, {"future_covariates": told(times)}):
        model = lemole(add_encoders=encoders)
        _, windows = shown.of(lambda: model.fit(counting(times), **used))  # noqa: B023
        assert check(windows, times) == ends(WINDOWS)
        shapes = model.model.network.shapes
        assert (shapes.n_past_covariates, shapes.n_future_covariates) == (1, 2)
        assert shapes.n_future_texts == len(used)
        _, windows = shown.of(lambda: model.predict(8, **used))  # noqa: B023
        assert check(windows, times) == ends([N - 1, N + 2, N + 4])


def test_ensembles_and_conformal_models_tell_their_members(shown):
    times = index()
    used = covariates("mixed", times)
    ensemble = NaiveEnsembleModel([lemole(), lemole()])
    _, windows = shown.of(lambda: ensemble.fit(counting(times), **used))
    assert check(windows, times) == ends(WINDOWS)
    _, windows = shown.of(lambda: ensemble.predict(H, **used))
    assert check(windows, times, foreseen=N - 1) == ends([N - 1])
    conformal = ConformalNaiveModel(
        lemole().fit(counting(times), **used), quantiles=[0.1, 0.5, 0.9]
    )
    settings = {"series": counting(times), **used}
    _, windows = shown.of(lambda: conformal.predict(H, **settings))
    assert (0, N - 1) in check(windows, times)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_no_precision_rounds_a_text_or_a_stamp(shown, precision):
    dtype = np.float64 if precision == "64-true" else np.float32
    times = index("h")
    used = covariates("mixed", times)
    used = {name: value.astype(dtype) for name, value in used.items()}
    model = lemole(pl_trainer_kwargs={"precision": precision}, stamps="dated")
    _, windows = shown.of(lambda: model.fit(counting(times, dtype=dtype), **used))
    assert check(windows, times) == ends(WINDOWS)
    _, windows = shown.of(lambda: model.predict(8, **used))
    assert check(windows, times, foreseen=N - 1) == ends([N - 1, N + 2, N + 4])


def test_a_target_of_half_precision_takes_texts(shown):
    times = index()
    used = {"past_covariates": told(times), "future_covariates": told(times)}
    model = lemole()
    _, windows = shown.of(lambda: model.fit(counting(times, dtype=np.float16), **used))
    assert check(windows, times) == ends(WINDOWS)
    _, windows = shown.of(lambda: model.predict(8, **used))
    check(windows, times, foreseen=N - 1)


def test_samples_of_a_likelihood_are_told_the_same(shown):
    times = index()
    used = covariates("mixed", times)
    model = lemole(likelihood=GaussianLikelihood())
    model.fit(counting(times), **used)
    _, windows = shown.of(lambda: model.predict(H, num_samples=5, **used))
    assert check(windows, times, foreseen=N - 1) == ends([N - 1])


def test_datasets_without_texts_are_told_positions():
    """Of a plain dataset of darts nobody knows the calendar, or what its columns stand for."""
    series = TimeSeries.from_times_and_values(index()[:N], sine(N))
    lengths = {"input_chunk_length": L, "output_chunk_length": H}
    model = lemole()
    model.fit_from_dataset(SequentialTorchTrainingDataset(series, **lengths))
    entries = [e for e in model.model.network.texts.vocabulary.entries if isinstance(e, Stamp)]
    assert entries == [POSITION]
    inference = SequentialTorchInferenceDataset(series, n=8, **lengths)
    (forecast,) = model.predict_from_dataset(8, inference)
    assert np.isfinite(forecast.values()).all()
    assert np.array_equal(model.predict(8, series=series).values(), forecast.values())


def test_windows_are_told_by_their_first_and_last_stamp(shown):
    times = index("h")
    used = {"future_covariates": told(times)}
    model = lemole(dynamic="window", stamps="dated")
    _, windows = shown.of(lambda: model.fit(counting(times), **used))
    _, later = shown.of(lambda: model.predict(8, **used))
    for one in windows + later:
        span = one.stamps[L - 1]
        assert isinstance(span, Span)
        assert says(span.start, times[one.end + 1 - L])
        assert says(span.end, times[one.end])
    assert {one.end for one in later} == {N - 1, N + 2, N + 4}


# What is said -----------------------------------------------------------------------------------

EVENTS = ["sale", "", "strike of the drivers", "public holiday", "", "rain"]


def dated(n=60, columns=1, freq="D"):
    return TimeSeries.from_times_and_values(index(freq, n), sine(n, columns))


def events(n=80, name="event", freq="D", change=None, **kwargs):
    """Return texts of days, one of them changed."""
    texts = [EVENTS[i % 7 % 6] for i in range(n)]
    if change is not None:
        texts[change] = "an earthquake"
    return text_covariates(texts, index(freq, n), name, **kwargs)


def learner(**changes):
    """Return a model that hears what it is told after a short training."""
    return lemole(optimizer_kwargs={"lr": 3e-3}, **{"n_epochs": 4, **changes})


SERIES = dated()


@pytest.fixture(scope="module")
def heard():
    """Return a model that was trained with texts known ahead and of the past."""
    used = {"past_covariates": events(name="news"), "future_covariates": events()}
    return learner().fit(SERIES, **used)


def forecast_of(model, n=H, **changes):
    used = {"past_covariates": events(name="news"), "future_covariates": events(), **changes}
    return model.predict(n, series=SERIES, **used).values()


def test_texts_known_ahead_are_heard_within_the_window_and_not_beyond(heard):
    n, plain, long = len(SERIES), forecast_of(heard), forecast_of(heard, 8)
    for step, moves in [(n - L - 1, 0), (n - L, 1), (n - 1, 1), (n, 1), (n + 2, 1), (n + 3, 0)]:
        other = forecast_of(heard, future_covariates=events(change=step))
        assert np.array_equal(other, plain) != moves, step
    other = forecast_of(heard, 8, future_covariates=events(change=n + 5))
    assert np.array_equal(other[:H], long[:H])
    assert not np.array_equal(other[H:], long[H:])


@pytest.mark.parametrize("numbers_too", [False, True])
def test_texts_of_the_past_are_never_looked_ahead_at(heard, numbers_too):
    n, model = len(SERIES), heard
    news = lambda change=None: events(name="news", change=change)  # noqa: E731
    if numbers_too:
        number = numbers(index("D", 80))
        news = lambda change=None: number.stack(events(name="news", change=change))  # noqa: E731
        model = learner().fit(SERIES, past_covariates=news(), future_covariates=events())
    for steps in (1, H, 8):
        plain = forecast_of(model, steps, past_covariates=news())
        for change in range(n, 80):
            assert np.array_equal(forecast_of(model, steps, past_covariates=news(change)), plain)
        assert not np.array_equal(forecast_of(model, steps, past_covariates=news(n - 1)), plain)


@pytest.mark.parametrize("settings", [{}, {"enable_optimization": False}, {"retrain": True}])
@pytest.mark.parametrize("horizon", [H, 5])
def test_backtests_never_look_ahead_at_texts_of_the_past(heard, settings, horizon):
    model = learner(n_epochs=1) if "retrain" in settings else heard

    def history(change):
        return model.historical_forecasts(
            SERIES,
            past_covariates=events(name="news", change=change),
            future_covariates=events(),
            start=50,
            forecast_horizon=horizon,
            last_points_only=False,
            **{"retrain": False, **settings},
        )

    plain, other = history(None), history(53)
    pairs = zip(plain, other, strict=True)  # up to rounding: a training has one text more
    same = [np.allclose(*(one.values() for one in pair), rtol=0, atol=1e-6) for pair in pairs]
    assert same[:4] == [True] * 4  # these start before it is known
    assert not any(same[4 : 4 + L])


def test_texts_never_seen_in_training_are_encoded_and_kept(heard):
    network = heard.model.network
    new = "a text that nobody has said before"
    assert new not in network.texts.vocabulary
    texts = text_covariates([""] * 61 + [new] + [""] * 18, index("D", 80), "event")
    silent = text_covariates([None] * 80, index("D", 80), "event")
    plain = forecast_of(heard, future_covariates=silent)
    assert not np.array_equal(forecast_of(heard, future_covariates=texts), plain)
    assert new in network.texts.vocabulary
    n_texts = len(network.texts.vocabulary.entries)
    forecast_of(heard, future_covariates=texts)
    assert len(network.texts.vocabulary.entries) == n_texts


def test_no_text_has_many_spellings():
    nothing = [None, np.nan, float("nan"), pd.NA, pd.NaT, "", np.str_("")]
    series = text_covariates([*nothing, "rain"], index("D", 8), "event")
    assert covariate_texts(series, "event") == [""] * 7 + ["rain"]
    assert not series.values()[:7].any()
    column = pd.Series(["a", None, pd.NA], dtype="string")
    assert covariate_texts(text_covariates(column, index("D", 3))) == ["a", "", ""]


def test_silence_throughout_is_no_error():
    silent = text_covariates([None] * 80, index("D", 80), "event")
    model = learner().fit(SERIES, future_covariates=silent)
    plain = model.predict(H, series=SERIES, future_covariates=silent).values()
    assert np.isfinite(plain).all()
    assert np.isfinite(model.predict(H, series=SERIES, future_covariates=events()).values()).all()


@pytest.mark.parametrize("kind", ["past", "future"])
def test_texts_and_numbers_may_be_stacked_in_either_order(kind):
    number, text = numbers(index("D", 80)), events()
    forecasts = []
    for joined in (number.stack(text), text.stack(number)):
        model = learner().fit(SERIES, **{f"{kind}_covariates": joined})
        forecasts.append(model.predict(8, series=SERIES, **{f"{kind}_covariates": joined}).values())
    assert np.array_equal(*forecasts)


def test_several_columns_of_text_are_told_apart():
    both = events(name="event").stack(events(name="news", change=59))
    model = learner().fit(SERIES, future_covariates=both)
    swapped = both[["text:news", "text:event"]]
    with pytest.raises(ValueError, match=r"expected the components of text \['text:event', 'text"):
        model.predict(H, series=SERIES, future_covariates=swapped)


@pytest.mark.parametrize("carrier", ["metadata", "registry", "pickle"])
def test_texts_survive_what_darts_does_to_series(carrier):
    series = events(12)
    if carrier == "registry":  # metadata are lost behind another series
        series = numbers(index("D", 12)).stack(series)["text:event"]
        assert not series.metadata
    if carrier == "pickle":
        series = pickle.loads(pickle.dumps(series))
    expected = [EVENTS[i % 7 % 6] for i in range(12)]
    assert covariate_texts(series, "event") == expected
    assert covariate_texts(series[3:7], "text:event") == expected[3:7]
    assert covariate_texts(series[:5].append(series[5:]), "event") == expected
    assert covariate_texts(concatenate([series[:5], series[5:]]), "event") == expected
    assert covariate_texts(copy.deepcopy(series), "event") == expected


def test_texts_of_another_process_need_their_metadata(monkeypatch):
    series = text_covariates(["of another process"] * 3, pd.RangeIndex(3))
    monkeypatch.setattr(vocabulary, "_columns", {})
    assert covariate_texts(series) == ["of another process"] * 3
    message = r"text:text: expected codes of texts, found \d+, which stands for no text in this pro"
    with pytest.raises(ValueError, match=message):
        covariate_texts(TimeSeries.from_values(series.values(), columns=["text:text"]))


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "n", "error", "message"),
    [
        (["a", 3.5, "b"], 3, TypeError, r"texts of 'event': expected a text or None, found 3.5 of"),
        ([True, "b"], 2, TypeError, "found True of type bool at step 0"),
        ([["a"], "b"], 2, TypeError, r"found \['a'\] of type list at step 0"),
        (["a", "b"], 3, ValueError, "expected one for each of 3 times, found 2"),
        ("abc", 3, TypeError, "expected a list of texts, found the text 'abc'"),
    ],
)
def test_what_is_no_text_is_refused(texts, n, error, message):
    with pytest.raises(error, match=message):
        text_covariates(texts, index("D", n), "event")


def test_a_precision_that_cannot_hold_codes_is_refused():
    with pytest.raises(ValueError, match=r"dtype must be float32 or float64.* found 'float16'"):
        events(dtype=np.float16)
    assert covariate_texts(events(12, dtype=np.float64).astype(np.float32), "event")[2]


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("damage", ["scaled", "shifted", "averaged", "cast", "bfloat"])
def test_codes_that_were_computed_with_are_refused(damage):
    series = events()
    if damage == "scaled":
        series = Scaler().fit_transform(series)
    elif damage == "shifted":
        series = series + 1
    elif damage == "averaged":
        series = series.resample("2D", method="mean")
    elif damage == "cast":
        series = series.with_values(series.values().astype(np.float16))
    else:
        values = torch.tensor(series.values()).bfloat16().float().numpy()
        series = series.with_values(values)
    target = dated(30, freq="2D") if damage == "averaged" else SERIES
    with pytest.raises(ValueError, match=r"text:event.* (expected codes of texts|is infinite)"):
        lemole().fit(target, future_covariates=series)


@pytest.mark.parametrize("kind", ["past", "future"])
def test_a_text_must_stay_a_text_and_a_number_a_number(kind):
    name, number, text = f"{kind}_covariates", numbers(index("D", 80)), events()
    model = lemole().fit(SERIES, **{name: text})
    before = model.predict(H, **{name: text}).values()
    with pytest.raises(ValueError, match=rf"{name}: expected .*\['text:event'\].* found \[\]"):
        model.predict(H, **{name: number})
    with pytest.raises(ValueError, match=f"{name}: received .*`1`, expected: `0`"):
        model.predict(H, **{name: text.stack(number)})
    with pytest.raises(ValueError, match=rf"{name}: expected .*found \['text:other'\]"):
        model.predict(H, **{name: events(name="other")})
    assert np.array_equal(model.predict(H, **{name: text}).values(), before)
    model = lemole().fit(SERIES, **{name: number})
    with pytest.raises(ValueError, match=rf"{name}: expected .*\[\].* found \['text:event'\]"):
        model.predict(H, **{name: text})


@pytest.mark.parametrize("kind", ["past", "future"])
def test_lists_of_covariates_match_those_of_series(kind):
    model, name = lemole(), f"{kind}_covariates"
    for given in ([events()], [events(), numbers(index("D", 80))]):
        with pytest.raises(ValueError, match=rf"{name}: expected (as many|the components \['text)"):
            model.fit([SERIES, SERIES], **{name: given})
    model.fit([SERIES, SERIES], **{name: [events(), events()]})
    with pytest.raises(ValueError, match=f"{name}: expected as many as series, 2, found 1"):
        model.predict(H, series=[SERIES, SERIES], **{name: [events()]})


@pytest.mark.parametrize("other", [m for m in METHODS if not m.network.reads_text], ids=str)
@pytest.mark.parametrize("kind", ["past", "future"])
def test_a_method_that_reads_no_text_refuses_it(other, kind):
    both = numbers(index("D", 80)).stack(events())
    model = other.darts(context=12)
    message = rf"{kind}_covariates: \w+ reads no text, found the components \['text:event'\]; lea"
    with pytest.raises(ValueError, match=message):
        model.fit(SERIES, **{f"{kind}_covariates": both})


@pytest.mark.parametrize("text", ["none", "static", "calendar"])
def test_columns_that_are_not_read_do_not_matter(text):
    model = learner(text=text, n_epochs=1)
    used = {"past_covariates": events(name="news"), "future_covariates": events()}
    model.fit(SERIES, **used)
    plain = forecast_of(model, 8)
    for name in used:
        texts = text_covariates(["an earthquake"] * 80, index("D", 80), events().components[0][5:])
        if name == "past_covariates":
            texts = texts.with_columns_renamed("text:event", "text:news")
        assert np.array_equal(forecast_of(model, 8, **{name: texts}), plain)
    without = learner(text=text, n_epochs=1).fit(SERIES)
    assert np.array_equal(without.predict(8).values(), plain)


# What the series is -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:series. sizes differ so much")
def test_descriptions_go_by_the_first_component(shown):
    times = index()
    described = {"load": "power in MW", "price": "euros per MWh"}
    names = ["load", "price", "wind"]
    series = [
        counting(times, number=i).with_columns_renamed("0", name) for i, name in enumerate(names)
    ]
    model = lemole(description=described)
    _, windows = shown.of(lambda: model.fit(series))
    _, later = shown.of(lambda: model.predict(8, series=series))
    for one in windows + later:
        expected = described.get(names[one.series])
        assert one.description == model.model.network.prompt(expected)
    assert model.training_summary["prompts"]
    model = lemole(description="all that is measured")
    _, windows = shown.of(lambda: model.fit(series))
    assert {one.description for one in windows} == {None}  # the network knows it
    assert model.training_summary["prompts"] == [model.model.network.prompt("all that is measured")]


def test_descriptions_are_heard():
    series = [SERIES.with_columns_renamed("0", name) for name in ("load", "price")]
    described = {"load": "power in MW", "price": "euros per MWh"}
    model = learner(description=described, n_epochs=8).fit(series)
    first, second = (one.values() for one in model.predict(H, series=series))
    assert not np.array_equal(first, second)  # of equal numbers


# What is carried --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(heard, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lemole")
    heard.save_pretrained(folder)
    return folder


def restored(way, heard, directory, folder):
    path = str(folder / "model.pt")
    if way == "from_pretrained":
        return LeMoLEModel.from_pretrained(directory)
    if way == "checkpoint":
        zero_shot = learner(checkpoint=str(directory), fit_strategy="zero-shot")
        used = {"past_covariates": events(name="news"), "future_covariates": events()}
        return zero_shot.fit(SERIES, **used)
    heard.save(path, clean=way == "clean")
    if way == "weights":
        model = learner()
        model.load_weights(path)
        return model
    return LeMoLEModel.load(path, pl_trainer_kwargs={"accelerator": "cpu"})


@pytest.mark.parametrize("way", ["save", "clean", "weights", "from_pretrained", "checkpoint"])
def test_restored_models_hear_the_same(heard, directory, tmp_path, way):
    model = restored(way, heard, directory, tmp_path)
    assert model.text_columns == {"past": ["text:news"], "future": ["text:event"]}
    for changes in ({}, {"future_covariates": events(change=61)}):
        for n in (H, 8):
            found, expected = (forecast_of(one, n, **changes) for one in (model, heard))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected .*\['text:news'\].* found \['text:other'\]"):
        forecast_of(model, past_covariates=events(name="other"))


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_automatic_checkpoints_know_their_columns(tmp_path):
    place = {"work_dir": str(tmp_path), "model_name": "one", "save_checkpoints": True}
    used = {"past_covariates": events(name="news"), "future_covariates": events()}
    model = learner(**place, n_epochs=1).fit(SERIES, **used)
    settings = {"model_name": "one", "work_dir": str(tmp_path), "best": False}
    loaded = LeMoLEModel.load_from_checkpoint(**settings)
    np.testing.assert_allclose(forecast_of(loaded, 8), forecast_of(model, 8), rtol=0, atol=1e-6)
    other = learner()
    other.load_weights_from_checkpoint(**settings)
    np.testing.assert_allclose(forecast_of(other, 8), forecast_of(model, 8), rtol=0, atol=1e-6)
    other.fit(SERIES, **used, epochs=1)
    assert np.isfinite(forecast_of(other, 8)).all()


def test_a_training_that_goes_on_meets_new_texts(heard):
    model = learner()
    used = {"past_covariates": events(name="news")}
    model.fit(SERIES, future_covariates=events(), **used)
    before = forecast_of(model)
    model.fit(SERIES, future_covariates=events(change=40), **used, epochs=1)
    assert not np.array_equal(forecast_of(model), before)
    assert "an earthquake" in model.model.network.texts.vocabulary


def test_a_failed_fit_leaves_a_model_that_is_fitted_anew():
    model = lemole()
    with pytest.raises(ValueError, match="too short"):
        model.fit(SERIES[:3], future_covariates=events())
    model.fit(SERIES)
    assert model.text_columns == {"past": [], "future": []}
    assert np.isfinite(model.predict(8).values()).all()


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "untrained"])
def test_copies_without_weights_are_fitted_anew(heard, how):
    if how == "untrained":
        model = heard.untrained_model()
    else:
        model = pickle.loads(pickle.dumps(heard)) if how == "pickle" else copy.deepcopy(heard)
    used = {"past_covariates": events(name="other"), "future_covariates": events(name="some")}
    model.fit(SERIES, **used)
    assert model.text_columns == {"past": ["text:other"], "future": ["text:some"]}
    assert np.isfinite(model.predict(8, **used).values()).all()


def test_validation_has_the_columns_of_the_training():
    settings = {"future_covariates": events(), "val_series": SERIES}
    with pytest.raises(
        ValueError, match=r"expected the components of text \['text:event'\], as in"
    ):
        lemole().fit(SERIES, val_future_covariates=numbers(index("D", 80)), **settings)


def test_a_model_of_a_dataset_refuses_texts():
    series = SERIES
    lengths = {"input_chunk_length": L, "output_chunk_length": H}
    model = lemole()
    model.fit_from_dataset(SequentialTorchTrainingDataset(series, **lengths))
    with pytest.raises(ValueError, match="was trained on a dataset, knows no text"):
        model.predict(H, series=series, future_covariates=events())


@pytest.mark.parametrize("text", ["both", "static"])
def test_another_description_takes_the_same_weights(shown, text, tmp_path):
    """One description is the network's own; several are those of the series."""
    several = {"0": "power in MW", "b": "euros per MWh"}
    series = [counting(), counting(number=1).with_columns_renamed("0", "b")]
    for trained, used in [(several, "wind"), ("wind", several)]:
        model = lemole(description=trained, text=text).fit(series)
        folder = tmp_path / str(type(used))
        model.save_pretrained(folder)
        other = LeMoLEModel.from_pretrained(folder, description=used)
        _, windows = shown.of(lambda: other.predict(8, series=series))  # noqa: B023
        for one in windows:
            found = one.description
            if used == "wind":
                assert found is None
            else:
                assert found == other.model.network.prompt(several["0b"[one.series]])


def test_a_saved_model_knows_the_texts_of_its_training_in_another_process(tmp_path, monkeypatch):
    """Also where they were stacked behind other covariates, so that darts lost them."""
    times = index()
    covariates = numbers(times).stack(told(times))
    assert not covariates.metadata
    model = lemole().fit(counting(times), future_covariates=covariates)
    model.save(str(tmp_path / "model.pt"))
    expected = model.predict(H).values()
    monkeypatch.setattr(vocabulary, "_columns", {})
    loaded = LeMoLEModel.load(str(tmp_path / "model.pt"))
    np.testing.assert_allclose(loaded.predict(H).values(), expected, atol=1e-6)

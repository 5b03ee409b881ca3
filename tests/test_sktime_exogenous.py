"""X in sktime: known ahead or of the past only, beside every kind of index and instance."""

import numpy as np
import pandas as pd
import pytest
from sktime.forecasting.base import ForecastingHorizon
from sktime.forecasting.model_evaluation import evaluate
from sktime.split import ExpandingWindowSplitter
from sktime.utils._testing.hierarchical import _make_hierarchical
from support import monthly

N = 60
SHAPE = {"context_length": 12, "horizon": 6}


def data(columns=1, ahead=20):
    """Return a target, and X that goes on after it."""
    whole = monthly(N + ahead, columns)
    rng = np.random.default_rng(1)
    X = pd.DataFrame(rng.normal(size=(N + ahead, 2)), whole.index, ["price", "rain"])
    return whole[:N], X


def fitted(method, past=None, **settings):
    y, X = data()
    forecaster = method.sktime(**SHAPE, past_covariates=past, **settings)
    return forecaster.fit(y, X[:N]), y, X


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])  # causal, bidirectional
def test_one_changed_value_moves_the_forecast(method, language_models, architecture):
    forecaster, _, X = fitted(method, backbone=language_models[architecture])
    plain = forecaster.predict([1, 6], X[N:])
    changed = X[N:].copy()
    changed.iloc[5, 1] += 1
    assert not np.array_equal(forecaster.predict([1, 6], changed), plain)
    changed = X[N:].copy()
    changed.iloc[6, 1] += 1  # beyond the horizon
    assert np.array_equal(forecaster.predict([1, 6], changed), plain)


@pytest.mark.parametrize("past", [None, ["rain"]])
def test_the_past_of_X_counts(method, past):
    y, X = data()
    forecasts = []
    for bump in (0, 1):
        changed = X.copy()
        changed.iloc[N - 1, 1] += bump
        forecaster = method.sktime(**SHAPE, past_covariates=past).fit(y[:-1], X[: N - 1])
        forecaster.update(y[-1:], changed[N - 1 : N], update_params=False)
        forecasts.append(forecaster.predict([1, 6], X[N:]).to_numpy())
    assert not np.array_equal(*forecasts)


def test_past_covariates_need_no_future(method):
    forecaster, _, X = fitted(method, past=["rain"])
    future = X[N:].copy()
    plain = forecaster.predict([1, 9], future)
    future["rain"] = np.nan
    pd.testing.assert_frame_equal(forecaster.predict([1, 9], future), plain)
    pd.testing.assert_frame_equal(forecaster.predict([1, 9], future[["price"]]), plain)
    forecaster, _, _ = fitted(method, past=["rain", "price"])
    assert np.isfinite(forecaster.predict([1, 9]).to_numpy()).all()


def test_past_covariates_is_a_switch(method):
    forecasts = [
        fitted(method, past=past)[0].predict([1], data()[1][N:]) for past in (None, ["rain"])
    ]
    assert not np.array_equal(*forecasts)


def test_steps_of_every_kind_find_their_rows(method):
    forecaster, _, X = fitted(method)
    whole = forecaster.predict(list(range(1, 10)), X[N:])
    gapped = forecaster.predict([2, 9], X[N:])
    pd.testing.assert_frame_equal(gapped, whole.iloc[[1, 8]], check_freq=False)
    absolute = ForecastingHorizon(whole.index[[1, 8]], is_relative=False)
    pd.testing.assert_frame_equal(forecaster.predict(absolute, X[N:]), gapped)
    reversed_columns = X[N:][["rain", "price"]]
    pd.testing.assert_frame_equal(forecaster.predict([2, 9], reversed_columns), gapped)


def test_what_is_known_beyond_the_last_step_up_to_the_horizon_is_used(method):
    forecaster, _, X = fitted(method)
    whole = forecaster.predict(list(range(1, 10)), X[N:])
    first = forecaster.predict([1], X[N:])
    pd.testing.assert_frame_equal(first, whole[:1], check_freq=False, rtol=1e-4)
    with_fewer = forecaster.predict([1], X[N : N + 1])
    assert not np.array_equal(with_fewer, first)


def test_past_covariates_that_are_left_out_stay_as_they_were_known(method):
    forecaster, _, X = fitted(method, past=["rain"])
    plain = forecaster.predict([1, 9], X)
    pd.testing.assert_frame_equal(forecaster.predict([1, 9], X[["price"]]), plain)


def test_fitted_values_use_the_rows_of_the_fit(method):
    forecaster, _, X = fitted(method)
    fitted_values = forecaster.predict([-20, 0])
    assert np.isfinite(fitted_values.to_numpy()).all()
    both = forecaster.predict([-20, 1], X[N - 21 :])
    np.testing.assert_allclose(both[:1], fitted_values[:1], rtol=1e-3)


def test_X_may_reach_into_the_future_at_fit(method):
    y, X = data()
    forecaster = method.sktime(**SHAPE).fit(y, X)
    known = forecaster.predict([1, 6], X[N:])
    other = method.sktime(**SHAPE).fit(y, X[:N]).predict([1, 6], X[N:])
    pd.testing.assert_frame_equal(known, other)


def test_booleans_and_integers_are_numbers_and_missing_values_are_masked(method):
    y, X = data()
    X["promotion"] = X["price"] > 0
    X["count"] = np.arange(len(X))
    X.iloc[3, 0] = np.nan
    forecaster = method.sktime(**SHAPE).fit(y, X[:N])
    assert np.isfinite(forecaster.predict([1, 6], X[N:]).to_numpy()).all()


@pytest.mark.parametrize("dtype", ["category", "str", "object"])
def test_categories_and_texts_are_refused_unless_they_are_read(method, dtype):
    y, X = data()
    X["weekday"] = pd.Series(["mon", "tue"] * 40, index=X.index, dtype=dtype)
    forecaster = method.sktime(**SHAPE)
    if method.network.reads_text:
        forecaster.fit(y, X[:N])
        assert np.isfinite(forecaster.predict([1, 9], X[N:]).to_numpy()).all()
        return
    with pytest.raises((TypeError, ValueError), match=r"categor|numeric"):
        forecaster.fit(y, X[:N])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: None, r"X: expected the columns \['price', 'rain'\].* found no X"),
        (lambda X: X[["price"]], r"missing \['rain'\], unknown \[\]"),
        (lambda X: X.assign(wind=1.0), r"missing \[\], unknown \['wind'\]"),
        (lambda X: X[:3], r"X: expected a row for each of the .* found none at 3 of them"),
        (lambda X: X.drop(X.index[2]), "found none at 1 of them, the first is 2005-03"),
    ],
)
def test_missing_or_changed_future_X_is_an_error(method, change, message):
    forecaster, _, X = fitted(method)
    plain = forecaster.predict([1, 6], X[N:])
    with pytest.raises(ValueError, match=message):
        forecaster.predict([1, 6], change(X[N:]))
    pd.testing.assert_frame_equal(forecaster.predict([1, 6], X[N:]), plain)


def test_what_past_covariates_cannot_be(method):
    y, X = data()
    with pytest.raises(ValueError, match=r"found no \['snow'\] among \['price', 'rain'\]"):
        method.sktime(past_covariates=["snow"]).fit(y, X[:N])
    with pytest.raises(ValueError, match="names columns of X, found no X"):
        method.sktime(past_covariates=["rain"]).fit(y)
    with pytest.raises(TypeError, match=r"write \['rain'\] for one column"):
        method.sktime(past_covariates="rain").fit(y, X[:N])
    with pytest.raises(ValueError, match="extra indices are: PeriodIndex"):  # says sktime
        method.sktime().fit(y, X[: N - 5])


def test_panels_with_X(method):
    y = _make_hierarchical((2, 2), min_timepoints=30, max_timepoints=36, same_cutoff=False)
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"price": rng.normal(size=len(y))}, index=y.index)
    parts = y.index.droplevel(-1).unique()
    last = {key: y.loc[key].index[-1] for key in parts}
    rows = [(*key, last[key] + pd.Timedelta(days=d)) for key in parts for d in range(1, 5)]
    future = pd.DataFrame(
        {"price": rng.normal(size=len(rows))},
        index=pd.MultiIndex.from_tuples(rows, names=y.index.names),
    )
    forecaster = method.sktime(horizon=4).fit(y, X)
    plain = forecaster.predict([1, 4], future)
    changed = future.copy()
    changed.iloc[0, 0] += 5  # of the first instance only
    moved = (forecaster.predict([1, 4], changed) != plain).to_numpy().ravel()
    assert moved.tolist() == [True] * 2 + [False] * 6
    with pytest.raises(ValueError, match="X: expected"):
        forecaster.predict([1, 4], future.loc[[parts[0][0]]])


def test_a_backtest_hands_X_on(method):
    y, X = data()
    cv = ExpandingWindowSplitter(fh=[1, 2, 3], initial_window=45, step_length=5)
    for strategy in ("refit", "update", "no-update_params"):
        scores = evaluate(
            method.sktime(**SHAPE), cv, y, X[:N], strategy=strategy, error_score="raise"
        )
        assert np.isfinite(scores.filter(like="test_").to_numpy()).all()


def test_update_with_training_takes_X(method):
    y, X = data()
    forecaster = method.sktime(**SHAPE).fit(y[:-6], X[: N - 6])
    forecaster.update(y[-6:], X[N - 6 : N])
    assert np.isfinite(forecaster.predict([1], X[N:]).to_numpy()).all()

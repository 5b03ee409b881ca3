"""The forecasters inside sktime's own compositions, each compared with the same by hand."""

import functools
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.linear_model import LinearRegression
from sktime.forecasting.compose import (
    AutoEnsembleForecaster,
    BaggingForecaster,
    ColumnEnsembleForecaster,
    EnsembleForecaster,
    FallbackForecaster,
    ForecastByLevel,
    ForecastingPipeline,
    ForecastX,
    HierarchyEnsembleForecaster,
    StackingForecaster,
    TransformedTargetForecaster,
)
from sktime.forecasting.conformal import ConformalIntervals
from sktime.forecasting.naive import NaiveForecaster, NaiveVariance
from sktime.forecasting.reconcile import ReconcilerForecaster
from sktime.forecasting.squaring_residuals import SquaringResiduals
from sktime.forecasting.stream import UpdateRefitsEvery
from sktime.split import ExpandingWindowSplitter
from sktime.transformations.bootstrap import MovingBlockBootstrapTransformer
from sktime.transformations.hierarchical.aggregate import Aggregator
from sktime.transformations.hierarchical.reconcile import Reconciler
from sktime.transformations.series.detrend import Deseasonalizer, Detrender
from sktime.transformations.series.fourier import FourierFeatures
from sktime.transformations.series.impute import Imputer
from sktime.utils._testing.hierarchical import _make_hierarchical
from support import monthly

FH = [1, 2, 3]
N = 60
Y = monthly(N)["v0"]
NAIVE = NaiveForecaster(sp=12)


def small(method, **changes):
    return method.sktime(**{"context_length": 6, "horizon": 3, "max_steps": 2, **changes})


@functools.cache
def alone(method, n=N, **changes):
    """Return the forecaster by itself, fitted to the first ``n`` months."""
    return small(method, **changes).fit(Y[:n], fh=FH)


def naive(n=N):
    return NAIVE.clone().fit(Y[:n], fh=FH).predict()


def equal(found, expected, rtol=1e-9):
    compare = getattr(
        pd.testing, f"assert_{'series' if isinstance(expected, pd.Series) else 'frame'}_equal"
    )
    compare(found, expected, check_names=False, check_freq=False, rtol=rtol, atol=1e-12)


def hierarchy(n=24, leaves=(2, 2)):
    return _make_hierarchical(leaves, min_timepoints=n, max_timepoints=n, random_state=0)


# several forecasters ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "workers", [None, "threading", pytest.param("loky", marks=pytest.mark.slow)]
)
def test_an_ensemble_is_the_mean_of_its_members(method, workers):
    members = [("one", small(method)), ("two", small(method, random_state=1)), ("naive", NAIVE)]
    ensemble = EnsembleForecaster(members, n_jobs=None if workers is None else 2)
    with joblib.parallel_config(backend=workers or "sequential"):
        forecast = ensemble.fit(Y, fh=FH).predict()
    one, two = alone(method).predict(), alone(method, random_state=1).predict()
    assert not np.allclose(one, two)
    equal(forecast, (one + two + naive()) / 3)


@pytest.mark.parametrize("how", ["inverse-variance", "feature-importance"])
def test_an_automatic_ensemble_weighs_by_what_was_forecast_well(method, how):
    members = [("ours", small(method)), ("naive", NAIVE)]
    regressor = LinearRegression(fit_intercept=False, positive=True)
    ensemble = AutoEnsembleForecaster(members, how, regressor, test_size=3)
    forecast = ensemble.fit(Y, fh=FH).predict()
    before = np.column_stack([alone(method, N - 3).predict(), naive(N - 3)])
    if how == "inverse-variance":
        weights = 1 / np.var(Y[-3:].to_numpy()[:, np.newaxis] - before, axis=0)
    else:
        weights = regressor.fit(before, Y[-3:]).coef_
    now = np.column_stack([alone(method).predict(), naive()])
    equal(forecast, pd.Series(now @ weights / weights.sum(), forecast.index))


def test_a_stack_regresses_on_forecasts_of_the_last_window(method):
    stack = StackingForecaster([("ours", small(method)), ("naive", NAIVE)], LinearRegression())
    forecast = stack.fit(Y, fh=FH).predict()
    before = np.column_stack([alone(method, N - 3).predict(), naive(N - 3)])
    now = np.column_stack([alone(method).predict(), naive()])
    expected = LinearRegression().fit(before, Y[-3:]).predict(now)
    equal(forecast, pd.Series(expected, forecast.index))


def test_a_fallback_steps_in_where_a_fit_fails(method):
    impossible = small(method, context_length=0)
    fallback = FallbackForecaster([("no", impossible), ("yes", small(method))])
    with pytest.raises(ValueError, match="context_length"):
        impossible.clone().fit(Y, fh=FH)
    equal(fallback.fit(Y, fh=FH).predict(), alone(method).predict(), rtol=0)


def test_columns_can_have_forecasters_of_their_own(method):
    y = monthly(N, 2)
    both = ColumnEnsembleForecaster([("ours", small(method), 0), ("naive", NAIVE, 1)])
    forecast = both.fit(y, fh=FH).predict()
    for name, one in [("v0", small(method)), ("v1", NAIVE.clone())]:
        equal(forecast[name], one.fit(y[name], fh=FH).predict())


# transformations ----------------------------------------------------------------------------


def test_transformations_of_the_target_are_undone(method):
    pipeline = Detrender() * Deseasonalizer(sp=12) * small(method)
    trend, season = Detrender(), Deseasonalizer(sp=12)
    plain = season.fit_transform(trend.fit_transform(Y))
    forecaster = small(method).fit(plain, fh=FH)
    pipeline.fit(Y, fh=FH)
    undone = trend.inverse_transform(season.inverse_transform(forecaster.predict()))
    equal(pipeline.predict(), undone)
    own, found = (f.predict_interval(coverage=0.9) for f in (forecaster, pipeline))
    shift = (undone - forecaster.predict()).to_numpy()[:, np.newaxis]  # both add, so do intervals
    np.testing.assert_allclose(found, own + shift)


def test_missing_values_can_be_imputed_first(method):
    y = Y.copy()
    y.iloc[[5, 57]] = np.nan
    pipeline = Imputer() * small(method)
    expected = small(method).fit(Imputer().fit_transform(y), fh=FH).predict()
    equal(pipeline.fit(y, fh=FH).predict(), expected)
    masked = small(method).fit(y, fh=FH).predict()  # what the forecaster does by itself
    assert not np.allclose(masked, expected, rtol=1e-6)


def test_features_of_the_calendar_arrive_as_X(method):
    future = monthly(N + 3).index[N:]
    X = pd.DataFrame({"price": np.sin(np.arange(N + 3) / 5)}, monthly(N + 3).index)
    pipeline = ForecastingPipeline([FourierFeatures([12.0], [1]), small(method)])
    found = pipeline.fit(Y, X=X[:N], fh=FH).predict(X=X[N:])
    features = FourierFeatures([12.0], [1]).fit(X[:N])
    forecaster = small(method).fit(Y, X=features.transform(X[:N]), fh=FH)
    equal(found, forecaster.predict(X=features.transform(X[N:])))
    assert not np.allclose(found, alone(method).predict(), rtol=1e-6)
    without = (FourierFeatures([12.0], [1]) ** small(method)).fit(Y, fh=FH).predict()
    assert without.index.equals(future)  # of the index alone


def test_a_pipeline_keeps_what_its_forecaster_was_pretrained_for(method):
    """``pretrain`` of a pipeline does nothing, so the forecaster in it learns before."""
    panel = pd.concat({i: monthly(40, seed=i) for i in range(3)}, names=["series", "month"])
    start = small(method, fit_strategy="zero-shot").pretrain(panel, fh=FH)
    pipeline = TransformedTargetForecaster([("trend", Detrender()), ("forecaster", start)])
    found = pipeline.clone().fit(Y, fh=FH).predict()
    trend = Detrender()
    forecast = start.clone().fit(trend.fit_transform(Y), fh=FH).predict()
    equal(found, trend.inverse_transform(forecast))


def test_unknown_X_is_forecast_first(method):
    X = pd.DataFrame({"price": np.sin(np.arange(N) / 5)}, Y.index)
    both = ForecastX(small(method), NaiveForecaster("drift"))
    found = both.fit(Y, X=X, fh=FH).predict()
    ahead = NaiveForecaster("drift").fit(X, fh=FH).predict()
    equal(found, small(method).fit(Y, X=X, fh=FH).predict(X=ahead))


# hierarchies --------------------------------------------------------------------------------


def test_one_model_for_each_instance_or_one_for_all(method):
    y = hierarchy(20, (2,))
    local = ForecastByLevel(small(method), "local").fit(y, fh=FH).predict()
    for key in y.index.droplevel(-1).unique():
        equal(local.loc[key], small(method).fit(y.loc[key], fh=FH).predict(), rtol=1e-6)
    together = ForecastByLevel(small(method), "global").fit(y, fh=FH).predict()
    equal(together, small(method).fit(y, fh=FH).predict(), rtol=0)
    assert not np.allclose(local, together, rtol=1e-6)


def test_levels_can_have_forecasters_of_their_own(method):
    y = Aggregator().fit_transform(hierarchy(20, (2,)))
    levels = HierarchyEnsembleForecaster([("leaves", small(method), 1)], "level", NAIVE)
    forecast = levels.fit(y, fh=FH).predict()
    leaves = y[y.index.get_level_values(0) != "__total"]
    equal(
        forecast[forecast.index.get_level_values(0) != "__total"],
        small(method).fit(leaves, fh=FH).predict(),
        rtol=1e-6,
    )
    equal(forecast.loc["__total"], NAIVE.clone().fit(y.loc["__total"], fh=FH).predict())


def nodes_and_sums(frame):
    """Return the nodes of a hierarchy, and the matrix (node, leaf) that sums leaves to them."""
    nodes = list(frame.index.droplevel(-1).unique())
    leaves = [node for node in nodes if "__total" not in node]
    sums = [
        [all(n in ("__total", m) for n, m in zip(node, leaf, strict=True)) for leaf in leaves]
        for node in nodes
    ]
    return nodes, np.array(sums, dtype=float)


def by_node(frame, nodes):
    return np.stack([frame.loc[node].to_numpy().ravel() for node in nodes])


def projected(values, sums, weights):
    """Return the sums that are nearest to the values, by weighted least squares."""
    return sums @ np.linalg.solve(sums.T @ weights @ sums, sums.T @ weights @ values)


@pytest.mark.filterwarnings("ignore:Found elements in the index of X named")
@pytest.mark.parametrize(
    "how", ["bu", "ols", "wls_str", "wls_var", "mint_cov", "mint_shrink", "td_fcst"]
)
def test_reconciled_forecasts_add_up(method, how):
    y = Aggregator().fit_transform(hierarchy())
    found = ReconcilerForecaster(small(method), how).fit(y, fh=[1, 2]).predict()
    nodes, sums = nodes_and_sums(y)
    values, is_leaf = by_node(found, nodes), sums.sum(axis=1) == 1
    np.testing.assert_allclose(values, sums @ values[is_leaf], rtol=1e-6)
    if how == "bu":  # trains on the leaves only
        y = y[["__total" not in row for row in y.index]]
        leaves = y.index.droplevel(-1).unique()
        forecast = by_node(small(method).fit(y, fh=[1, 2]).predict(), leaves)
        np.testing.assert_allclose(values, sums @ forecast, rtol=1e-6)
        return
    base = small(method).fit(y, fh=[1, 2])
    forecast = by_node(base.predict(), nodes)
    assert not np.allclose(forecast, values, rtol=1e-4)
    if how == "td_fcst":
        top = nodes.index(("__total", "__total"))
        np.testing.assert_allclose(values[top], forecast[top], rtol=1e-6)
    elif how != "mint_shrink":
        fitted = by_node(base.predict(fh=list(range(1 - 24, 1))), nodes)
        spread = np.cov(by_node(y, nodes) - fitted)
        weights = {
            "ols": np.eye(len(nodes)),
            "wls_str": np.diag(1 / sums.sum(axis=1)),
            "wls_var": np.diag(1 / np.diag(spread)),
            "mint_cov": np.linalg.inv(spread),
        }
        np.testing.assert_allclose(values, projected(forecast, sums, weights[how]), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:No elements of the index of X named")
def test_a_reconciler_can_end_a_pipeline(method):
    y = hierarchy(20)
    pipeline = Aggregator() * small(method) * Reconciler("ols")
    found = pipeline.fit(y, fh=[1, 2]).predict()
    total = Aggregator().fit_transform(y)
    nodes, sums = nodes_and_sums(total)
    base = by_node(small(method).fit(total, fh=[1, 2]).predict(), nodes)
    expected = projected(base, sums, np.eye(len(nodes)))
    np.testing.assert_allclose(by_node(found, nodes), expected, rtol=1e-6)


# intervals of others ------------------------------------------------------------------------


@functools.cache
def rolling_residuals(method, start):
    """Return errors of forecasters fitted to more and more data, one row for each."""
    rows = []
    for n in range(start, N):
        forecast = small(method).fit(Y[:n], fh=list(range(1, N - n + 1))).predict()
        rows.append([np.nan] * (n - start) + list(Y[n:] - forecast))
    return np.array(rows)


def test_conformal_intervals_are_quantiles_of_rolling_residuals(method):
    wrapped = ConformalIntervals(small(method), method="conformal", initial_window=57)
    interval = wrapped.fit(Y, fh=[1]).predict_interval(coverage=0.5).to_numpy(float)[0]
    residuals = rolling_residuals(method, 57)
    np.testing.assert_allclose(wrapped.residuals_matrix_, residuals)
    equal(wrapped.predict(), alone(method).predict(fh=[1]), rtol=0)
    widths = (interval - wrapped.predict().iloc[0]) * [-1, 1]
    assert widths[0] == pytest.approx(widths[1])
    candidates = [np.quantile(np.abs(np.diagonal(residuals, k)), 0.5) for k in (0, 1)]
    assert np.isclose(widths[0], candidates).any()  # k is 1 in sktime 1.2
    own = alone(method).predict_interval(fh=[1], coverage=0.5)
    assert not np.allclose(own, interval, rtol=1e-3)


def test_naive_variance_is_that_of_rolling_residuals(method):
    wrapped = NaiveVariance(small(method), initial_window=57).fit(Y, fh=[1])
    equal(wrapped.predict(), alone(method).predict(fh=[1]), rtol=0)
    residuals = rolling_residuals(method, 57)
    candidates = [np.mean(np.diagonal(residuals, k) ** 2) for k in (0, 1)]
    assert np.isclose(wrapped.predict_var().iloc[0, 0], candidates).any()  # k is 1 in sktime 1.2
    assert not np.allclose(wrapped.predict_var(), alone(method).predict_var(fh=[1]), rtol=1e-3)


def test_squared_residuals_can_be_forecast(method):
    wrapped = SquaringResiduals(small(method), NaiveForecaster("mean"), initial_window=57)
    wrapped.fit(Y, fh=[1])
    updated, errors = small(method).fit(Y[:57], fh=[1]), []
    for n in range(57, N):
        errors.append(Y.iloc[n] - updated.update(Y[:n]).predict().iloc[0])
    # sktime 1.2 means to refit, but updates forecasters that can be updated
    candidates = [np.diagonal(rolling_residuals(method, 57)), np.array(errors)]
    spreads = [norm.ppf(0.9) * np.sqrt(np.mean(residuals**2)) for residuals in candidates]
    found = wrapped.predict_quantiles(alpha=[0.1, 0.9]).to_numpy(float)[0]
    lower, upper = (found - wrapped.predict().iloc[0]) * [-1, 1]
    assert lower == pytest.approx(upper)
    assert np.isclose(upper, spreads).any()


@pytest.mark.parametrize("broadcasting", [False, True])
def test_bagging_averages_over_bootstrapped_series(method, broadcasting):
    bootstrap = MovingBlockBootstrapTransformer(n_series=2, return_actual=False, random_state=0)
    bag = BaggingForecaster(bootstrap, small(method, broadcasting=broadcasting)).fit(Y, fh=FH)
    samples = bootstrap.clone().fit_transform(Y)
    names = samples.index.get_level_values(0).unique()
    if broadcasting:
        each = [small(method).fit(samples.loc[name], fh=FH).predict() for name in names]
    else:
        together = small(method).fit(samples, fh=FH).predict()
        each = [together.loc[name] for name in names]
    values = np.stack([forecast.to_numpy().ravel() for forecast in each])
    assert values.shape == (2, 3)
    np.testing.assert_allclose(bag.predict(), values.mean(axis=0), rtol=1e-6)
    interval = bag.predict_quantiles(alpha=[0.01, 0.99])
    np.testing.assert_allclose(interval, np.sort(values, axis=0).T, rtol=1e-6)


# data that arrive, and what a forecaster says of itself ---------------------------------------


def test_update_predict_walks_through_new_data(method):
    forecaster = small(method).fit(Y[:50], fh=FH)
    cv = ExpandingWindowSplitter(fh=FH, initial_window=2, step_length=4)
    found = forecaster.update_predict(Y[50:], cv=cv, update_params=False)
    assert forecaster.cutoff == Y.index[49:50]  # it walked with a copy
    for n in (52, 56):
        forecaster.update(Y[50:n], update_params=False)
        forecast = forecaster.predict()
        column = found[forecaster.cutoff[0]] if found.ndim == 2 else found[forecast.index]
        equal(column.dropna(), forecast)


def test_a_refit_comes_when_it_is_due(method):
    stream = UpdateRefitsEvery(small(method), refit_interval=4).fit(Y[:50], fh=FH)
    still = small(method).fit(Y[:50], fh=FH).update(Y[50:52])
    equal(stream.update(Y[50:52]).predict(), still.predict(), rtol=0)
    anew = small(method).fit(Y[:54], fh=FH)
    equal(stream.update(Y[52:54]).predict(), anew.predict(), rtol=0)


def test_residuals_and_scores_are_of_the_forecasts(method):
    forecaster = alone(method)
    residuals = forecaster.predict_residuals(Y)
    fitted = forecaster.predict(fh=list(range(1 - N, 1)))
    equal(residuals, Y - fitted)
    earlier = alone(method, N - 3)
    actual, forecast = Y[-3:], earlier.predict()
    error = np.mean(np.abs(actual - forecast) / np.abs(actual))
    np.testing.assert_allclose(earlier.score(actual, fh=FH), error)


def test_fitted_parameters_are_those_that_sktime_counts(method):
    assert alone(method).get_fitted_params() == {}  # weights are no parameters of an estimator
    pipeline = TransformedTargetForecaster([("trend", Detrender()), ("ours", small(method))])
    parameters = pipeline.fit(Y, fh=FH).get_fitted_params()
    assert {"steps", "ours", "trend"} <= set(parameters)
    equal(parameters["ours"].predict(), pipeline.steps_[-1][1].predict(), rtol=0)


def test_compositions_are_as_silent_as_their_members(method, capfd):
    members = [("one", small(method)), ("two", Detrender() * small(method))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The default of config ``remember_data``", FutureWarning)
        EnsembleForecaster(members).fit(Y, fh=FH).predict()
    assert capfd.readouterr() == ("", "")

"""Our models judged by what darts has for it: backtests, hierarchies, and anomalies."""

import numpy as np
import pandas as pd
import pytest
from darts import TimeSeries, concatenate
from darts.ad import (
    DifferenceScorer,
    ForecastingAnomalyModel,
    GaussianNLLScorer,
    KMeansScorer,
    LaplaceNLLScorer,
    NormScorer,
    QuantileDetector,
    WassersteinScorer,
)
from darts.dataprocessing import Pipeline
from darts.dataprocessing.transformers import (
    BottomUpReconciliator,
    InvertibleMapper,
    MinTReconciliator,
    Scaler,
    StaticCovariatesTransformer,
    TopDownReconciliator,
)
from darts.metrics import mae, rmse
from darts.utils.likelihood_models.torch import GaussianLikelihood, LaplaceLikelihood
from darts.utils.statistics import plot_residuals_analysis
from matplotlib import pyplot as plt
from scipy import stats
from support import sine
from watching import Losses

HORIZON = 6
EVERY_STEP = {"forecast_horizon": HORIZON, "retrain": False, "last_points_only": False}


def dated(columns=1, n=80, values=None, **named):
    values = sine(n, columns) if values is None else values
    times = pd.date_range("2018-01-31", periods=len(values), freq="ME")
    return TimeSeries(times, values, **named)


def close(first, second, rtol=1e-4, atol=1e-5):
    assert first.time_index.equals(second.time_index)
    np.testing.assert_allclose(first.all_values(), second.all_values(), rtol=rtol, atol=atol)


# backtests --------------------------------------------------------------------------------------


def panel():
    """Return three series of different lengths with what a table says of each of them."""
    rows = [
        pd.DataFrame({"time": one.time_index, "y": (one.values() * size)[:, 0], "shop": f"s{size}"})
        for size in (1, 2, 3)
        for one in [dated(n=60 + 5 * size)]
    ]
    frame = pd.concat(rows, ignore_index=True)
    frame["kind"] = frame["shop"].map({"s1": "small", "s2": "large", "s3": "large"})
    several = TimeSeries.from_group_dataframe(
        frame, group_cols="shop", time_col="time", value_cols="y", static_cols="kind"
    )
    several = StaticCovariatesTransformer().fit_transform(several)  # names become numbers
    return [one.astype(np.float32) for one in several]


@pytest.mark.parametrize("overlap_end", [False, True])
def test_backtests_of_a_table_of_series_equal_single_predictions(method, overlap_end):
    several = panel()
    model = method.darts().fit([one[:55] for one in several])
    settings = {"start": 55, "stride": 2, "overlap_end": overlap_end, **EVERY_STEP}
    histories = model.historical_forecasts(several, **settings)
    last = model.historical_forecasts(several, **{**settings, "last_points_only": True})
    for one, history, points in zip(several, histories, last, strict=True):
        n_starts = len(one) - 55 + (1 if overlap_end else 1 - HORIZON)
        assert len(history) == -(-n_starts // 2)
        for i, forecast in enumerate(history):
            close(forecast, model.predict(HORIZON, one[: 55 + 2 * i]))
        assert list(points.time_index) == [forecast.end_time() for forecast in history]
        np.testing.assert_array_equal(points.values(), [f.values()[-1] for f in history])
    other = several[0].with_static_covariates(several[0].static_covariates + 5)
    assert not np.allclose(model.predict(6, other).values(), model.predict(6, several[0]).values())


def test_forecasts_from_end_to_end_join_into_one_series(method):
    series = dated(2)
    model = method.darts().fit(series[:60])
    history = model.historical_forecasts(series, start=62, stride=HORIZON, **EVERY_STEP)
    joined = concatenate(history)
    assert joined.time_index.equals(series.time_index[62:])
    close(joined[6:12], model.predict(HORIZON, series[:68]))


def test_backtests_reduce_several_metrics_series_by_series(method):
    several = panel()
    model = method.darts().fit([one[:55] for one in several])
    settings = {"start": 55, "metric": [mae, rmse], **EVERY_STEP}
    found = model.backtest(several, reduction=np.median, **settings)
    unreduced = model.backtest(several, reduction=None, **settings)
    for i, one in enumerate(several):
        errors = []
        for t in range(55, len(one) - HORIZON + 1):
            forecast = model.predict(HORIZON, one[:t]).values()
            errors.append(one[t : t + HORIZON].values() - forecast)
        errors = np.array(errors)[..., 0]
        scores = np.stack([abs(errors).mean(1), np.sqrt((errors**2).mean(1))], axis=1)
        np.testing.assert_allclose(unreduced[i], scores, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[i], np.median(scores, axis=0), rtol=1e-4, atol=1e-5)


def in_spring(counter, pred_time, train_series, past_covariates, future_covariates):
    return counter == 0 or pred_time.month == 4


@pytest.mark.parametrize("retrain", [3, in_spring])
def test_backtests_train_again_when_they_are_told(method, retrain):
    series, model, trained_at = dated(), None, []
    history = method.darts(n_epochs=1).historical_forecasts(
        series, start=71, forecast_horizon=3, retrain=retrain, last_points_only=False
    )
    for i, forecast in enumerate(history):
        start = forecast.start_time()
        if i % 3 == 0 if retrain == 3 else i == 0 or start.month == 4:
            trained_at.append(i)
            model = method.darts(n_epochs=1).fit(series.drop_after(start))
        close(forecast, model.predict(3, series=series.drop_after(start)))
    assert trained_at == ([0, 3, 6] if retrain == 3 else [0, 4])


def test_backtests_that_train_can_validate(method):
    series, losses = dated(), [Losses(), Losses()]

    def learning(seen):
        trainer = {"pl_trainer_kwargs": {"callbacks": [seen]}}
        return method.darts(n_epochs=3, optimizer_kwargs={"lr": 1.0}, **trainer)

    history = learning(losses[0]).historical_forecasts(
        series, start=70, stride=4, forecast_horizon=3, val_length=12, last_points_only=False
    )
    assert len(history) == 2
    for forecast in history:
        known = series.drop_after(forecast.start_time())
        model = learning(losses[1]).fit(known[:-12], val_series=known[-24:])
        close(forecast, model.predict(3, series=known))
    assert len(losses[0].values) == 2 * 3
    assert losses[0].values == losses[1].values


@pytest.mark.parametrize("retrain", [False, True])
def test_backtests_transform_the_data_and_back(method, retrain):
    series, settings = dated() + 3, {"start": 70, "stride": 2, "forecast_horizon": 3}
    root = InvertibleMapper(fn=np.sqrt, inverse_fn=np.square)
    pipeline, model = Pipeline([root, Scaler()]), method.darts(n_epochs=1)
    if not retrain:
        model.fit(pipeline.fit_transform(series[:60]))
    settings |= {"retrain": retrain, "data_transformers": {"series": pipeline}}
    history = model.historical_forecasts(series, last_points_only=False, **settings)
    assert len(history) == 4
    errors = []
    for forecast in history:
        known = series.drop_after(forecast.start_time())
        if retrain:
            model = method.darts(n_epochs=1).fit(pipeline.fit_transform(known))
        again = model.predict(3, series=pipeline.transform(known))
        close(forecast, pipeline.inverse_transform(again))
        errors.append(mae(series, forecast))
    score = method.darts(n_epochs=1) if retrain else model
    score = score.backtest(series, metric=mae, last_points_only=False, **settings)
    assert score == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.filterwarnings("ignore:acf currently returns")  # of statsmodels, to darts
def test_residuals_are_the_errors_of_historical_forecasts(method):
    series = dated(2)
    model = method.darts().fit(series[:60])
    settings = {"start": 60, "forecast_horizon": HORIZON, "retrain": False}
    forecasts = model.historical_forecasts(series, **settings)
    residuals = model.residuals(series, **settings)
    assert len(residuals) == 15
    close(residuals, series.slice_intersect(forecasts) - forecasts)
    plot_residuals_analysis(residuals["1"])
    drawn = plt.gcf().axes[0].lines[0].get_ydata()
    plt.close("all")
    np.testing.assert_array_equal(drawn, residuals["1"].values()[:, 0])


# hierarchies ------------------------------------------------------------------------------------

NAMES = ["total", "left", "right", "a", "b"]
PARENTS = {"left": ["total"], "right": ["total"], "a": ["left"], "b": ["left"]}
SUMS = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])  # of right, a, b
MINT = {  # covariance of the errors, of residuals or of the series
    "ols": lambda values: np.eye(5),
    "wls_struct": lambda values: np.diag([3, 2, 1, 1, 1]),
    "wls_var": lambda values: np.diag((values**2).mean(0)),
    "wls_val": lambda values: np.diag(values.mean(0)),
    "mint_cov": lambda values: np.cov(values.T),
}


def test_forecasts_of_a_hierarchy_are_reconciled(method):
    leaves = sine(80, 3) + np.float32([3, 4, 5])
    series = dated(values=leaves @ SUMS.T.astype(np.float32), components=NAMES, hierarchy=PARENTS)
    point = method.darts(n_epochs=1).fit(series[:60])
    sampling = method.darts(n_epochs=1, likelihood=GaussianLikelihood()).fit(series[:60])
    residuals = point.residuals(series, start=60, forecast_horizon=HORIZON, retrain=False)
    residuals = residuals.astype(float)  # float32 is too coarse for a covariance's inverse
    for forecast in (point.predict(9), sampling.predict(9, num_samples=20)):
        forecast = forecast.astype(float)
        raw = forecast.all_values()
        assert abs(raw[:, 0] - raw[:, 2:].sum(1)).max() > 1e-4
        shares = np.zeros((3, 5))
        shares[:, 0] = leaves[:60].sum(0) / leaves[:60].sum()
        leaves_of = {BottomUpReconciliator(): np.eye(5)[2:]}
        leaves_of[TopDownReconciliator().fit(series[:60].astype(float))] = shares
        for name, covariance in MINT.items():
            known = series.astype(float) if name == "wls_val" else residuals
            inverse = np.linalg.inv(covariance(known.values()))
            squares = SUMS.T @ inverse
            reconciliator = MinTReconciliator(name).fit(known)
            leaves_of[reconciliator] = np.linalg.solve(squares @ SUMS, squares)
        for reconciliator, projection in leaves_of.items():
            found = reconciliator.transform(forecast).all_values()
            np.testing.assert_allclose(found, SUMS @ projection @ raw, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found[:, 0], found[:, 2:].sum(1), rtol=1e-6)
            np.testing.assert_allclose(found[:, 1], found[:, 3:].sum(1), rtol=1e-6)


# anomalies --------------------------------------------------------------------------------------

SPIKE = 110


def spoilt(n=150):
    values = sine(n)
    clean, truth = dated(values=values.copy()), np.arange(n)[:, np.newaxis] == SPIKE
    values[SPIKE] += 3
    return clean, dated(values=values), dated(values=truth.astype(np.float32))


def test_scorers_and_detectors_find_a_spike_in_our_forecasts(method):
    clean, series, truth = spoilt()
    plain = NormScorer(), DifferenceScorer()
    fitted = KMeansScorer(k=3, window=3, random_state=0), WassersteinScorer(window=10)
    anomalies = ForecastingAnomalyModel(method.darts(), [*plain, *fitted])
    anomalies.fit(clean[:90], allow_model_training=True, start=24)
    scores = anomalies.score(series, start=90)
    for score, window in zip(scores, (1, 1, 3, 10), strict=True):
        highest = score.time_index[np.argmax(score.values())]
        assert abs((highest - series.time_index[SPIKE]) / pd.Timedelta(days=30)) < window
    forecasts = (
        method.darts()
        .fit(clean[:90])
        .historical_forecasts(series, start=90, forecast_horizon=1, retrain=False)
    )
    close(scores[1], series.slice_intersect(forecasts) - forecasts)
    close(scores[0], scores[1].map(np.abs))
    detector = QuantileDetector(high_quantile=1.0).fit(anomalies.score(clean[:90], start=24)[0])
    found = detector.detect(scores[0])
    assert found.values()[SPIKE - 90] == 1
    measures = anomalies.eval_metric(truth, series, start=90, metric="AUC_ROC")
    assert measures["Norm (ord=None)_w=1"] == 1
    assert min(measures.values()) > 0.9


def laplace(samples):
    location = np.median(samples, axis=1)
    return stats.laplace(location, abs(samples - location[:, np.newaxis]).mean(1))


@pytest.mark.parametrize(
    ("likelihood", "scorer", "fitted"),
    [
        (GaussianLikelihood, GaussianNLLScorer, lambda x: stats.norm(x.mean(1), x.std(1))),
        (LaplaceLikelihood, LaplaceNLLScorer, laplace),
    ],
    ids=["gaussian", "laplace"],
)
def test_likelihood_scorers_find_a_spike_in_our_samples(method, likelihood, scorer, fitted):
    clean, series, _ = spoilt()
    model, twin = (method.darts(likelihood=likelihood()).fit(clean[:90]) for _ in range(2))
    settings = {"start": 90, "forecast_horizon": 1, "num_samples": 50}
    score = ForecastingAnomalyModel(model, scorer()).score(series, **settings)
    samples = twin.historical_forecasts(series, retrain=False, **settings).all_values()[:, 0]
    expected = -fitted(samples).logpdf(series[90:].values()[:, 0])
    np.testing.assert_allclose(score.values()[:, 0], expected, rtol=1e-4)
    assert score.time_index[np.argmax(score.values())] == series.time_index[SPIKE]

"""Backtests by sktime: strategies, workers of every kind, scores, panels, benchmarks."""

import copy
import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import KFold
from sktime.benchmarking.forecasting import ForecastingBenchmark
from sktime.forecasting.compose import MultiplexForecaster, TransformedTargetForecaster
from sktime.forecasting.model_evaluation import evaluate
from sktime.forecasting.model_selection import (
    ForecastingGridSearchCV,
    ForecastingOptunaSearchCV,
    ForecastingRandomizedSearchCV,
)
from sktime.forecasting.naive import NaiveForecaster
from sktime.performance_metrics.forecasting import MeanAbsoluteError
from sktime.performance_metrics.forecasting.probabilistic import (
    CRPS,
    EmpiricalCoverage,
    IntervalWidth,
    PinballLoss,
)
from sktime.split import ExpandingWindowSplitter, InstanceSplitter, SingleWindowSplitter
from sktime.transformations.series.detrend import Detrender
from sktime.utils._testing.hierarchical import _make_hierarchical
from sktime_workers_script import folds
from support import METHODS, monthly

FH = [1, 2]
Y = monthly(50)["v0"]
CV = ExpandingWindowSplitter(fh=FH, initial_window=40, step_length=5)
MAPE = "test_MeanAbsolutePercentageError"


def small(method, **changes):
    return method.sktime(**{"context_length": 6, "horizon": 2, "max_steps": 2, **changes})


def backtest(forecaster, y=Y, cv=CV, **changes):
    return evaluate(forecaster, cv, y, **{"error_score": "raise", "return_data": True, **changes})


@functools.cache
def serial(method):
    return folds(method)


def panel(n=3, length=30):
    frames = {f"s{i}": monthly(length, seed=i) * (i + 1) for i in range(n)}
    return pd.concat(frames, names=["series", "month"])


def equal(found, expected, rtol=0.0):
    """Compare folds: their scores, data, forecasts and, where there are any, forecasters."""
    times = ["fit_time", "pred_time", "fitted_forecaster"]
    data = [name for name in expected if name.startswith("y_")]
    scores = expected.drop(columns=[*times, *data], errors="ignore")
    pd.testing.assert_frame_equal(found[scores.columns], scores, rtol=rtol)
    for name in data:
        for one, other in zip(found[name], expected[name], strict=True):
            np.testing.assert_allclose(one, other, rtol=rtol)
            assert one.index.equals(other.index)
    if "fitted_forecaster" in expected:
        fitted = [result["fitted_forecaster"] for result in (found, expected)]
        for forecasts in zip(*([f.predict([1, 4]) for f in fs] for fs in fitted), strict=True):
            np.testing.assert_allclose(*forecasts, rtol=rtol)


# strategies ---------------------------------------------------------------------------------


def test_folds_that_refit_are_forecasters_fitted_to_each(method):
    result = serial(method)
    assert list(result["len_train_window"]) == [40, 45]
    for n, row in zip((40, 45), result.itertuples(), strict=True):
        forecast = small(method).fit(Y[:n], fh=FH).predict()
        pd.testing.assert_series_equal(row.y_pred, forecast, rtol=0)
        actual = Y[n : n + 2]
        pd.testing.assert_series_equal(row.y_test, actual)
        score = np.mean(np.abs(actual - forecast) / np.abs(actual))
        assert getattr(row, MAPE) == pytest.approx(score)


@pytest.mark.parametrize("backend", [None, "loky", "dask"])  # sktime walks through these in turn
@pytest.mark.parametrize("strategy", ["update", "no-update_params"])
def test_folds_that_update_go_on_from_the_fold_before(method, strategy, backend, monkeypatch):
    trained, fit = [], method.model.fit

    def counted(model, *args, **kwargs):
        trained.append(kwargs["epochs"])
        return fit(model, *args, **kwargs)

    monkeypatch.setattr(method.model, "fit", counted)
    result = backtest(small(method), strategy=strategy, backend=backend)
    assert trained == [0, 1][: 2 if strategy == "update" else 1]
    forecaster = small(method).fit(Y[:40], fh=FH)
    first = forecaster.predict()
    forecaster.update(Y[40:45], update_params=strategy == "update")
    for found, expected in zip(result["y_pred"], (first, forecaster.predict()), strict=True):
        pd.testing.assert_series_equal(found, expected, rtol=0)


# workers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["None", "threading", "multiprocessing"])
def test_folds_of_workers_equal_serial_folds(method, backend, capfd):
    equal(folds(method, backend, {"n_jobs": 2}), serial(method))
    assert backend == "threading" or capfd.readouterr() == ("", "")


def test_folds_in_threads_of_dask_equal_serial_folds(method):
    import dask

    # otherwise Dask turns whatever is no number into text
    with dask.config.set({"dataframe.convert-string": False}):
        equal(folds(method, "dask"), serial(method))


@pytest.mark.slow
def test_folds_in_new_processes_equal_serial_folds(method, monkeypatch):
    def here(*args, **kwargs):
        raise AssertionError("trained in the main process")

    expected = serial(method)
    monkeypatch.setattr(method.model, "fit", here)
    equal(folds(method, "loky", {"n_jobs": 2}), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_folds_of_a_cluster_equal_serial_folds(backend, tmp_path):
    script = str(Path(__file__).parent / "sktime_workers_script.py")
    command = [sys.executable, script, backend, str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ, timeout=400)
    found = pickle.loads((tmp_path / "found.pkl").read_bytes())
    for method in METHODS:
        equal(found[method.name], serial(method), rtol=1e-6)


def test_copies_and_loading_disturb_nobody(method, tmp_path, capfd):
    """Another fold in another thread may train meanwhile, with the same generator."""
    forecaster = small(method).fit(Y)
    forecaster.save_pretrained(tmp_path)
    generator = torch.get_rng_state()
    pickle.loads(pickle.dumps(copy.deepcopy(forecaster)))
    method.forecaster.from_pretrained(tmp_path, device="cpu").fit(Y)
    assert torch.equal(torch.get_rng_state(), generator)
    assert capfd.readouterr() == ("", "")


# scores -------------------------------------------------------------------------------------


def test_probabilistic_scores_are_those_of_the_forecasts(method):
    levels = np.array([0.1, 0.5, 0.9])
    scoring = [
        PinballLoss(alpha=list(levels)),
        EmpiricalCoverage(coverage=0.8),
        IntervalWidth(coverage=0.8),
        CRPS(),
        MeanAbsoluteError(),
    ]
    row = backtest(small(method), cv=SingleWindowSplitter(FH, window_length=40), scoring=scoring)
    row, train = row.iloc[0], row["y_train"][0]
    actual = Y[train.index[-1] :][1:3].to_numpy()[:, np.newaxis]
    forecaster = small(method).fit(train, fh=FH)

    def loss(levels):
        error = actual - forecaster.predict_quantiles(alpha=list(levels)).to_numpy()
        return np.maximum(levels * error, (levels - 1) * error).mean()

    lower, upper = forecaster.predict_quantiles(alpha=[0.1, 0.9]).to_numpy().T
    inside = (lower <= actual[:, 0]) & (actual[:, 0] <= upper)
    assert row["test_PinballLoss"] == pytest.approx(loss(levels))
    assert row["test_EmpiricalCoverage"] == inside.mean()
    assert row["test_IntervalWidth"] == pytest.approx((upper - lower).mean())
    assert row["test_CRPS"] == pytest.approx(2 * loss(np.arange(0.0005, 1, 0.001)), rel=0.01)
    median = forecaster.predict().to_numpy()
    assert row["test_MeanAbsoluteError"] == pytest.approx(np.abs(actual[:, 0] - median).mean())


# panels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["refit", "no-update_params"])
def test_a_panel_is_one_model_in_every_fold(method, strategy):
    y = panel()
    cv = ExpandingWindowSplitter(fh=FH, initial_window=24, step_length=4)
    result = backtest(small(method), y, cv, strategy=strategy)
    until = [y.groupby(level=0).head(n) for n in (24, 28)]
    forecaster = small(method).fit(until[0], fh=FH)
    pd.testing.assert_frame_equal(result["y_pred"][0], forecaster.predict(), rtol=0)
    if strategy == "refit":
        forecaster = small(method).fit(until[1], fh=FH)
    else:
        forecaster.update(until[1], update_params=False)
    pd.testing.assert_frame_equal(result["y_pred"][1], forecaster.predict(), rtol=0)


def test_a_hierarchy_with_X(method):
    y = _make_hierarchical((2, 2), min_timepoints=26, max_timepoints=26, random_state=0)
    values = np.random.default_rng(0).normal(size=len(y))
    X = pd.DataFrame({"price": values}, y.index)
    cv = ExpandingWindowSplitter(fh=FH, initial_window=20, step_length=4)
    result = backtest(small(method), y, cv, X=X)
    rows = y.groupby(level=[0, 1]).cumcount()
    for n, found in zip((20, 24), result["y_pred"], strict=True):
        forecaster = small(method).fit(y[rows < n], X[rows < n], fh=FH)
        ahead = (rows >= n) & (rows < n + 2)
        pd.testing.assert_frame_equal(found, forecaster.predict(X=X[ahead]), rtol=1e-6)
        other = forecaster.predict(X=X[ahead] + 1)
        assert not np.allclose(found, other, rtol=1e-6)  # X counts


@pytest.mark.parametrize("backend", [None, "threading"])
def test_a_backtest_over_instances_pretrains(method, backend):
    y = panel(4)
    result = backtest(
        small(method, fit_strategy="zero-shot"),
        y,
        ExpandingWindowSplitter(fh=FH, initial_window=28),
        cv_global=InstanceSplitter(KFold(2)),
        backend=backend,
    )
    names = ["s0", "s1", "s2", "s3"]
    for found, part in zip(result["y_pred"], (names[:2], names[2:]), strict=True):
        others = y[~y.index.get_level_values(0).isin(part)]
        forecaster = small(method, fit_strategy="zero-shot").pretrain(others, fh=FH)
        mine = y[y.index.get_level_values(0).isin(part)].groupby(level=0).head(28)
        pd.testing.assert_frame_equal(found, forecaster.fit(mine, fh=FH).predict(), rtol=0)


def test_a_benchmark_runs_what_evaluate_runs(method):
    metric, y = MeanAbsoluteError(), panel(4)
    last = ExpandingWindowSplitter(fh=FH, initial_window=28)
    across = InstanceSplitter(KFold(2))
    benchmark = ForecastingBenchmark()
    benchmark.add_estimator(small(method), "ours")
    benchmark.add_estimator(NaiveForecaster(), "naive")
    benchmark.add_task(lambda: Y, CV, [metric], "folds")
    benchmark.add_task(lambda: y, last, [metric], "instances", cv_global=across)
    table = benchmark.run().set_index(["validation_id", "model_id"])["MeanAbsoluteError_mean"]
    for name, forecaster in [("ours", small(method)), ("naive", NaiveForecaster())]:
        scores = backtest(forecaster, scoring=metric)["test_MeanAbsoluteError"]
        assert table["folds", name] == pytest.approx(scores.mean())
        scores = backtest(forecaster, y, last, scoring=metric, cv_global=across)
        assert table["instances", name] == pytest.approx(scores["test_MeanAbsoluteError"].mean())


# tuning -------------------------------------------------------------------------------------


RATES = [1e-4, 1e-1]


def pipeline(method, lr=None):
    steps = [("trend", Detrender()), ("forecaster", small(method, lr=lr))]
    return TransformedTargetForecaster(steps)


@functools.cache
def scores_of(make, method):
    """Return the mean score of each learning rate, evaluated by itself."""
    return [backtest(make(method, lr=rate))[MAPE].mean() for rate in RATES]


def search_of(kind, forecaster, name):
    """Return a search over the two learning rates, an argument of this name."""
    import optuna

    settings = {"error_score": "raise", "scoring": None}
    if kind == "grid":
        return ForecastingGridSearchCV(forecaster, CV, {name: RATES}, backend="None", **settings)
    if kind == "random":
        return ForecastingRandomizedSearchCV(
            forecaster, CV, {name: RATES}, n_iter=2, random_state=0, backend="None", **settings
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=0)  # draws one rate, then the other
    space = {name: optuna.distributions.CategoricalDistribution(RATES)}
    return ForecastingOptunaSearchCV(forecaster, CV, space, n_evals=2, sampler=sampler, **settings)


@pytest.mark.parametrize(
    ("kind", "make"), [("grid", small), ("random", pipeline), ("optuna", pipeline)]
)
def test_what_a_tuner_calls_the_best_is_the_best(method, kind, make):
    name = "lr" if make is small else "forecaster__lr"
    search = search_of(kind, make(method), name).fit(Y, fh=FH)
    expected = scores_of(make, method)
    assert expected[0] != expected[1]
    rates = [params[name] for params in search.cv_results_["params"]]
    tried = dict(zip(rates, search.cv_results_[f"mean_{MAPE}"], strict=True))
    assert tried == pytest.approx(dict(zip(RATES, expected, strict=True)), rel=1e-6)
    best = RATES[int(np.argmin(expected))]
    assert search.best_params_ == {name: best}
    forecast = make(method, lr=best).fit(Y, fh=FH).predict()
    pd.testing.assert_series_equal(search.predict(), forecast, rtol=0)


def test_a_multiplexer_is_tuned_and_hands_on_what_was_chosen(method):
    naive = NaiveForecaster(sp=12)
    choice = MultiplexForecaster([("ours", small(method)), ("naive", naive)])
    name = "selected_forecaster"
    search = ForecastingGridSearchCV(choice, CV, {name: ["ours", "naive"]}, backend="None")
    search.fit(Y, fh=FH)
    scores = {"ours": serial(method)[MAPE].mean(), "naive": backtest(naive)[MAPE].mean()}
    assert list(search.cv_results_[f"mean_{MAPE}"]) == pytest.approx(list(scores.values()))
    assert search.best_params_ == {name: min(scores, key=scores.get)}
    for chosen, forecaster in [("ours", small(method)), ("naive", naive)]:
        found = choice.clone().set_params(**{name: chosen}).fit(Y, fh=FH).predict()
        pd.testing.assert_series_equal(found, forecaster.clone().fit(Y, fh=FH).predict(), rtol=0)

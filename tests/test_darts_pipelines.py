"""Our models inside what darts builds around models: ensembles, intervals, tuning, backtests."""

import numpy as np
import optuna
import pandas as pd
import pytest
import pytorch_lightning as pl
from darts import TimeSeries
from darts.metrics import mae, mic, miw
from darts.models import (
    ConformalNaiveModel,
    ConformalQRModel,
    ExponentialSmoothing,
    LinearRegressionModel,
    NaiveEnsembleModel,
    RandomForestModel,
    RegressionEnsembleModel,
)
from darts.utils.likelihood_models.torch import (
    GaussianLikelihood,
    QuantileRegression,
)
from sklearn.linear_model import QuantileRegressor
from support import sine
from watching import Losses

HORIZON = 6
QUANTILES = [0.1, 0.5, 0.9]
PARAMETERS = {"predict_likelihood_parameters": True}
EVERY_STEP = {"forecast_horizon": HORIZON, "retrain": False, "last_points_only": False}


def dated(columns=1, n=80, level=0.0, values=None, **named):
    values = sine(n, columns) + np.float32(level) if values is None else values
    times = pd.date_range("2018-01-31", periods=len(values), freq="ME")
    return TimeSeries(times, values, **named)


def covariates(seed=9, n=140):
    noise = np.random.default_rng(seed).normal(5, 2, (n, 2)).astype(np.float32)
    return TimeSeries(pd.date_range("2017-01-31", periods=n, freq="ME"), noise)


def both(seed=9):
    return {"past_covariates": covariates(seed), "future_covariates": covariates(seed + 1)}


def same(first, second):
    return np.array_equal(first.all_values(), second.all_values())


def close(first, second, rtol=1e-4, atol=1e-5):
    assert first.time_index.equals(second.time_index)
    np.testing.assert_allclose(first.all_values(), second.all_values(), rtol=rtol, atol=atol)


def weights_of(model):
    return [p.detach().clone() for p in model.model.parameters()]


def side_by_side(forecasts):
    return np.concatenate([forecast.values().astype(float) for forecast in forecasts], axis=1)


def least_squares(forecasts, actual):
    return np.linalg.lstsq(forecasts, actual.astype(float), rcond=None)[0]


# ensembles --------------------------------------------------------------------------------------


def mixed(method, lags=None):
    """Return one of ours, a local model, and two regressions."""
    forest = RandomForestModel(12, n_estimators=5, random_state=0)
    linear = LinearRegressionModel(12, lags_past_covariates=lags, lags_future_covariates=lags)
    return [method.darts(), ExponentialSmoothing(), forest, linear]


def test_naive_ensembles_mix_ours_with_local_and_regression_models(method):
    series, used = dated(), both()
    members = mixed(method, lags=[-3, -2])
    forecast = NaiveEnsembleModel(members, show_warnings=False).fit(series, **used).predict(9)
    ours, local, forest, linear = mixed(method, lags=[-3, -2])
    alone = [ours.fit(series, **used), local.fit(series), forest.fit(series)]
    mean = np.mean([m.predict(9).values() for m in [*alone, linear.fit(series, **used)]], axis=0)
    np.testing.assert_allclose(forecast.values(), mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("trained", [False, True])
def test_naive_ensembles_average_their_members_and_are_saved(method, trained, tmp_path):
    series, path = dated(), str(tmp_path / "ensemble.pt")
    members, single = ([method.darts(random_state=seed) for seed in (0, 1)] for _ in range(2))
    if trained:
        members = [member.fit(series) for member in members]
    ensemble = NaiveEnsembleModel(members, train_forecasting_models=not trained)
    forecast = (ensemble if trained else ensemble.fit(series)).predict(9, series=series)
    mean = np.mean([member.fit(series).predict(9).values() for member in single], axis=0)
    np.testing.assert_allclose(forecast.values(), mean, rtol=1e-6, atol=1e-6)
    ensemble.save(path)
    assert same(NaiveEnsembleModel.load(path).predict(9, series=series), forecast)


def test_ensembles_of_probabilistic_members_sample(method):
    members = [method.darts(likelihood=GaussianLikelihood(), random_state=s) for s in (0, 1)]
    samples = NaiveEnsembleModel(members).fit(dated()).predict(9, num_samples=10)
    assert samples.shape == (9, 1, 10)
    assert np.ptp(samples.all_values(), axis=2).min() > 0


def test_regression_ensembles_regress_on_what_a_mix_forecasts(method, tmp_path):
    series, path = dated(), str(tmp_path / "ensemble.pt")
    ensemble = RegressionEnsembleModel(mixed(method), 20, show_warnings=False).fit(series)
    forecast = ensemble.predict(9)
    before, after = (
        side_by_side([member.fit(known).predict(n) for member in mixed(method)])
        for known, n in ((series[:-20], 20), (series, 9))
    )
    weights = least_squares(before, series[-20:].values())
    assert abs(weights[0]) > 1e-3  # ours has a say
    np.testing.assert_allclose(forecast.values(), after @ weights, rtol=1e-3, atol=1e-4)
    ensemble.save(path)
    assert same(RegressionEnsembleModel.load(path).predict(9), forecast)


@pytest.mark.parametrize("historical", [False, True])
def test_regression_ensembles_take_trained_members_and_several_series(method, historical):
    several = [dated(), dated(level=3) * 2]
    used = [both(seed) for seed in (1, 3)]
    listed = {name: [one[name] for one in used] for name in used[0]}
    lags = {"lags_past_covariates": 2, "lags_future_covariates": [0]}
    members = [method.darts(), LinearRegressionModel(12, output_chunk_length=HORIZON, **lags)]
    for member in members:
        member.fit([one[:60] for one in several], **listed)
    weights = weights_of(members[0])
    how = {"train_forecasting_models": False, "train_using_historical_forecasts": historical}
    ensemble = RegressionEnsembleModel(members, 12, **how).fit(several, **listed)
    assert all(map(np.array_equal, weights, weights_of(members[0])))

    def forecast(n, end=None):
        rows = [
            side_by_side([m.predict(n, series=one[:end], **own) for m in members])
            for one, own in zip(several, used, strict=True)
        ]
        return np.array(rows)

    # past its horizon a member feeds on its own forecasts; a backtest never does
    parts = [forecast(6, -12), forecast(6, -6)] if historical else [forecast(12, -12)]
    actual = np.concatenate([one[-12:].values() for one in several])
    weights = least_squares(np.concatenate(parts, axis=1).reshape(24, 2), actual)
    found = [one.values() for one in ensemble.predict(HORIZON, series=several, **listed)]
    np.testing.assert_allclose(found, forecast(HORIZON) @ weights, rtol=1e-3, atol=1e-4)


def test_regression_ensembles_of_samples_forecast_quantiles(method):
    series, n_samples = dated(), 50
    members, twins = (
        [method.darts(likelihood=GaussianLikelihood(), random_state=s) for s in (0, 1)]
        for _ in range(2)
    )
    for member in members + twins:
        member.fit(series[:50])
    quantiles = {"likelihood": "quantile", "quantiles": QUANTILES, "alpha": 0.0}
    regression = LinearRegressionModel(lags_future_covariates=[0], **quantiles)
    ensemble = RegressionEnsembleModel(
        members, 24, regression, n_samples, train_forecasting_models=False
    ).fit(series)

    def medians(n, known, **seed):
        samples = [m.predict(n, series=known, num_samples=n_samples, **seed) for m in twins]
        return side_by_side([one.median(axis=2) for one in samples])

    before, actual = medians(24, series[:-24]), series[-24:].values()[:, 0]
    regressors = [QuantileRegressor(quantile=q, alpha=0).fit(before, actual) for q in QUANTILES]
    for known in (series[:60], series[:70], series):
        found = ensemble.predict(1, series=known, random_state=1, **PARAMETERS).values()[0]
        after = medians(1, known, random_state=1)
        expected = [regressor.predict(after)[0] for regressor in regressors]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert ensemble.predict(HORIZON, num_samples=9).shape == (HORIZON, 1, 9)


def test_ensembles_are_backtested(method):
    series = dated()
    members = [method.darts(random_state=seed).fit(series[:60]) for seed in (0, 1)]
    together, *alone = (
        model.historical_forecasts(series, start=60, **EVERY_STEP)
        for model in (NaiveEnsembleModel(members, train_forecasting_models=False), *members)
    )
    assert len(together) == 15
    for forecast, first, second in zip(together, *alone, strict=True):
        close(forecast, (first + second) / 2)
    refitted = RegressionEnsembleModel(mixed(method)[:2], 12)
    history = refitted.historical_forecasts(
        series, start=70, stride=7, forecast_horizon=3, last_points_only=False
    )
    assert len(history) == 2
    for forecast in history:
        model = RegressionEnsembleModel(mixed(method)[:2], 12)
        close(forecast, model.fit(series.drop_after(forecast.start_time())).predict(3))


# intervals by calibration -----------------------------------------------------------------------

CONFORMAL = [
    (ConformalNaiveModel, None),
    (ConformalNaiveModel, GaussianLikelihood()),
    (ConformalQRModel, QuantileRegression(QUANTILES)),
]
by_calibration = pytest.mark.parametrize(("conformal", "likelihood"), CONFORMAL)


@by_calibration
def test_conformal_models_calibrate_our_intervals(method, conformal, likelihood, tmp_path):
    series, path = dated(n=120), str(tmp_path / "conformal.pt")
    member = method.darts(likelihood=likelihood).fit(series[:60])
    model = conformal(member, quantiles=QUANTILES, cal_length=30)
    seen = []
    member.model.network.register_forward_hook(
        lambda network, inputs, output: seen.append(len(inputs[0].past_target))
    )
    intervals = model.predict(HORIZON, series=series, **PARAMETERS).values()
    assert (np.diff(intervals) > 0).all()
    # one to check, those of which enough is known for 30 errors of each step, and the forecast
    assert sum(seen) == 1 + (30 + HORIZON - 1) + 1
    model.save(path)
    several = {"series": [series * 5, series], **PARAMETERS}
    # darts refuses the tensor that its own quantile likelihood keeps, with any model
    trusted = isinstance(likelihood, QuantileRegression)
    again = conformal.load(path, trusted=trusted).predict(HORIZON, random_state=1, **several)
    close(again[1], model.predict(HORIZON, random_state=1, **several)[1], rtol=0, atol=0)
    samples = model.predict(HORIZON, series=series, num_samples=200).all_values()
    assert (np.median(samples, axis=2) > intervals[:, :1]).all()
    assert (np.median(samples, axis=2) < intervals[:, 2:]).all()
    history = {"start": 100, "forecast_horizon": 3, **PARAMETERS}
    seen.clear()
    history = model.historical_forecasts(series, last_points_only=False, random_state=1, **history)
    assert len(history) + 30 < sum(seen) <= len(series)  # each window once, whatever is drawn of it
    lows, _, highs = np.moveaxis([one.values() for one in history], 2, 0)
    actual = np.array([series.slice_intersect(one).values()[:, 0] for one in history])
    scores = {"historical_forecasts": history, "last_points_only": False}
    for metric, expected in ((mic, (lows <= actual) & (actual <= highs)), (miw, highs - lows)):
        metric = {"metric": metric, "metric_kwargs": {"q_interval": (0.1, 0.9)}}
        score = model.backtest(series, **PARAMETERS, **scores, **metric)
        assert score == pytest.approx(expected.mean(), rel=1e-5)
    assert 0.5 < ((lows <= actual) & (actual <= highs)).mean() <= 1


def test_calibrated_intervals_are_quantiles_of_past_errors(method):
    series, n = dated(2, n=120), 30
    member = method.darts().fit(series[:60])
    model = ConformalNaiveModel(member, quantiles=QUANTILES, cal_length=n)
    intervals = model.predict(HORIZON, series=series, **PARAMETERS).values().reshape(6, 2, 3)
    forecast = member.predict(HORIZON, series=series).values()
    history = member.historical_forecasts(series, start=60, overlap_end=True, **EVERY_STEP)
    for step in range(HORIZON):
        steps = [one[step] for one in history if one.time_index[step] <= series.end_time()]
        errors = [abs((series.slice_intersect(one) - one).values()) for one in steps]
        width = np.sort(np.concatenate(errors[-n:]), axis=0)[int(np.ceil((n + 1) * 0.8)) - 1]
        expected = np.stack([forecast[step] - width, forecast[step], forecast[step] + width], 1)
        np.testing.assert_allclose(intervals[step], expected, rtol=1e-4, atol=1e-5)


# tuning -----------------------------------------------------------------------------------------


def test_grid_search_finds_the_best_settings(method):
    trainer, lengths = {"accelerator": "cpu"}, [6, 12]
    fixed = method.small(n_epochs=1, random_state=0, pl_trainer_kwargs=trainer)
    grid = {"input_chunk_length": lengths, "output_chunk_length": [3]}
    grid |= {name: [value] for name, value in fixed.items()}
    settings = {"forecast_horizon": 3, "start": 0.8, "stride": 5, "metric": mae}
    best, found, score = method.model.gridsearch(grid, dated(), **settings)
    scores = [method.darts(n, 3, n_epochs=1).backtest(dated(), **settings) for n in lengths]
    assert score == pytest.approx(min(scores), rel=1e-4)
    assert found["input_chunk_length"] == lengths[np.argmin(scores)]
    assert best.fit(dated()).input_chunk_length == found["input_chunk_length"]


class Pruning(pl.Callback):
    """Report to a trial, as one would without the package that Optuna's own callback needs."""

    def __init__(self, trial, monitor):
        self.trial, self.monitor = trial, monitor

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            loss = trainer.callback_metrics[self.monitor].item()
            self.trial.report(loss, trainer.current_epoch)
            if self.trial.should_prune():
                raise optuna.TrialPruned


def pruning_of_optuna(trial, monitor):
    # it imports lightning, which pytorch_lightning, Darts' own, is the other name of
    pytest.importorskip("lightning", reason="needs optuna-integration[pytorch-lightning]")
    from optuna_integration import PyTorchLightningPruningCallback

    return PyTorchLightningPruningCallback(trial, monitor)


@pytest.mark.parametrize("pruning", [Pruning, pruning_of_optuna])
def test_optuna_prunes_what_learns_badly_and_finds_the_best(method, pruning, tmp_path):
    series, path, models, losses = dated(), str(tmp_path / "model.pt"), {}, {}

    def scored(rate, callbacks):
        trainer = {"pl_trainer_kwargs": {"callbacks": callbacks}}
        model = method.darts(n_epochs=3, optimizer_kwargs={"lr": rate}, **trainer)
        models[rate] = model
        model.fit(series[:60], val_series=series[40:])
        return model.backtest(series, start=60, metric=mae, **EVERY_STEP)

    def objective(trial):
        rate, seen = trial.suggest_categorical("lr", rates), Losses()
        losses[rate] = seen.values
        return scored(rate, [seen, pruning(trial, "val_loss")])

    rates = [1e-4, 1e-2, 30.0]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.GridSampler({"lr": rates}, seed=0),
        pruner=optuna.pruners.ThresholdPruner(upper=8.0),
    )
    study.optimize(objective)
    trials = {trial.params["lr"]: trial for trial in study.trials}
    for rate, trial in trials.items():
        assert list(trial.intermediate_values.values()) == losses[rate]
    pruned = [rate for rate, trial in trials.items() if trial.state.name == "PRUNED"]
    assert pruned == [30.0]
    assert len(losses[30.0]) < 3
    assert models[30.0].training_series is None  # as before its training
    assert len(losses[1e-2]) == 3
    best = models[study.best_params["lr"]]
    best.save(path, clean=True)  # without the trial, which darts would not load
    assert same(method.model.load(path).predict(6, series=series), best.predict(6, series=series))
    scores = {rate: scored(rate, []) for rate in rates[:2]}
    assert study.best_params["lr"] == min(scores, key=scores.get)
    assert study.best_value == pytest.approx(min(scores.values()), rel=1e-6)


def test_early_stopping_by_the_other_name_of_lightning_stands_in_for_ours(method):
    callbacks = pytest.importorskip("lightning.pytorch.callbacks", reason="needs lightning")
    stop = callbacks.EarlyStopping("val_loss", patience=3)
    settings = {"n_epochs": 6, "optimizer_kwargs": {"lr": 0.0}, "early_stopping_patience": 1}
    model = method.darts(pl_trainer_kwargs={"callbacks": [stop]}, **settings)
    assert model.fit(dated(), val_series=dated()).epochs_trained == 4

"""What darts offers around its torch models holds for ours, feature by feature."""

import copy
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from darts import TimeSeries
from darts.dataprocessing.transformers import Scaler
from darts.explainability import ShapExplainer
from darts.metrics import mae, mql
from darts.models import NLinearModel
from darts.utils.data.torch_datasets.inference_dataset import SequentialTorchInferenceDataset
from darts.utils.data.torch_datasets.training_dataset import SequentialTorchTrainingDataset
from darts.utils.likelihood_models import torch as likelihoods
from darts.utils.likelihood_models.torch import (
    GaussianLikelihood,
    LaplaceLikelihood,
    QuantileRegression,
)
from darts.utils.onnx import run_onnx_prediction
from support import METHODS, darts_series, sine

CONTEXT, HORIZON = 12, 6
QUANTILES = [0.1, 0.5, 0.9]
PARAMETERS = {"predict_likelihood_parameters": True}
FIXED = {"n_epochs": 1, "optimizer_kwargs": {"lr": 0.0}}  # learns nothing


def dated(columns=1, n=80, level=0.0, start="2018-01-31"):
    times = pd.date_range(start, periods=n, freq="ME")
    return TimeSeries.from_times_and_values(times, sine(n, columns) + np.float32(level))


def covariates(seed=9, n=140):
    noise = np.random.default_rng(seed).normal(5, 2, (n, 2)).astype(np.float32)
    return TimeSeries.from_times_and_values(
        pd.date_range("2017-01-31", periods=n, freq="ME"), noise
    )


def both(seed=9):
    return {"past_covariates": covariates(seed), "future_covariates": covariates(seed + 1)}


def with_statics(series, size=3.0):
    return series.with_static_covariates(pd.DataFrame({"size": [size], "age": [40.0]}))


def gapped(series, share=0.2):
    values = series.values(copy=True)
    values[np.random.default_rng(5).random(values.shape) < share] = np.nan
    values[-1] = 0.5
    return series.with_values(values)


def weights_of(module):
    return {n: p.detach().clone() for n, p in module.named_parameters()}


def trainable(module):
    return {n for n, p in module.named_parameters() if p.requires_grad}


def changed(first, second):
    return {name for name in first if not torch.equal(first[name], second[name])}


def same(first, second):
    return np.array_equal(first.all_values(), second.all_values())


def close(first, second, atol=1e-5):
    np.testing.assert_allclose(first.all_values(), second.all_values(), rtol=1e-4, atol=atol)


class Recorder(pl.Callback):
    """Remember, epoch by epoch, what was logged and how the weights were."""

    def __init__(self):
        self.logged, self.weights = [], []

    def on_train_epoch_end(self, trainer, pl_module):
        self.logged.append({k: v.item() for k, v in trainer.callback_metrics.items()})
        self.weights.append(weights_of(pl_module))

    def __deepcopy__(self, memo):  # darts copies its arguments
        return self


# series, covariates and how they are loaded -----------------------------------------------------


def test_lists_of_series_of_different_lengths_with_all_kinds_of_covariates(method):
    starts = ["2018-01-31", "2018-07-31", "2019-01-31"]
    series = [dated(2, 60 + 10 * i, 20 * i, start) for i, start in enumerate(starts)]
    series = [with_statics(one, size=i) for i, one in enumerate(series)]
    past = [covariates(seed=i, n=120 + i) for i in range(3)]
    future = [covariates(seed=5 + i, n=130 - i) for i in range(3)]
    used = {"past_covariates": past, "future_covariates": future}
    model = method.darts().fit(series, **used)
    together = model.predict(9, series=series, **used)
    for i, forecast in enumerate(together):
        alone = {name: values[i] for name, values in used.items()}
        close(forecast, model.predict(9, series=series[i], **alone), atol=1e-4)
    other = {**used, "future_covariates": [future[0], future[1] * 2, future[2]]}
    moved = model.predict(9, series=series, **other)
    assert [same(*pair) for pair in zip(together, moved, strict=True)] == [True, False, True]


def test_a_shifted_forecast_starts_later_and_cannot_feed_on_itself(method):
    series, used = dated(2), both()
    validation = {f"val_{name}": value for name, value in {"series": series, **used}.items()}
    model = method.darts(output_chunk_shift=3, loss_fn=torch.nn.L1Loss(), **FIXED)
    model.fit(series, **used, **validation)
    loss = model.trainer.callback_metrics["val_loss"].item()
    history = model.historical_forecasts(
        series, forecast_horizon=HORIZON, retrain=False, last_points_only=False, **used
    )
    actual = [series.slice_intersect(forecast) for forecast in history]
    errors = [mae(*pair) for pair in zip(actual, history, strict=True)]
    assert loss == pytest.approx(np.mean(errors), rel=1e-4)  # trains on what it forecasts
    end = history[-1].start_time() - 4 * series.freq
    close(history[-1], model.predict(HORIZON, series=series[:end], **used))
    forecast = model.predict(HORIZON, **used)
    assert forecast.start_time() == series.end_time() + 4 * series.freq
    assert not same(forecast, model.predict(HORIZON, **both(seed=20)))
    with pytest.raises(ValueError, match="Cannot perform auto-regression"):
        model.predict(HORIZON + 1, **used)


def test_encoders_make_covariates_and_are_saved(method, tmp_path):
    series, path = dated(), str(tmp_path / "model.pt")
    relative = {"past": ["relative"], "future": ["relative"]}
    encoders = {"cyclic": {"future": ["month"]}, "position": relative, "transformer": Scaler()}
    model = method.darts(add_encoders=encoders).fit(series)
    assert model.model.network.shapes.n_past_covariates == 1
    assert model.model.network.shapes.n_future_covariates == 3
    forecast = model.predict(15)
    model.save(path)
    assert same(method.model.load(path).predict(15), forecast)
    other = method.darts(add_encoders=encoders)
    other.load_weights(path)
    assert same(other.predict(15, series=series), forecast)
    later = TimeSeries.from_times_and_values(series.time_index.shift(5), series.values())
    assert not np.array_equal(model.predict(15, series=later).values(), forecast.values())


@pytest.mark.parametrize("used", [{}, both()], ids=["alone", "covariates"])
def test_datasets_of_darts_train_and_are_forecast(method, used):
    series, recorder = dated(2), Recorder()
    lengths = {"input_chunk_length": CONTEXT, "output_chunk_length": HORIZON}
    train = SequentialTorchTrainingDataset(series, **lengths, **used)
    learning = {"n_epochs": 6, "optimizer_kwargs": {"lr": 3e-3}}
    model = method.darts(pl_trainer_kwargs={"callbacks": [recorder]}, **learning)
    model.fit_from_dataset(train, val_dataset=train)
    assert recorder.logged[-1]["val_loss"] < recorder.logged[0]["val_loss"]
    inference = SequentialTorchInferenceDataset(series, n=9, **lengths, **used)
    (forecast,) = model.predict_from_dataset(9, inference)
    close(forecast, model.predict(9, series=series, **used))


def test_workers_load_the_same_data(method):
    series, workers = dated(2), {"dataloader_kwargs": {"num_workers": 2}}
    plain = method.darts().fit(series).predict(9)
    assert same(method.darts().fit(series, **workers).predict(9, **workers), plain)


# weights of samples -----------------------------------------------------------------------------

LOSSES = {
    "own": {},
    "gaussian": {"likelihood": GaussianLikelihood()},
    "quantiles": {"likelihood": QuantileRegression(QUANTILES)},
    "loss_fn": {"loss_fn": torch.nn.HuberLoss()},
}
by_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@by_loss
@pytest.mark.parametrize("share", [0.0, 0.2], ids=["complete", "gaps"])
def test_weights_of_samples_change_the_forecast_and_ones_do_not(method, loss, share):
    series = gapped(dated(2), share)
    ramp = np.linspace(0.1, 2, 160, dtype=np.float32).reshape(80, 2)
    weights = [None, series.with_values(ramp**0), series.with_values(ramp) if share else "linear"]
    plain, even, ramped = (
        method.darts(**loss).fit(series, sample_weight=weight).predict(9) for weight in weights
    )
    close(even, plain)
    assert not np.allclose(ramped.values(), plain.values(), atol=1e-4)
    assert np.isfinite(ramped.values()).all()


@by_loss
def test_what_weighs_nothing_is_not_learned(method, loss):
    """A broken sensor's time, at the end and with weight 0, might as well not be there."""
    series = dated()
    broken = series.values(copy=True)
    broken[60:] = 1e4 * np.random.default_rng(0).normal(size=(20, 1))
    weight = series.with_values((np.arange(80)[:, np.newaxis] < 60).astype(np.float32))
    first, second = (
        method.darts(**loss).fit(one, sample_weight=weight).predict(6, series=series[:60])
        for one in (series, series.with_values(broken))
    )
    close(first, second)


# training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [None, GaussianLikelihood()])
def test_torch_metrics_measure_the_forecasts(method, likelihood, tmp_path):
    series, path = dated(), str(tmp_path / "model.pt")
    metrics = torchmetrics.MetricCollection([torchmetrics.MeanAbsoluteError()])
    model = method.darts(torch_metrics=metrics, likelihood=likelihood, **FIXED)
    logged = model.fit(series, val_series=series).trainer.callback_metrics
    assert logged["train_MeanAbsoluteError"].item() > 0
    settings = {"forecast_horizon": HORIZON, "retrain": False, "last_points_only": False}
    samples = 200 if likelihood else 1
    history = model.historical_forecasts(series, num_samples=samples, **settings)
    errors = [series.slice_intersect(f).all_values() - f.all_values() for f in history]
    expected = pytest.approx(np.abs(errors).mean(), rel=0.15 if likelihood else 1e-4)
    assert logged["val_MeanAbsoluteError"].item() == expected
    model.save(path)
    loaded = method.model.load(path)
    assert same(*(m.predict(6, num_samples=samples, random_state=1) for m in (model, loaded)))


@pytest.mark.parametrize("monitor", ["val_loss", "train_loss"])
def test_callbacks_of_the_user_run_and_may_stop_the_training(method, monitor):
    series, recorder = dated(), Recorder()
    stop = pl.callbacks.EarlyStopping(monitor, patience=3, min_delta=1e9)
    for callback, patience, epochs in [(recorder, None, 6), (recorder, 1, 2), (stop, 1, 4)]:
        trainer = {"pl_trainer_kwargs": {"callbacks": [callback]}}
        model = method.darts(early_stopping_patience=patience, **trainer, **FIXED)
        assert model.fit(series, val_series=series, epochs=6).epochs_trained == epochs
    assert len(recorder.logged) == 6 + 2


@pytest.mark.parametrize("validated", [False, True])
def test_stochastic_weight_averaging_averages_the_weights(method, tmp_path, validated):
    series, recorder, path = dated(2), Recorder(), str(tmp_path / "model.pt")
    swa = pl.callbacks.StochasticWeightAveraging(1e-3, swa_epoch_start=2, annealing_epochs=1)
    model = method.darts(n_epochs=4, pl_trainer_kwargs={"callbacks": [recorder, swa]})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="SWA is currently only supported every epoch")
        model.fit(series, val_series=series if validated else None)
    starts = recorder.weights[:3]  # the average is taken where the last three epochs start
    for name, weight in weights_of(model.model).items():
        mean = torch.stack([weights[name] for weights in starts]).mean(0)
        torch.testing.assert_close(weight, mean)
    model.save(path, clean=True)
    assert same(method.model.load(path).predict(6, series=series), model.predict(6))


@pytest.mark.parametrize("fitted", [False, True])
def test_tuners_leave_a_usable_model(method, fitted):
    series, model = dated(), method.darts()
    forecast = model.fit(series).predict(6) if fitted else None
    trial = {"num_training": 12, "epochs": 6, "early_stop_threshold": None}
    found = model.lr_find(series, val_series=series, **trial)
    assert len(found.results["loss"]) == 12
    assert len(set(found.results["loss"])) == 12  # the rates train
    assert model.scale_batch_size(series, val_series=series, max_trials=2, init_val=4) == 8
    assert model.batch_size == 8
    if fitted:
        assert same(model.predict(6), forecast)
        trial = {"method": "predict", "n": 9, "init_val": 16, "max_trials": 2}
        assert model.scale_batch_size(series, **trial) == model.batch_size
        assert same(model.predict(6), forecast)
    assert model.fit(series).epochs_trained == 2
    assert np.isfinite(model.predict(9).values()).all()


def test_weights_that_were_loaded_are_fine_tuned(method, tmp_path):
    path, series = str(tmp_path / "model.pt"), [dated(2), dated(2, level=3) * 2]
    method.darts().fit(series[0]).save(path)
    model = method.darts()
    model.load_weights(path)
    before, forecast = weights_of(model.model), model.predict(6, series=series[1])
    moved = changed(before, weights_of(model.fit(series[1]).model))
    assert moved <= trainable(model.model)
    assert any(name.startswith(parts(method, "head")) for name in moved)
    assert not same(model.predict(6), forecast)


def parts(method, name):
    return tuple(f"network.{prefix}" for prefix in method.network.parts[name])


@pytest.mark.parametrize("loaded", [False, True])
def test_patterns_freeze_a_part_and_the_rest_trains(method, tmp_path, loaded):
    path, series, recorder = str(tmp_path / "model.pt"), dated(2), Recorder()
    head = parts(method, "head")
    freeze = {"freeze": [f"{prefix}*" for prefix in head]}
    model = method.darts(enable_finetuning=freeze, pl_trainer_kwargs={"callbacks": [recorder]})
    if loaded:
        method.darts().fit(series).save(path)
        model.load_weights(path)
    model.fit(series)
    moved = changed(*recorder.weights)
    assert moved
    assert not [name for name in moved | trainable(model.model) if name.startswith(head)]


def test_load_best_takes_the_best_checkpoint(method, tmp_path):
    """Without early stopping nothing else keeps the weights of the best epoch."""
    series = dated()
    learning = {"n_epochs": 3, "ema_decay": None, "early_stopping_patience": None}
    # a rate that destroys the model after a good start
    learning |= {"lr_scheduler_cls": torch.optim.lr_scheduler.StepLR, "save_checkpoints": True}
    learning |= {"lr_scheduler_kwargs": {"step_size": 1, "gamma": 100.0}}
    for load_best in (True, False):
        where = {"model_name": f"best-{load_best}", "work_dir": str(tmp_path)}
        model = method.darts(**where, **learning)
        model.fit(series, val_series=series[-30:], load_best=load_best)
        best, last = (
            method.model.load_from_checkpoint(**where, best=best).predict(6, series=series)
            for best in (True, False)
        )
        assert not same(best, last)
        assert same(model.predict(6), best if load_best else last)


def test_equal_models_share_nothing_that_trains(method):
    pair = [method.darts(n_epochs=1).fit(dated()).model for _ in range(2)]
    first, second = ({p.data_ptr() for p in m.parameters() if p.requires_grad} for m in pair)
    assert not first & second


def test_copies_of_a_fitted_model_are_those_of_darts(method):
    """They keep the settings and the series; what was learned travels by ``save``."""
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger"), False)
    theirs = NLinearModel(CONTEXT, HORIZON, n_epochs=1, pl_trainer_kwargs=quiet)
    for model in (theirs, method.darts(n_epochs=1)):
        forecast = model.fit(dated()).predict(6)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert twin.model is None
            assert twin.training_series == dated()
            with pytest.raises(AttributeError, match="set_predict_parameters"):
                twin.predict(6)
            assert np.isfinite(twin.fit(dated()).predict(6).values()).all()
        assert same(model.predict(6), forecast)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "float16 series"])
def test_low_precision_trains_forecasts_and_is_saved(method, precision, tmp_path):
    series, path = dated(2), str(tmp_path / "model.pt")
    settings = {"pl_trainer_kwargs": {"precision": precision}}
    exact = method.darts().fit(series).predict(9)
    if precision == "float16 series":  # darts casts the model to bfloat16
        series, settings = series.astype(np.float16), {}
    model = method.darts(**settings).fit(series, val_series=series)
    forecast = model.predict(9)
    assert 0 < np.abs(forecast.values() - exact.values()).max() < 0.3
    own = torch.float32 if precision == "bf16-mixed" else torch.bfloat16
    assert {p.dtype for p in model.model.parameters()} == {own}
    model.save(path)
    assert same(method.model.load(path).predict(9), forecast)


# probabilistic forecasts and their evaluation ---------------------------------------------------


def test_dropout_in_prediction_makes_samples_differ_and_leaves_the_model_alone(method):
    model = method.darts().fit(dated(2))
    plain = model.predict(15)
    equal, dropped = (
        model.predict(15, num_samples=8, mc_dropout=drops).all_values() for drops in (False, True)
    )
    assert (equal == plain.all_values()).all()
    assert np.ptp(dropped, axis=2).min() > 0
    assert same(model.predict(15), plain)


@pytest.mark.parametrize("likelihood", [None, GaussianLikelihood(), QuantileRegression(QUANTILES)])
def test_sampling_runs_the_network_once_per_window(method, likelihood):
    series = [dated(2, level=level) for level in (0, 100, -1000)]
    model = method.darts(likelihood=likelihood).fit(series)
    seen = []
    model.model.network.register_forward_hook(
        lambda network, inputs, output: seen.append(len(inputs[0].past_target))
    )
    for n, rows in [(4, 3), (HORIZON, 3), (2 * HORIZON, 3 * (51 if likelihood else 2))]:
        model.predict(n, series=series, num_samples=50)
        assert sum(seen) == rows
        seen.clear()
    settings = {"start": 60, "forecast_horizon": HORIZON, "retrain": False, "num_samples": 50}
    assert len(model.historical_forecasts(series[0], **settings)) == sum(seen) == 15


def test_samples_are_drawn_from_the_parameters(method):
    model = method.darts(likelihood=GaussianLikelihood()).fit(dated(2))
    parameters = model.predict(HORIZON, **PARAMETERS).values().reshape(HORIZON, 2, 2)
    mean, deviation = parameters[..., 0], parameters[..., 1]
    samples = model.predict(HORIZON, num_samples=2000, random_state=1).all_values()
    assert (np.abs(samples.mean(2) - mean) < 5 * deviation / np.sqrt(2000)).all()
    np.testing.assert_allclose(samples.std(2), deviation, rtol=0.1)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_samples_belong_to_their_series(method, batch_size):
    levels = [0, 1e4, -5e4]
    series = [dated(2, level=level) for level in levels]
    model = method.darts(likelihood=GaussianLikelihood()).fit(series)
    for n in (4, 10):
        forecasts = model.predict(n, series=series, num_samples=20, batch_size=batch_size)
        for level, forecast in zip(levels, forecasts, strict=True):
            assert np.abs(forecast.all_values() - level).max() < 2000
            assert np.ptp(forecast.all_values(), axis=2).min() > 0


def test_parameters_and_samples_in_historical_forecasts_with_covariates(method):
    series, used = dated(2), both()
    model = method.darts(likelihood=QuantileRegression(QUANTILES)).fit(series, **used)
    settings = {"start": 60, "forecast_horizon": HORIZON, "retrain": False, **used}
    history = model.historical_forecasts(series, last_points_only=False, **PARAMETERS, **settings)
    for forecast in history:
        before = series.drop_after(forecast.start_time())
        close(forecast, model.predict(HORIZON, before, **PARAMETERS, **used))
    samples = model.historical_forecasts(series, num_samples=20, **settings)
    assert samples.shape == (15, 2, 20)
    assert np.ptp(samples.all_values(), axis=2).min() > 0
    quantiles = {"metric": mql, "metric_kwargs": {"q": QUANTILES}}
    scores = model.backtest(series, num_samples=20, **quantiles, **settings)
    assert scores.shape == (3,)
    assert (scores > 0).all()


WHOLE, POSITIVE, SHARE = (
    lambda values: (values >= 0) & (values == np.round(values)),
    lambda values: values >= 0,
    lambda values: (values >= 0) & (values <= 1),
)
SUPPORTS = {  # where data within the support come from, and what holds of samples
    "Gumbel": ("gumbel", (1, 2), np.isfinite),
    "Poisson": ("poisson", (4,), WHOLE),
    "NegativeBinomial": ("negative_binomial", (3, 0.4), WHOLE),
    "Bernoulli": ("integers", (0, 2), lambda values: (values == 0) | (values == 1)),
    "Beta": ("beta", (2, 3), SHARE),
    "ContinuousBernoulli": ("beta", (2, 3), SHARE),
    "Dirichlet": ("dirichlet", ([1, 2, 3],), SHARE),
    "Exponential": ("exponential", (2,), POSITIVE),
    "Gamma": ("gamma", (2, 2), POSITIVE),
    "Geometric": ("geometric", (0.3,), WHOLE),
    "HalfNormal": ("gamma", (1, 2), POSITIVE),
    "LogNormal": ("lognormal", (0, 1), POSITIVE),
    "Weibull": ("weibull", (2,), POSITIVE),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_every_likelihood_learns_and_samples_within_its_support(method, name, tmp_path):
    distribution, arguments, inside = SUPPORTS[name]
    size = 100 if name == "Dirichlet" else (100, 1)
    series = darts_series(getattr(np.random.default_rng(0), distribution)(*arguments, size=size))
    settings = {"likelihood": getattr(likelihoods, f"{name}Likelihood")()}
    if name != "Gumbel":
        with pytest.raises(ValueError, match=rf"found {name}Likelihood.*normalization=None"):
            method.darts(**settings)
        settings["normalization"] = None
    recorder, path = Recorder(), str(tmp_path / "model.pt")
    settings |= {"optimizer_kwargs": {"lr": 3e-3}, "pl_trainer_kwargs": {"callbacks": [recorder]}}
    model = method.darts(n_epochs=5, **settings).fit(series, val_series=series)
    assert recorder.logged[-1]["val_loss"] < recorder.logged[0]["val_loss"]
    samples = model.predict(9, num_samples=30).all_values()
    assert inside(samples).all()
    assert np.ptp(samples, axis=2).max() > 0
    parameters = model.predict(HORIZON, **PARAMETERS)
    assert parameters.n_components == model.likelihood.num_parameters * series.n_components
    assert np.isfinite(parameters.values()).all()
    model.save(path, clean=True)
    assert same(method.model.load(path).predict(HORIZON, series, **PARAMETERS), parameters)


@pytest.mark.parametrize("family", [GaussianLikelihood, LaplaceLikelihood])
def test_priors_pull_what_is_learned(method, family):
    learning = {"n_epochs": 15, "optimizer_kwargs": {"lr": 1e-2}}
    free, held = (
        method.darts(likelihood=likelihood, **learning).fit(dated()).predict(HORIZON, **PARAMETERS)
        for likelihood in (family(), family(prior_mu=1.0, prior_strength=10.0))
    )
    assert held.values()[:, 0].mean() > free.values()[:, 0].mean() + 0.3


# other processes, explanations, exports ---------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes_train_one_model(method, strategy, tmp_path):
    script = str(Path(__file__).parent / "ddp_script.py")
    command = [sys.executable, script, method.name, strategy, str(tmp_path)]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=240)
    first, last, other = (
        torch.load(tmp_path / f"{name}.pt") for name in ("first_0", "last_0", "last_1")
    )
    assert not changed(last, other)
    model = method.model.load(str(tmp_path / "model.pt"))
    assert not changed(last, weights_of(model.model))
    assert set() < changed(first, last) <= trainable(model.model)
    for seed, forecast in enumerate(np.load(tmp_path / "forecasts.npy")):
        series = darts_series(sine(80, 2, seed=seed))
        close(model.predict(9, series=series), darts_series(forecast))


@pytest.mark.parametrize("used", [{}, both()], ids=["alone", "covariates"])
def test_shap_values_add_up_to_the_forecast(method, used):
    series = with_statics(dated(n=60))
    model = method.darts(6, 2, use_static_covariates=bool(used), **method.untold)
    model.fit(series, **used)
    background = {f"background_{name}": value for name, value in used.items()}
    explainer = ShapExplainer(model, series[:16], test_stationarity=False, **background)
    foreground = {f"foreground_{name}": value for name, value in used.items()}
    result = explainer.explain(series[-9:-1], **foreground)
    for step in (1, 2):
        values = result.get_explanation(horizon=step)
        assert values.n_components == (6 + 2 * 6 + 2 * 8 + 2 if used else 6)
        assert np.abs(values.values()).min(0).max() > 0
        base = np.ravel(result.get_shap_explanation_object(horizon=step).base_values)
        for i, time in enumerate(values.time_index):
            forecast = model.predict(2, series=series.drop_after(time), **used)
            total = values.values()[i].sum() + base[i]
            assert total == pytest.approx(forecast.values()[step - 1, 0], abs=1e-3)


EXPORTS = [({}, None), (both(), GaussianLikelihood())]


@pytest.mark.parametrize(("used", "likelihood"), EXPORTS, ids=["alone", "covariates"])
def test_exported_models_forecast_the_same(method, used, likelihood, tmp_path):
    import onnxruntime

    series, path = with_statics(dated(2)), str(tmp_path / "model.onnx")
    settings = {"likelihood": likelihood, "use_static_covariates": bool(used)}
    model = method.darts(**settings, **method.untold).fit(series, **used)
    model.to_onnx(path, verbose=False)
    session = onnxruntime.InferenceSession(path)
    for one in (series, gapped(series)):
        n = 15 if likelihood is None else HORIZON
        exported = run_onnx_prediction(n, session, one, verbose=False, **used).values()
        if likelihood is not None:
            # darts exports the parameters before the likelihood transforms them
            exported[:, 1::2] = np.logaddexp(0, exported[:, 1::2])
        expected = model.predict(n, one, predict_likelihood_parameters=bool(likelihood), **used)
        np.testing.assert_allclose(exported, expected.values(), rtol=1e-4, atol=1e-4)


def test_what_reads_texts_is_not_exported(tmp_path):
    reading = [method for method in METHODS if method.untold]
    assert reading
    for method in reading:
        model = method.darts().fit(dated())
        with pytest.raises(ValueError, match=r"to_onnx: darts' runner .* text='none'"):
            model.to_onnx(str(tmp_path / "model.onnx"))


def test_backtests_and_tuners_warn_of_nothing(method, caplog):
    series, used = dated(), both()
    model, settings = method.darts(), {"start": 70, "forecast_horizon": 3, "stride": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.lr_find(series, num_training=5, **used)
        model.fit(series, **used)
        for retrain in (False, True):
            model.backtest(series, retrain=retrain, **settings, **used)
        model.scale_batch_size(series, max_trials=1, **used)
    assert caplog.text == ""

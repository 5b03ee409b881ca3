"""The darts models: what users of darts do with a torch model of its own."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from darts import TimeSeries
from darts.metrics import mae
from darts.utils.likelihood_models.torch import (
    CauchyLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    PoissonLikelihood,
    QuantileRegression,
)
from support import darts_series, sine

LIKELIHOODS = [
    None,
    GaussianLikelihood(),
    LaplaceLikelihood(),
    CauchyLikelihood(),
    QuantileRegression([0.1, 0.5, 0.9]),
]
by_name = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda v: type(v).__name__)


def dated(columns=1, n=80):
    times = pd.date_range("2024-01-31", periods=n, freq="ME")
    return TimeSeries.from_times_and_values(times, sine(n, columns))


def equal(first, second):
    return np.array_equal(first.all_values(), second.all_values())


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("n", [1, 6, 15])
def test_fit_predict_within_and_past_the_horizon(method, columns, n):
    series = dated(columns)
    forecast = method.darts().fit(series).predict(n)
    assert forecast.shape == (n, columns, 1)
    assert forecast.start_time() == series.end_time() + series.freq
    assert list(forecast.components) == list(series.components)
    assert np.isfinite(forecast.values()).all()


def test_past_the_horizon_feeds_on_its_own_output(method):
    series = dated()
    model = method.darts().fit(series)
    long = model.predict(12)
    continued = model.predict(6, series=series.append(long[:6]))
    np.testing.assert_allclose(long.values()[6:], continued.values(), rtol=1e-4, atol=1e-5)


def test_many_series_train_one_model_and_any_series_can_be_forecast(method):
    several = [dated(n=80), dated(n=60) * 2, dated(n=70) + 3]
    model = method.darts().fit(several)
    forecasts = model.predict(6, series=several)
    assert [len(f) for f in forecasts] == [6] * 3
    assert model.predict(6, series=dated(n=40) * 5).shape == (6, 1, 1)


def test_historical_forecasts_without_retraining_equal_single_predictions(method):
    series = dated()
    model = method.darts().fit(series[:60])
    history = model.historical_forecasts(
        series, start=60, forecast_horizon=6, retrain=False, last_points_only=False
    )
    assert len(history) == 80 - 60 - 6 + 1
    for position, forecast in enumerate(history):
        single = model.predict(6, series=series[: 60 + position])
        np.testing.assert_allclose(forecast.values(), single.values(), rtol=1e-4, atol=1e-5)


def test_historical_forecasts_with_retraining(method):
    series = dated()
    history = method.darts(n_epochs=1).historical_forecasts(
        series, start=72, forecast_horizon=3, retrain=True, stride=2
    )
    assert len(history) == 3
    assert np.isfinite(history.values()).all()


def test_the_future_never_leaks_into_the_past(method):
    series = dated()
    changed = TimeSeries.from_times_and_values(
        series.time_index, np.concatenate([series.values()[:70], 9 + series.values()[70:]])
    )
    model = method.darts().fit(series[:60])
    settings = {"start": 60, "forecast_horizon": 6, "retrain": False, "last_points_only": False}
    before, after = (model.historical_forecasts(s, **settings) for s in (series, changed))
    moved = [not equal(first, second) for first, second in zip(before, after, strict=True)]
    assert moved == [False] * 11 + [True] * (len(before) - 11)


def test_backtest(method):
    score = (
        method.darts()
        .fit(dated()[:60])
        .backtest(dated(), start=60, forecast_horizon=6, retrain=False, metric=mae)
    )
    assert 0 < score < 10


@by_name
def test_likelihoods_train_and_sample(method, likelihood):
    model = method.darts(likelihood=likelihood).fit(dated(2))
    if likelihood is None:
        samples = model.predict(3, num_samples=4).all_values()
        assert (samples == samples[..., :1]).all()  # a point forecast has no spread
        return
    samples = model.predict(15, num_samples=20)
    assert samples.shape == (15, 2, 20)
    assert np.ptp(samples.all_values(), axis=2).min() > 0
    parameters = model.predict(6, predict_likelihood_parameters=True)
    assert parameters.shape == (6, 2 * likelihood.num_parameters, 1)


@by_name
def test_widths_follow_the_data(method, likelihood):
    """A shift leaves every parameter of width alone, a factor multiplies it."""
    if likelihood is None:
        return
    series = dated().astype(np.float64)
    model = method.darts(likelihood=likelihood).fit(series)
    model.model.network.unit.fill_(1e-3)  # so that the floor of the deviation plays no part
    n = likelihood.num_parameters
    plain, shifted, stretched = (
        model.predict(6, series=s, predict_likelihood_parameters=True).values().reshape(6, n)
        for s in (series, series + 1000, series * 10)
    )
    if isinstance(likelihood, QuantileRegression):
        np.testing.assert_allclose(np.diff(shifted), np.diff(plain), rtol=1e-2, atol=1e-4)
        np.testing.assert_allclose(np.diff(stretched), 10 * np.diff(plain), rtol=1e-3, atol=1e-4)
    else:
        np.testing.assert_allclose(shifted[:, 1], plain[:, 1], rtol=1e-3)
        np.testing.assert_allclose(stretched[:, 1], 10 * plain[:, 1], rtol=1e-3)


def test_other_likelihoods_and_other_normalisation_are_refused(method):
    with pytest.raises(ValueError, match=r"likelihood must be None.*found PoissonLikelihood"):
        method.darts(likelihood=PoissonLikelihood())
    with pytest.raises(ValueError, match="use_reversible_instance_norm must be False"):
        method.darts(use_reversible_instance_norm=True)


def test_unknown_and_impossible_arguments_are_refused_at_construction(method):
    with pytest.raises(ValueError, match=r"no args/kwargs `\['colour'\]`"):
        method.darts(colour="red")
    with pytest.raises(ValueError, match="output_chunk_length must be an integer >= 1"):
        method.darts(horizon=0)
    with pytest.raises(ValueError, match=r"ema_decay must be a number in \[0.0, 1\) or None"):
        method.darts(ema_decay=1.0)


def test_the_task_loss_is_chosen_once(method):
    for other in ({"likelihood": GaussianLikelihood()}, {"loss_fn": torch.nn.MSELoss()}):
        with pytest.raises(ValueError, match=r"task_loss='mse' and .* exclude each other"):
            method.darts(task_loss="mse", **other)


def test_task_loss_and_loss_fn_change_what_is_learned(method):
    settings = [
        {"task_loss": "l1"},
        {"task_loss": "mse"},
        {"task_loss": "smooth_l1"},
        {"task_loss": "smape"},
        {"loss_fn": torch.nn.HuberLoss(delta=0.1)},
    ]
    forecasts = [
        tuple(method.darts(**s).fit(dated()).predict(6).values().ravel()) for s in settings
    ]
    assert len(set(forecasts)) == len(settings)


def test_equal_losses_by_either_argument_learn_the_same(method):
    own = method.darts(task_loss="l1").fit(dated()).predict(6)
    torchs = method.darts(loss_fn=torch.nn.L1Loss()).fit(dated()).predict(6)
    np.testing.assert_allclose(own.values(), torchs.values(), rtol=1e-4, atol=1e-5)


class RelativeLoss(torch.nn.Module):
    """An error of a user's own that carries no unit, and says so."""

    degree = 0

    def forward(self, forecast, target):
        return ((forecast - target).abs() / target.abs().mean()).mean()


def test_a_loss_without_a_unit_weighs_the_same_against_auxiliary_ones_in_any(method):
    """What is learned does not depend on the unit, also where the method adds losses of its own."""
    series = dated()
    forecasts = [
        method.darts(loss_fn=RelativeLoss(), n_epochs=3).fit(series * unit).predict(6).values()
        for unit in (1, 1000)
    ]
    np.testing.assert_allclose(forecasts[1] / 1000, forecasts[0], rtol=1e-3, atol=1e-3)


def test_double_precision_series(method):
    series = dated().astype(np.float64)
    forecast = method.darts().fit(series).predict(6)
    assert forecast.dtype == np.float64
    single = method.darts().fit(dated()).predict(6)
    np.testing.assert_allclose(forecast.values(), single.values(), rtol=0.1, atol=0.02)


# saving -------------------------------------------------------------------------------------


@by_name
@pytest.mark.parametrize("clean", [False, True])
def test_a_saved_model_forecasts_bit_equal(method, likelihood, clean, tmp_path):
    series = dated(2)
    model = method.darts(likelihood=likelihood).fit(series)
    path = str(tmp_path / "model.pt")
    model.save(path, clean=clean)
    loaded = method.model.load(path)
    if likelihood is None:
        assert equal(loaded.predict(9, series=series), model.predict(9, series=series))
    sampling = {"num_samples": 5, "random_state": 1} if likelihood is not None else {}
    first, second = (m.predict(9, series=series, **sampling) for m in (model, loaded))
    assert equal(first, second)


def test_a_loaded_model_can_be_saved_again(method, tmp_path):
    model = method.darts().fit(dated())
    paths = [str(tmp_path / name) for name in ("first.pt", "second.pt")]
    model.save(paths[0])
    method.model.load(paths[0]).save(paths[1])
    assert equal(method.model.load(paths[1]).predict(6), model.predict(6))


def test_a_saved_model_is_as_large_as_what_trains(method, tmp_path):
    model = method.darts(**{method.width: 2048}).fit(dated())
    path = tmp_path / "model.pt"
    model.save(str(path))
    trains = sum(p.numel() for p in model.model.parameters() if p.requires_grad)
    saved = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert 4 * trains < saved < 1.2 * 4 * trains + 64 * 1024


def test_a_saved_model_holds_everything_that_trains(method, tmp_path):
    model = method.darts().fit(dated())
    model.save(str(tmp_path / "model.pt"))
    loaded = method.model.load(str(tmp_path / "model.pt"))
    own, other = model.model.state_dict(), loaded.model.state_dict()
    trains = {n for n, p in model.model.named_parameters() if p.requires_grad}
    assert own.keys() >= trains
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in trains)


def test_another_process_forecasts_bit_equal(method, tmp_path):
    model = method.darts().fit(dated())
    model.save(str(tmp_path / "model.pt"))
    code = (
        "import sys, numpy, torch; torch.set_num_threads(1)\n"
        f"from tsllm_estimators.darts import {method.model.__name__} as Model\n"
        "model = Model.load(sys.argv[1] + '/model.pt')\n"
        "numpy.save(sys.argv[1] + '/forecast.npy', model.predict(9).values())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ)
    assert np.array_equal(np.load(tmp_path / "forecast.npy"), model.predict(9).values())


def test_weights_load_into_a_new_model(method, tmp_path):
    series = dated()
    model = method.darts().fit(series)
    model.save(str(tmp_path / "model.pt"))
    other = method.darts(random_state=1, ema_decay=None)
    other.load_weights(str(tmp_path / "model.pt"))
    assert equal(other.predict(6, series=series), model.predict(6, series=series))


def test_automatic_checkpoints_load_and_resume(method, tmp_path):
    series = dated()
    settings = {"save_checkpoints": True, "work_dir": str(tmp_path), "model_name": "run"}
    model = method.darts(**settings).fit(series, val_series=series[-30:])
    where = {"model_name": "run", "work_dir": str(tmp_path)}
    best = method.model.load_from_checkpoint(**where, best=True)
    assert np.isfinite(best.predict(6, series=series).values()).all()
    last = method.model.load_from_checkpoint(**where, best=False)
    assert model.epochs_trained == 2
    last.fit(series, val_series=series[-30:], epochs=3)
    assert last.epochs_trained == 3


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_resumed_training_equals_training_in_one_go(method, tmp_path, ema_decay):
    """Everything that resuming needs is in an automatic checkpoint."""
    series = dated()

    def train(name, epochs):
        settings = {"save_checkpoints": True, "work_dir": str(tmp_path), "model_name": name}
        steady = {"lr_schedule": "constant", "ema_decay": ema_decay, **method.dry}
        model = method.darts(**settings, **steady, n_epochs=epochs)
        return model.fit(series, dataloader_kwargs={"shuffle": False})

    whole = train("whole", 4)
    train("half", 2)
    resumed = method.model.load_from_checkpoint("half", str(tmp_path), best=False)
    resumed.fit(series, epochs=4, dataloader_kwargs={"shuffle": False})
    np.testing.assert_allclose(
        resumed.predict(6).values(), whole.predict(6).values(), rtol=1e-5, atol=1e-6
    )


def test_a_model_of_another_backbone_is_refused(method, tmp_path):
    model = method.darts(backbone_weights="random").fit(dated())
    model.save(str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match="the saved weights were trained on 'tiny'"):
        method.model.load(
            str(tmp_path / "model.pt"), settings={**model._settings, "backbone_kwargs": {"seed": 5}}
        )


def test_random_backbones_are_rebuilt_from_their_seed(method, tmp_path):
    model = method.darts(backbone_weights="random", backbone_kwargs={"seed": 5}).fit(dated())
    model.save(str(tmp_path / "model.pt"))
    assert equal(method.model.load(str(tmp_path / "model.pt")).predict(6), model.predict(6))


def test_peft_configs_survive_saving(adapted_method, tmp_path):
    from peft import LoraConfig

    model = adapted_method.darts(adapter=LoraConfig(r=2, target_modules={"query"})).fit(dated())
    model.save(str(tmp_path / "model.pt"))
    loaded = adapted_method.model.load(str(tmp_path / "model.pt"))
    assert equal(loaded.predict(6), model.predict(6))
    assert sum("lora_A" in n for n, _ in loaded.model.named_parameters()) == 2


def test_unfitted_models_copy_and_pickle(method):
    model = method.darts()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.untrained_model()):
        assert equal(twin.fit(dated()).predict(6), method.darts().fit(dated()).predict(6))


def test_a_series_without_a_calendar(method):
    forecast = method.darts().fit(darts_series(sine(80))).predict(6)
    assert list(forecast.time_index) == list(range(80, 86))


def test_too_short_a_series_says_how_much_is_needed(method):
    with pytest.raises(ValueError, match=r"Expected min length: `18`, received max length: `17`"):
        method.darts().fit(dated(n=17))

"""Forecasts without a trainer equal Lightning's, and are left to it where it is asked for more."""

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from darts import TimeSeries
from darts.utils.likelihood_models.torch import GaussianLikelihood, QuantileRegression
from support import METHODS, darts_series, monthly, sine

from tsllm_estimators.darts._compat import MixedCovariatesTorchModel as Darts
from tsllm_estimators.darts._runtime import exclusive
from tsllm_estimators.sktime._index import followed

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
METHOD = METHODS[0]


def equal(one, other):
    """Return whether two series agree in values, times, names and everything beside them."""
    return (
        np.array_equal(one.all_values(), other.all_values())
        and one.time_index.equals(other.time_index)
        and one.freq == other.freq
        and one.time_index.name == other.time_index.name
        and one.has_same_time_as(other)
        and list(one.components) == list(other.components)
        and (one.static_covariates is None) == (other.static_covariates is None)
        and one.hierarchy == other.hierarchy
        and one.metadata == other.metadata
    )


@pytest.fixture
def trainers(monkeypatch):
    """Count the trainers that are set up."""
    made = []
    init = pl.Trainer.__init__
    monkeypatch.setattr(
        pl.Trainer, "__init__", lambda self, *a, **k: (made.append(1), init(self, *a, **k))[1]
    )
    return made


@pytest.mark.parametrize("likelihood", [None, GaussianLikelihood()], ids=["points", "gaussian"])
@pytest.mark.parametrize("n", [4, 15])
def test_lightning_forecasts_the_same(method, likelihood, n, trainers):
    series = [darts_series(sine(40 + 5 * seed, 2, seed=seed)) for seed in range(3)]
    model = method.darts(likelihood=likelihood, batch_size=2).fit(series)
    settings = {"series": series, "num_samples": 1 if likelihood is None else 5, "random_state": 3}
    trained = len(trainers)
    plain = model.predict(n, **settings)
    assert len(trainers) == trained
    theirs = model.predict(n, **settings, trainer=pl.Trainer(accelerator="cpu", **QUIET))
    assert len(trainers) == trained + 1
    assert all(map(equal, plain, theirs))


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "64-true"},
        {"limit_predict_batches": 1},
        {"devices": 2, "strategy": "ddp_spawn"},
        {"accelerator": "gpu"},
        {"enable_progress_bar": True},
        {"profiler": "simple"},
        {"inference_mode": False},
    ],
)
def test_what_a_trainer_is_asked_for_is_left_to_it(change):
    arguments = {"accelerator": "cpu", "max_epochs": 3, "callbacks": [], **QUIET}
    plain, asked = (METHOD.darts(pl_trainer_kwargs={**arguments, **c}) for c in ({}, change))
    assert plain._is_plain(verbose=None)
    assert not plain._is_plain(verbose=True)
    assert not asked._is_plain(verbose=None)
    assert asked._is_plain(verbose=False) == ("enable_progress_bar" in change)


def test_weights_on_an_accelerator_are_moved_by_lightning(monkeypatch):
    model = METHOD.darts().fit(darts_series(sine(40)))
    assert model._is_plain(verbose=None)
    monkeypatch.setattr(type(model.model), "device", torch.device("meta"))
    assert not model._is_plain(verbose=None)


class Watch(pl.Callback):
    """Count the batches that are forecast."""

    def __init__(self):
        self.n_batches = 0

    def on_predict_batch_end(self, *args, **kwargs):
        self.n_batches += 1


class Weigh(pl.Callback):
    """Look at the training only."""

    def on_train_batch_end(self, *args, **kwargs):
        self.seen = True


def test_callbacks_that_watch_predictions_are_called(trainers):
    series, watch, weigh = darts_series(sine(40)), Watch(), Weigh()
    model = METHOD.darts(pl_trainer_kwargs={"callbacks": [watch]}).fit(series)
    model.historical_forecasts(series, start=-12, start_format="position", retrain=False)
    assert watch.n_batches == 1
    model = METHOD.darts(pl_trainer_kwargs={"callbacks": [weigh]}).fit(series)
    trained = len(trainers)
    model.predict(3)
    assert weigh.seen
    assert len(trainers) == trained


def test_a_function_that_watches_predictions_is_called():
    """LambdaCallback carries its hooks itself, not in its class."""
    calls = []
    watch = pl.callbacks.LambdaCallback(on_predict_end=lambda *_: calls.append(1))
    model = METHOD.darts(pl_trainer_kwargs={"callbacks": [watch]}).fit(darts_series(sine(40)))
    model.predict(3)
    assert calls == [1]


def test_no_series_is_left_out_where_training_drops_the_last_batch():
    series = [darts_series(sine(40, seed=seed)) for seed in range(3)]
    model = METHOD.darts().fit(series)
    expected = model.predict(3, series=series)
    found = model.predict(3, series=series, batch_size=2, dataloader_kwargs={"drop_last": True})
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.values(), other.values(), rtol=1e-5, atol=1e-6)


def test_progress_is_shown_where_it_is_asked_for(capfd):
    model = METHOD.darts().fit(darts_series(sine(40)))
    model.predict(3)
    assert not "".join(capfd.readouterr())
    model.predict(3, verbose=True)
    assert "Predicting" in "".join(capfd.readouterr())


def test_a_prediction_leaves_the_trainer_of_the_training(method):
    model = method.darts().fit(darts_series(sine(40)))
    before = model.trainer
    model.predict(3)
    assert model.trainer is before


def test_an_error_in_a_forecast_ends_the_dropout_of_it(monkeypatch):
    model = METHOD.darts().fit(darts_series(sine(40)))
    calls = []
    monkeypatch.setattr(type(model.model), "set_mc_dropout", lambda _, active: calls.append(active))
    monkeypatch.setattr(type(model.model), "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.predict(3, mc_dropout=True)
    assert calls == [True, False]


def test_an_error_under_lightning_leaves_the_next_dropout_alone(monkeypatch):
    model = METHOD.darts(head_dropout=0.5).fit(darts_series(sine(40)))
    still = model.predict(3).values()
    with monkeypatch.context() as broken:
        broken.setattr(type(model.model), "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.predict(3, mc_dropout=True, trainer=pl.Trainer(accelerator="cpu", **QUIET))
    assert (model.predict(3, mc_dropout=True).values() != still).any()
    np.testing.assert_array_equal(model.predict(3).values(), still)


def test_what_is_saved_is_what_forecasts(method, tmp_path):
    """A trainer of a training before holds the weights of that training."""
    series = darts_series(sine(40))
    other, model = method.darts(random_state=1).fit(series), method.darts().fit(series)
    other.save(str(tmp_path / "other.pt"))
    model.load_weights(str(tmp_path / "other.pt"))
    model.save(str(tmp_path / "model.pt"))
    saved = method.model.load(str(tmp_path / "model.pt"))
    expected = other.predict(3).values()
    np.testing.assert_array_equal(model.predict(3).values(), expected)
    np.testing.assert_array_equal(saved.predict(3).values(), expected)


# the series of forecasts -----------------------------------------------------------------------

STATIC = pd.DataFrame({"size": [1.0, 2.0]}, index=["a", "b"])
STARTS = [
    pd.date_range("2020-01-31", periods=50, freq="ME", name="month"),
    pd.date_range("2020-01-31", periods=40, freq="B"),
    pd.date_range("2020-01-01", periods=45, freq="2h"),
    pd.date_range("2020-01-01 01:00", periods=45, freq="2h"),  # of another phase
    pd.date_range("1820-01-01", periods=45, freq="2h"),  # far away
    pd.RangeIndex(5, 85, 2),
    pd.RangeIndex(40, name="step"),
]


def described(index, seed):
    return TimeSeries(
        index,
        sine(len(index), 2, seed=seed),
        components=["a", "b"],
        static_covariates=STATIC,
        hierarchy={"b": "a"},
        metadata={"seed": seed},
    )


@pytest.mark.parametrize(
    "likelihood", [None, QuantileRegression([0.1, 0.5, 0.9])], ids=["points", "quantiles"]
)
@pytest.mark.parametrize("indices", [STARTS[:5], STARTS[5:]], ids=["dates", "integers"])
def test_forecasts_are_the_series_that_darts_makes(likelihood, indices):
    series = [described(index, seed) for seed, index in enumerate(indices)]
    model = METHOD.darts(likelihood=likelihood, use_static_covariates=False).fit(series)
    told = {"predict_likelihood_parameters": likelihood is not None}
    dataset = model._build_inference_dataset(
        6, series, None, None, stride=3, bounds=np.array([[20, len(one)] for one in series])
    )
    ours = model.predict_from_dataset(6, dataset, **told)
    with exclusive():
        theirs = Darts._predict(model, **model._setup_for_predict(6, dataset, **told))
    assert len(ours) == len(theirs) > 5 * len(series)
    for one, other in zip(ours, theirs, strict=True):
        assert equal(one, other)
    if likelihood is None:
        static = ours[0].static_covariates
        pd.testing.assert_frame_equal(static, STATIC, check_dtype=False, check_names=False)
        assert ours[-1].metadata == {"seed": len(series) - 1}


# sktime ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 12, 30, 44])
@pytest.mark.parametrize("kind", ["complete", "gap", "every other"])
@pytest.mark.parametrize("index", ["periods", "dates", "integers"])
def test_rows_that_follow_are_joined_as_sktime_does(start, kind, index):
    from sktime.datatypes import update_data

    y = monthly(60, columns=2)
    y.index = {"periods": y.index, "dates": y.index.to_timestamp(), "integers": range(60)}[index]
    known, new = y[:40], 2 * y[start:50]
    if kind == "gap":
        new = new.where(new > 0)
    elif kind == "every other":
        new = new[::2]
    pd.testing.assert_frame_equal(followed(known, new), update_data(known, new), check_freq=False)
    assert followed(known, new) is not new


def test_a_forecast_reads_the_end_of_a_series_only(method, monkeypatch):
    """What was long ago does not make a forecast slower."""
    y = monthly(60)
    forecaster = method.sktime(context_length=12, horizon=3).fit(y)
    lengths = []
    read = type(forecaster)._series

    def watched(*args, **kwargs):
        found = read(*args, **kwargs)
        lengths.extend(map(len, found.values()))
        return found

    monkeypatch.setattr(type(forecaster), "_series", watched)
    ahead = forecaster.predict([1, 2, 3])
    assert lengths == [12]
    both = forecaster.predict([-1, 0, 1, 2, 3])
    assert lengths == [12, 60]
    np.testing.assert_array_equal(both[2:], ahead)

"""The limits of a training: how they work together, what is said of them, Ctrl-C."""

import os
import signal
import threading
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from support import darts_series, monthly, sine

from tsllm_estimators.darts import _budget, _module

SERIES = darts_series(sine(100))


class Interrupt(pl.Callback):
    """Press Ctrl-C after a step."""

    def __init__(self, step, times=1):
        self.step, self.times = step, times

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def interrupted(method, step=3, times=1, **settings):
    trainer = {"callbacks": [Interrupt(step, times)]}
    return method.darts(n_epochs=10**6, pl_trainer_kwargs=trainer, **settings)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_ctrl_c_leaves_a_usable_model(method, ema_decay, tmp_path):
    model = interrupted(method, ema_decay=ema_decay)
    with pytest.warns(UserWarning, match="Training was interrupted after 3 steps"):
        model.fit(SERIES)
    assert np.isfinite(model.predict(6).values()).all()
    model.save(str(tmp_path / "model.pt"))
    loaded = method.model.load(str(tmp_path / "model.pt"), trusted=True)  # the callback
    assert np.array_equal(loaded.predict(6).values(), model.predict(6).values())


def test_ctrl_c_keeps_what_was_learned(method):
    """As if the training had been meant to be so short."""
    settings = {"lr_schedule": "constant"}
    model = interrupted(method, step=3, **settings)
    with pytest.warns(UserWarning, match="interrupted"):
        model.fit(SERIES)
    short = method.darts(n_epochs=10**6, pl_trainer_kwargs={"max_steps": 3}, **settings).fit(SERIES)
    assert np.array_equal(model.predict(6).values(), short.predict(6).values())


@pytest.fixture
def _heard():
    """Hear Ctrl-C, which a shell makes its background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heard")
def test_a_second_ctrl_c_interrupts_the_program(method):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        interrupted(method, times=2).fit(SERIES)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_leaves_a_usable_forecaster(method):
    kwargs = {"callbacks": [Interrupt(2)]}
    forecaster = method.sktime(max_steps=10**6, trainer_kwargs=kwargs)
    with pytest.warns(UserWarning, match="interrupted after 2 steps"):
        forecaster.fit(monthly())
    assert forecaster.is_fitted
    assert np.isfinite(forecaster.predict([1, 9]).to_numpy()).all()


def test_training_works_where_no_signal_can_be_heard(method):
    found = []
    thread = threading.Thread(target=lambda: found.append(method.darts().fit(SERIES).predict(3)))
    thread.start()
    thread.join()
    assert len(found[0]) == 3


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_steps": 5, "num_epochs": 100, "max_time": 60.0}, 5),
        ({"max_steps": 1000, "num_epochs": 2, "max_time": 60.0}, 4),
        ({"max_steps": 10**6, "num_epochs": None, "max_time": 1e-3}, 1),
    ],
)
def test_the_first_limit_ends_the_training(method, limits, steps):
    forecaster = method.sktime(context_length=12, horizon=6, **limits).fit(monthly())
    assert forecaster._engine.model.trainer.global_step == steps


def test_early_stopping_ends_what_the_limits_would_not(method):
    limits = {"max_steps": 10**6, "num_epochs": None, "max_time": 60.0, "lr": 1e-9}
    forecaster = method.sktime(validation_split=0.3, early_stopping_patience=1, **limits)
    forecaster.fit(monthly())
    assert forecaster._engine.model.epochs_trained <= 3


def test_the_learning_rate_is_annealed_towards_the_nearer_limit(method, monkeypatch):
    """Here a step takes a second of ten, and ten steps of a thousand are taken."""
    clock = lambda trainer: (float(trainer.global_step), 10.0)  # noqa: E731
    monkeypatch.setattr(_module, "time_spent", clock)
    rates = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        def __deepcopy__(self, memo):
            return self

    trainer = {"callbacks": [Rates()], "max_steps": 10}
    settings = {"n_epochs": 1000, "optimizer_kwargs": {"lr": 1e-3}}
    method.darts(pl_trainer_kwargs=trainer, **settings).fit(SERIES)
    expected = 1e-8 + (1e-3 - 1e-8) * (1 + np.cos(np.pi * np.arange(10) / 10)) / 2
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_time_spent_is_that_of_the_timer(method):
    trainer = pl.Trainer(
        max_time={"seconds": 60}, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", max_epochs=1,
    )  # fmt: skip
    assert _budget.time_spent(trainer) == (0.0, 60.0)
    method.darts().fit(SERIES, trainer=trainer)
    spent, limit = _budget.time_spent(trainer)
    assert spent > 0
    assert limit == pytest.approx(60)
    trainer.callbacks = []
    assert _budget.time_spent(trainer) == (0.0, float("inf"))


def test_verbose_says_how_long_it_will_take(method, capfd, monkeypatch):
    forecaster = method.sktime(max_steps=40, verbose=True).fit(monthly())
    said = capfd.readouterr().err
    assert said.count("Training takes about") == 1
    assert "40 steps of" in said
    monkeypatch.setattr(_budget, "time_spent", lambda trainer: (1.0, 1.0))
    forecaster.fit(monthly())
    assert "Training ends at its max_time" in capfd.readouterr().err
    forecaster.set_params(verbose=False).fit(monthly())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")]
)
def test_durations_are_readable(seconds, text):
    assert _budget._duration(seconds) == text


def test_an_error_in_training_leaves_the_model_as_it_was(method):
    class Fail(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            raise RuntimeError("out of luck")

        def __deepcopy__(self, memo):
            return self

    model = method.darts(pl_trainer_kwargs={"callbacks": [Fail()]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="out of luck"):
            model.fit(SERIES)
    model.trainer_params.pop("callbacks")
    assert torch.isfinite(torch.tensor(model.fit(SERIES).predict(3).values())).all()

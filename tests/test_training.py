"""What training does: what moves, what repeats, what is averaged, kept, scheduled and logged."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from support import darts_series, sine

from tsllm_estimators.darts._callbacks import BestWeights, MovingAverage

SERIES = darts_series(sine(100))
VALIDATION = SERIES[-40:]


class Recorder(pl.Callback):
    """Remember what is logged, the learning rates and the weights, step by step."""

    def __init__(self):
        self.logged, self.rates, self.weights, self.validated = [], [], [], []

    def on_train_batch_start(self, trainer, *_):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append(snapshot(pl_module))

    def on_train_epoch_end(self, trainer, pl_module):
        self.logged.append({k: v.item() for k, v in trainer.callback_metrics.items()})

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validated.append(snapshot(pl_module))

    def __deepcopy__(self, memo):  # darts copies its arguments
        return self


def snapshot(module):
    return {n: p.detach().clone() for n, p in module.named_parameters()}


def fit(method, **settings):
    recorder = Recorder()
    series = settings.pop("series", SERIES)
    validation = settings.pop("val_series", None)
    trainer = settings.pop("pl_trainer_kwargs", {})
    trainer = {**trainer, "callbacks": [recorder, *trainer.get("callbacks", [])]}
    model = method.darts(pl_trainer_kwargs=trainer, **settings)
    return model.fit(series, val_series=validation), recorder


def task_loss(logged):
    """Return the name of the task loss: it is the whole one where a method has no other."""
    return "train_task_loss" if "train_task_loss" in logged else "train_loss"


def values(model, **kwargs):
    return model.predict(6, **kwargs).values()


def test_the_loss_falls_on_a_sine(method):
    _, recorder = fit(method, n_epochs=25, val_series=VALIDATION, optimizer_kwargs={"lr": 3e-3})
    losses = [logged["val_loss"] for logged in recorder.logged]
    assert min(losses[-5:]) < 0.5 * losses[0]
    first, *_, last = [logged[task_loss(logged)] for logged in recorder.logged]
    assert last < 0.6 * first


def test_frozen_weights_do_not_move_and_trainable_ones_do(method):
    several = darts_series(sine(100, 3))  # among the tokens of one variate attention is idle
    model, recorder = fit(method, series=several)
    first, last = recorder.weights[0], snapshot(model.model)
    for name, parameter in model.model.named_parameters():
        # keys of attention have a bias without a gradient: it shifts all scores alike
        if parameter.requires_grad and not name.endswith("in_proj_bias"):
            assert not torch.equal(first[name], last[name]), name
        elif not parameter.requires_grad:
            assert torch.equal(first[name], last[name]), name


def test_training_leaves_the_pristine_weights_alone(adapted_method):
    from tsllm_estimators.llm.backbone import load_backbone

    before = snapshot(load_backbone("tiny"))
    fit(adapted_method, adapter="full")
    after = snapshot(load_backbone("tiny"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_auxiliary_losses_are_absent_from_the_validation_loss(method):
    """With no learning, the validation loss is the distance of the forecasts, whatever weighs."""
    model, recorder = fit(method, val_series=VALIDATION, optimizer_kwargs={"lr": 0.0}, n_epochs=1)
    forecasts = model.historical_forecasts(
        VALIDATION, forecast_horizon=6, retrain=False, last_points_only=False
    )
    target = np.stack([VALIDATION.slice_intersect(f).values() for f in forecasts])
    expected = np.abs(np.stack([f.values() for f in forecasts]) - target).mean()
    logged = recorder.logged[0]
    assert logged["val_loss"] == pytest.approx(expected, rel=1e-4)
    names = {n for n in logged if n.startswith("train_")}
    assert {f"train_{n}" for n in model.model.network.loss_weights()} <= names
    assert not [n for n in logged if n.startswith("val_") and n != "val_loss"]


def test_the_training_loss_is_the_weighted_sum(method):
    model, recorder = fit(method, n_epochs=1, batch_size=1000)
    logged, network = recorder.logged[0], model.model.network
    parts = sum(w * logged[f"train_{n}"] for n, w in network.loss_weights().items())
    total = logged[task_loss(logged)] + network.unit.item() * parts
    assert logged["train_loss"] == pytest.approx(total, rel=1e-5)


def test_random_state_repeats_bit_for_bit_and_seeds_differ(method):
    first, second, other = (values(fit(method, random_state=seed)[0]) for seed in (3, 3, 4))
    assert np.array_equal(first, second)
    assert not np.allclose(first, other)


def test_global_generators_are_left_alone(method):
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    values(fit(method)[0])
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.parametrize("task_loss", ["l1", "mse", "smooth_l1", "smape"])
def test_y_and_1000_y_plus_7_train_alike(method, task_loss):
    """Up to rounding; for the relative loss the level must be 0."""
    level = 0 if task_loss == "smape" else 7
    # Adam divides by the size of the gradient plus epsilon, which knows no unit
    learning = {"n_epochs": 3, "optimizer_kwargs": {"eps": 1e-16}, "task_loss": task_loss}
    forecasts = []
    for factor, shift in [(1, 0), (1000, level)]:
        series = darts_series(factor * sine(100).astype(np.float64) + shift)
        forecasts.append(
            (method.darts(**learning, **method.dry).fit(series).predict(6).values() - shift)
            / factor
        )
    np.testing.assert_allclose(*forecasts, rtol=1e-3, atol=2e-3)


def test_the_unit_is_the_deviation_of_the_target(method):
    noise = np.random.default_rng(0).normal(size=(400, 2)) * 3 + [5, -100]
    model = method.darts(n_epochs=1).fit(darts_series(noise))
    assert model.model.network.unit.item() == pytest.approx(3, rel=0.05)
    constant = method.darts(n_epochs=1).fit(darts_series(np.full((60, 1), 4.0)))
    assert constant.model.network.unit.item() == 1
    assert np.allclose(values(constant), 4, atol=0.1)


# options of the engine ------------------------------------------------------------------------


def test_cosine_schedule_falls_to_its_floor_and_constant_does_not(method):
    _, recorder = fit(method, n_epochs=4, optimizer_kwargs={"lr": 1e-3})
    rates = np.array(recorder.rates)
    n = len(rates)
    expected = 1e-8 + (1e-3 - 1e-8) * (1 + np.cos(np.pi * np.arange(n) / n)) / 2
    np.testing.assert_allclose(rates[:, 0], expected, rtol=1e-3)
    assert (np.diff(rates, axis=0) < 0).all()
    _, recorder = fit(method, lr_schedule="constant", optimizer_kwargs={"lr": 1e-3})
    assert {r[0] for r in recorder.rates} == {1e-3}


def test_a_scheduler_of_the_user_wins(method):
    settings = {"lr_scheduler_cls": torch.optim.lr_scheduler.StepLR}
    settings["lr_scheduler_kwargs"] = {"step_size": 1, "gamma": 0.5, "interval": "epoch"}
    _, recorder = fit(method, n_epochs=2, optimizer_kwargs={"lr": 1e-3}, **settings)
    assert sorted({r[0] for r in recorder.rates}) == [5e-4, 1e-3]


def test_learning_rate_is_the_methods_unless_given(method):
    _, recorder = fit(method, lr_schedule="constant")
    assert recorder.rates[0][0] == method.network.learning_rate


def test_moving_average_is_the_one_of_the_weights(method):
    model, recorder = fit(method, ema_decay=0.5, n_epochs=3)
    average = dict(recorder.weights[0])
    for step, weights in enumerate(recorder.weights, start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = {n: decay * average[n] + (1 - decay) * w for n, w in weights.items()}
    for name, parameter in model.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), average[name], rtol=1e-4, atol=1e-6)


def test_validation_sees_the_average_and_training_does_not(method):
    _, averaged = fit(method, ema_decay=0.9, val_series=VALIDATION)
    _, plain = fit(method, ema_decay=None, val_series=VALIDATION)
    last = averaged.weights[len(averaged.weights) // 2 - 1]
    assert any(not torch.equal(averaged.validated[0][n], last[n]) for n in last)
    for name, weight in averaged.weights[-1].items():
        assert torch.equal(weight, plain.weights[-1][name]), name


def test_ema_decay_changes_the_forecast(method):
    assert not np.array_equal(*(values(fit(method, ema_decay=d)[0]) for d in (None, 0.9)))


def test_best_weights_of_validation_are_kept(method):
    """A learning rate that destroys the model after a good start must not win."""
    settings = {"n_epochs": 6, "optimizer_kwargs": {"lr": 0.05}, "lr_schedule": "constant"}
    model, recorder = fit(method, val_series=VALIDATION, ema_decay=None, **settings)
    losses = [logged["val_loss"] for logged in recorder.logged]
    best = recorder.validated[int(np.argmin(losses))]
    assert all(torch.equal(p, best[n]) for n, p in model.model.named_parameters())


def test_early_stopping_stops_and_none_does_not(method):
    settings = {"n_epochs": 8, "optimizer_kwargs": {"lr": 0.0}, "val_series": VALIDATION}
    stopped, _ = fit(method, early_stopping_patience=2, **settings)
    assert stopped.epochs_trained == 3
    whole, _ = fit(method, early_stopping_patience=None, **settings)
    assert whole.epochs_trained == 8


def test_callbacks_do_not_pile_up_on_a_trainer_of_the_user(method):
    model = method.darts()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    for _ in range(2):
        model.fit(SERIES, val_series=VALIDATION, trainer=trainer)
    ours = [c for c in trainer.callbacks if isinstance(c, BestWeights | MovingAverage)]
    assert len(ours) == 2


def test_few_shot_trains_on_the_first_part_only(method):
    changed = SERIES.values().copy()
    changed[60:] += np.linspace(0, 5, 40)[:, np.newaxis]
    series = [SERIES, darts_series(changed)]
    models = [method.darts(few_shot=0.6).fit(s) for s in series]
    assert np.array_equal(*(values(m, series=SERIES[:60]) for m in models))
    assert not np.array_equal(*(values(m) for m in models))  # forecasts start at the end
    whole = method.darts().fit(SERIES)
    assert not np.array_equal(values(whole), values(models[0], series=SERIES))
    with pytest.raises(ValueError, match=r"few_shot must be a number in \(0.0, 1\] or None"):
        method.darts(few_shot=0.0)


def test_training_after_prediction_is_training(method):
    """A prediction leaves the module in evaluation mode; the next fit must not stay there."""
    model, recorder = fit(method)
    values(model)
    recorder.logged.clear()
    model.fit(SERIES, epochs=1)
    assert task_loss(recorder.logged[0]) in recorder.logged[0]


def test_finetuning_patterns_never_unfreeze_the_language_model(method):
    model, _ = fit(method)
    frozen = {n for n, p in model.model.named_parameters() if not p.requires_grad}
    for setting in (True, {"unfreeze": ["*"]}):
        tuned, _ = fit(method, enable_finetuning=setting)
        assert {n for n, p in tuned.model.named_parameters() if not p.requires_grad} == frozen
    names = tuple(f"network.{prefix}" for prefix in method.network.parts["head"])
    head, _ = fit(method, enable_finetuning={"unfreeze": [f"{name}*" for name in names]})
    assert all(n.startswith(names) for n, p in head.model.named_parameters() if p.requires_grad)


def test_a_backbone_of_another_dtype_stays_that_way(running_method, tmp_path):
    model = running_method.darts(backbone_kwargs={"dtype": "bfloat16"}, adapter=None).fit(SERIES)
    model.save(str(tmp_path / "model.pt"))
    loaded = running_method.model.load(str(tmp_path / "model.pt"))
    dtypes = {p.dtype for p in loaded.model.parameters()}
    assert dtypes == {torch.float32, torch.bfloat16}
    assert np.array_equal(values(loaded), values(model))


def test_a_logger_sees_every_loss_by_name(method, tmp_path):
    import pandas as pd
    from pytorch_lightning.loggers import CSVLogger

    model, _ = fit(
        method, pl_trainer_kwargs={"logger": CSVLogger(tmp_path), "log_every_n_steps": 1}
    )
    logged = pd.read_csv(tmp_path / "lightning_logs" / "version_0" / "metrics.csv")
    names = {f"train_{name}" for name in model.model.network.loss_weights()}
    assert {"train_loss", *names} <= set(logged.columns)
    assert ("train_task_loss" in logged.columns) == bool(names)
    assert len(logged) > 2


@pytest.mark.parametrize("loss", ["MapeLoss", "SmapeLoss"])
def test_losses_of_darts_without_a_unit_train_alike_in_every_unit(method, loss):
    import darts.utils.losses as losses

    learning = {"n_epochs": 3, "optimizer_kwargs": {"eps": 1e-16}, **method.dry}
    forecasts = []
    for factor in (1, 1000):
        series = darts_series(factor * (sine(100) + 5))
        model = method.darts(loss_fn=getattr(losses, loss)(), **learning)
        forecasts.append(model.fit(series).predict(6).values() / factor)
    np.testing.assert_allclose(*forecasts, rtol=1e-3)


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_extreme_units_are_forecast(method, factor):
    forecast = values(method.darts().fit(darts_series(factor * sine(100))))
    assert np.isfinite(forecast).all()
    assert 0.01 < np.abs(forecast).max() / factor < 10


def test_series_of_very_different_sizes_are_warned_of(method):
    import warnings

    series = [darts_series(sine(100)), darts_series(1e4 * sine(100))]
    with pytest.warns(UserWarning, match="scale the series"):
        method.darts(n_epochs=1).fit(series)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.darts(n_epochs=1).fit([series[0], series[0] * 10])


def test_weights_that_a_callback_unfreezes_are_averaged(method):
    name = method.network.parts["head"][0].rstrip(".")

    class Unfreeze(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.network.get_submodule(name).requires_grad_(False)

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                head = pl_module.network.get_submodule(name).requires_grad_(True)
                parameters = list(head.parameters())
                trainer.optimizers[0].add_param_group({"params": parameters})

    model, _ = fit(
        method, n_epochs=3, lr_schedule="constant", pl_trainer_kwargs={"callbacks": [Unfreeze()]}
    )
    assert np.isfinite(values(model)).all()


def test_an_error_in_a_second_training_leaves_the_weights_alone(method):
    class Fail(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2:
                raise RuntimeError("out of luck")

    model, _ = fit(method)
    before = snapshot(model.model)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Fail()],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="out of luck"):
        model.fit(SERIES, trainer=trainer)
    assert all(torch.equal(weight, before[n]) for n, weight in snapshot(model.model).items())

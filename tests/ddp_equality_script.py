"""Train a small model on windows that two processes share, and write what became of it.

Arguments: a method's name, the name of a run (see ``model_of``), a folder for what is found, and
arguments of Lightning's trainer as JSON. Every process writes a file of its own.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from support import METHODS, darts_series, sine

N_WINDOWS = 64  # in training and in validation, so that two processes have 32 each


class History(pl.Callback):
    """Write the losses of each epoch, the learning rates of each step and the last weights.

    The process that trains writes them: it may not be the one that called ``fit``.
    """

    def __init__(self, folder):
        self.folder, self.losses, self.rates = Path(folder), [], []

    def on_train_batch_start(self, trainer, *_):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_epoch_end(self, trainer, pl_module):
        self.losses.append({n: v.item() for n, v in trainer.callback_metrics.items()})

    def on_fit_end(self, trainer, pl_module):
        found = {
            "losses": self.losses,
            "rates": self.rates,
            "weights": {n: p.detach().clone() for n, p in pl_module.named_parameters()},
        }
        torch.save(found, self.folder / f"{trainer.global_rank}.pt")


def windows(seed, run):
    """Return series with 32 windows each of 12 to 6 steps; the second has another period."""
    values = np.stack([sine(49, 2, period=period, seed=seed) for period in (12.0, 7.0)])
    if run == "stopped" and seed:  # noise: what is learned is soon worth nothing
        values = np.random.default_rng(seed).normal(size=values.shape)
    if run == "gaps":  # some windows have no target
        values[1, 20:42] = np.nan
    return [darts_series(series) for series in values]


def model_of(method, run, folder, **trainer):
    """Return the model of a run: plain descent shows a loss that is summed for one averaged.

    The windows of an epoch are one batch, as processes shuffle in an order of their own.
    """
    n_processes = trainer.get("devices", 1) * trainer.get("num_nodes", 1)
    settings = {
        "balanced": method.known(load_balancing_weight=1.0, balance_weight=1.0, top_n=1),
        "stopped": {"early_stopping_patience": 2, "n_epochs": 60, "ema_decay": None},
        "timed": {"pl_trainer_kwargs": {"max_time": {"hours": 1}}},
        "gaps": {"batch_size": 1, "n_epochs": 1},
    }[run]
    trainer = {**trainer, **settings.pop("pl_trainer_kwargs", {}), "callbacks": [History(folder)]}
    shared = {"n_epochs": 5, "batch_size": N_WINDOWS // n_processes, **method.dry}
    descent = {"optimizer_cls": torch.optim.SGD, "optimizer_kwargs": {"lr": 0.05, "momentum": 0.9}}
    return method.darts(**{**shared, **descent, **settings}, pl_trainer_kwargs=trainer)


def train(name, run, folder, **trainer):
    """Train a method's model and return it."""
    torch.set_num_threads(1)
    (method,) = (method for method in METHODS if method.name == name)
    model = model_of(method, run, folder, **trainer)
    return model.fit(windows(0, run), val_series=windows(1, run))


if __name__ == "__main__":
    folder = Path(sys.argv[3])
    model = train(*sys.argv[1:4], **json.loads(sys.argv[4]))
    rank = model.trainer.global_rank
    if rank == 0:  # waits for no other process
        model.save_pretrained(folder / "pretrained")
    model.save(str(folder / f"model_{rank}.pt"), clean=True)
    forecasts = model.predict(6, series=windows(2, sys.argv[2])[:1] * 3)
    np.save(folder / f"forecasts_{rank}.npy", [f.values() for f in forecasts])

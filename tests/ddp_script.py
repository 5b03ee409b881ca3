"""Fit a small model on two processes of a CPU, then forecast with it on one.

Arguments: a method's name, a strategy of Lightning, and a folder for what is found.
"""

import sys
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from support import METHODS, darts_series, sine


class KeepWeights(pl.Callback):
    """Write the weights that every process starts and ends with."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_start(self, trainer, pl_module):
        self._write("first", trainer, pl_module)

    def on_fit_end(self, trainer, pl_module):
        self._write("last", trainer, pl_module)

    def _write(self, when, trainer, pl_module):
        weights = {n: p.detach() for n, p in pl_module.named_parameters()}
        torch.save(weights, Path(self.folder) / f"{when}_{trainer.global_rank}.pt")


def main(name, strategy, folder):
    torch.set_num_threads(1)
    series = [darts_series(sine(80, 2, seed=seed)) for seed in range(4)]
    (method,) = (method for method in METHODS if method.name == name)
    processes = {"devices": 2, "strategy": strategy, "callbacks": [KeepWeights(folder)]}
    model = method.darts(pl_trainer_kwargs=processes)
    model.fit(series, val_series=series)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, **quiet)
    forecasts = model.predict(9, series=series, trainer=trainer)
    if trainer.global_rank == 0:
        model.save(str(Path(folder) / "model.pt"), clean=True)
        np.save(Path(folder) / "forecasts.npy", np.stack([f.values() for f in forecasts]))


if __name__ == "__main__":
    main(*sys.argv[1:])

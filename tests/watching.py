"""Callbacks that remember what they saw of a training."""

import pytorch_lightning as pl


class Losses(pl.Callback):
    """Remember the validation loss of each epoch, of copies too."""

    def __init__(self):
        self.values = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.values.append(trainer.callback_metrics["val_loss"].item())

    def __deepcopy__(self, memo):  # darts copies its arguments
        return self

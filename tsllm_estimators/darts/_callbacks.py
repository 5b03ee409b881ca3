"""What happens to the weights during training: their moving average, and the best of them."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in _trainable(module).items()}


@torch.no_grad()
def _restore(module: nn.Module, weights: dict[str, Tensor]) -> None:
    parameters = dict(module.named_parameters())
    for name, weight in weights.items():
        parameters[name].copy_(weight)


def is_kind(callback: pl.Callback, kind: type[pl.Callback]) -> bool:
    """Return whether a callback is of a kind, by either name of Lightning.

    ``lightning`` and ``pytorch_lightning`` hold the same classes twice, and a trainer takes both.
    """
    return kind.__name__ in {cls.__name__ for cls in type(callback).__mro__}


class EngineCallback(pl.Callback):
    """A callback that the engine adds to a training, as against one of the user's."""

    def summary(self) -> dict[str, Any]:
        """Return what the ``training_summary`` is to hold, in plain values."""
        return {}


class MovingAverage(EngineCallback):
    """Keep an exponential moving average of the trainable weights.

    Validation and the fitted model use the average; training goes on with the weights
    themselves. Unlike Lightning's callback of this kind it leaves the frozen weights alone, and
    the decay grows with the steps, so that a short training is not averaged with its start.

    Parameters
    ----------
    decay : float
        Share of the average that a step keeps; less in the first steps: (1 + n) / (10 + n).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._n_steps = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Follow the weights, once per step of the optimiser."""
        if trainer.global_step == self._n_steps:  # gradients are being accumulated
            return
        self._n_steps = trainer.global_step
        if not self._average:
            self._average = _copy(pl_module)
        decay = min(self.decay, (1 + self._n_steps) / (10 + self._n_steps))
        weights = {name: parameter.detach() for name, parameter in _trainable(pl_module).items()}
        for name, weight in weights.items():
            if name not in self._average:  # what a callback has unfrozen since joins here
                self._average[name] = weight.clone()
            self._average[name] = self._average[name].to(weight.device)
        averages = [self._average[name] for name in weights]
        torch._foreach_lerp_(averages, list(weights.values()), 1 - decay)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Validate the average."""
        self._exchange(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Go on with the weights themselves."""
        self._exchange(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Leave the average in the model."""
        if self._average:
            _restore(pl_module, self._average)
            self._average = {}

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        """Save the average as the model's weights, and what resuming needs beside it."""
        if self._average:
            checkpoint["weights_in_training"] = _copy(pl_module)
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **self._average}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        """Resume with the weights in training."""
        if "weights_in_training" in checkpoint:
            self._average = _copy(pl_module)
            self._n_steps = checkpoint["global_step"]
            _restore(pl_module, checkpoint["weights_in_training"])

    def _exchange(self, module: nn.Module) -> None:
        if self._average:
            weights = _copy(module)
            _restore(module, self._average)
            self._average = weights


class BestWeights(EngineCallback):
    """Leave the weights of the lowest validation loss in the model.

    To stand before :class:`MovingAverage` in the list of callbacks: it looks at the validated
    weights before they are exchanged.
    """

    def __init__(self) -> None:
        self._loss = float("inf")
        self._weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Remember the weights that were just validated, if they are the best so far."""
        loss = trainer.callback_metrics.get("val_loss")
        if not trainer.sanity_checking and loss is not None and loss.item() < self._loss:
            self._loss = loss.item()
            self._weights = _copy(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Restore the best weights."""
        if self._weights:
            _restore(pl_module, self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs."""
        return {"loss": self._loss, "weights": self._weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume with the best weights so far."""
        self._loss, self._weights = state_dict["loss"], state_dict["weights"]

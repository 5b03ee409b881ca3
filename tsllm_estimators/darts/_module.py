"""The one Lightning shell: any network of this package as a darts module."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tsllm_estimators.darts._compat import PLForecastingModule, PLModuleInput, PLModuleOutput
from tsllm_estimators.darts._likelihoods import QuantileRegression
from tsllm_estimators.networks import network_class
from tsllm_estimators.networks.base import Batch, Shapes
from tsllm_estimators.networks.blocks import DISTANCE_DEGREES, DISTANCES

_LR_FLOOR = 1e-8  # of the cosine schedule


@dataclass(slots=True)
class NetworkOutput(PLModuleOutput):
    """A forecast with the auxiliary losses of its network."""

    losses: dict[str, Tensor] = field(default_factory=dict)


class NetworkModule(PLForecastingModule):
    """Trains a network with the task loss and its auxiliary losses.

    Parameters
    ----------
    method : str
        Name of the network in ``NETWORKS``.
    settings : dict
        Arguments of its config.
    shapes : dict
        Arguments of its :class:`~tsllm_estimators.networks.base.Shapes`.
    task_loss : str or None
        Name of the distance that is the task loss; None leaves it to the likelihood or to
        ``loss_fn``.
    lr_schedule : {"cosine", "constant"}
        Schedule of the learning rate where no ``lr_scheduler_cls`` is given.
    **kwargs
        Arguments of darts' ``PLForecastingModule``.
    """

    def __init__(
        self,
        method: str,
        settings: dict[str, Any],
        shapes: dict[str, Any],
        task_loss: str | None,
        lr_schedule: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        network = network_class(method)
        self.network = network(network.Config(**settings), Shapes(**shapes))
        self._task_loss = task_loss
        self._lr_schedule = lr_schedule

    def on_fit_start(self) -> None:
        """Train: Lightning leaves the mode as it finds it, and a prediction leaves it at eval."""
        super().on_fit_start()
        self.train()

    def forward(self, x_in: PLModuleInput) -> NetworkOutput:
        """Forecast a batch of darts."""
        forecast = self.network(Batch(past_target=x_in.past_target))
        return NetworkOutput(prediction=forecast.parameters, losses=forecast.losses)

    def _compute_loss(
        self, output: NetworkOutput, target: Tensor, criterion: Any, sample_weight: Tensor | None
    ) -> Tensor:
        """Return the task loss; in training, the auxiliary losses are added to it."""
        if self._task_loss is None:
            loss = super()._compute_loss(output, target, criterion, sample_weight)
        else:
            loss = self._distance(self._task_loss, output.prediction[..., 0], target, sample_weight)
        if not output.losses:
            return loss
        batch_size = len(target)
        self.log("train_task_loss", loss, batch_size=batch_size)
        weights = self.network.loss_weights()
        scale = self.network.unit**self._task_degree
        for name, value in output.losses.items():
            self.log(f"train_{name}", value, batch_size=batch_size)
            loss = loss + scale * weights[name] * value
        return loss

    def _distance(
        self, name: str, forecast: Tensor, target: Tensor, weight: Tensor | None
    ) -> Tensor:
        unit = self.network.unit
        distance = DISTANCES[name](forecast / unit, target / unit)
        distance = distance if weight is None else distance * weight
        return distance.mean() * unit**self._task_degree

    @property
    def _task_degree(self) -> int:
        """Power of the data's unit in the task loss; a log likelihood carries none."""
        if self._task_loss is not None:
            return DISTANCE_DEGREES[self._task_loss]
        if self.likelihood is not None:
            return int(isinstance(self.likelihood, QuantileRegression))
        return 2 if isinstance(self.criterion, torch.nn.MSELoss) else 1

    def configure_optimizers(self) -> Any:
        """Build the optimiser on what trains, with the network's groups and the schedule."""
        settings = {"lr": self.network.learning_rate, **self.optimizer_kwargs}
        if (
            self.optimizer_cls in (torch.optim.Adam, torch.optim.AdamW)
            and "foreach" not in settings
        ):
            # a quarter of a small network's step is the optimiser; the fused one halves it, but
            # cannot unscale float16 gradients before clipping
            settings.setdefault("fused", self.trainer.precision != "16-mixed")
        optimizer = self.optimizer_cls(self.network.parameter_groups(), **settings)
        if self.lr_scheduler_cls is not None:
            kwargs = dict(self.lr_scheduler_kwargs)
            config = {
                name: kwargs.pop(name, default)
                for name, default in (
                    ("monitor", "val_loss"),
                    ("interval", "epoch"),
                    ("frequency", 1),
                    ("strict", True),
                    ("name", None),
                )
            }
            scheduler = self.lr_scheduler_cls(optimizer, **kwargs)
            return [optimizer], {"scheduler": scheduler, **config}
        n_steps = self.trainer.estimated_stepping_batches
        if self._lr_schedule == "constant" or not math.isfinite(n_steps):
            return optimizer
        floor = _LR_FLOOR / max(settings["lr"], _LR_FLOOR)

        def cosine(step: int) -> float:
            return floor + (1 - floor) * (1 + math.cos(math.pi * min(step / n_steps, 1))) / 2

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)
        return [optimizer], {"scheduler": scheduler, "interval": "step"}

    def to_dtype(self, dtype: torch.dtype) -> None:
        """Cast to the precision of the data; float32 leaves a backbone of another dtype alone."""
        if dtype != torch.float32:
            super().to_dtype(dtype)

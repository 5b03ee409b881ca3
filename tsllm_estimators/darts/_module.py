"""The one Lightning shell: any network of this package as a darts module."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch
from darts.utils.losses import MapeLoss, SmapeLoss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tsllm_estimators.darts._budget import time_spent
from tsllm_estimators.darts._compat import (
    PLForecastingModule,
    PLModuleInput,
    PLModuleOutput,
    TorchInferenceBatch,
)
from tsllm_estimators.darts._likelihoods import QuantileRegression
from tsllm_estimators.darts._texts import split_digits, without_texts
from tsllm_estimators.networks import network_class
from tsllm_estimators.networks.base import Batch, Shapes
from tsllm_estimators.networks.blocks import DISTANCE_DEGREES, DISTANCES

_LR_FLOOR = 1e-8  # of the cosine schedule


@dataclass(slots=True)
class NetworkOutput(PLModuleOutput):
    """A forecast with the auxiliary losses of its network.

    Attributes
    ----------
    losses : dict of str to Tensor or callable
        Auxiliary losses by name, see :class:`~tsllm_estimators.networks.base.Forecast`.
    has_context : Tensor
        Whether anything was observed in the context of a variate, shape (b, 1, c).
    """

    losses: dict[str, Any] = field(default_factory=dict)
    has_context: Tensor = field(default_factory=lambda: torch.ones(()))


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
    texts : list of {"stamps", "static"}
        Codes of texts that the future covariates carry before those of the user's columns.
    backbone : str, optional
        Where the language model lies now, if its directory has moved since the model was saved:
        darts' ``load`` passes it on.
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
        texts: Sequence[str] = (),
        backbone: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        network = network_class(method)
        settings = settings if backbone is None else {**settings, "backbone": backbone}
        self.network = network(network.Config(**settings), Shapes(**shapes))
        # processes have read different texts, and DDP would overwrite the tables of all but one
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self, _read_by_process(self)
        )
        self._task_loss = task_loss
        self._lr_schedule = lr_schedule
        self._texts = tuple(texts)
        self.pred_num_samples: int | None
        self._n_windows = 0
        self._is_first_chunk = False
        self._drops = False
        self._first_output: NetworkOutput | None = None

    def on_fit_start(self) -> None:
        """Train: Lightning leaves the mode as it finds it, and a prediction leaves it at eval."""
        super().on_fit_start()
        self.train()

    def forward(self, x_in: PLModuleInput) -> NetworkOutput:
        """Forecast a batch of darts."""
        forecast = self.network(self._batch(x_in))
        # counted in floats: to ask whether all of an axis holds is five times slower
        observed = x_in.past_target.isnan().logical_not().to(x_in.past_target.dtype)
        has_context = observed.sum(1, keepdim=True) > 0
        return NetworkOutput(
            prediction=forecast.parameters, losses=forecast.losses, has_context=has_context
        )

    def _batch(self, x_in: PLModuleInput) -> Batch:
        future, static = x_in.future_covariates, x_in.static_covariates
        if future is not None:
            future = torch.cat([x_in.historic_future_covariates, future], 1)
        return self.as_batch(x_in.past_target, x_in.past_covariates, future, static)

    def as_batch(
        self, target: Tensor, past: Tensor | None, future: Tensor | None, static: Tensor | None
    ) -> Batch:
        """Return the input of the network: texts, which darts carries as digits, are codes."""
        shapes, n_own = self.network.shapes, len(self._texts)
        past, past_texts = split_digits(past, shapes.n_past_texts)
        future, codes = split_digits(future, n_own + shapes.n_future_texts)
        own = {} if codes is None else dict(zip(self._texts, codes.unbind(-1), strict=False))
        described = own.get("static")
        return Batch(
            past_target=target,
            past_covariates=past,
            future_covariates=future,
            static_covariates=None if static is None else static.flatten(1),
            stamps=own.get("stamps"),
            static_texts=None if described is None else described[:, shapes.context_length - 1],
            past_texts=past_texts,
            future_texts=None if codes is None else codes[..., n_own:],
        )

    # losses ---------------------------------------------------------------------------------

    def _compute_loss(
        self, output: NetworkOutput, target: Tensor, criterion: Any, sample_weight: Tensor | None
    ) -> Tensor:
        """Return the task loss; in training, the auxiliary losses are added to it.

        What was not observed, or where the context says nothing about it, has no weight.
        """
        counts = target.isnan().logical_or(~output.has_context).logical_not()
        if counts.any():
            loss = self._task_loss_of(output, target, criterion, sample_weight, counts)
        else:  # an auxiliary loss is one of all processes, and others may have something to learn
            loss = output.prediction.sum() * 0.0
        if not output.losses:
            return loss
        batch_size = len(target)
        self.log("train_task_loss", loss, batch_size=batch_size, sync_dist=True)
        weights = self.network.loss_weights()
        scale = self.network.unit**self._task_degree
        shares = counts.to(loss.dtype)
        shares = shares / shares.mean().clamp_min(torch.finfo(shares.dtype).tiny)
        if sample_weight is not None:
            shares = shares * sample_weight
        of_window = shares.flatten(1).mean(1)
        for name, values in output.losses.items():
            values = values(of_window) if callable(values) else values
            value = (values * of_window).mean()
            self.log(f"train_{name}", value, batch_size=batch_size, sync_dist=True)
            loss = loss + scale * weights[name] * value
        return loss

    def _task_loss_of(
        self,
        output: NetworkOutput,
        target: Tensor,
        criterion: Any,
        sample_weight: Tensor | None,
        counts: Tensor,
    ) -> Tensor:
        """Return the mean loss of the targets that count."""
        share: Tensor | float = 1.0
        if not counts.all():
            share = counts.to(target.dtype).mean()
            if self._task_loss is None and self.likelihood is None:
                # a loss of the user need not know weights: equality costs nothing
                target = torch.where(counts, target, output.prediction[..., 0].detach())
            else:
                # any value within the support, as its weight is 0
                target = torch.where(counts, target, target[counts][0])
                weight = 1.0 if sample_weight is None else sample_weight
                sample_weight = counts * weight / share
                share = 1.0
        if self._task_loss is None:
            return super()._compute_loss(output, target, criterion, sample_weight) / share
        return self._distance(self._task_loss, output.prediction[..., 0], target, sample_weight)

    def _update_metrics(self, output: NetworkOutput, target: Tensor, metrics: Any) -> None:
        """Update torch's metrics with the steps that were observed."""
        observed = target.isnan().any(-1).logical_not()
        if not observed.any():
            return
        if len(metrics) and not observed.all():
            output = output.replace(prediction=output.prediction[observed].unsqueeze(1))
            target = target[observed].unsqueeze(1)
        super()._update_metrics(output, target, metrics)

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
        if isinstance(self.criterion, MapeLoss | SmapeLoss):
            return 0
        degree = 2 if isinstance(self.criterion, torch.nn.MSELoss) else 1
        return getattr(self.criterion, "degree", degree)

    # prediction -----------------------------------------------------------------------------

    def predict_step(
        self, batch: TorchInferenceBatch, batch_idx: int, dataloader_idx: int | None = None
    ) -> Any:
        """Forecast windows; every sample of a window is drawn from one pass of the network."""
        self._refuse_empty_contexts(batch)
        n_samples, varies = self.pred_num_samples, self.likelihood or self.pred_mc_dropout
        self._n_windows, self._first_output = len(batch.past_target), None
        self.pred_num_samples = n_samples if varies else 1
        samples, schemas, times = super().predict_step(batch, batch_idx, dataloader_idx)
        self.pred_num_samples, self._first_output = n_samples, None
        return samples if varies else samples.tile(n_samples, 1, 1, 1), schemas, times

    def _get_batch_prediction(self, n: int, input_batch: Any, roll_size: int) -> Tensor:
        self._is_first_chunk = True
        # texts of the past are not known after the start of a forecast, even where darts asks
        ahead = without_texts(input_batch.future_past_covariates, self.network.shapes.n_past_texts)
        batch = input_batch.replace(future_past_covariates=ahead)
        return super()._get_batch_prediction(n, batch, roll_size)

    def _produce_predict_output(self, x: PLModuleInput) -> PLModuleOutput:
        """Sample from the network's output.

        Before the first chunk of a forecast all copies of a window are equal: the network sees
        it once, and its output is copied. The chunks after it start from the samples.
        """
        if not self._is_first_chunk or self.pred_mc_dropout:
            return super()._produce_predict_output(x)
        self._is_first_chunk = False
        if self._first_output is None:
            self._first_output = self(_first(x, self._n_windows))
        n_copies = len(x.past_target) // self._n_windows
        prediction = self._first_output.prediction.tile(n_copies, 1, 1, 1)
        return self._drawn(self._first_output.replace(prediction=prediction))

    def _drawn(self, output: PLModuleOutput) -> PLModuleOutput:
        """Return what the likelihood makes of an output of the network."""
        prediction = output.prediction
        if self.likelihood is None:
            prediction = prediction[..., 0]
        elif self.predict_likelihood_parameters:
            prediction = self.likelihood.predict_likelihood_parameters(prediction)
        else:
            prediction = self.likelihood.sample(prediction)
        return output.replace(prediction=prediction)

    def _refuse_empty_contexts(self, batch: TorchInferenceBatch) -> None:
        empty = batch.past_target.isnan().all(1)
        if not empty.any():
            return
        window, variate = (int(i) for i in empty.nonzero()[0])
        name = list(batch.series_schema[window]["columns"])[variate]
        raise ValueError(
            f"series: component {name!r} has no observation in the {self.input_chunk_length} steps "
            f"from which the forecast at {batch.pred_time[window]} starts; fill the gap, or choose "
            "an input_chunk_length that reaches back beyond it."
        )

    def _get_mc_dropout_modules(self) -> set[Any]:
        return {self.network} if self.network.has_dropout else set()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts, which ends the dropout of a forecast."""
        self._drops = False
        return super().train(mode)

    def set_mc_dropout(self, active: bool) -> None:
        """Drop in prediction as in training, for ``predict(..., mc_dropout=True)``."""
        if bool(active) != self._drops:
            self.network.activate_dropout(bool(active))
        self._drops = bool(active)

    # optimiser ------------------------------------------------------------------------------

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
            # whichever limit is nearer: of steps, or of time
            spent, limit = time_spent(self.trainer)
            if math.isfinite(limit):  # processes with clocks of their own would part
                spent = self.trainer.strategy.broadcast(spent)
            progress = min(max(step / n_steps, spent / limit if limit else 1), 1)
            return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)
        return [optimizer], {"scheduler": scheduler, "interval": "step"}

    def to_dtype(self, dtype: torch.dtype) -> None:
        """Cast to the precision of the data; float32 leaves a backbone of another dtype alone."""
        if dtype != torch.float32:
            self.to(dtype)  # darts' own does not know bfloat16


def _read_by_process(module: nn.Module) -> list[str]:
    """Return the names of the buffers that each process fills for itself."""
    return [
        f"{prefix}.{name}"
        for prefix, part in module.named_modules()
        for name in getattr(part, "read_by_process", ())
    ]


def _first(x_in: PLModuleInput, n_windows: int) -> PLModuleInput:
    """Return the first windows of an input."""
    tensors = {
        f.name: value[:n_windows]
        for f in fields(x_in)
        if isinstance(value := getattr(x_in, f.name), Tensor)
    }
    return x_in.replace(**tensors)

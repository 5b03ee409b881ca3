"""Forecasts without what takes longer than they do: a trainer, and a calendar for each of them."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from darts import TimeSeries
from darts.utils.utils import generate_index

# Arguments of a trainer that say nothing of a prediction; another one is Lightning's to follow.
_OF_TRAINING = {
    "accumulate_grad_batches",
    "check_val_every_n_epoch",
    "enable_checkpointing",
    "enable_model_summary",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_train_batches",
    "limit_val_batches",
    "log_every_n_steps",
    "max_epochs",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "num_sanity_val_steps",
    "val_check_interval",
}
# What they are where nobody asks for more.
_PLAIN = {
    "devices": ("auto", 1),
    "enable_progress_bar": (False,),
    "logger": (None, False),
    "num_nodes": (1,),
    "precision": (None, "32-true"),
    "strategy": ("auto",),
}


class PlainLoop:
    """Stands in for a trainer in a prediction: setting one up takes longer than a forecast."""

    def predict(self, model: Any, datamodule: Any) -> list[Any]:
        """Return what the module predicts of each batch."""
        if any(module.training for module in model.modules()):  # sooner asked than set
            model.eval()
        model.on_predict_start()
        try:
            with torch.inference_mode():
                loader = datamodule.predict_dataloader()
                return [model.predict_step(batch, index) for index, batch in enumerate(loader)]
        finally:
            model.on_predict_end()


class PredictsPlainly:
    """The part of a darts model that forecasts with Lightning only where there is need of it."""

    def predict_values(self: Any, n: int, series: Sequence[TimeSeries], **kwargs: Any) -> Any:
        """As ``predict`` of several series, but an array (series, n, component, sample)."""
        parameters = self._setup_for_predict_from_dataset(n, series, **kwargs)
        return self.predict_from_dataset(**parameters, values_only=True)[0]

    def predict_from_dataset(
        self: Any,
        n: int,
        dataset: Any,
        trainer: Any = None,
        batch_size: int | None = None,
        verbose: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As darts' ``predict_from_dataset``; a trainer is set up only where it has a task."""
        # of a loader's arguments, Lightning overrules what would leave out windows
        if trainer is not None or kwargs.get("dataloader_kwargs") or not self._is_plain(verbose):
            return super().predict_from_dataset(  # type: ignore[misc]
                n, dataset, trainer, batch_size, verbose, **kwargs
            )
        before = self.trainer
        try:
            return super().predict_from_dataset(  # type: ignore[misc]
                n, dataset, PlainLoop(), batch_size, verbose, **kwargs
            )
        finally:
            self.trainer = before

    def _is_plain(self: Any, verbose: bool | None) -> bool:
        """Return whether a trainer of this model would do no more than the plain loop."""
        shown = {} if verbose is None else {"enable_progress_bar": verbose}
        arguments = {**self.trainer_params, **shown}
        accelerator = arguments.pop("accelerator", "auto")
        if accelerator != "cpu" and (accelerator != "auto" or torch.accelerator.is_available()):
            return False
        if self.model is not None and self.model.device.type != "cpu":  # loaded to an accelerator
            return False
        if any(_sees_predictions(callback) for callback in arguments.pop("callbacks", None) or []):
            return False
        return all(
            name in _OF_TRAINING or (name in _PLAIN and value in _PLAIN[name])
            for name, value in arguments.items()
        )

    def _predict(
        self: Any,
        trainer: Any,
        model: Any,
        datamodule: Any,
        n_jobs: int = 1,
        verbose: bool | None = None,
        values_only: bool = False,
        predict_likelihood_parameters: bool = False,
    ) -> Any:
        if verbose or n_jobs != 1:
            return super()._predict(  # type: ignore[misc]
                trainer,
                model,
                datamodule,
                n_jobs,
                verbose,
                values_only,
                predict_likelihood_parameters,
            )
        found: Any = super()._predict(  # type: ignore[misc]
            trainer, model, datamodule, values_only=True
        )
        if values_only:
            return found
        values, schemas, starts = found
        names = self.likelihood.component_names if predict_likelihood_parameters else None
        return _series_of(values, schemas, starts, names)


def _sees_predictions(callback: pl.Callback) -> bool:
    """Return whether a callback has a hook that a trainer calls in a prediction."""
    hooks = [name for name in dir(pl.Callback) if name.startswith("on_predict")]
    if not type(callback).__module__.startswith("pytorch_lightning."):  # whose own only train
        hooks += ["setup", "teardown"]
    found = [getattr(callback, name) for name in hooks]  # a LambdaCallback holds them itself
    inherited = [getattr(pl.Callback, name) for name in hooks]
    return any(
        getattr(hook, "__func__", hook) is not own
        for hook, own in zip(found, inherited, strict=True)
    )


def _series_of(
    values: np.ndarray,
    schemas: Sequence[dict[str, Any]],
    starts: Sequence[Any],
    parameter_names: Callable[..., Any] | None,
) -> list[TimeSeries]:
    """Return forecasts (b, n, component, sample) as series, each by the schema of its target."""
    forecasts = []
    for own, schema, times in zip(
        values, schemas, _times_of(schemas, starts, values.shape[1]), strict=True
    ):
        names, kept = schema["columns"], {"metadata": schema["metadata"]}
        if parameter_names is not None:
            names = parameter_names(components=names)
        else:
            kept |= {name: schema[name] for name in ("static_covariates", "hierarchy")}
        forecasts.append(TimeSeries(times, own, components=names, copy=False, **kept))
    return forecasts


def _times_of(schemas: Sequence[dict[str, Any]], starts: Sequence[Any], n: int) -> list[Any]:
    """Return the ``n`` times from each start on, cut from one line of times where they are near."""
    groups = defaultdict(list)
    for position, schema in enumerate(schemas):
        groups[schema["time_freq"], schema["time_name"]].append(position)
    times: list[Any] = [None] * len(starts)
    for (freq, name), positions in groups.items():
        own = [starts[position] for position in positions]
        line: Any = None
        places = np.full(len(own), -1)
        if len(own) > 1:
            line = generate_index(min(own), end=max(own), freq=freq, name=name)
            if len(line) <= n * len(own):
                places = line.get_indexer(own)
                line = generate_index(min(own), length=len(line) + n, freq=freq, name=name)
        for position, start, place in zip(positions, own, places.tolist(), strict=True):
            if place < 0:
                times[position] = generate_index(start, length=n, freq=freq, name=name)
            else:
                times[position] = line[place : place + n]
    return times

"""The arguments that the sktime face has of its own, and how the engine is told of them."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from tsllm_estimators._options import EngineOptions
from tsllm_estimators._validate import check_choice, check_integer, check_number
from tsllm_estimators.sktime._likelihoods import BOUNDED, LIKELIHOODS
from tsllm_estimators.sktime._texts import plain_description


def set_parameters(estimator: Any, arguments: Mapping[str, Any]) -> None:
    """Store the arguments of a constructor, as scikit-learn's convention asks for."""
    for name, value in arguments.items():
        if name not in ("self", "__class__"):
            setattr(estimator, name, value)


class HostArguments:
    """Arguments of the sktime face.

    Parameters
    ----------
    context_length : int or None
        L, time steps that the model sees. None is four horizons, less on a short series (so that
        it gives enough training windows), at most 512.
    horizon : int or None
        H, time steps that the model forecasts at once; a longer ``fh`` feeds on the model's own
        output. None is the largest step of ``fh`` in ``fit``; where that is not given, one
        season of the index (12 months, 24 hours...), at most a quarter of the series.
    likelihood : str or None
        What the model learns to predict. ``"quantile"`` trains quantiles, so that intervals work
        at once; the point forecast is the median. None trains point forecasts with ``task_loss``
        and has no intervals. ``"gaussian"``, ``"laplace"``, ``"cauchy"``, ``"gumbel"``; with
        ``normalization=None`` and ``scaling=None`` also ``"poisson"``, ``"negative_binomial"``,
        ``"bernoulli"``, ``"geometric"``, ``"beta"``, ``"exponential"``, ``"gamma"``,
        ``"half_normal"``, ``"log_normal"`` and ``"weibull"``.
    past_covariates : list or None
        Columns of ``X`` that are known of the past only; the others must be known ahead.
    scaling : "standard" or None
        Standardise every column of every instance with its training data (forecasts come back in
        the data's own units), or leave the values alone.
    num_epochs : int or None
        Epochs of training at most.
    max_steps : int or None
        Steps of the optimiser at most.
    max_time : float or None
        Seconds of training at most. Training ends at the first of the three limits.
    num_update_epochs : int
        Epochs that ``update`` trains on all data so far.
    lr : float or None
        Learning rate; None is the method's own.
    batch_size : int
        Windows per step.
    validation_split : float or None
        Share of the end of each series that is kept for validation: it is not trained on, the
        best weights on it are kept, and ``early_stopping_patience`` counts on it.
    num_samples : int
        Sampled paths behind the intervals beyond the horizon; they are drawn anew for another
        longest step.
    broadcasting : bool
        False trains one model on all instances of a panel, True one model for each.
    device : str
        ``"auto"`` (one accelerator if there is any), ``"cpu"``, ``"cuda"``, ``"cuda:1"``,
        ``"mps"``.
    trainer_kwargs : dict or None
        Further arguments of Lightning's ``Trainer``.
    random_state : int or None
        Seed of initialisation, training and sampling; None differs from fit to fit.
    verbose : bool
        Show progress bars, and say after the first steps how long the training will take.
    """

    def _check_arguments(self: Any) -> None:
        check_integer("context_length", self.context_length, 1, optional=True)
        check_integer("horizon", self.horizon, 1, optional=True)
        check_choice("likelihood", self.likelihood, (*LIKELIHOODS, None))
        check_choice("scaling", self.scaling, ("standard", None))
        check_integer("num_epochs", self.num_epochs, 1, optional=True)
        check_integer("max_steps", self.max_steps, 1, optional=True)
        check_number("max_time", self.max_time, exclusive="(", optional=True)
        check_integer("num_update_epochs", self.num_update_epochs, 1)
        check_number("lr", self.lr, exclusive="(", optional=True)
        check_integer("batch_size", self.batch_size, 1)
        check_number("validation_split", self.validation_split, 0, 1, exclusive="()", optional=True)
        check_integer("num_samples", self.num_samples, 1)
        if self.num_epochs is None and self.max_steps is None and self.max_time is None:
            raise ValueError("num_epochs, max_steps and max_time are all None; set one of them.")
        if self.likelihood in BOUNDED and (self.scaling or self.normalization) is not None:
            raise ValueError(
                f"likelihood={self.likelihood!r} needs scaling=None and normalization=None, found "
                f"scaling={self.scaling!r} and normalization={self.normalization!r}: both take "
                "values out of its support."
            )
        EngineOptions(**{f.name: getattr(self, f.name) for f in fields(EngineOptions)})

    def _draw_seed(self: Any) -> int:
        """Return the seed of this fit; drawn here, as darts would use numpy's global generator."""
        from sklearn.utils import check_random_state

        if self.random_state is None:
            return int(np.random.default_rng().integers(2**31))
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _model_arguments(self: Any, **sizes: int) -> dict[str, Any]:
        """Return the arguments of the darts model but its likelihood."""
        shared = inspect.signature(self._model_class().__init__).parameters
        arguments = {k: v for k, v in self.get_params(deep=False).items() if k in shared}
        trainer: dict[str, Any] = {
            **_device(self.device),
            "enable_progress_bar": bool(self.verbose),
            "enable_model_summary": False,
        }
        if self.max_steps is not None:
            trainer["max_steps"] = self.max_steps
        if self.max_time is not None:
            trainer["max_time"] = {"seconds": self.max_time}
        if "description" in arguments:
            arguments["description"] = plain_description(arguments["description"])
        return {
            **arguments,
            **sizes,
            # the face itself decides what to start from, tells the engine what to train, and
            # reads y in its own units
            "checkpoint": None,
            "fit_strategy": "full",
            "missing_marker": None,
            "batch_size": self.batch_size,
            # without a limit of epochs, one of the other two ends the training
            "n_epochs": self.num_epochs or 10**9,
            "optimizer_kwargs": None if self.lr is None else {"lr": self.lr},
            "random_state": self._seed,
            "pl_trainer_kwargs": {**trainer, **(self.trainer_kwargs or {})},
        }


def _device(device: str) -> dict[str, Any]:
    """Return a device in Lightning's words."""
    kind, _, number = device.partition(":")
    check_choice("device", kind, ("auto", "cpu", "cuda", "mps"))
    accelerator = "gpu" if kind == "cuda" else kind
    return {"accelerator": accelerator, "devices": [int(number)] if number else 1}

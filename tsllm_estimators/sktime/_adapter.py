"""From sktime's data and horizons to the engine and back: everything but the method itself."""

import inspect
import math
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from sktime.datatypes import update_data
from sktime.forecasting.base import BaseForecaster, ForecastingHorizon

from tsllm_estimators._validate import check_choice, check_integer, check_number
from tsllm_estimators.sktime._engine import LIKELIHOODS, Engine
from tsllm_estimators.sktime._index import (
    default_context,
    default_horizon,
    last_of,
    split_instances,
)


def set_parameters(estimator: Any, arguments: Mapping[str, Any]) -> None:
    """Store the arguments of a constructor, as scikit-learn's convention asks for."""
    for name, value in arguments.items():
        if name not in ("self", "__class__"):
            setattr(estimator, name, value)


class NetworkForecaster(BaseForecaster):
    """Base of the sktime forecasters of this package.

    Parameters
    ----------
    context_length : int or None
        L, time steps that the model sees. None is four horizons, less on a short series (so that
        it gives enough training windows), at most 512.
    horizon : int or None
        H, time steps that the model forecasts at once; a longer ``fh`` feeds on the model's own
        output. None is the largest step of ``fh`` in ``fit``; where that is not given, one
        season of the index (12 months, 24 hours...), at most a quarter of the series.
    likelihood : {"quantile", "gaussian", "laplace"} or None
        What the model learns to predict. ``"quantile"`` trains quantiles, so that intervals work
        at once; the point forecast is the median. None trains point forecasts with ``task_loss``
        and has no intervals.
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
        Sampled paths behind the intervals beyond the horizon.
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
        Show progress bars.
    """

    _tags = {
        "authors": ["tsllm_estimators developers"],
        "maintainers": ["tsllm_estimators developers"],
        "python_dependencies": ["darts>=0.48,<0.49", "torch", "transformers", "peft"],
        "y_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "X_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "capability:multivariate": True,
        "capability:exogenous": False,
        "capability:insample": True,
        "capability:pred_int": True,
        "capability:pred_int:insample": True,
        "capability:missing_values": False,
        "capability:non_contiguous_X": False,
        "capability:categorical_in_X": False,
        "capability:unequal_length": True,
        "capability:update": True,
        "capability:random_state": True,
        "property:randomness": "derandomized",
        "requires-fh-in-fit": False,
    }
    # sktime would keep a second copy of the data and warn about it at every construction
    _config = {"remember_data": False}
    _y = _X = None  # which sktime sets only if it is to remember data from construction on

    def __dynamic_tags__(self) -> None:
        if self.likelihood is None:
            self.set_tags(**{"capability:pred_int": False, "capability:pred_int:insample": False})
        if self.broadcasting:
            self.set_tags(y_inner_mtype="pd.DataFrame", X_inner_mtype="pd.DataFrame")

    @staticmethod
    def _model_class() -> type:
        """Return the class of the darts model; imported late, as it takes seconds."""
        raise NotImplementedError

    # fit ------------------------------------------------------------------------------------

    def _fit(self, y: pd.DataFrame, X: Any, fh: ForecastingHorizon | None) -> "NetworkForecaster":
        self._check_arguments()
        instances = split_instances(y)
        lengths = [len(frame) for frame in instances.values()]
        steps = None if fh is None else self._longest_step(fh, instances)
        first = next(iter(instances.values()))
        horizon = self.horizon or steps or default_horizon(first.index, max(lengths))
        context_length = self.context_length or default_context(horizon, max(lengths))
        self._cur_y = y
        self._engine = Engine(
            self._model_class(), self._model_arguments(context_length, horizon), self.likelihood
        )
        self._scales = {key: self._scale_of(frame) for key, frame in instances.items()}
        if min(lengths) < (context_length + horizon) / 2:
            warnings.warn(
                f"The shortest series has {min(lengths)} points, less than half of "
                f"context_length + horizon = {context_length + horizon}: it is padded with its "
                "first value. Choose a shorter context_length or horizon.",
                UserWarning,
                stacklevel=4,
            )
        self._train()
        return self

    def _train(self, epochs: int = 0) -> None:
        engine = self._engine
        series, validation = [], []
        for key, frame in split_instances(self._cur_y).items():
            values = self._scaled(key, frame)
            kept = self._training_length(len(values))
            if self.validation_split is not None:
                validation.append(_padded(values[max(0, kept - engine.context_length) :], engine))
            series.append(_padded(values[:kept], engine))
        engine.fit(series, validation or None, epochs)

    def _training_length(self, n_points: int) -> int:
        """Return how many points of a series are not kept for validation, one at least."""
        if self.validation_split is None:
            return n_points
        kept = max(self._engine.horizon, math.ceil(self.validation_split * n_points))
        return max(1, n_points - kept)

    def _update(
        self, y: pd.DataFrame, X: Any = None, update_params: bool = True
    ) -> "NetworkForecaster":
        self._cur_y = update_data(self._cur_y, y)
        for key, frame in split_instances(self._cur_y).items():
            if key not in self._scales:
                self._scales[key] = self._scale_of(frame)
        if update_params:
            self._train(epochs=self.num_update_epochs)
        return self

    # predict --------------------------------------------------------------------------------

    def _predict(self, fh: ForecastingHorizon, X: Any) -> pd.DataFrame:
        def locate(contexts: list[np.ndarray], n: int) -> np.ndarray:
            return self._engine.locations(contexts, n)[..., np.newaxis]

        columns = self._cur_y.columns
        return self._forecast(
            fh, locate, lambda values: pd.DataFrame(values[..., 0], columns=columns)
        )

    def _predict_quantiles(
        self, fh: ForecastingHorizon, X: Any, alpha: list[float]
    ) -> pd.DataFrame:
        def spread(contexts: list[np.ndarray], n: int) -> np.ndarray:
            return self._engine.quantiles(
                contexts, n, alpha, num_samples=self.num_samples, random_state=self._seed
            )

        names = self._get_varnames()
        columns = pd.MultiIndex.from_product([names, alpha])
        return self._forecast(
            fh,
            spread,
            lambda values: pd.DataFrame(values.reshape(len(values), -1), columns=columns),
        )

    def _forecast(
        self,
        fh: ForecastingHorizon,
        compute: Callable[[list[np.ndarray], int], np.ndarray],
        frame_of: Callable[[np.ndarray], pd.DataFrame],
    ) -> pd.DataFrame:
        """Forecast every instance at its own steps.

        ``compute`` maps contexts and a number of steps to values (b, n, c, k) in scaled units,
        ``frame_of`` the values of one instance (step, c, k) to its rows. Steps up to 0 are
        fitted values: the forecast one step ahead of everything before it.
        """
        instances = split_instances(self._cur_y)
        steps, indices = {}, {}
        for key, frame in instances.items():
            steps[key], indices[key] = self._steps(fh, frame.index)
        ahead = max(int(max(own)) for own in steps.values())
        scaled = {key: self._scaled(key, frame) for key, frame in instances.items()}
        future: dict[Hashable, np.ndarray] = {}
        if ahead > 0:
            contexts = [_context(values, self._engine) for values in scaled.values()]
            future = dict(zip(scaled, compute(contexts, ahead), strict=True))
        fitted = self._fitted_values(scaled, steps, compute)

        frames = {}
        for key, own in steps.items():
            rows = [fitted[key, s] if s <= 0 else future[key][s - 1] for s in own.tolist()]
            mean, deviation = (v[:, np.newaxis] for v in self._scales[key])
            frames[key] = frame_of(np.stack(rows) * deviation + mean).set_index(indices[key])
        if list(frames) == [None]:
            return frames[None]
        names = self._cur_y.index.names
        keys = [key if isinstance(key, tuple) else (key,) for key in frames]
        return pd.concat(list(frames.values()), keys=keys, names=names)

    def _fitted_values(
        self,
        scaled: Mapping[Hashable, np.ndarray],
        steps: Mapping[Hashable, np.ndarray],
        compute: Callable[[list[np.ndarray], int], np.ndarray],
    ) -> dict[tuple[Hashable, int], np.ndarray]:
        """Return one-step-ahead forecasts at the steps up to 0, all windows in one batch."""
        wanted = [(key, s) for key, own in steps.items() for s in own.tolist() if s <= 0]
        if not wanted:
            return {}
        contexts = []
        for key, step in wanted:
            values = scaled[key]
            position = len(values) - 1 + step
            if position < 0:
                raise ValueError(
                    f"fh: step {step} lies before the first of the {len(values)} known points."
                )
            # nothing comes before the first point, so it is its own context
            contexts.append(_context(values[: max(1, position)], self._engine))
        return dict(zip(wanted, compute(contexts, 1)[:, 0], strict=True))

    def _explainable(self, y: pd.DataFrame | None) -> tuple[Any, np.ndarray, list[Hashable]]:
        """Return the darts model, a series in its units (t, c) and the columns, for ``explain``."""
        key, frame = next(iter(split_instances(self._cur_y).items()))
        frame = frame if y is None else pd.DataFrame(y)
        return self._engine.model, self._scaled(key, frame), list(frame.columns)

    # horizons -------------------------------------------------------------------------------

    def _steps(self, fh: ForecastingHorizon, index: pd.Index) -> tuple[np.ndarray, pd.Index]:
        """Return the steps of ``fh`` from the end of an instance, and the index they stand at."""
        cutoff = last_of(index, self.cutoff)
        steps = np.asarray(fh.to_relative(cutoff).to_pandas(), dtype=int)
        return steps, fh.to_absolute_index(cutoff)

    def _longest_step(
        self, fh: ForecastingHorizon, instances: Mapping[Hashable, pd.DataFrame]
    ) -> int | None:
        longest = max(int(self._steps(fh, f.index)[0].max()) for f in instances.values())
        return longest if longest > 0 else None

    # arguments and scales -------------------------------------------------------------------

    def _check_arguments(self) -> None:
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

    def _model_arguments(self, context_length: int, horizon: int) -> dict[str, Any]:
        from sklearn.utils import check_random_state

        shared = inspect.signature(self._model_class().__init__).parameters  # type: ignore[misc]
        arguments = {k: v for k, v in self.get_params(deep=False).items() if k in shared}
        # Drawn here when it is None: darts would draw it from numpy's global generator.
        if self.random_state is None:
            seed = int(np.random.default_rng().integers(2**31))
        else:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._seed = seed
        trainer: dict[str, Any] = {
            **_device(self.device),
            "enable_progress_bar": bool(self.verbose),
            "enable_model_summary": False,
        }
        if self.max_steps is not None:
            trainer["max_steps"] = self.max_steps
        if self.max_time is not None:
            trainer["max_time"] = {"seconds": self.max_time}
        return {
            **arguments,
            "batch_size": self.batch_size,
            "input_chunk_length": context_length,
            "output_chunk_length": horizon,
            # without a limit of epochs, one of the other two ends the training
            "n_epochs": self.num_epochs or 10**9,
            "optimizer_kwargs": None if self.lr is None else {"lr": self.lr},
            "random_state": seed,
            "pl_trainer_kwargs": {**trainer, **(self.trainer_kwargs or {})},
        }

    def _scale_of(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and the standard deviation of the columns, (0, 1) without scaling."""
        values = frame.to_numpy(np.float64)
        if self.scaling is None:
            return np.zeros(values.shape[1]), np.ones(values.shape[1])
        values = values[: math.ceil((self.few_shot or 1) * self._training_length(len(values)))]
        mean, deviation = values.mean(0), values.std(0)
        # a constant column has a deviation of rounding errors, if not of 0
        negligible = deviation <= 1e-12 * np.abs(values).max(0)
        return mean, np.where(negligible, 1.0, deviation)

    def _scaled(self, key: Hashable, frame: pd.DataFrame) -> np.ndarray:
        mean, deviation = self._scales[key]
        return (frame.to_numpy(np.float64) - mean) / deviation


def _context(values: np.ndarray, engine: Engine) -> np.ndarray:
    """Return the last context of a series, padded with its first value if it is shorter."""
    return _pad(values[-engine.context_length :], engine.context_length)


def _padded(values: np.ndarray, engine: Engine) -> np.ndarray:
    """Return a series that gives one training window at least."""
    return _pad(values, engine.context_length + engine.horizon)


def _pad(values: np.ndarray, length: int) -> np.ndarray:
    missing = length - len(values)
    return np.pad(values, ((missing, 0), (0, 0)), mode="edge") if missing > 0 else values


def _device(device: str) -> dict[str, Any]:
    """Return a device in Lightning's words."""
    kind, _, number = device.partition(":")
    check_choice("device", kind, ("auto", "cpu", "cuda", "mps"))
    accelerator = "gpu" if kind == "cuda" else kind
    return {"accelerator": accelerator, "devices": [int(number)] if number else 1}

"""From sktime's data and horizons to the engine and back: everything but the method itself."""

import copy
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Self

import numpy as np
import pandas as pd
from sktime.forecasting.base import BaseForecaster, ForecastingHorizon

from tsllm_estimators.sktime._arguments import HostArguments
from tsllm_estimators.sktime._covariates import (
    Columns,
    check_columns,
    choose_columns,
    joined,
    text_columns,
)
from tsllm_estimators.sktime._distributions import CONTINUOUS, COUNTS
from tsllm_estimators.sktime._engine import Engine
from tsllm_estimators.sktime._index import (
    default_context,
    default_horizon,
    followed,
    longest_step,
    split_instances,
    steps_of_each,
)
from tsllm_estimators.sktime._likelihoods import DISCRETE
from tsllm_estimators.sktime._reading import ReadsSeries
from tsllm_estimators.sktime._scales import Scale
from tsllm_estimators.sktime._series import Series
from tsllm_estimators.sktime._sharing import Shareable
from tsllm_estimators.sktime._texts import check_described


class NetworkForecaster(ReadsSeries, Shareable, HostArguments, BaseForecaster):
    """Base of the sktime forecasters of this package."""

    _tags = {
        "authors": ["tsllm_estimators developers"],
        "maintainers": ["tsllm_estimators developers"],
        "python_dependencies": ["darts>=0.48,<0.49", "torch", "transformers", "peft"],
        "y_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "X_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "capability:multivariate": True,
        "capability:exogenous": True,
        "capability:insample": True,
        "capability:pred_int": True,
        "capability:pred_int:insample": True,
        "capability:missing_values": True,
        "capability:non_contiguous_X": False,
        "capability:categorical_in_X": False,
        "capability:unequal_length": True,
        "capability:update": True,
        "capability:pretrain": True,
        "pretrain:fitted_params": ["pretrained_model_"],
        "capability:random_state": True,
        "property:randomness": "derandomized",
        "requires-fh-in-fit": False,
    }
    # sktime would keep a second copy of the data and warn about it at every construction
    _config = {"remember_data": False}
    _y = _X = None  # which sktime sets only if it is to remember data from construction on
    _reads_text = False  # columns of text, the calendar, descriptions

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

    def _fit(self, y: pd.DataFrame, X: Any, fh: ForecastingHorizon | None) -> Self:
        self._check_arguments()
        y = self._observed(y)
        engine = self._new_engine(y, X, fh)
        if not engine.has_weights and self.fit_strategy != "full":
            raise ValueError(
                f"fit_strategy={self.fit_strategy!r} needs weights to start from, found none; call "
                "pretrain first, pass checkpoint=, or use fit_strategy='full'."
            )
        scales = self._scales_of(y, engine)
        self._train(engine, y, X, scales, strategy=self.fit_strategy)
        self._engine, self._scales = engine, scales
        self._cur_y, self._cur_X = y.copy(), None if X is None else X.copy()
        return self

    def _pretrain(self, y: pd.DataFrame, X: Any = None, fh: Any = None) -> Self:
        self._check_arguments()
        y = self._observed(y)
        engine = self._new_engine(y, X, fh)
        self._train(engine, y, X, self._scales_of(y, engine))
        self.pretrained_model_ = engine
        return self

    def _update(self, y: pd.DataFrame, X: Any = None, update_params: bool = True) -> Self:
        try:
            return self._updated(y, X, update_params)
        except Exception:
            self._set_cutoff_from_y(self._cur_y)  # which sktime has moved already
            raise

    def _updated(self, y: pd.DataFrame, X: Any, update_params: bool) -> Self:
        if list(y.columns) != list(self._cur_y.columns):
            raise ValueError(
                f"y: expected the columns {list(self._cur_y.columns)!r}, with which the forecaster "
                f"was fitted, found {list(y.columns)!r}."
            )
        self._check_columns(X, self._engine, ahead=not update_params)
        cur_y, cur_X = followed(self._cur_y, self._observed(y)), joined(self._cur_X, X)
        self._check_series(cur_y)
        scales = {**self._scales_of(cur_y, self._engine), **self._scales}
        if update_params:
            epochs, strategy = self.num_update_epochs, self.fit_strategy
            self._train(self._engine, cur_y, cur_X, scales, epochs, strategy)
        self._scales, self._cur_y, self._cur_X = scales, cur_y, cur_X
        return self

    def _new_engine(self, y: pd.DataFrame, X: Any, fh: Any) -> Engine:
        """Return an engine to train: with weights if there are any to start from, else new."""
        self._check_series(y)
        if self._reads_text:
            check_described(self, split_instances(y))
        covariates = choose_columns(X, self.past_covariates)
        texts = text_columns(X) if self._reads_text else frozenset()
        check_columns(X, covariates, ahead=False, texts=texts if self._reads_text else None)
        self._seed = self._draw_seed()
        start = self._start(y, covariates, texts)
        if start is not None:
            return start
        instances = split_instances(y)
        lengths = [len(frame) for frame in instances.values()]
        steps = None if fh is None else longest_step(fh, instances)
        first = next(iter(instances.values()))
        horizon = self.horizon or steps or default_horizon(first.index, max(lengths))
        context_length = self.context_length or default_context(horizon, max(lengths))
        arguments = self._model_arguments(
            input_chunk_length=context_length, output_chunk_length=horizon
        )
        return Engine.new(
            self._model_class(), arguments, self.likelihood, covariates, texts, y.columns
        )

    def _check_columns(self, X: pd.DataFrame | None, engine: Engine, ahead: bool) -> None:
        check_columns(X, engine.covariates, ahead, engine.texts if self._reads_text else None)

    def _explainable(self, y: Any, X: Any) -> tuple[dict[str, list], list[Hashable]]:
        """Return one instance as arguments of the darts model, and its columns, for ``explain``."""
        X = self._cur_X if y is None and X is None else X
        y = self._cur_y if y is None else self._observed(pd.DataFrame(y))
        key = next(iter(self._scales))
        if key is not None and not isinstance(y.index, pd.MultiIndex):  # is the first instance
            y, X = pd.concat({key: y}), None if X is None else pd.concat({key: X})
        self._check_columns(X, self._engine, ahead=False)
        scales = {**self._scales_of(y, self._engine), **self._scales}
        series = next(iter(self._series(self._engine, y, X, scales).values()))
        return self._engine._data([series]), [*y]

    def _start(
        self, y: pd.DataFrame, covariates: Columns, texts: frozenset[Hashable]
    ) -> Engine | None:
        """Return a copy of the pretrained engine or of the checkpoint, if there is one."""
        if hasattr(self, "pretrained_model_"):
            start = copy.deepcopy(self.pretrained_model_)
        elif self.checkpoint is not None:
            arguments = self._model_arguments()
            start = Engine.from_pretrained(self._model_class(), self.checkpoint, **arguments)
        else:
            return None
        for name, expected, found in [
            ("y: number of columns", start.n_variates, y.shape[1]),
            ("X: past and future columns", start.covariates, covariates),
            ("X: columns of text", start.texts, texts),
            ("likelihood", start.likelihood, self.likelihood),
            ("context_length", start.context_length, self.context_length or start.context_length),
            ("horizon", start.horizon, self.horizon or start.horizon),
        ]:
            if found != expected:
                raise ValueError(
                    f"{name}: the weights to start from were trained for {expected!r}, found "
                    f"{found!r}; use the same, or train anew."
                )
        return start

    def _train(
        self,
        engine: Engine,
        y: pd.DataFrame,
        X: Any,
        scales: Mapping[Hashable, Scale],
        epochs: int = 0,
        strategy: str = "full",
    ) -> None:
        context, whole = engine.context_length, engine.context_length + engine.horizon
        series, validation = [], []
        whole_series = self._series(engine, y, X, scales).values()
        shortest = min(len(one) for one in whole_series)
        for one in whole_series:
            kept = self._training_length(len(one), engine.horizon)
            if self.validation_split is not None:
                validation.append(one.since(max(0, kept - context)).padded(whole))
            series.append(one.until(kept).padded(whole))
        if shortest < whole / 2 and strategy != "zero-shot":
            warnings.warn(
                f"The shortest series has {shortest} points, less than half of "
                f"context_length + horizon = {whole}: it is padded with its first value. Choose a "
                "shorter context_length or horizon.",
                UserWarning,
                stacklevel=5,
            )
        engine.fit(series, validation or None, epochs, strategy)

    # predict --------------------------------------------------------------------------------

    def _predict(self, fh: ForecastingHorizon, X: Any) -> pd.DataFrame:
        def locate(series: list[Series], n: int) -> np.ndarray:
            return self._engine.locations(series, n)[..., np.newaxis]

        columns = self._cur_y.columns
        return self._forecast(
            fh, X, locate, lambda values: pd.DataFrame(values[..., 0], columns=columns)
        )

    def _predict_quantiles(
        self, fh: ForecastingHorizon, X: Any, alpha: list[float]
    ) -> pd.DataFrame:
        def spread(series: list[Series], n: int) -> np.ndarray:
            return self._engine.quantiles(
                series, n, alpha, num_samples=self.num_samples, random_state=self._seed
            )

        columns = pd.MultiIndex.from_product([self._get_varnames(), alpha])
        return self._forecast(
            fh,
            X,
            spread,
            lambda values: pd.DataFrame(values.reshape(len(values), -1), columns=columns),
        )

    def _predict_var(self, fh: ForecastingHorizon, X: Any, cov: bool = False) -> pd.DataFrame:
        if cov:
            raise ValueError("cov must be False: forecasts are distributions of single steps.")
        return self._predict_proba(fh, X).var()

    def _predict_proba(self, fh: ForecastingHorizon, X: Any, marginal: bool = True) -> Any:
        """Return the distribution whose quantiles are those of ``predict_quantiles``."""
        if not marginal:
            raise ValueError("marginal must be True: forecasts are distributions of single steps.")
        kind = COUNTS if self.likelihood in DISCRETE else CONTINUOUS
        quantiles = self._predict_quantiles(fh, X, list(kind.levels))
        return kind.distribution(quantiles, pd.Index(self._get_varnames()))

    def _forecast(
        self,
        fh: ForecastingHorizon,
        X: pd.DataFrame | None,
        compute: Callable[[list[Series], int], np.ndarray],
        frame_of: Callable[[np.ndarray], pd.DataFrame],
    ) -> pd.DataFrame:
        """Forecast every instance at its own steps.

        ``compute`` maps series and a number of steps to values (b, n, c, k) in scaled units,
        ``frame_of`` the values of one instance (step, c, k) to its rows. Steps up to 0 are
        fitted values: the forecast one step ahead of everything before it.
        """
        found = steps_of_each(fh, split_instances(self._cur_y))
        steps = {key: own for key, (own, _) in found.items()}
        indices = {key: index for key, (_, index) in found.items()}
        ahead = max(int(max(own)) for own in steps.values())
        if ahead > 0 or X is not None:
            self._check_columns(X, self._engine, ahead=True)
        engine, rows = self._engine, joined(self._cur_X, X)
        is_ahead = min(int(min(own)) for own in steps.values()) > 0
        within = engine.context_length if is_ahead else None
        series = self._series(engine, self._cur_y, rows, self._scales, max(ahead, 0), within)
        future: dict[Hashable, np.ndarray] = {}
        if ahead > 0:
            for key, one in series.items():
                self._check_context(key, one)
            future = dict(zip(series, compute(list(series.values()), ahead), strict=True))
        fitted = self._fitted_values(series, steps, compute)

        frames = {}
        for key, own in steps.items():
            values = [fitted[key, s] if s <= 0 else future[key][s - 1] for s in own.tolist()]
            mean, deviation = (v[:, np.newaxis] for v in self._scales[key])
            frames[key] = frame_of(np.stack(values) * deviation + mean).set_index(indices[key])
        if list(frames) == [None]:
            return frames[None]
        names = self._cur_y.index.names
        keys = [key if isinstance(key, tuple) else (key,) for key in frames]
        return pd.concat(list(frames.values()), keys=keys, names=names)

    def _fitted_values(
        self,
        series: Mapping[Hashable, Series],
        steps: Mapping[Hashable, np.ndarray],
        compute: Callable[[list[Series], int], np.ndarray],
    ) -> dict[tuple[Hashable, int], np.ndarray]:
        """Return one-step-ahead forecasts at the steps up to 0, all windows in one batch."""
        wanted = [(key, s) for key, own in steps.items() for s in own.tolist() if s <= 0]
        if not wanted:
            return {}
        contexts = []
        for key, step in wanted:
            position = len(series[key]) - 1 + step
            if position < 0:
                raise ValueError(
                    f"fh: step {step} lies before the first of the {len(series[key])} known points."
                )
            before = series[key].before(position)
            self._check_context(key, before)
            contexts.append(before)
        return dict(zip(wanted, compute(contexts, 1)[:, 0], strict=True))

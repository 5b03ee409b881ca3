"""What the sktime face knows of darts: fit, forecast and carry a darts model."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from tsllm_estimators.sktime._likelihoods import (
    BOUNDED,
    DISCRETE,
    LOCATION_SCALE,
    QUANTILES,
    name_of,
    quantiles_of,
    support_of,
)
from tsllm_estimators.sktime._series import Series


class Engine:
    """A darts model on lists of series.

    The first axis of every result runs over the contexts.

    Parameters
    ----------
    model : NetworkModel
        A darts model of this package, fitted or not.
    covariates : pair of tuples of str
        Names of the past and of the future covariates that it takes.
    texts : set of str
        Those of the covariates that are texts.
    columns : sequence of str
        Names of the columns that it was trained on, for the model card.
    """

    def __init__(
        self,
        model: Any,
        covariates: tuple[tuple, tuple] = ((), ()),
        texts: Iterable = (),
        columns: Iterable = (),
    ) -> None:
        self.model = model
        self.covariates = covariates
        self.texts = frozenset(texts)
        self.columns = [str(name) for name in columns]

    @classmethod
    def new(
        cls,
        model_class: type,
        arguments: Mapping[str, Any],
        likelihood: str | None,
        covariates: tuple[tuple, tuple],
        texts: Iterable,
        columns: Iterable,
    ) -> Self:
        """Return an engine without weights; ``arguments`` are those of the darts model."""
        model = model_class(likelihood=_darts_likelihood(likelihood), **arguments)
        return cls(model, covariates, texts, columns)

    @classmethod
    def from_pretrained(cls, model_class: Any, directory: Any, **arguments: Any) -> Self:
        """Return an engine with the weights of a directory, see the darts models."""
        config = read_forecaster(model_class, directory)
        past, future = config.get("covariates", ((), ()))
        model = model_class.from_pretrained(directory, **arguments)
        names = config.get("texts", ()), config.get("columns", ())
        return cls(model, (tuple(past), tuple(future)), *names)

    def save_pretrained(self, directory: Any, forecaster: Mapping[str, Any]) -> None:
        """Write the weights and the forecaster's arguments to a directory."""
        from tsllm_estimators.darts._artefact import is_plain

        odd = [n for names in self.covariates for n in names if not isinstance(n, str | int)]
        if odd:
            raise ValueError(
                f"X: names of columns must be texts or integers to be shared, found {odd!r}; "
                "rename them and fit again."
            )
        self.model.save_pretrained(
            directory,
            covariates=self.covariates,
            texts=[name for names in self.covariates for name in names if name in self.texts],
            columns=self.columns,
            forecaster={name: value for name, value in forecaster.items() if is_plain(value)},
        )

    @property
    def has_weights(self) -> bool:
        """Whether it has been trained or loaded."""
        return self.model.model_created

    @property
    def context_length(self) -> int:
        """L, time steps that the model sees."""
        return self.model.input_chunk_length

    @property
    def horizon(self) -> int:
        """H, time steps that it forecasts at once."""
        return self.model.output_chunk_length

    @property
    def n_variates(self) -> int:
        """C, columns that it forecasts."""
        return self.model.model.network.shapes.n_variates

    @property
    def likelihood(self) -> str | None:
        """Name of the likelihood."""
        return name_of(self.model.likelihood)

    def fit(
        self,
        series: Sequence[Series],
        validation: Sequence[Series] | None = None,
        epochs: int = 0,
        strategy: str = "full",
    ) -> None:
        """Train on all series; ``epochs`` more if it has been trained."""
        if strategy == "zero-shot":
            return
        self.model.model_params["fit_strategy"] = strategy
        data = self._data(series)
        if validation is not None:
            data |= {f"val_{name}": value for name, value in self._data(validation).items()}
        self.model.fit(epochs=epochs, **data)

    def locations(self, series: Sequence[Series], n: int) -> np.ndarray:
        """Return point forecasts (b, n, c); beyond the horizon they feed on themselves."""
        if self.likelihood is None:
            return self._predict(series, n)[..., 0]
        series, chunks = list(series), []
        while n > 0:
            chunk = self._quantiles(self._parameters(series, min(n, self.horizon)), [0.5])[..., 0]
            chunks.append(chunk)
            series = [one.followed_by(more) for one, more in zip(series, chunk, strict=True)]
            n -= self.horizon
        return np.concatenate(chunks, axis=1)

    def quantiles(
        self, series: Sequence[Series], n: int, levels: Sequence[float], **sampling: Any
    ) -> np.ndarray:
        """Return quantile forecasts (b, n, c, level).

        Within the horizon they are computed from the likelihood's parameters. Beyond it they are
        those of sampled paths (``num_samples``, ``random_state``), moved so that the median of
        the paths is the point forecast.
        """
        exact = self._quantiles(self._parameters(series, min(n, self.horizon)), levels)
        if n <= self.horizon:
            return exact
        paths = self._predict(series, n, **sampling)[:, self.horizon :]
        name = str(self.likelihood)
        counts = name in DISCRETE
        spread = np.quantile(
            paths, [*levels, 0.5], axis=-1, method="inverted_cdf" if counts else "linear"
        )
        spread = np.moveaxis(spread[:-1] - spread[-1:], 0, -1)
        moved = self.locations(series, n)[:, self.horizon :, :, np.newaxis] + spread
        return np.concatenate([exact, moved.clip(*support_of(name))], axis=1)

    def _parameters(self, series: Sequence[Series], n: int) -> np.ndarray:
        """Return the likelihood's parameters, shape (b, n, c, p)."""
        flat = self._predict(series, n, predict_likelihood_parameters=True)[..., 0]
        return flat.reshape(*flat.shape[:2], self.n_variates, -1)

    def _quantiles(self, parameters: np.ndarray, levels: Sequence[float]) -> np.ndarray:
        trained = tuple(getattr(self.model.likelihood, "quantiles", ()))
        return quantiles_of(str(self.likelihood), parameters, levels, trained)

    def _predict(self, series: Sequence[Series], n: int, **kwargs: Any) -> np.ndarray:
        """Return what darts predicts, shape (b, n, component, sample), float64."""
        contexts = [one.context(self.context_length, n, self.horizon) for one in series]
        return self.model.predict_values(n, **self._data(contexts), **kwargs).astype(float)

    def _data(self, series: Sequence[Series]) -> dict[str, Any]:
        """Return darts' series of the targets and of the covariates, as arguments."""
        past, future = (self._names(names) for names in self.covariates)
        named = {
            "series": ([one.target for one in series], None),
            "past_covariates": ([one.past for one in series if one.past is not None], past),
            "future_covariates": ([one.future for one in series if one.future is not None], future),
        }
        return {
            name: [_darts_series(values, names) for values in arrays]
            for name, (arrays, names) in named.items()
            if arrays
        }

    def _names(self, columns: Iterable) -> list[str]:
        """Return what darts is to call covariates; what a series itself tells comes after them."""
        from tsllm_estimators.darts._texts import CALENDAR, DESCRIPTION, PREFIX

        own = [
            f"{PREFIX}{name}" if name in self.texts else f"column {number}"
            for number, name in enumerate(columns)
        ]
        return [*own, CALENDAR, DESCRIPTION]

    def __getstate__(self) -> dict[str, Any]:
        # darts drops the network when it is pickled, so its own files travel instead
        state = {k: v for k, v in self.__dict__.items() if k != "model"}
        with tempfile.TemporaryDirectory() as folder:
            self.model.save(str(Path(folder, "model.pt")), clean=True)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        trainer = self.model.model_params.get("pl_trainer_kwargs")
        return {
            **state,
            "files": files,
            "model_class": type(self.model),
            "trainer_kwargs": trainer,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        files, model_class = state.pop("files"), state.pop("model_class")
        trainer_kwargs = state.pop("trainer_kwargs")
        self.__dict__.update(state)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            self.model = model_class.load(
                str(Path(folder, "model.pt")), pl_trainer_kwargs=trainer_kwargs, map_location="cpu"
            )


def read_forecaster(model_class: Any, directory: Any) -> dict[str, Any]:
    """Return ``config.json`` of a directory that ``save_pretrained`` wrote, as a forecaster's.

    ``forecaster`` in it holds the arguments of the sktime face: those that it saved, or their
    equals if the darts face saved it.
    """
    from tsllm_estimators.darts._artefact import arguments_of, read_config
    from tsllm_estimators.darts._texts import PREFIX

    config = read_config(directory, model_class.method)
    if "forecaster" not in config:
        arguments = arguments_of(config)
        words = {"context_length": "input_chunk_length", "horizon": "output_chunk_length"}
        named = config.get("text_columns") or {"past": [], "future": []}
        past, future = (
            [name.removeprefix(PREFIX) for name in named[kind]] for kind in ("past", "future")
        )
        config |= {"covariates": (past, future), "texts": [*past, *future]}
        config["forecaster"] = {
            **arguments,
            **{own: arguments[name] for own, name in words.items()},
            "likelihood": name_of(arguments.get("likelihood")),
            "past_covariates": past or None,
            "scaling": None,  # darts forecasts in the units that it is given
        }
    return config


def _darts_series(values: np.ndarray, names: list[str] | None) -> Any:
    from darts import TimeSeries

    names = None if names is None else names[: values.shape[1]]
    values = np.ascontiguousarray(values, dtype=np.float32)
    return TimeSeries.from_values(values, columns=names)


def _darts_likelihood(name: str | None) -> Any:
    import darts.utils.likelihood_models.torch as likelihoods

    if name is None:
        return None
    if name == "quantile":
        return likelihoods.QuantileRegression(list(QUANTILES))
    return getattr(likelihoods, {**LOCATION_SCALE, **BOUNDED}[name])()

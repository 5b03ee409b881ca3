"""What the sktime face knows of darts: fit, forecast and carry a darts model."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Levels of the "quantile" likelihood: symmetric, and dense enough in the tails for the usual
# intervals (50, 80, 90, 95 and 98 %) to be trained rather than interpolated.
QUANTILES = (0.01, 0.025, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5)
QUANTILES = QUANTILES + tuple(round(1 - q, 3) for q in reversed(QUANTILES[:-1]))
LIKELIHOODS = ("quantile", "gaussian", "laplace")


class Engine:
    """A darts model on lists of arrays.

    Series are float arrays of shape (t, c) without a calendar; the first axis of every result
    runs over the contexts.

    Parameters
    ----------
    model_class : type
        Class of the darts model.
    arguments : mapping
        Arguments of its constructor but ``likelihood``.
    likelihood : {"quantile", "gaussian", "laplace"} or None
        Name of the likelihood.
    """

    def __init__(
        self, model_class: type, arguments: Mapping[str, Any], likelihood: str | None
    ) -> None:
        self.model = model_class(likelihood=_likelihood(likelihood), **arguments)
        self.likelihood = likelihood
        self.context_length: int = arguments["input_chunk_length"]
        self.horizon: int = arguments["output_chunk_length"]

    def fit(
        self,
        series: Sequence[np.ndarray],
        validation: Sequence[np.ndarray] | None = None,
        epochs: int = 0,
    ) -> None:
        """Train on all series; ``epochs`` more if it has been trained."""
        self.model.fit(
            [_series(values) for values in series],
            val_series=None if validation is None else [_series(v) for v in validation],
            epochs=epochs,
        )

    def locations(self, contexts: Sequence[np.ndarray], n: int) -> np.ndarray:
        """Return point forecasts (b, n, c); beyond the horizon they feed on themselves."""
        if self.likelihood is None:
            return self._predict(contexts, n)[..., 0]
        contexts, chunks = list(contexts), []
        while n > 0:
            chunk = self._quantiles(self._parameters(contexts, min(n, self.horizon)), [0.5])[..., 0]
            chunks.append(chunk)
            contexts = [np.concatenate(pair) for pair in zip(contexts, chunk, strict=True)]
            n -= self.horizon
        return np.concatenate(chunks, axis=1)

    def quantiles(
        self, contexts: Sequence[np.ndarray], n: int, levels: Sequence[float], **sampling: Any
    ) -> np.ndarray:
        """Return quantile forecasts (b, n, c, level).

        Within the horizon they are computed from the likelihood's parameters. Beyond it they are
        those of sampled paths (``num_samples``, ``random_state``), moved so that the median of
        the paths is the point forecast.
        """
        if n <= self.horizon:
            return self._quantiles(self._parameters(contexts, n), levels)
        paths = self._predict(contexts, n, **sampling)
        spread = np.quantile(paths, [*levels, 0.5], axis=-1)
        spread = np.moveaxis(spread[:-1] - spread[-1:], 0, -1)
        return self.locations(contexts, n)[..., np.newaxis] + spread

    def _parameters(self, contexts: Sequence[np.ndarray], n: int) -> np.ndarray:
        """Return the likelihood's parameters, shape (b, n, c, p)."""
        flat = self._predict(contexts, n, predict_likelihood_parameters=True)[..., 0]
        return flat.reshape(*flat.shape[:2], contexts[0].shape[1], -1)

    def _quantiles(self, parameters: np.ndarray, levels: Sequence[float]) -> np.ndarray:
        from scipy.stats import laplace, norm

        if self.likelihood == "quantile":
            # Sorted, as quantiles must be. Between and beyond the trained levels they are taken
            # to be linear in the quantiles of a normal distribution.
            return _interpolate(np.sort(parameters, axis=-1), norm.ppf(levels))
        distribution = {"gaussian": norm, "laplace": laplace}[str(self.likelihood)]
        location, scale = np.moveaxis(parameters, -1, 0)
        return np.stack([distribution.ppf(q, location, scale) for q in levels], axis=-1)

    def _predict(self, contexts: Sequence[np.ndarray], n: int, **kwargs: Any) -> np.ndarray:
        """Return what darts predicts, shape (b, n, component, sample), float64."""
        series = [_series(context[-self.context_length :]) for context in contexts]
        forecasts = self.model.predict(n, series=series, **kwargs)
        return np.stack([forecast.all_values(copy=False) for forecast in forecasts]).astype(float)

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


def _series(values: np.ndarray) -> Any:
    from darts import TimeSeries

    return TimeSeries.from_values(np.ascontiguousarray(values, dtype=np.float32))


def _likelihood(name: str | None) -> Any:
    from darts.utils.likelihood_models.torch import (
        GaussianLikelihood,
        LaplaceLikelihood,
        QuantileRegression,
    )

    if name == "quantile":
        return QuantileRegression(list(QUANTILES))
    return {None: lambda: None, "gaussian": GaussianLikelihood, "laplace": LaplaceLikelihood}[
        name
    ]()


def _interpolate(quantiles: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolate quantiles of the levels ``QUANTILES`` (last axis) at normal scores ``at``."""
    from scipy.stats import norm

    known = norm.ppf(QUANTILES)
    right = np.clip(np.searchsorted(known, at), 1, len(known) - 1)
    weight = (at - known[right - 1]) / (known[right] - known[right - 1])
    return quantiles[..., right - 1] * (1 - weight) + quantiles[..., right] * weight

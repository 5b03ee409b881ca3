"""Search spaces: what is worth tuning of each method, for the tuners of sktime, darts and Optuna.

The choices of every space hold the default, and what can stand in for the language model: a search
says whether it earned its place.
"""

from dataclasses import dataclass
from typing import Any

from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE


@dataclass(frozen=True)
class Range:
    """Positive numbers from ``low`` to ``high``, on a logarithmic scale."""

    low: float
    high: float

    def values(self) -> list[float]:
        """Return both ends and their geometric mean."""
        return [self.low, float(f"{(self.low * self.high) ** 0.5:.2g}"), self.high]


#: What to search, by method and by the names of the sktime face.
SPACES: dict[str, dict[str, Range | tuple]] = {
    "calf": {
        "backbone": (DEFAULT_BACKBONE, "none"),
        "lr": Range(5e-5, 2e-3),
        "head_dropout": (0.0, 0.1, 0.3, 0.5),
        "output_weight": (0.0, 0.3, 1.0),
        "lora_rank": (4, 8, 16),
    },
    "time_llama": {
        "backbone": (DEFAULT_BACKBONE, "none"),
        "lr": Range(2e-4, 5e-3),
        "head_dropout": (0.0, 0.1, 0.3, 0.5),
        "residual": ("gated", "plain"),
        "top_n": (2, 4, None),
    },
    "llm_ts_net": {
        "text": ("series", "shared", "none"),
        "lr": Range(5e-4, 1e-2),
        "d_model": (16, 32, 64),
        "dropout": (0.0, 0.1, 0.3),
        "normalization": ("window", "last"),
        "prompts": (True, False),
    },
    "lemole": {
        "text": ("both", "calendar", "none"),
        "lr": Range(2e-4, 5e-3),
        "dropout": (0.0, 0.3, 0.5),
        "normalization": ("instance", "last"),
        "d_hidden": (32, 64, 128),
    },
}
_MULTIPLES = (2, 4, 8)  # of the horizon


def search_space(estimator: Any, horizon: int | None = None) -> dict[str, Any]:
    """Return what is worth tuning of an estimator.

    Parameters
    ----------
    estimator : estimator or class
        Of either face.
    horizon : int, optional
        H; where it is given, the space has contexts of 2, 4 and 8 horizons too.

    Returns
    -------
    dict
        From the names of arguments, in the words of the estimator's face, to a tuple of choices or
        a :class:`Range`. In darts, whose models have no argument of it, ``"lr"`` stands for the
        learning rate of ``optimizer_kwargs``.

    Raises
    ------
    TypeError
        If it is no estimator of this package.
    """
    method, face = _identified(estimator)
    space: dict[str, Any] = dict(SPACES[method])
    if horizon is not None:
        name = "context_length" if face == "sktime" else "input_chunk_length"
        space[name] = tuple(multiple * horizon for multiple in _MULTIPLES)
    return space


def grid(estimator: Any, horizon: int | None = None) -> dict[str, list]:
    """Return the space as lists, for sktime's grid and random searches and darts' ``gridsearch``.

    Parameters
    ----------
    estimator : estimator or class
        Of either face.
    horizon : int, optional
        See :func:`search_space`.

    Returns
    -------
    dict of str to list
        Of a range both ends and their geometric mean. All combinations are many: take a part, or
        a randomised search.
    """
    lists = {
        name: dimension.values() if isinstance(dimension, Range) else list(dimension)
        for name, dimension in search_space(estimator, horizon).items()
    }
    if _identified(estimator)[1] == "darts":
        lists["optimizer_kwargs"] = [{"lr": lr} for lr in lists.pop("lr")]
    return lists


def distributions(estimator: Any, horizon: int | None = None) -> dict[str, Any]:
    """Return the space as distributions of Optuna, for sktime's ``ForecastingOptunaSearchCV``.

    Parameters
    ----------
    estimator : estimator or class
        Of either face; in a pipeline, put the names of its steps in front (``"forecaster__lr"``).
    horizon : int, optional
        See :func:`search_space`.

    Returns
    -------
    dict of str to optuna.distributions.BaseDistribution
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        name: FloatDistribution(dimension.low, dimension.high, log=True)
        if isinstance(dimension, Range)
        else CategoricalDistribution(dimension)
        for name, dimension in search_space(estimator, horizon).items()
    }


def suggest(trial: Any, estimator: Any, horizon: int | None = None) -> dict[str, Any]:
    """Return what a trial of Optuna tries, as arguments of the estimator's constructor.

    Parameters
    ----------
    trial : optuna.Trial
    estimator : estimator or class
        Of either face.
    horizon : int, optional
        See :func:`search_space`.

    Returns
    -------
    dict of str to value
    """
    arguments = {
        name: trial.suggest_float(name, dimension.low, dimension.high, log=True)
        if isinstance(dimension, Range)
        else trial.suggest_categorical(name, dimension)
        for name, dimension in search_space(estimator, horizon).items()
    }
    if _identified(estimator)[1] == "darts":
        arguments["optimizer_kwargs"] = {"lr": arguments.pop("lr")}
    return arguments


def _identified(estimator: Any) -> tuple[str, str]:
    """Return the method and the face of an estimator."""
    if hasattr(estimator, "_model_class"):
        return estimator._model_class().method, "sktime"
    if getattr(estimator, "method", None) in SPACES:
        return estimator.method, "darts"
    raise TypeError(
        "estimator must be a forecaster or a model of this package, or its class, found "
        f"{estimator!r}; of a pipeline, give the forecaster within."
    )

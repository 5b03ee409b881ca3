"""The likelihoods of the sktime face: the name of darts' class, and scipy's distribution."""

from collections.abc import Callable
from typing import Any

import numpy as np

# Levels of the "quantile" likelihood: symmetric, and dense enough in the tails for the usual
# intervals (50, 80, 90, 95 and 98 %) to be trained rather than interpolated.
QUANTILES = (0.01, 0.025, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5)
QUANTILES = QUANTILES + tuple(round(1 - q, 3) for q in reversed(QUANTILES[:-1]))

#: Likelihoods whose parameters move and stretch with the data.
LOCATION_SCALE = {
    "gaussian": "GaussianLikelihood",
    "laplace": "LaplaceLikelihood",
    "cauchy": "CauchyLikelihood",
    "gumbel": "GumbelLikelihood",
}
#: Likelihoods of positive values, of counts and of shares: for data as it is.
BOUNDED = {
    "poisson": "PoissonLikelihood",
    "negative_binomial": "NegativeBinomialLikelihood",
    "bernoulli": "BernoulliLikelihood",
    "geometric": "GeometricLikelihood",
    "beta": "BetaLikelihood",
    "exponential": "ExponentialLikelihood",
    "gamma": "GammaLikelihood",
    "half_normal": "HalfNormalLikelihood",
    "log_normal": "LogNormalLikelihood",
    "weibull": "WeibullLikelihood",
}
DISCRETE = ("poisson", "negative_binomial", "bernoulli", "geometric")
LIKELIHOODS = ("quantile", *LOCATION_SCALE, *BOUNDED)


def name_of(likelihood: Any) -> str | None:
    """Return this face's name of one of darts' likelihoods.

    Raises
    ------
    ValueError
        If this face has no name for it.
    """
    if likelihood is None:
        return None
    names = {cls: name for name, cls in {**LOCATION_SCALE, **BOUNDED}.items()}
    names["QuantileRegression"] = "quantile"
    cls = type(likelihood).__name__
    if cls not in names:
        raise ValueError(
            f"checkpoint: expected one of the likelihoods {list(LIKELIHOODS)}, found darts' {cls}; "
            "use the darts model."
        )
    return names[cls]


def support_of(name: str) -> tuple[float, float]:
    """Return the least and the greatest value that a likelihood knows."""
    if name not in BOUNDED:
        return -np.inf, np.inf
    return 0.0, 1.0 if name in ("bernoulli", "beta") else np.inf


def quantiles_of(
    name: str, parameters: np.ndarray, levels: Any, trained: tuple[float, ...]
) -> np.ndarray:
    """Return the quantiles (..., level) of parameters (..., p) of a likelihood.

    ``trained`` are the levels of the ``"quantile"`` likelihood. Its quantiles are sorted, as
    quantiles must be; between and beyond the trained levels they are taken to be linear in the
    quantiles of a normal distribution.
    """
    if name == "quantile":
        return _interpolated(np.sort(parameters, axis=-1), levels, trained)
    distribution = _distributions()[name](*np.moveaxis(parameters, -1, 0))
    return np.stack([distribution.ppf(level) for level in levels], axis=-1)


def _distributions() -> dict[str, Callable[..., Any]]:
    """Return scipy's distribution of darts' parameters, by name."""
    from scipy import stats

    return {
        "gaussian": stats.norm,
        "laplace": stats.laplace,
        "cauchy": stats.cauchy,
        "gumbel": stats.gumbel_r,
        "poisson": stats.poisson,
        "negative_binomial": lambda mean, alpha: stats.nbinom(1 / alpha, 1 / (1 + alpha * mean)),
        "bernoulli": stats.bernoulli,
        "geometric": lambda p: stats.geom(p, loc=-1),  # torch counts the failures
        "beta": stats.beta,
        "exponential": lambda rate: stats.expon(scale=1 / rate),
        "gamma": lambda shape, rate: stats.gamma(shape, scale=1 / rate),
        "half_normal": lambda scale: stats.halfnorm(scale=scale),
        "log_normal": lambda mu, sigma: stats.lognorm(sigma, scale=np.exp(mu)),
        "weibull": lambda scale, shape: stats.weibull_min(shape, scale=scale),
    }


def _interpolated(
    quantiles: np.ndarray, levels: Any, trained: tuple[float, ...] = QUANTILES
) -> np.ndarray:
    from scipy.stats import norm

    known, at = norm.ppf(trained), norm.ppf(levels)
    if len(known) == 1:
        return np.broadcast_to(quantiles, (*quantiles.shape[:-1], len(at)))
    right = np.clip(np.searchsorted(known, at), 1, len(known) - 1)
    weight = (at - known[right - 1]) / (known[right] - known[right - 1])
    return quantiles[..., right - 1] * (1 - weight) + quantiles[..., right] * weight

"""How the networks' output parameters read under darts' likelihoods."""

from darts.utils.likelihood_models.torch import (
    CauchyLikelihood,
    GaussianLikelihood,
    GumbelLikelihood,
    LaplaceLikelihood,
    QuantileRegression,
)

from tsllm_estimators.darts._compat import TorchLikelihood

__all__ = ["QuantileRegression", "parameter_kinds"]

_LOCATION_SCALE = (GaussianLikelihood, LaplaceLikelihood, CauchyLikelihood, GumbelLikelihood)


def parameter_kinds(
    likelihood: TorchLikelihood | None, normalization: str | None
) -> tuple[tuple[str, ...], int]:
    """Return the kind of each output parameter and which of them is the point forecast.

    Raises
    ------
    ValueError
        If the likelihood's parameters cannot be brought back from normalised windows.
    """
    if likelihood is None:
        return ("location",), 0
    if isinstance(likelihood, QuantileRegression):
        quantiles = likelihood.quantiles
        return ("location",) * len(quantiles), quantiles.index(0.5)
    if isinstance(likelihood, _LOCATION_SCALE):
        return ("location", "scale"), 0
    if normalization is None:
        return ("free",) * likelihood.num_parameters, 0
    raise ValueError(
        "likelihood must be None, QuantileRegression or one of "
        f"{[cls.__name__ for cls in _LOCATION_SCALE]}, found {type(likelihood).__name__}: the "
        "network normalises each window, which takes values out of the support of positive, "
        "count and simplex distributions. Set normalization=None for these."
    )

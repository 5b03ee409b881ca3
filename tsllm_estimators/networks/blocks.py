"""Parts that two methods or more share: distances, window normalisation, heads."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _smape(first: Tensor, second: Tensor) -> Tensor:
    # The denominator is not differentiated: its gradient rewards forecasts of large size.
    size = (first.abs() + second.abs()).detach()
    return (first - second).abs() / size.clamp_min(torch.finfo(size.dtype).tiny)


#: Distances between two tensors, element by element.
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda first, second: (first - second).abs(),
    "mse": lambda first, second: (first - second).square(),
    "smooth_l1": lambda first, second: F.smooth_l1_loss(first, second, reduction="none"),
    "smape": _smape,
}

#: Power of the data's unit that a distance carries.
DISTANCE_DEGREES = {"l1": 1, "mse": 2, "smooth_l1": 1, "smape": 0}


class WindowStatistics(NamedTuple):
    """Location and scale of each window and variate, shape (b, 1, c)."""

    location: Tensor
    scale: Tensor


def normalize_window(window: Tensor, unit: Tensor) -> tuple[Tensor, WindowStatistics]:
    """Give each window and variate mean 0 and standard deviation 1.

    Parameters
    ----------
    window : Tensor
        Shape (b, t, c), in the units of the data.
    unit : Tensor
        Standard deviation of the training data; the usual 1e-5 that keeps a constant window
        finite is counted in its square.

    Returns
    -------
    Tensor
        Shape (b, t, c), without a unit.
    WindowStatistics
        What :func:`restore_parameters` needs; constant for the gradient.
    """
    location = window.mean(1, keepdim=True).detach()
    variance = window.var(1, keepdim=True, correction=0).detach()
    statistics = WindowStatistics(location, (variance + 1e-5 * unit**2).sqrt())
    return (window - location) / statistics.scale, statistics


def restore_parameters(
    parameters: Tensor, statistics: WindowStatistics, kinds: Sequence[str]
) -> Tensor:
    """Bring the parameters of a normalised window back to the units of the data.

    Parameters
    ----------
    parameters : Tensor
        Shape (b, h, c, p).
    statistics : WindowStatistics
        Of the window.
    kinds : sequence of {"location", "scale"}
        Kind of each parameter. A location is multiplied and moved. A scale s reaches the
        likelihood as softplus(s), so the widths, not the raw numbers, are multiplied.
    """
    location, scale = (value.unsqueeze(-1) for value in statistics)
    if "scale" not in kinds:
        return parameters * scale + location
    restored = [
        values * scale[..., 0] + location[..., 0]
        if kind == "location"
        else inverse_softplus(F.softplus(values) * scale[..., 0])
        for values, kind in zip(parameters.unbind(-1), kinds, strict=True)
    ]
    return torch.stack(restored, -1)


def inverse_softplus(width: Tensor) -> Tensor:
    """Return x with softplus(x) = width, for positive widths."""
    width = width.clamp_min(torch.finfo(width.dtype).tiny)
    small = width.clamp_max(20.0)  # beyond 20 softplus is the identity, and expm1 would overflow
    return torch.where(width > 20.0, width, small.expm1().log())


class ForecastHead(nn.Module):
    """One linear map from a variate's token to its forecast.

    Parameters
    ----------
    width : int
        d, width of a token.
    horizon : int
        H, steps of the forecast.
    n_parameters : int
        Numbers per step.
    dropout : float
        Share of the token that is dropped in training.
    """

    def __init__(self, width: int, horizon: int, n_parameters: int, dropout: float) -> None:
        super().__init__()
        self.n_parameters = n_parameters
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, horizon * n_parameters)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (b, c, d) to parameters (b, h, c, p)."""
        parameters = self.linear(self.dropout(tokens))
        return parameters.unflatten(-1, (-1, self.n_parameters)).transpose(1, 2)

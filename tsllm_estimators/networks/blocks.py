"""Parts that two methods or more share: distances, normalisation, covariates, heads."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsllm_estimators.networks.base import Batch, Shapes


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


def check_heads(n_heads: int, width: int) -> None:
    """Raise ``ValueError`` unless attention of a width can have so many heads."""
    if width % n_heads:
        raise ValueError(
            f"n_heads must divide the width of the backbone ({width}), found {n_heads}."
        )


class WindowStatistics(NamedTuple):
    """Location and scale of each window and variate, shape (b, 1, c)."""

    location: Tensor
    scale: Tensor


def normalize_window(
    window: Tensor, unit: Tensor, normalization: str | None = "window"
) -> tuple[Tensor, WindowStatistics]:
    """Bring each window and variate to a location of 0, and to a deviation of 1.

    Parameters
    ----------
    window : Tensor
        Shape (b, t, c), in the units of the data; NaN where nothing was observed.
    unit : Tensor
        Standard deviation of the training data; the usual 1e-5 that keeps a constant window
        finite is counted in its square.
    normalization : {"window", "instance", "last"} or None
        Mean 0 and standard deviation 1 under either name; ``"last"`` subtracts the last value that
        was observed and divides by ``unit``; None divides by ``unit`` alone.

    Returns
    -------
    Tensor
        Shape (b, t, c), without a unit; what is missing stands at the mean of what is not, or at
        the last value.
    WindowStatistics
        What :func:`restore_parameters` needs; constant for the gradient.
    """
    observed = ~window.isnan()
    if normalization == "last":
        last = _last_observed(window, observed)
        scale = unit.expand_as(last)
        return torch.where(observed, window - last, 0.0) / scale, WindowStatistics(last, scale)
    n_observed = observed.sum(1, keepdim=True).clamp_min(1)
    mean = window.nan_to_num(nan=0.0).sum(1, keepdim=True).div(n_observed).detach()
    centred = torch.where(observed, window - mean, 0.0)
    if normalization is None:
        scale = unit.expand_as(mean)
        return (centred + mean) / scale, WindowStatistics(torch.zeros_like(mean), scale)
    # in units of the data, whose squares might be too large or too small a number
    variance = (centred / unit).square().sum(1, keepdim=True).div(n_observed).detach()
    statistics = WindowStatistics(mean, unit * (variance + 1e-5).sqrt())
    return centred / statistics.scale, statistics


def _last_observed(window: Tensor, observed: Tensor) -> Tensor:
    """Return the last value (b, 1, c) of each variate that was observed, 0 where none was."""
    n_steps = window.shape[1]
    steps = torch.arange(n_steps, device=window.device).unsqueeze(1)
    latest = torch.where(observed, steps, 0).amax(1, keepdim=True)
    return window.gather(1, latest).nan_to_num(nan=0.0).detach()


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
    kinds : sequence of {"location", "scale", "free"}
        Kind of each parameter. A location is multiplied and moved. A scale s reaches the
        likelihood as softplus(s), so the widths, not the raw numbers, are multiplied. A free
        parameter stays as it is.
    """
    location, scale = statistics
    if set(kinds) == {"location"}:
        return parameters * scale.unsqueeze(-1) + location.unsqueeze(-1)
    restore = {
        "location": lambda values: values * scale + location,
        "scale": lambda values: inverse_softplus(F.softplus(values) * scale),
        "free": lambda values: values,
    }
    pairs = zip(parameters.unbind(-1), kinds, strict=True)
    return torch.stack([restore[kind](values) for values, kind in pairs], -1)


def inverse_softplus(width: Tensor) -> Tensor:
    """Return x with softplus(x) = width, for positive widths."""
    width = width.clamp_min(torch.finfo(width.dtype).tiny)
    small = width.clamp_max(20.0)  # beyond 20 softplus is the identity, and expm1 would overflow
    return torch.where(width > 20.0, width, small.expm1().log())


class CovariateTokens(nn.Module):
    """One token for each past and each future covariate, and one for all static ones.

    Covariates are standardised with the training data, not within the window: the level of a
    price or of a flag counts. A missing value counts as the mean.

    Parameters
    ----------
    shapes : Shapes
        Of the network.
    width : int
        d, width of a token.
    """

    def __init__(self, shapes: Shapes, width: int) -> None:
        super().__init__()
        self.width = width
        lengths = {
            "past": shapes.context_length,
            "future": shapes.context_length + shapes.horizon,
            "static": shapes.n_static_covariates,
        }
        counts = {
            "past": shapes.n_past_covariates,
            "future": shapes.n_future_covariates,
            "static": shapes.n_static_covariates,
        }
        used = [kind for kind, count in counts.items() if count]
        self.n_tokens = sum(1 if kind == "static" else counts[kind] for kind in used)
        self.embeddings = nn.ModuleDict({kind: nn.Linear(lengths[kind], width) for kind in used})
        for kind in used:
            self.register_buffer(f"{kind}_location", torch.zeros(counts[kind]))
            self.register_buffer(f"{kind}_scale", torch.ones(counts[kind]))
        if used:
            # which covariate a token stands for
            self.names = nn.Parameter(0.02 * torch.randn(self.n_tokens, width))

    def forward(self, batch: Batch) -> Tensor:
        """Return the tokens of a batch, shape (b, n_tokens, d)."""
        if not self.n_tokens:
            return batch.past_target.new_zeros(len(batch.past_target), 0, self.width)
        tokens = []
        for kind, embedding in self.embeddings.items():
            location, scale = self._statistics(kind)
            values = (self._values(batch, kind) - location) / scale
            values = values.nan_to_num(nan=0.0)
            tokens.append(embedding(values if kind == "static" else values.transpose(1, 2)))
        return torch.cat(tokens, 1) + self.names

    @torch.no_grad()
    def measure(self, windows: Batch) -> None:
        """Set location and scale from training windows."""
        for kind in self.embeddings:
            location, scale = self._statistics(kind)
            values = self._values(windows, kind).flatten(0, 1)
            mean = values.nanmean(0).nan_to_num(nan=0.0)
            deviation = (values - mean).square().nanmean(0).sqrt()
            location.copy_(mean)
            scale.copy_(torch.where(deviation > 1e-6 * mean.abs(), deviation, 1.0))

    def _statistics(self, kind: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"{kind}_location"), self.get_buffer(f"{kind}_scale")

    @staticmethod
    def _values(batch: Batch, kind: str) -> Tensor:
        """Return the covariates of a kind, time or one step in the second axis."""
        values = getattr(batch, f"{kind}_covariates")
        if values is None:
            raise ValueError(f"{kind}_covariates: the network was made for some, found none.")
        return values.unsqueeze(1) if kind == "static" else values


class ForecastHead(nn.Module):
    """One linear map from a variate's token to its forecast.

    Parameters
    ----------
    width : int
        d, width of a token.
    horizon : int
        H, steps of the forecast.
    kinds : sequence of {"location", "scale", "free"}
        Kind of each number per step. But for the locations they start from 0, whatever the token
        says: the softplus of a large negative number is a width against which any error is huge.
    dropout : float
        Share of the token that is dropped in training.
    """

    def __init__(self, width: int, horizon: int, kinds: Sequence[str], dropout: float) -> None:
        super().__init__()
        self.n_parameters = len(kinds)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, horizon * self.n_parameters)
        others = [kind != "location" for kind in kinds] * horizon
        with torch.no_grad():
            self.linear.weight[others] = 0.0
            self.linear.bias[others] = 0.0

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (b, c, d) to parameters (b, h, c, p)."""
        parameters = self.linear(self.dropout(tokens))
        return parameters.unflatten(-1, (-1, self.n_parameters)).transpose(1, 2)

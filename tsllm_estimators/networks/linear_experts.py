"""Linear experts of several lookbacks, and the light convolutions that mix them.

Nothing here is non-linear, so the maps themselves are mixed rather than their forecasts, and one
product of matrices forecasts: with many series that is what the mixture costs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsllm_estimators.networks.base import Shapes


class Experts(nn.Module):
    """Linear maps of the last steps of a window to the horizon.

    Parameters
    ----------
    lookbacks : list of int
        w_m, steps that each expert sees.
    shared : bool
        Whether all variates have the same weights.
    shapes : Shapes
        Of the network.
    """

    def __init__(self, lookbacks: list[int], shared: bool, shapes: Shapes) -> None:
        super().__init__()
        self.lookbacks = lookbacks
        self.context_length = shapes.context_length
        n_maps = 1 if shared else shapes.n_variates
        outputs = shapes.horizon, len(shapes.parameters)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(n_maps, lookback, *outputs).uniform_(-1, 1) / lookback**0.5)
            for lookback in lookbacks
        )
        self.bias = nn.Parameter(torch.zeros(len(lookbacks), shapes.n_variates, *outputs))
        others = [kind != "location" for kind in shapes.parameters]
        with torch.no_grad():  # a width that starts large makes any error huge
            for weight in self.weights:
                weight[..., others] = 0.0

    def maps(self) -> Tensor:
        """Return the map of each expert from the whole context, (m, 1 or c, L, H, p)."""
        pads = [(0, 0, 0, 0, self.context_length - lookback, 0) for lookback in self.lookbacks]
        return torch.stack([F.pad(*pair) for pair in zip(self.weights, pads, strict=True)])

    def forward(self, window: Tensor, mixing: "Mixing") -> Tensor:
        """Map windows (b, L, c) to the mixture of the experts' forecasts, (b, c, H, p)."""
        maps, bias = self.maps(), self.bias
        if mixing.n_variates == 1:
            (mixed,), (bias,) = mixing(maps, with_bias=False), mixing(bias)
            return _mapped(window, mixed) + bias
        forecasts = torch.stack([_mapped(window, one) for one in maps]) + bias.unsqueeze(1)
        return mixing(forecasts.transpose(1, 2).flatten(0, 1)).transpose(0, 1)


def _mapped(window: Tensor, maps: Tensor) -> Tensor:
    """Map windows (b, L, c) by maps (1 or c, L, H, p) to (b, c, H, p)."""
    flat = maps.flatten(2)
    variates = window.transpose(1, 2)
    if len(maps) == 1:
        forecast = variates @ flat[0]
    else:
        forecast = torch.bmm(variates.transpose(0, 1), flat).transpose(0, 1)
    return forecast.unflatten(-1, maps.shape[2:])


class Mixing(nn.Module):
    """Convolutions over the horizon that mix branches; they start as the mean of the branches.

    Nothing is between the convolutions, so they are applied as the one that they amount to (but
    at the ends of the horizon, where each of several would be padded).

    Parameters
    ----------
    n_branches : int
        Forecasts to mix.
    n_layers : int
        Convolutions.
    kernel_size : int
        Steps that each of them sees.
    n_variates : int
        Variates that are mixed with each other; 1 keeps them apart.
    """

    def __init__(self, n_branches: int, n_layers: int, kernel_size: int, n_variates: int) -> None:
        super().__init__()
        self.n_variates = n_variates
        width = n_branches * n_variates
        mean = torch.eye(n_variates).repeat(1, n_branches) / n_branches
        starts = [torch.eye(width)] * (n_layers - 1) + [mean]
        self.kernels = nn.ParameterList()
        self.biases = nn.ParameterList()
        for start in starts:
            side = kernel_size // 2
            self.kernels.append(nn.Parameter(F.pad(start.unsqueeze(-1), (side, side))))
            self.biases.append(nn.Parameter(torch.zeros(len(start))))

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Return the kernel (o, i, k) and the bias (o,) of all convolutions in one."""
        kernel, bias = self.kernels[0], self.biases[0]
        for above, its_bias in zip(self.kernels[1:], self.biases[1:], strict=True):
            width = above.shape[-1]
            composed = F.conv1d(kernel.transpose(0, 1), above.flip(-1), padding=width - 1)
            kernel, bias = composed.transpose(0, 1), above.sum(-1) @ bias + its_bias
        return kernel, bias

    def forward(self, branches: Tensor, with_bias: bool = True) -> Tensor:
        """Mix branches (i, ..., H, p) to (o, ..., H, p); i are the branches, or times c."""
        kernel, bias = self.kernel()
        width = kernel.shape[-1]
        product = kernel.permute(2, 0, 1).flatten(0, 1) @ branches.flatten(1)
        # k times (o, ..., H, p), yet to be moved; an index would give each a gradient of all
        seen = product.view(width, -1, *branches.shape[1:]).unbind()
        mixed = seen[width // 2]
        for step in range(width):
            ahead = step - width // 2
            if 0 < abs(ahead) < mixed.shape[-2]:  # a negative pad cuts
                mixed = mixed + F.pad(seen[step], (0, 0, -ahead, ahead))
        return mixed + bias.view(-1, *[1] * (mixed.ndim - 1)) if with_bias else mixed


class Fusion(nn.Module):
    """The last convolution: of the forecast and its modulations, or around the forecast."""

    def __init__(self, n_branches: int, fusion: str, kernel_size: int, n_variates: int) -> None:
        super().__init__()
        self.residual = fusion == "residual"
        n_inputs = n_branches if self.residual else 1 + n_branches
        self.mixing = Mixing(n_inputs, 1, kernel_size, n_variates)
        if self.residual:  # starts from the forecast, too
            nn.init.zeros_(self.mixing.kernels[0])

    def forward(self, forecast: Tensor, branches: list[Tensor]) -> Tensor:
        """Fuse a forecast (b, c, H, p) with branches of its shape."""
        stacked = torch.stack(branches if self.residual else [forecast, *branches])
        if self.mixing.n_variates > 1:
            fused = self.mixing(stacked.transpose(1, 2).flatten(0, 1)).transpose(0, 1)
        else:
            (fused,) = self.mixing(stacked)
        return forecast + fused if self.residual else fused

"""A small network that mixes sensors through a learned adjacency, to measure others against."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Windows(NamedTuple):
    """Every window of some rows: b windows, L steps in, H steps out, n sensors, k calendar."""

    past: Tensor  # (b, L, n)
    calendar: Tensor  # (b, L + H, k), known ahead
    target: Tensor  # (b, H, n)


def windows(values: Tensor, calendar: Tensor, context: int, horizon: int) -> Windows:
    """Cut rows into windows, one step apart."""
    cut = values.unfold(0, context + horizon, 1).transpose(1, 2)
    times = calendar.unfold(0, context + horizon, 1).transpose(1, 2)
    return Windows(cut[:, :context], times, cut[:, context:])


class Layer(nn.Module):
    """Mix sensors, then the features of each sensor."""

    def __init__(self, n_sensors: int, width: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.sources = nn.Parameter(torch.randn(n_sensors, rank))
        self.targets = nn.Parameter(torch.randn(n_sensors, rank))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mix = nn.Linear(width, width)
        self.features = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features, shape (b, n, width), as they came."""
        adjacency = (self.targets @ self.sources.T).softmax(-1)  # (n, n)
        x = x + adjacency @ self.mix(self.norms[0](x))
        return x + self.features(self.norms[1](x))


class LearnedAdjacency(nn.Module):
    """Forecast all sensors from the window, what each sensor is, and the time of day.

    The forecast is a change from the last reading, or, with ``instance_norm``, in units of each
    window's mean and deviation.
    """

    def __init__(
        self,
        n_sensors: int,
        n_calendar: int,
        context: int,
        horizon: int,
        width: int = 32,
        rank: int = 16,
        n_layers: int = 2,
        dropout: float = 0.1,
        instance_norm: bool = False,
    ) -> None:
        super().__init__()
        self.instance_norm = instance_norm
        self.sensors = nn.Parameter(0.02 * torch.randn(n_sensors, width))
        self.window = nn.Linear(context, width)
        self.calendar = nn.Linear((context + horizon) * n_calendar, width)
        layers = (Layer(n_sensors, width, rank, dropout) for _ in range(n_layers))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, horizon))

    def forward(self, past: Tensor, calendar: Tensor) -> Tensor:
        """Return forecasts, shape (b, H, n)."""
        location, scale, seen = past[:, -1:], torch.ones(()), past
        if self.instance_norm:
            location = past.mean(1, keepdim=True)
            scale = past.std(1, keepdim=True, correction=0) + 1e-5
            seen = (past - location) / scale
        x = self.window(seen.transpose(1, 2)) + self.sensors  # (b, n, width)
        x = self.layers(x + self.calendar(calendar.flatten(1)).unsqueeze(1))
        return location + scale * self.head(x).transpose(1, 2)


@torch.no_grad()
def forecast(network: LearnedAdjacency, of: Windows) -> Tensor:
    """Return the forecasts of windows, shape (b, H, n)."""
    network.eval()
    parts = zip(of.past.split(256), of.calendar.split(256), strict=True)
    return torch.cat([network(*part) for part in parts])


def train(
    network: LearnedAdjacency,
    of: Windows,
    validation: Windows,
    *,
    lr: float,
    batch_size: int,
    n_epochs: int,
    patience: int,
) -> int:
    """Train with the L1 loss, leave the best validated weights, return the number of epochs."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    best, weights, waited, trained = float("inf"), network.state_dict(), 0, 0
    while trained < n_epochs and waited < patience:
        trained += 1
        network.train()
        for chosen in torch.randperm(len(of.past)).split(batch_size):
            found = network(of.past[chosen], of.calendar[chosen])
            (found - of.target[chosen]).abs().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        loss = (forecast(network, validation) - validation.target).abs().mean().item()
        waited += 1
        if loss < best:
            best, weights, waited = loss, copy.deepcopy(network.state_dict()), 0
    network.load_state_dict(weights)
    return trained

"""Hourly series of the M4 competition: files, errors, Naive2, and a loss that is the score."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

HORIZON, SEASON = 48, 24
# sMAPE in percent and MASE of Naive2, as the organisers published them
NAIVE2 = (18.383, 2.395)

Values = NDArray[np.float64]


class M4(NamedTuple):
    """Series by name, and the hours that follow each of them, shape (series, 48)."""

    names: list[str]
    train: list[Values]
    test: Values


def load(data: Path) -> M4:
    """Return the series of the published files."""
    rows = []
    for part in ("train", "test"):
        path = data / f"m4_hourly_{part}.csv"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} not found: set TSLLM_DATA to a folder with Hourly-train.csv and "
                "Hourly-test.csv of the repository Mcompetitions/M4-methods, named "
                "m4_hourly_train.csv and m4_hourly_test.csv."
            )
        with path.open(newline="") as file:
            rows.append(list(csv.reader(file))[1:])
    train, test = ([[float(v) for v in row[1:] if v] for row in part] for part in rows)
    return M4([row[0] for row in rows[0]], [np.array(values) for values in train], np.array(test))


def split(m4: M4, part: str) -> tuple[list[Values], Values]:
    """Return what may be known, and the 48 hours after it, for ``"validation"`` or ``"test"``."""
    if part == "test":
        return m4.train, m4.test
    return [values[:-HORIZON] for values in m4.train], np.array([v[-HORIZON:] for v in m4.train])


def scale(values: Values) -> float:
    """Return the error of the seasonal naive forecast within a series, the unit of MASE."""
    return float(np.abs(values[SEASON:] - values[:-SEASON]).mean())


def smape(forecast: Values, actual: Values) -> Values:
    """Return the symmetric error of each series in percent."""
    size = np.abs(forecast) + np.abs(actual)
    return (200 * np.abs(forecast - actual) / size).mean(-1)


def mase(forecast: Values, actual: Values, history: list[Values]) -> Values:
    """Return the error of each series in units of its seasonal naive error."""
    return np.abs(forecast - actual).mean(-1) / np.array([scale(values) for values in history])


def errors(forecast: Values, actual: Values, history: list[Values]) -> dict[str, Any]:
    """Return the errors of all series, and OWA: their mean ratio to those of Naive2."""

    def of(forecast: Values) -> tuple[float, float]:
        return smape(forecast, actual).mean(), mase(forecast, actual, history).mean()

    found = of(forecast)
    ratios = np.divide(found, of(np.array([naive2(values) for values in history])))
    names = ("smape", "mase", "owa")
    return {
        **dict(zip(names, map(float, (*found, ratios.mean())), strict=True)),
        "series": len(forecast),
    }


def naive2(values: Values, season: int = SEASON, horizon: int = HORIZON) -> Values:
    """Forecast the last value, without its season where there is one, times the season ahead."""
    factors = np.ones(season)
    if is_seasonal(values, season):
        factors = seasonal_factors(values, season)
    ahead = (len(values) + np.arange(horizon)) % season
    return values[-1] / factors[(len(values) - 1) % season] * factors[ahead]


def is_seasonal(values: Values, season: int) -> bool:
    """Return whether the autocorrelation at the season is significant, at 90 %."""
    if len(values) < 3 * season:
        return False
    centred = values - values.mean()
    of_lags = [centred[lag:] @ centred[: len(values) - lag] for lag in range(season + 1)]
    if of_lags[0] == 0:
        return False
    correlations = np.array(of_lags[1:]) / of_lags[0]
    limit = 1.645 * np.sqrt((1 + 2 * np.square(correlations[:-1]).sum()) / len(values))
    return bool(abs(correlations[-1]) > limit)


def seasonal_factors(values: Values, season: int) -> Values:
    """Return the factors of a classical multiplicative decomposition, of mean 1.

    The first factor is the first value's. The trend is the centred average of one season, an even
    one with half of the weight at both ends.
    """
    window = np.ones(season) if season % 2 else np.r_[0.5, np.ones(season - 1), 0.5]
    side = len(window) // 2
    ratios = np.full(len(values), np.nan)
    trend = np.convolve(values, window / season, mode="valid")
    ratios[side : len(values) - side] = values[side : len(values) - side] / trend
    factors = np.array([np.nanmean(ratios[first::season]) for first in range(season)])
    return factors / factors.mean()


class OWALoss(nn.Module):
    """OWA, of series that are divided by their scale.

    Divided so, MASE is the absolute error; sMAPE has no unit.

    Parameters
    ----------
    logarithmic : bool
        Whether it is their logarithms that are forecast.
    """

    def __init__(self, logarithmic: bool = False) -> None:
        super().__init__()
        self.logarithmic = logarithmic

    def forward(self, forecast: Tensor, actual: Tensor) -> Tensor:
        """Return the mean over windows and steps."""
        if self.logarithmic:
            forecast, actual = forecast.exp(), actual.exp()
        error = (forecast - actual).abs()
        size = forecast.abs() + actual.abs()
        percent = 200 * error / size.clamp_min(torch.finfo(size.dtype).tiny)
        return (percent / NAIVE2[0] + error / NAIVE2[1]).mean() / 2

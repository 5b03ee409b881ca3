"""One model for 10 000 short series, and forecasts of 100 series that it never saw.

Makes a panel of 36 to 60 months each: a level, a trend, noise, and one of a few seasonal shapes
that the series share, each shifted by some months. None of them is long enough to learn its season
well alone. Trains one forecaster on all of them, forecasts the next 6 months of each, then those
of the unseen series from the same weights, and compares with the seasonal naive forecast. Prints
how long each step takes and the peak of the process's memory.

    python examples/many_short_series.py --series 10000
"""

import argparse
import logging
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from darts import TimeSeries

from tsllm_estimators import TimeLlamaForecaster, TimeLlamaModel

SHORTEST, LONGEST, AHEAD, YEAR = 36, 60, 6, 12
UNSEEN = 100
CONTEXT = 24


def panel(n_series: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return series of unequal lengths that end alike, and the months that follow them."""
    rng = np.random.default_rng(seed)
    shapes = np.random.default_rng(0).normal(size=(4, YEAR))  # the same for every seed
    n_months = LONGEST + AHEAD
    months = np.arange(n_months)
    shifts = rng.integers(YEAR, size=(n_series, 1))
    season = shapes[rng.integers(len(shapes), size=(n_series, 1)), (months + shifts) % YEAR]
    trend = rng.normal(scale=0.02, size=(n_series, 1)) * months
    noise = rng.normal(size=(n_series, n_months))
    level = rng.lognormal(3, 1, size=(n_series, 1))
    values = level * (10 + season + trend + noise)
    index = pd.MultiIndex.from_product(
        [
            [f"series {i:05d}" for i in range(n_series)],
            pd.period_range("2020-01", periods=n_months, freq="M"),
        ],
        names=["series", "month"],
    )
    frame = pd.DataFrame({"sales": values.ravel()}, index=index)
    first = LONGEST - rng.integers(SHORTEST, LONGEST + 1, size=(n_series, 1))
    known = ((months >= first) & (months < LONGEST)).ravel()
    ahead = np.tile(months >= LONGEST, n_series)
    return frame[known], frame[ahead]


def seasonal_naive(y: pd.DataFrame) -> np.ndarray:
    """Return the months of a year before those ahead, shape (series, 6)."""
    return (
        y.groupby(level=0, sort=False)["sales"].tail(YEAR).to_numpy().reshape(-1, YEAR)[:, :AHEAD]
    )


def error(forecast: np.ndarray, ahead: pd.DataFrame) -> float:
    """Return the mean over the series of the absolute error in percent of their mean."""
    actual = ahead["sales"].to_numpy().reshape(-1, AHEAD)
    return float((100 * np.abs(forecast - actual).mean(1) / actual.mean(1)).mean())


class InDarts:
    """The same in darts, whose models forecast in the units that they are given.

    So each series is standardised here, which the sktime forecaster does itself; and it is darts'
    own ``predict`` that takes series which the model never saw.
    """

    def __init__(self, **settings: Any) -> None:
        steps = {"max_steps": settings.pop("max_steps"), "accelerator": "cpu"}
        self.model = TimeLlamaModel(CONTEXT, AHEAD, pl_trainer_kwargs=steps, **settings)

    def fit(self, y: pd.DataFrame) -> None:
        """Train on all series of a panel."""
        self.model.fit([one for one, _ in self._scaled(y)])

    def forecast(self, y: pd.DataFrame) -> np.ndarray:
        """Forecast every series of a panel, shape (series, 6)."""
        series, scales = zip(*self._scaled(y), strict=True)
        found = self.model.predict(AHEAD, series=list(series))
        values = [one.values()[:, 0] for one in found]
        return np.array([v * s + m for v, (m, s) in zip(values, scales, strict=True)])

    @staticmethod
    def _scaled(y: pd.DataFrame) -> list[tuple[TimeSeries, tuple[float, float]]]:
        found = []
        for _, own in y.groupby(level=0, sort=False)["sales"]:
            values = own.to_numpy()
            mean, deviation = values.mean(), values.std()
            standardised = ((values - mean) / deviation).astype(np.float32)
            found.append((TimeSeries.from_values(standardised), (mean, deviation)))
        return found


class InSktime:
    """A forecaster that is pretrained on the panel, and then takes any panel as it is."""

    def __init__(self, **settings: Any) -> None:
        self.forecaster = TimeLlamaForecaster(
            context_length=CONTEXT, likelihood=None, fit_strategy="zero-shot", **settings
        )

    def fit(self, y: pd.DataFrame) -> None:
        """Train on all series of a panel."""
        self.forecaster.pretrain(y, fh=range(1, AHEAD + 1))

    def forecast(self, y: pd.DataFrame) -> np.ndarray:
        """Forecast every series of a panel, shape (series, 6)."""
        self.forecaster.fit(y, fh=range(1, AHEAD + 1))  # takes the series, trains nothing
        return self.forecaster.predict().to_numpy().reshape(-1, AHEAD)


def timed(what: str, call: Callable[[], Any]) -> Any:
    """Call, print the seconds that it took and the peak of the memory so far."""
    begin = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB but on macOS
    memory = peak / (2**30 if sys.platform == "darwin" else 2**20)
    print(f"{what}: {seconds:.1f} s, at most {memory:.2f} GiB so far", flush=True)
    return result


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    """Run everything; print and return the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=300, help="of the training")
    parser.add_argument("--faces", nargs="+", choices=("sktime", "darts"), default=["sktime"])
    parser.add_argument("--tiny", action="store_true", help="a tiny language model")
    options = parser.parse_args(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    settings = {"max_steps": options.steps, "batch_size": 256, "random_state": 0}
    settings |= {"backbone": "tiny"} if options.tiny else {}

    seen, ahead = panel(options.series, seed=1)
    unseen, ahead_of_unseen = panel(UNSEEN, seed=2)
    print(f"{options.series} series of {SHORTEST} to {LONGEST} months, {len(seen)} rows")
    parts = {"seen": (seen, ahead), "unseen": (unseen, ahead_of_unseen)}
    rows = [("seasonal naive", *(error(seasonal_naive(y), a) for y, a in parts.values()))]
    for face in options.faces:
        model = {"sktime": InSktime, "darts": InDarts}[face](**settings)
        timed(f"{face}: train on {options.series} series", lambda m=model: m.fit(seen))
        found = []
        for name, (y, actual) in parts.items():
            n_series = y.index.get_level_values(0).nunique()
            what = f"{face}: forecast {n_series} {name} series"
            found.append(error(timed(what, lambda m=model, y=y: m.forecast(y)), actual))
        rows.append((f"Time-LlaMA in {face}", *found))
    table = pd.DataFrame(rows, columns=["error in % of the mean", *parts])
    print(table.to_string(index=False, float_format="%.2f"))
    return table


if __name__ == "__main__":
    main()

"""Forecast a large panel, backtest a series or fit many models, with sktime on a Dask cluster.

A forecaster that was pretrained is scattered once to each worker; the pieces of the panel follow.
Backtests and fits of single series go through sktime's own backend "dask", which sends the
forecaster with each task: give it ``checkpoint=``, a directory that the workers can read, so that
it is small.

    pip install "tsllm-estimators[minilm]" "dask[distributed]"
    python examples/scale_out_dask.py --series 2000 --workers 2
    python examples/scale_out_dask.py --task backtest --address tcp://scheduler:8786
"""

import argparse
import logging
import os
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores, so each has one thread

import numpy as np
import pandas as pd
from sktime.forecasting.model_evaluation import evaluate
from sktime.performance_metrics.forecasting import MeanAbsoluteError
from sktime.split import ExpandingWindowSplitter

from tsllm_estimators import CALFForecaster

CONTEXT, HORIZON, DAY = 96, 24, 24
LEVELS = [0.05, 0.5, 0.95]
STEPS_AHEAD = list(range(1, HORIZON + 1))


def panel(n_series: int, length: int, seed: int = 0) -> pd.DataFrame:
    """Return hourly demands of shops as a panel of sktime, of different lengths."""
    rng = np.random.default_rng(seed)
    frames = {}
    for number in range(n_series):
        hours = np.arange(length - rng.integers(length // 4))
        day = np.sin(2 * np.pi * (hours / DAY + rng.random())) * rng.uniform(1, 3)
        values = 10 + day + 0.3 * rng.standard_normal(len(hours))
        frames[number] = pd.DataFrame({"demand": values}, pd.RangeIndex(len(hours), name="hour"))
    return pd.concat(frames, names=["id"])


def pieces_of(y: pd.DataFrame, size: int) -> list[pd.DataFrame]:
    """Return a panel in pieces of so many series."""
    ids = y.index.unique("id")
    return [y.loc[ids[at : at + size]] for at in range(0, len(ids), size)]


def forecast(piece: pd.DataFrame, forecaster: Any) -> pd.DataFrame:
    """Return the quantiles of the next day; ``fit`` of a pretrained forecaster takes no training.

    It changes the forecaster, so a worker is to have one thread.
    """
    return forecaster.fit(piece).predict_quantiles(STEPS_AHEAD, alpha=LEVELS)


def forecasts(client: Any, pretrained: Any, pieces: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the forecasts of all pieces, by the workers of a client or, without one, here."""
    if client is None:
        return pd.concat([forecast(piece, pretrained) for piece in pieces])
    everywhere = client.scatter(pretrained, broadcast=True)
    parts = client.map(forecast, pieces, forecaster=everywhere, retries=3, pure=False)
    return pd.concat(client.gather(parts)).sort_index()


def backtest(forecaster: Any, y: pd.DataFrame, backend: str | None) -> pd.DataFrame:
    """Return the errors of one series, day after day; "dask" asks the client that is open."""
    folds = ExpandingWindowSplitter(STEPS_AHEAD, initial_window=CONTEXT, step_length=HORIZON)
    return evaluate(forecaster, folds, y, scoring=MeanAbsoluteError(), backend=backend)


def fit_each(settings: dict[str, Any], y: pd.DataFrame, backend: str | None) -> pd.DataFrame:
    """Return forecasts of models of their own, fine-tuned on one series each."""
    forecaster = CALFForecaster(**settings, broadcasting=True)
    forecaster.set_config(**{"backend:parallel": backend})
    return forecaster.fit(y, fh=STEPS_AHEAD).predict()


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=("forecast", "backtest", "each"), default="forecast")
    parser.add_argument("--series", type=int, default=2000, help="how many")
    parser.add_argument("--length", type=int, default=480, help="of the longest, in hours")
    parser.add_argument("--piece", type=int, default=250, help="series that travel together")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--address", help="of a scheduler; by default a cluster is started here")
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--steps", type=int, default=100, help="of training")
    parser.add_argument("--shared", help="directory that all workers can read, for the weights")
    parser.add_argument("--serial", action="store_true", help="do it all in this process")
    options = parser.parse_args(arguments)
    from dask.distributed import Client, LocalCluster

    y = panel(options.series, options.length)
    one = y.loc[y.index[0][0]]
    settings = {
        "backbone": options.backbone,
        "context_length": CONTEXT,
        "horizon": HORIZON,
        "max_steps": options.steps,
        "random_state": 0,
        "device": "cpu",
    }
    with tempfile.TemporaryDirectory() as folder:
        folder = options.shared or folder
        pretrained = CALFForecaster(**settings, fit_strategy="zero-shot").pretrain(y.loc[:99])
        pretrained.save_pretrained(folder)
        light = CALFForecaster.from_pretrained(folder, device="cpu")
        tuned = {**settings, "checkpoint": folder, "fit_strategy": "head"}

        def timed(client: Any) -> tuple[pd.DataFrame, float]:
            begin, backend = time.perf_counter(), client and "dask"
            if options.task == "forecast":
                found = forecasts(client, pretrained, pieces_of(y, options.piece))
            elif options.task == "backtest":
                found = backtest(light, one, backend)
            else:
                found = fit_each(tuned, y, backend)
            return found, time.perf_counter() - begin

        if options.serial:
            results, seconds = timed(None)
        elif options.address:
            with Client(options.address) as client:
                results, seconds = timed(client)
        else:
            size = {"n_workers": options.workers, "threads_per_worker": 1}  # torch has its own
            place = {
                "local_directory": folder,
                "dashboard_address": None,
                "silence_logs": logging.ERROR,
            }
            with LocalCluster(**size, **place) as cluster, Client(cluster) as client:
                results, seconds = timed(client)
    print(f"{options.task}: {len(results)} rows in {seconds:.0f} s")
    return results


if __name__ == "__main__":
    main()

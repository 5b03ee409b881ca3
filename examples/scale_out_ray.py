"""Forecast or backtest a large panel on many processes or machines, with Ray Data.

The model is shipped once to each worker, as the files of its ``save_pretrained`` directory; pieces
of the panel come and go. Ray returns pieces in any order, and does again what a lost worker had:
each series carries an id, and the results are sorted by it.

    pip install "tsllm-estimators[minilm,ray]"
    python examples/scale_out_ray.py --series 2000 --workers 2
    python examples/scale_out_ray.py --task backtest --address auto   # on a cluster
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores, so each has one thread

import numpy as np
import pandas as pd
import torch
from darts import TimeSeries
from darts.metrics import mae

from tsllm_estimators import CALFForecaster, CALFModel

CONTEXT, HORIZON = 96, 24
LEVELS = {"low": 0.05, "median": 0.5, "high": 0.95}


def panel(n_series: int, length: int, seed: int = 0) -> pd.DataFrame:
    """Return hourly demands of shops, one series per row, of different lengths."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(n_series):
        hours = np.arange(length - rng.integers(length // 4))
        day = np.sin(2 * np.pi * (hours / 24 + rng.random())) * rng.uniform(1, 3)
        values.append(10 + day + 0.3 * rng.standard_normal(len(hours)))
    return pd.DataFrame({"id": np.arange(n_series), "values": values})


def train(rows: pd.DataFrame, directory: str, backbone: str, steps: int) -> None:
    """Train one model on some of the series, and save it as a directory."""
    frames = [pd.DataFrame({"y": values}) for values in rows["values"]]
    forecaster = CALFForecaster(
        backbone=backbone,
        context_length=CONTEXT,
        horizon=HORIZON,
        scaling=None,  # windows are normalised by the network, in either face
        max_steps=steps,
        random_state=0,
        device="cpu",
    )
    forecaster.fit(pd.concat(frames, keys=rows["id"], names=["id", "hour"]))
    forecaster.save_pretrained(directory)


def packed(directory: str) -> dict[str, bytes]:
    """Return the files of a directory by name; no disk has to be shared."""
    files = [path for path in Path(directory).rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


class Worker:
    """Has a model, which it loads once; the language model under it must be found on its node."""

    def __init__(self, model: dict[str, bytes]) -> None:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in model.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self.model = CALFModel.from_pretrained(folder, pl_trainer_kwargs={"accelerator": "cpu"})

    def series(self, rows: pd.DataFrame) -> list[TimeSeries]:
        """Return rows as darts has them."""
        return [TimeSeries.from_values(np.asarray(v, np.float32)) for v in rows["values"]]


class Forecasts(Worker):
    """Forecasts the next day: a median and a 90 % interval."""

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return a row for each series."""
        contexts = [one[-CONTEXT:] for one in self.series(rows)]
        found = self.model.predict(HORIZON, series=contexts, predict_likelihood_parameters=True)
        levels = {
            name: [f[f"0_q{level:.3f}"].values()[:, 0] for f in found]
            for name, level in LEVELS.items()
        }
        return pd.DataFrame({"id": rows["id"], **levels, "worker": os.getpid()})


class Backtests(Worker):
    """Forecasts each day from the days before it, without training, and measures the errors."""

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return a row for each series: how many days, and the mean absolute error of each."""
        series = self.series(rows)
        found = self.model.historical_forecasts(
            series,
            forecast_horizon=HORIZON,
            stride=HORIZON,
            retrain=False,
            last_points_only=False,
            predict_likelihood_parameters=True,
        )
        errors = [
            np.array([mae(one, f["0_q0.500"]) for f in days])
            for one, days in zip(series, found, strict=True)
        ]
        days = [len(each) for each in errors]
        return pd.DataFrame({"id": rows["id"], "days": days, "mae": errors, "worker": os.getpid()})


TASKS = {"forecast": Forecasts, "backtest": Backtests}


def on_ray(
    task: type[Worker], model: dict[str, bytes], pieces: list[pd.DataFrame], n_workers: int
) -> pd.DataFrame:
    """Return the results of all pieces, computed by as many actors, in the order of the ids."""
    import ray

    results = ray.data.from_pandas(pieces).map_batches(
        task,
        fn_constructor_args=[model],
        compute=ray.data.ActorPoolStrategy(size=n_workers, max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        batch_size=None,  # a piece is a batch
        batch_format="pandas",
    )
    return results.to_pandas().sort_values("id", ignore_index=True)


def in_this_process(
    task: type[Worker], model: dict[str, bytes], pieces: list[pd.DataFrame]
) -> pd.DataFrame:
    """Return the same, computed here one piece after another."""
    worker = task(model)
    return pd.concat([worker(piece) for piece in pieces], ignore_index=True)


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, default="forecast")
    parser.add_argument("--series", type=int, default=2000, help="how many")
    parser.add_argument("--length", type=int, default=480, help="of the longest, in hours")
    parser.add_argument("--piece", type=int, default=250, help="series that travel together")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--address", help="of a Ray cluster; by default one is started here")
    parser.add_argument("--model", help="directory of save_pretrained; by default one is trained")
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--steps", type=int, default=100, help="of training")
    parser.add_argument("--output", help="Parquet file of the results")
    options = parser.parse_args(arguments)
    import ray

    rows = panel(options.series, options.length)
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            train(rows[:100], folder, options.backbone, options.steps)
        model = packed(options.model or folder)
    pieces = [rows[at : at + options.piece] for at in range(0, len(rows), options.piece)]

    local = {} if options.address else {"num_cpus": options.workers, "include_dashboard": False}
    ray.init(address=options.address, log_to_driver=False, **local)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        begin = time.perf_counter()
        results = on_ray(TASKS[options.task], model, pieces, options.workers)
        seconds = time.perf_counter() - begin
    finally:
        ray.shutdown()
    done = results.groupby("worker")["id"].count()
    print(f"{options.task}: {len(results)} series in {seconds:.0f} s, by {done.to_dict()}")
    if options.task == "backtest":
        print(f"mean absolute error: {np.concatenate(results['mae']).mean():.4f}")
    if options.output:
        results.to_parquet(options.output)
    return results


if __name__ == "__main__":
    main()

"""What a forecast or a backtest of a large panel costs on one and on two workers.

CALF on MiniLM, 96 hours to 24, on the panels of ``examples/scale_out_ray.py`` and
``scale_out_dask.py``, in pieces of 100 series. Numbers of workers take turns. Each piece says when
it began and ended and how much CPU time it took; throughput is counted while all workers are at
work, start-up is what came before. "Nothing" is a task that returns what it is given: its pieces
show what Ray and the driver take for each. Bytes of the model are those that are sent to a worker,
memory is what a worker has for itself. Results go to ``docs/results/scale_out.json``, with the
load of the machine: on cores that others use, too, CPU time is the figure to compare.

    OMP_NUM_THREADS=1 python examples/benchmarks/scale_out.py
"""

import argparse
import logging
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (else 15: anything else comes first)
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])  # of workers

import numpy as np
import pandas as pd
import psutil
import scale_out_dask
import scale_out_ray
from _store import FOLDER, Results


def nothing(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the ids alone."""
    return rows[["id"]]


class Timed:
    """A worker of an example that notes times and memory beside its results."""

    def __init__(self, what: tuple[str, dict[str, bytes]]) -> None:
        begin = time.perf_counter()
        name, model = what
        self.work = nothing if name == "nothing" else scale_out_ray.TASKS[name](model)
        self.load_seconds = time.perf_counter() - begin

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the results of a piece."""
        return timed(self.work, rows).assign(load_seconds=self.load_seconds)


def timed(work: Callable[[Any], pd.DataFrame], rows: Any) -> pd.DataFrame:
    """Return results with when and where they were computed."""
    begin, cpu = time.time(), time.process_time()
    found = work(rows)
    return found.assign(
        begin=begin,
        end=time.time(),
        cpu_seconds=time.process_time() - cpu,
        worker=os.getpid(),
        megabytes=psutil.Process().memory_full_info().uss / 1e6,
    )


def summary(found: pd.DataFrame, n_forecasts: int, asked: float) -> dict[str, Any]:
    """Return start-up, throughput and cost of pieces, each a group of rows of equal begin."""
    groups = found.groupby(["worker", "begin"])
    pieces = groups[["end", "cpu_seconds", "megabytes"]].first().reset_index()
    pieces["share"] = groups.size().to_numpy() / len(found)
    by_worker = pieces.groupby("worker")
    start, stop = by_worker["begin"].min().max(), by_worker["end"].max().min()
    seconds = pieces["end"] - pieces["begin"]
    within = (pieces["end"].clip(upper=stop) - pieces["begin"].clip(lower=start)).clip(lower=0)
    done = (pieces["share"] * within / seconds).sum() * n_forecasts
    return {
        "seconds_of_start": start - asked,
        "seconds_per_1000": 1000 * (stop - start) / done,
        "cpu_seconds_per_1000": 1000 * pieces["cpu_seconds"].sum() / n_forecasts,
        "seconds_in_all": pieces["end"].max() - asked,
        "megabytes_of_a_worker": by_worker["megabytes"].max().median(),
        "workers": pieces["worker"].nunique(),
    }


def number_of_forecasts(found: pd.DataFrame) -> int:
    """Return how many forecasts rows hold: the days of backtests, else one each."""
    return int(found["days"].sum()) if "days" in found else len(found)


def on_ray(
    task: str, model: dict[str, bytes], pieces: list[pd.DataFrame], n_workers: int
) -> dict[str, Any]:
    """Measure the example on Ray; with 0 workers the same in this process."""
    asked, what = time.time(), (task, model)
    if n_workers:
        found = scale_out_ray.on_ray(Timed, what, pieces, n_workers)
    else:
        found = scale_out_ray.in_this_process(Timed, what, pieces)
    n_forecasts = number_of_forecasts(found)
    noted = ["begin", "end", "cpu_seconds", "worker", "megabytes", "load_seconds"]
    results = found.drop(columns=noted)
    sizes = [np.asarray(value).nbytes for row in results.itertuples(index=False) for value in row]
    return {
        **summary(found, n_forecasts, asked),
        "seconds_to_load": found["load_seconds"].median(),
        "n_forecasts": n_forecasts,
        "result_bytes_of_1000": round(1000 * sum(sizes) / n_forecasts),
    }


def forecast_in_dask(piece: pd.DataFrame, forecaster: Any) -> pd.DataFrame:
    """Return the example's forecasts of a piece, timed."""
    return timed(lambda rows: scale_out_dask.forecast(rows, forecaster), piece)


def on_dask(pretrained: Any, pieces: list[pd.DataFrame], n_workers: int) -> dict[str, Any]:
    """Measure the example on Dask; a first piece makes each worker load what it needs."""
    from dask.distributed import Client, LocalCluster

    with tempfile.TemporaryDirectory() as folder:
        asked = time.time()
        place = {
            "local_directory": folder,
            "dashboard_address": None,
            "silence_logs": logging.ERROR,
        }
        with (
            LocalCluster(n_workers=n_workers, threads_per_worker=1, **place) as cluster,
            Client(cluster) as client,
        ):
            everywhere = client.scatter(pretrained, broadcast=True)
            scattered = time.time()
            parts = client.map(forecast_in_dask, pieces, forecaster=everywhere, pure=False)
            found = pd.concat(client.gather(parts))
    found = found.set_axis([name[0] if name[1] == "" else name for name in found], axis=1)
    n_forecasts = sum(piece.index.unique("id").size for piece in pieces)
    return {
        **summary(found, n_forecasts, asked),
        "seconds_to_scatter": scattered - asked,
        "n_forecasts": n_forecasts,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--series", type=int, default=2000)
    parser.add_argument("--length", type=int, default=480)
    parser.add_argument("--piece", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", default=["forecast", "backtest", "nothing", "dask"])
    parser.add_argument("--results", type=Path, default=FOLDER / "scale_out.json")
    options = parser.parse_args(arguments)
    results = Results(options.results)
    sizes = {"n_series": options.series, "length": options.length, "piece": options.piece}
    wanted = [
        {"run": run, "workers_asked": n, "round": turn, "backbone": options.backbone, **sizes}
        for run in options.runs
        for turn in range(options.rounds)
        for n in options.workers
        if n or run in scale_out_ray.TASKS
    ]
    wanted = [key for key in wanted if key not in results]
    if not wanted:
        return
    rows = scale_out_ray.panel(options.series, options.length)
    pieces = [rows[at : at + options.piece] for at in range(0, len(rows), options.piece)]
    with tempfile.TemporaryDirectory() as folder:
        scale_out_ray.train(rows[:100], folder, options.backbone, 20)
        model = scale_out_ray.packed(folder)
    model_bytes = sum(map(len, model.values()))
    if any(key["run"] != "dask" and key["workers_asked"] for key in wanted):
        import ray

        begin = time.perf_counter()
        ray.init(num_cpus=max(options.workers), include_dashboard=False, log_to_driver=False)
        started = {"seconds_of_ray_init": time.perf_counter() - begin}
        ray.data.DataContext.get_current().enable_progress_bars = False
    for key in wanted:
        if key["run"] == "dask":
            continue
        measured = on_ray(key["run"], model, pieces, key["workers_asked"])
        load = {"load": os.getloadavg()[0], "model_bytes": model_bytes}
        results.add(key, measured | load | (started if key["workers_asked"] else {}))
    panel = scale_out_dask.panel(options.series, options.length)
    settings = {"context_length": 96, "horizon": 24, "max_steps": 20, "fit_strategy": "zero-shot"}
    for key in wanted:
        if key["run"] != "dask":
            continue
        pretrained = scale_out_dask.CALFForecaster(
            backbone=options.backbone, random_state=0, device="cpu", **settings
        ).pretrain(panel.loc[:99])
        parts = scale_out_dask.pieces_of(panel, options.piece)
        measured = on_dask(pretrained, parts, key["workers_asked"])
        sent = {"load": os.getloadavg()[0], "model_bytes": len(pickle.dumps(pretrained))}
        results.add(key, measured | sent)


if __name__ == "__main__":
    main()

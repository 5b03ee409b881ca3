"""Time of backtests, beside what the network alone takes and beside a model of darts.

All 2785 windows of the test part of ETTh1, 96 steps to 96 for 7 variates, 256 windows a batch.
``historical_forecasts(retrain=False)`` of CALF on MiniLM is compared with its network's forward
passes over the same windows, that of LeMoLE without texts with darts' ``DLinearModel``; once with
the last points of all forecasts as one series, which is darts' default, and once with the whole
forecasts, a series each. Then single forecasts of both faces, and a fold of sktime's
``evaluate(strategy="no-update_params")``, above the forward pass that each of them needs. One step
of training comes first: weights take no longer for being good. What is compared is called in turn,
in one process; figures are medians over the rounds, of the processor's time and by the clock.
Results go to ``docs/results/backtesting.json``.

    OMP_NUM_THREADS=1 TSLLM_DATA=... python examples/benchmarks/backtesting.py
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import etth1
import numpy as np
import pandas as pd
import torch
from _store import FOLDER, Results
from darts import TimeSeries
from darts.models import DLinearModel
from sktime.forecasting.model_evaluation import evaluate
from sktime.split import ExpandingWindowSplitter

from tsllm_estimators import CALFForecaster, CALFModel, LeMoLEForecaster, LeMoLEModel
from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE
from tsllm_estimators.networks.base import Batch

CONTEXT, HORIZON, BATCH = 96, 96, 256
CLOCKS = {"cpu_seconds": time.process_time, "seconds": time.perf_counter}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
Times = dict[str, dict[str, float]]


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> Times:
    """Call each once per round; returns medians by clock, and that of the first to the last."""
    found: dict[str, dict[str, list[float]]] = {c: {name: [] for name in calls} for c in CLOCKS}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begin = [read() for read in CLOCKS.values()]
            call()
            if turn:  # the first round warms up
                for clock, before in zip(CLOCKS, begin, strict=True):
                    found[clock][name].append(CLOCKS[clock]() - before)
    *_, measure = calls
    return {
        clock: {
            **{name: median(values) for name, values in times.items()},
            "ratio": median(
                own / other
                for own, other in zip(times[next(iter(calls))], times[measure], strict=True)
            ),
        }
        for clock, times in found.items()
    }


def windows_of(values: np.ndarray) -> torch.Tensor:
    """Return the contexts (b, L, c) of all windows whose horizon is within."""
    view = np.lib.stride_tricks.sliding_window_view(values[:-HORIZON], CONTEXT, axis=0)
    return torch.from_numpy(view.transpose(0, 2, 1).copy())


def forwards(model: Any, windows: torch.Tensor) -> None:
    """Run the network of a darts model over windows, in batches."""
    network = model.model.network.eval()
    with torch.inference_mode():
        for batch in windows.split(BATCH):
            network(Batch(past_target=batch))


def backtest(model: Any, series: TimeSeries, last_points_only: bool) -> Any:
    """Return the forecasts of all windows of a series."""
    return model.historical_forecasts(
        series,
        start=CONTEXT,
        start_format="position",
        forecast_horizon=HORIZON,
        retrain=False,
        last_points_only=last_points_only,
        verbose=False,
    )


def folds(forecaster: Any, y: pd.DataFrame, n_folds: int) -> pd.DataFrame:
    """Evaluate a forecaster on the last folds of a series, trained on the first one only."""
    splitter = ExpandingWindowSplitter(
        fh=list(range(1, HORIZON + 1)), initial_window=len(y) - HORIZON - n_folds + 1
    )
    found = evaluate(forecaster, splitter, y, strategy="no-update_params", error_score="raise")
    assert len(found) == n_folds
    return found


def whole(series: TimeSeries, models: dict[str, Any], rounds: int, last: bool) -> dict[str, Any]:
    """Compare backtests over all windows."""
    windows = windows_of(series.values())
    calf, lemole, dlinear = (models[name] for name in ("calf", "lemole", "dlinear"))
    assert last or len(backtest(lemole, series, last)) == len(windows)
    forwarded = {
        "calf": lambda: backtest(calf, series, last),
        "forwards": lambda: forwards(calf, windows),
    }
    hosted = {
        "lemole": lambda: backtest(lemole, series, last),
        "lemole_forwards": lambda: forwards(lemole, windows),
        "dlinear": lambda: backtest(dlinear, series, last),
    }
    return {
        "windows": len(windows),
        "calf": in_turn(forwarded, rounds),
        "lemole": in_turn(hosted, 2 * rounds + 1),
    }


def single(series: TimeSeries, model: Any, forecaster: Any, y: pd.DataFrame, rounds: int) -> Any:
    """Return what single forecasts, and a fold, take above the forward pass, in milliseconds."""
    window = windows_of(series.values())[:1]
    fh = list(range(1, HORIZON + 1))
    n_folds = max(2, rounds)
    calls = {
        "darts": lambda: model.predict(HORIZON, series=series),
        "sktime": lambda: forecaster.predict(fh),
        "forward_sktime": lambda: forwards(forecaster._engine.model, window),
        "forward": lambda: forwards(model, window),
    }
    forecasts = in_turn(calls, 10 * rounds)
    backtests = in_turn(
        {
            "many": lambda: folds(forecaster, y, n_folds + 1),
            "one": lambda: folds(forecaster, y, 1),
        },
        max(2, rounds // 3),
    )
    found: dict[str, Any] = {}
    for clock, times in forecasts.items():
        fold = (backtests[clock]["many"] - backtests[clock]["one"]) / n_folds
        found[clock.replace("seconds", "milliseconds")] = {
            "forward": 1000 * times["forward"],
            "darts": 1000 * (times["darts"] - times["forward"]),
            "sktime": 1000 * (times["sktime"] - times["forward_sktime"]),
            "fold": 1000 * (fold - times["forward_sktime"]),
        }
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not stored yet, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--rows", type=int, default=etth1.TEST - etth1.VALIDATION)
    parser.add_argument("--results", type=Path, default=FOLDER / "backtesting.json")
    options = parser.parse_args(arguments)
    frame = etth1.load(Path(os.environ.get("TSLLM_DATA", ".")))[: etth1.TEST]
    part = etth1.series(frame[-options.rows - CONTEXT :])
    train = etth1.series(frame[: CONTEXT + HORIZON + BATCH])
    results = Results(options.results)

    trainer = {**QUIET, "logger": False, "max_steps": 1}
    settings = {"n_epochs": 1, "batch_size": BATCH, "random_state": 0, "pl_trainer_kwargs": trainer}
    models = {
        "calf": CALFModel(CONTEXT, HORIZON, backbone=options.backbone, **settings),
        "lemole": LeMoLEModel(CONTEXT, HORIZON, text="none", **settings),
        "dlinear": DLinearModel(CONTEXT, HORIZON, **settings),
    }
    for model in models.values():
        model.fit(train)
    for last in (True, False):
        key = {"run": "backtest", "last_points_only": last, "rows": options.rows}
        if key not in results:
            results.add(key, whole(part, models, options.rounds, last))
    y = frame[-2 * options.rows :][: 5 * CONTEXT + HORIZON].astype(float)
    sizes = {"context_length": CONTEXT, "horizon": HORIZON, "max_steps": 1, "device": "cpu"}
    forecasters = {
        "calf": CALFForecaster(backbone=options.backbone, random_state=0, **sizes),
        "lemole": LeMoLEForecaster(text="none", random_state=0, **sizes),
    }
    for name, forecaster in forecasters.items():
        key = {"run": "single", "method": name, "rows": options.rows}
        if key not in results:
            results.add(key, single(part, models[name], forecaster.fit(y), y, options.rounds))
    print("\n".join(summary(results.rows)))


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Return what was found in words, by the processor's time."""
    lines = []
    for row in rows:
        if row["run"] == "backtest":
            what = "last points" if row["last_points_only"] else "whole forecasts"
            calf, lemole = (row[name]["cpu_seconds"]["ratio"] for name in ("calf", "lemole"))
            lines.append(
                f"{row['windows']} windows, {what}: CALF takes {calf:.2f} of its forward passes, "
                f"LeMoLE without texts {lemole:.2f} of DLinear"
            )
        else:
            found = row["cpu_milliseconds"]
            lines.append(
                f"{row['method']}, above its forward pass of {found['forward']:.1f} ms: "
                f"{found['darts']:.1f} ms in darts, {found['sktime']:.1f} ms in sktime, a fold "
                f"{found['fold']:.1f} ms"
            )
    return lines


if __name__ == "__main__":
    main()

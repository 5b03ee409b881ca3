"""Airline passengers, the last 24 months held out: the methods with their defaults, five seeds.

Stores every seed in ``docs/results/airline.json`` and prints how many beat the seasonal naive
forecast.

    python examples/benchmarks/airline.py
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from _store import FOLDER, Results
from sktime.datasets import load_airline
from sktime.forecasting.naive import NaiveForecaster

from tsllm_estimators import (
    CALFForecaster,
    LeMoLEForecaster,
    LLMTSNetForecaster,
    TimeLlamaForecaster,
)

MONTHS = 24
RUNS = {
    "calf": CALFForecaster,
    "time-llama": TimeLlamaForecaster,
    "lemole": LeMoLEForecaster,
    "llm-ts-net": LLMTSNetForecaster,
}


def run(name: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the errors of one seed of a method and of the seasonal naive forecast."""
    y = load_airline()
    train, held_out = y[:-MONTHS], y[-MONTHS:]
    fh = list(range(1, MONTHS + 1))
    begin = time.perf_counter()
    forecaster = RUNS[name](random_state=seed, **changes).fit(train, fh=fh)
    forecast, interval = forecaster.predict(), forecaster.predict_interval(coverage=0.9)
    seconds = time.perf_counter() - begin
    naive = NaiveForecaster(strategy="last", sp=12).fit(train).predict(fh)
    inside = (interval.iloc[:, 0] <= held_out) & (held_out <= interval.iloc[:, 1])
    return {
        "mae": float((forecast - held_out).abs().mean()),
        "mae_seasonal_naive": float((naive - held_out).abs().mean()),
        "inside_90": float(inside.mean()),
        "seconds": round(seconds, 1),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the seeds that are not stored yet and print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="other settings")
    parser.add_argument("--results", type=Path, default=FOLDER / "airline.json")
    options = parser.parse_args(arguments)
    changes = {k: json.loads(v) for k, v in (item.split("=", 1) for item in options.set)}
    logging.captureWarnings(True)  # sktime 1.2 warns whenever one of its own forecasters is made
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    results = Results(options.results)
    for name in options.runs:
        for seed in options.seeds:
            key = {"run": name, "seed": seed, "settings": changes}
            if key not in results:
                results.add(key, run(name, seed, changes))
        print(f"{name}: {verdict(results.rows, name, options.seeds, changes)}")


def verdict(rows: list[dict[str, Any]], name: str, seeds: list[int], changes: Any) -> str:
    """Return how a method did beside the seasonal naive forecast."""
    rows = [r for r in rows if (r["run"], r["settings"]) == (name, changes) and r["seed"] in seeds]
    better = sum(row["mae"] < row["mae_seasonal_naive"] for row in rows)
    mean, naive = (np.mean([row[n] for row in rows]) for n in ("mae", "mae_seasonal_naive"))
    return f"mean MAE {mean:.1f}, seasonal naive {naive:.1f}; better in {better}/{len(rows)}"


if __name__ == "__main__":
    main()

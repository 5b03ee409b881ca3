"""Airline passengers, the last 24 months held out: CALF with its defaults in five seeds.

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

from tsllm_estimators import CALFForecaster

MONTHS = 24


def run(seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the errors of one seed and of the seasonal naive forecast."""
    y = load_airline()
    train, held_out = y[:-MONTHS], y[-MONTHS:]
    fh = list(range(1, MONTHS + 1))
    begin = time.perf_counter()
    forecaster = CALFForecaster(random_state=seed, **changes).fit(train, fh=fh)
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
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="other settings")
    parser.add_argument("--results", type=Path, default=FOLDER / "airline.json")
    options = parser.parse_args(arguments)
    changes = {k: json.loads(v) for k, v in (item.split("=", 1) for item in options.set)}
    logging.captureWarnings(True)  # sktime 1.2 warns whenever one of its own forecasters is made
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    results = Results(options.results)
    for seed in options.seeds:
        key = {"run": "calf", "seed": seed, "settings": changes}
        if key not in results:
            results.add(key, run(seed, changes))
    rows = [r for r in results.rows if r["settings"] == changes and r["seed"] in options.seeds]
    better = sum(row["mae"] < row["mae_seasonal_naive"] for row in rows)
    mean, naive = (np.mean([row[name] for row in rows]) for name in ("mae", "mae_seasonal_naive"))
    print(f"CALF: mean MAE {mean:.1f}, seasonal naive {naive:.1f}; better in {better}/{len(rows)}")


if __name__ == "__main__":
    main()

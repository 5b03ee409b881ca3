"""What the benchmarks of errors share: their command line, and the runs that are not stored yet."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from _store import FOLDER, Results

#: A run's name, to its model class and its settings.
Runs = Mapping[str, tuple[Any, dict[str, Any]]]


def command_line(
    description: str | None, runs: Runs, results: str, n_runs: str = "+"
) -> argparse.ArgumentParser:
    """Return a parser; ``results`` is the name of the stored file, ``n_runs`` how many to name."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", nargs=n_runs, choices=runs, default=list(runs))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="other settings")
    parser.add_argument("--results", type=Path, default=FOLDER / f"{results}.json")
    return parser


def data_folder() -> Path:
    """Return the folder of the data."""
    return Path(os.environ.get("TSLLM_DATA", "."))


def run_missing(
    options: argparse.Namespace, runs: Runs, run: Callable[[str, int, dict[str, Any]], Any]
) -> Results:
    """Run what is not stored yet, and store each result as soon as it is there."""
    changes = {k: json.loads(v) for k, v in (item.split("=", 1) for item in options.set)}
    results = Results(options.results)
    for name in options.runs:
        for seed in options.seeds:
            settings = {**runs[name][1], **changes}
            key = {"run": name, "seed": seed, "split": options.split, "settings": settings}
            if key not in results:
                results.add(key, run(name, seed, settings))
    return results

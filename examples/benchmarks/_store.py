"""Results of a benchmark: one JSON file, one row per run, written as soon as a run ends."""

import json
import platform
from pathlib import Path
from typing import Any

import torch

import tsllm_estimators

FOLDER = Path(__file__).parents[2] / "docs" / "results"


class Results:
    """Rows of a benchmark; a row is found again by its key, so that a benchmark can resume."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    def __contains__(self, key: dict[str, Any]) -> bool:
        key = json.loads(json.dumps(key))
        return any({name: row.get(name) for name in key} == key for row in self.rows)

    def add(self, key: dict[str, Any], measured: dict[str, Any]) -> None:
        """Store and print what was measured under a key."""
        row = {**key, **measured, "environment": environment()}
        print(json.dumps(row), flush=True)
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.rows, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "tsllm_estimators": tsllm_estimators.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }

"""Write the tables of docs/benchmarks.md from the results under docs/results.

python examples/benchmarks/tables.py
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def rows(name: str) -> list[dict[str, Any]]:
    """Return the stored rows of a benchmark."""
    return json.loads((DOCS / "results" / f"{name}.json").read_text())


def table(header: list[str], body: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def etth1() -> str:
    """Return the mean test error of each run over its seeds."""
    by_run = defaultdict(list)
    for row in rows("etth1"):
        if row["split"] == "test":
            by_run[row["run"]].append(row)
    body = [
        [
            name,
            str(runs[0]["settings"].get("input_chunk_length", "")),
            f"{mean(r['mse'] for r in runs):.4f}",
            f"{mean(r['mae'] for r in runs):.4f}",
            ", ".join(f"{r['mse']:.4f}" for r in runs),
            f"{runs[0]['trainable_parameters']:,}",
            f"{mean(r['fit_cpu_seconds'] for r in runs):.0f}",
        ]
        for name, runs in by_run.items()
    ]
    header = ["run", "lookback", "MSE", "MAE", "MSE per seed", "trainable", "CPU s to fit"]
    return table(header, body)


def airline() -> str:
    """Return the error of each seed."""
    body = [
        [
            str(row["seed"]),
            f"{row['mae']:.1f}",
            f"{row['mae_seasonal_naive']:.1f}",
            f"{row['inside_90']:.0%}",
        ]
        for row in rows("airline")
        if not row["settings"]
    ]
    return table(["seed", "CALF, MAE", "seasonal naive, MAE", "months inside 90 %"], body)


def fill(text: str) -> str:
    """Replace what stands between the markers of each table."""
    for name, build in (("etth1", etth1), ("airline", airline)):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        new = f"\\g<1>{build()}\n\\g<2>"
        text, found = re.subn(pattern, new, text, flags=re.DOTALL)
        assert found == 1, f"docs/benchmarks.md needs one marker <!-- {name} -->, found {found}"
    return text


if __name__ == "__main__":
    page = DOCS / "benchmarks.md"
    page.write_text(fill(page.read_text()))

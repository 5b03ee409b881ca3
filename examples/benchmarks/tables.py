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
    """Return the mean test error over the seeds of each run and its settings."""
    by_run = defaultdict(list)
    for row in rows("etth1"):
        if row["split"] == "test":
            by_run[row["run"], json.dumps(row["settings"])].append(row)
    body = [
        [
            name,
            ", ".join(f"{k}={v}" for k, v in runs[0]["settings"].items()),
            f"{mean(r['mse'] for r in runs):.4f}",
            f"{mean(r['mae'] for r in runs):.4f}",
            ", ".join(f"{r['mse']:.4f}" for r in runs),
            f"{runs[0]['trainable_parameters']:,}",
            f"{mean(r['fit_cpu_seconds'] for r in runs):.0f}",
        ]
        for (name, _), runs in by_run.items()
    ]
    header = ["run", "settings", "MSE", "MAE", "MSE per seed", "trainable", "CPU s to fit"]
    return table(header, body)


def validation() -> str:
    """Return the validation errors that the defaults of CALF were chosen by."""
    shown = ("output_weight", "lr", "head_dropout")
    body = [
        [
            *(str(row["settings"][name]) for name in shown),
            f"{row['mse']:.4f}",
            f"{row['mae']:.4f}",
        ]
        for row in sorted(rows("etth1_validation"), key=lambda row: row["mse"])
    ]
    return table([*shown, "MSE", "MAE"], body)


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


def speed() -> str:
    """Return time and memory of a step and of a batch, beside the encoder's."""
    body = [
        [
            str(row["batch_size"]),
            *(f"{row['seconds'][name]:.2f}" for name in ("train", "encoder_train")),
            f"{row['train_ratio']:.2f}",
            *(f"{row['seconds'][name]:.2f}" for name in ("predict", "encoder_predict")),
            f"{row['predict_ratio']:.2f}",
            f"{row['peak_gb']:.1f}",
        ]
        for row in rows("speed")
        if row["run"] == "step"
    ]
    header = ["batch", "step, s", "encoder, s", "ratio", "inference, s", "encoder, s", "ratio"]
    return table([*header, "peak, GB"], body)


def speed_parts() -> str:
    """Return where the time of a training step goes."""
    steps = [row for row in rows("speed") if row["run"] == "step"]
    parts = list(steps[0]["seconds_of_a_step"])
    body = [[part, *(f"{s['seconds_of_a_step'][part]:.2f}" for s in steps)] for part in parts]
    return table(["part, s", *(f"batch {s['batch_size']}" for s in steps)], body)


def sktime_overhead() -> str:
    """Return what the sktime face adds to a call."""
    row = next(row for row in rows("speed") if row["run"] == "sktime")
    return f"{row['fit_ms']:.1f} ms to `fit` and {row['predict_ms']:.1f} ms to `predict`"


BUILDERS = {
    "etth1": etth1,
    "validation": validation,
    "airline": airline,
    "speed": speed,
    "speed_parts": speed_parts,
    "sktime_overhead": sktime_overhead,
}


def fill(text: str) -> str:
    """Replace what stands between the markers of each table."""
    for name, build in BUILDERS.items():
        pattern = rf"(<!-- {name} -->(\n?)).*?(<!-- end -->)"
        new = f"\\g<1>{build()}\\g<2>\\g<3>"
        text, found = re.subn(pattern, new, text, flags=re.DOTALL)
        assert found == 1, f"docs/benchmarks.md needs one marker <!-- {name} -->, found {found}"
    return text


if __name__ == "__main__":
    page = DOCS / "benchmarks.md"
    page.write_text(fill(page.read_text()))

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


def validation(run: str, shown: tuple[str, ...]) -> str:
    """Return the validation errors that the defaults of a method were chosen by."""
    body = [
        [
            *(str(row["settings"].get(name, "")) for name in shown),
            str(row["seed"]),
            f"{row['mse']:.4f}",
            f"{row['mae']:.4f}",
        ]
        for row in sorted(rows("etth1_validation"), key=lambda row: row["mse"])
        if row["run"] == run
    ]
    return table([*shown, "seed", "MSE", "MAE"], body)


def airline() -> str:
    """Return the error of each seed."""
    body = [
        [
            row["run"],
            str(row["seed"]),
            f"{row['mae']:.1f}",
            f"{row['mae_seasonal_naive']:.1f}",
            f"{row['inside_90']:.0%}",
        ]
        for row in rows("airline")
        if not row["settings"]
    ]
    return table(["run", "seed", "MAE", "seasonal naive, MAE", "months inside 90 %"], body)


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


def adapters_memory() -> str:
    """Return what each method keeps for the backward pass."""
    methods = ["full", "frozen", "lora", "lora, dropout 0.1", "lora-fa", "lora-amr"]
    methods.append("lora-amr, checkpointed")

    def cells(row: dict[str, Any]) -> list[str]:
        name, unit = ("GiB, computed", 2**30) if row["run"] == "computed" else ("MiB", 2**20)
        kept = [row["kept_bytes"].get(method) for method in methods]
        shown = ["-" if number is None else f"{number / unit:.2f}" for number in kept]
        return [f"{row['model']}, {name}", str(row["rank"]), *shown, f"{row['saving']:.1%}"]

    body = [cells(row) for row in rows("adapters") if row["run"] != "merged"]
    return table(["model", "r", *methods, "LoRA-AMR below LoRA"], body)


def adapters_trainable() -> str:
    """Return what each method trains, and what Adam holds for it."""
    methods = ["full", "lora", "lora-fa", "lora-amr"]
    body = [
        [
            row["model"],
            str(row["rank"]),
            *(f"{row['trainable'][method]:,}" for method in methods),
            *(f"{row['optimizer_bytes'][method] / 2**20:,.2f}" for method in methods),
        ]
        for row in rows("adapters")
        if row["run"] != "merged" and row["model"] != "gpt2, gelu_new"
    ]
    return table(["model", "r", *methods, *(f"{method}, Adam, MiB" for method in methods)], body)


def adapters_merged() -> str:
    """Return the time of a forward pass with an adapter, merged and not, beside the base's."""
    body = [
        [
            row["model"],
            str(row["rank"]),
            *(f"{1000 * row['seconds'][name]:.1f}" for name in ("base", "merged", "adapted")),
            f"{row['merged_ratio']:.2f}",
            f"{row['adapted_ratio']:.2f}",
        ]
        for row in rows("adapters")
        if row["run"] == "merged"
    ]
    header = ["model", "r", "base, ms", "merged, ms", "not merged, ms"]
    return table([*header, "merged / base", "not merged / base"], body)


def variates() -> str:
    """Return the inference speed of Time-LlaMA and of a patch model, by number of variates."""
    body = [
        [
            str(row["n_variates"]),
            *(f"{row['windows_per_second'][name]:.1f}" for name in ("time_llama", "patches")),
            f"{row['ahead']:.1f}",
        ]
        for row in rows("time_llama")
        if row["run"] == "variates"
    ]
    return table(["variates", "Time-LlaMA, windows/s", "patches, windows/s", "ratio"], body)


def growth() -> str:
    """Return how the time of a window grows with the variates."""
    row = next(row for row in rows("time_llama") if row["run"] == "growth")
    return f"the power {row['exponent']:.2f}"


def dynalora_overhead() -> str:
    """Return what D-LoRA adds to the time and the FLOPs of the frozen language model."""
    names = ("lora", "dynalora", "dynalora_top_1")
    body = [
        [
            str(row["batch_size"]),
            str(row["n_tokens"]),
            f"{row['milliseconds']['frozen']:.1f}",
            *(f"{row['time'][name]:+.1%}" for name in names),
            *(f"{row['flops'][name]:+.1%}" for name in names[:2]),
        ]
        for row in rows("time_llama")
        if row["run"] == "overhead"
    ]
    header = ["batch", "tokens", "frozen, ms", "LoRA, time", "D-LoRA, time", "top 1, time"]
    return table([*header, "LoRA, FLOPs", "D-LoRA, FLOPs"], body)


BUILDERS = {
    "etth1": etth1,
    "validation": lambda: validation("calf", ("output_weight", "lr", "head_dropout")),
    "validation_time_llama": lambda: validation(
        "time-llama",
        ("backbone", "backbone_layers", "residual", "positions", "lr", "batch_size"),
    ),
    "airline": airline,
    "speed": speed,
    "speed_parts": speed_parts,
    "sktime_overhead": sktime_overhead,
    "adapters_memory": adapters_memory,
    "adapters_trainable": adapters_trainable,
    "adapters_merged": adapters_merged,
    "variates": variates,
    "growth": growth,
    "dynalora_overhead": dynalora_overhead,
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

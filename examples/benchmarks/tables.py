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
        if row["run"].startswith(run)
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


def announced_events() -> str:
    """Return the mean error over the shops of each run, by what was announced."""
    by_run = defaultdict(list)
    for row in rows("announced_events"):
        by_run[row["run"]].append(row["mse"])
    parts = list(next(iter(by_run.values()))[0])
    none = mean(errors[parts[0]] for errors in by_run['text="none"'])
    body = [
        [
            run,
            *(f"{mean(errors[part] for errors in shops):,.0f}" for part in parts),
            f"{mean(errors[parts[0]] for errors in shops) / none:.0%}",
        ]
        for run, shops in by_run.items()
    ]
    return table(["told", *parts, "of none, weeks with events"], body)


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


def text_encoding() -> str:
    """Return the time of encoding texts, and of finding them in the cache."""
    names = ("first", "from_disk", "of_loading_the_model", "from_memory")
    body = [
        [
            row["run"],
            f"{row['n']:,}",
            *(f"{row[f'seconds_{name}']:.3f}" for name in names),
            f"{row['megabytes_on_disk']:.1f}",
        ]
        for row in rows("text")
    ]
    header = ["texts", "distinct", "first, s", "from disk, s", "of it the model, s"]
    return table([*header, "from memory, s", "on disk, MB"], body)


def lemole_speed(what: str, digits: int) -> str:
    """Return the seconds of LeMoLE's variants, and their ratios to DLinear's."""
    body = []
    for row in rows("lemole"):
        found = row.get(what, {}) if row["run"] in ("train", "inference") else {}
        for name, seconds in found.get("seconds", {}).items():
            ratios = ["", "", ""]
            if name in found["ratio"]:
                low, high = found["range"][name]
                ratios = [f"{found['ratio'][name]:.2f}", f"{low:.2f} to {high:.2f}"]
                ratios.append(f"{found['cpu_ratio'][name]:.2f}")
            body.append([str(row["batch_size"]), name, f"{seconds:.{digits}f}", *ratios])
    if what == "forecast":  # of one batch size
        body = [line[1:] for line in body]
    header = ["model", "s", "ratio", "of single rounds", "ratio, CPU"]
    return table(header if what == "forecast" else ["batch", *header], body)


def lemole_reading() -> str:
    """Return the ratios that the aims are about."""
    said = []
    for row in rows("lemole"):
        if row["run"] == "train":
            clock, cpu = row["epoch"]["ratio"], row["epoch"]["cpu_ratio"]
            pairs = (f"{clock[name]:.2f} ({cpu[name]:.2f})" for name in ("lemole", "text=none"))
            said.append("{} with texts and {} without at batch ".format(*pairs))
            said[-1] += str(row["batch_size"])
    return ", ".join(said)


def lemole_growth() -> str:
    """Return the time of a training step of the bare network by lookback."""
    row = next(row for row in rows("lemole") if row["run"] == "growth")
    pairs = zip(row["lookbacks"], row["seconds_of_a_step"], strict=True)
    body = [[str(lookback), f"{1000 * seconds:.1f}"] for lookback, seconds in pairs]
    return table(["lookback", "step, ms"], body)


def lemole_exponent() -> str:
    """Return how the time of a training step grows with the lookback."""
    row = next(row for row in rows("lemole") if row["run"] == "growth")
    return f"the power {row['exponent']:.2f}"


def lemole_longest() -> str:
    """Return what the longest lookback takes."""
    row = next(row for row in rows("lemole") if row["run"] == "longest")
    return (
        f"{row['parameters']:,} parameters, {row['epoch']:.1f} s for an epoch of "
        f"{row['windows']:,} windows"
    )


def lemole_load() -> str:
    """Return how busy the machine was."""
    loads = [row["load"] for row in rows("lemole")]
    return f"{min(loads):.1f} to {max(loads):.1f}"


BUILDERS = {
    "etth1": etth1,
    "validation": lambda: validation("calf", ("output_weight", "lr", "head_dropout")),
    "validation_time_llama": lambda: validation(
        "time-llama",
        ("backbone", "backbone_layers", "residual", "positions", "lr", "batch_size"),
    ),
    "validation_lemole": lambda: validation(
        "lemole", ("input_chunk_length", "lr", "dropout", "text", "dynamic", "lookbacks")
    ),
    "airline": airline,
    "announced_events": announced_events,
    "speed": speed,
    "speed_parts": speed_parts,
    "sktime_overhead": sktime_overhead,
    "adapters_memory": adapters_memory,
    "adapters_trainable": adapters_trainable,
    "adapters_merged": adapters_merged,
    "variates": variates,
    "growth": growth,
    "dynalora_overhead": dynalora_overhead,
    "text_encoding": text_encoding,
    "lemole_epoch": lambda: lemole_speed("epoch", 2),
    "lemole_before": lambda: lemole_speed("before", 3),
    "lemole_forecast": lambda: lemole_speed("forecast", 2),
    "lemole_reading": lemole_reading,
    "lemole_growth": lemole_growth,
    "lemole_exponent": lemole_exponent,
    "lemole_longest": lemole_longest,
    "lemole_load": lemole_load,
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

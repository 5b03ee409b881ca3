"""Tables of forecast errors: how good the forecasts are, and how wide their intervals."""

from collections import defaultdict
from statistics import mean
from typing import Any

from _tables import by_settings, rows, settings, table


def etth1() -> str:
    """Return the mean test error over the seeds of each run and its settings."""
    body = [
        [
            runs[0]["run"],
            settings(runs[0]),
            f"{mean(r['mse'] for r in runs):.4f}",
            f"{mean(r['mae'] for r in runs):.4f}",
            ", ".join(f"{r['mse']:.4f}" for r in runs),
            f"{runs[0]['trainable_parameters']:,}",
            f"{mean(r['fit_cpu_seconds'] for r in runs):.0f}",
        ]
        for runs in by_settings(tested("etth1"))
    ]
    header = ["run", "settings", "MSE", "MAE", "MSE per seed", "trainable", "CPU s to fit"]
    return table(header, body)


def tested(name: str) -> list[dict[str, Any]]:
    """Return the stored rows that read the test part."""
    return [row for row in rows(name) if row["split"] == "test"]


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


def losloop() -> str:
    """Return the mean test errors over the seeds of each run and its settings."""
    steps = ("3", "6", "12", "all")
    body = []
    for runs in by_settings(tested("losloop")):
        cells = [runs[0]["run"]]
        for kind, at in (("mae", steps), ("rmse", steps[:3]), ("mape", steps[2:3])):
            cells += [f"{mean(row[kind][step] for row in runs):.2f}" for step in at]
        cells.append(", ".join(f"{row['mae']['12']:.2f}" for row in runs))
        cells.append(f"{runs[0].get('trainable_parameters', 0):,}")
        cells.append(f"{mean(row['fit_cpu_seconds'] for row in runs):.0f}")
        body.append([*cells, settings(runs[0])])
    header = ["run", "MAE at 3", "6", "12", "all", "RMSE at 3", "6", "12", "MAPE at 12, %"]
    header += ["MAE at 12 per seed", "trainable", "CPU s to fit", "settings"]
    return table(header, body)


def losloop_validation() -> str:
    """Return the validation errors that settings were chosen by, the best of each run first."""
    steps = ("3", "6", "12", "all")
    stored = rows("losloop_validation")
    order = list(dict.fromkeys(row["run"] for row in stored))
    body = [
        [
            row["run"],
            *(f"{row['mae'][step]:.3f}" for step in steps),
            str(row["seed"]),
            settings(row),
        ]
        for row in sorted(stored, key=lambda row: (order.index(row["run"]), row["mae"]["all"]))
    ]
    return table(["run", "MAE at 3", "6", "12", "all", "seed", "settings"], body)


def coverage() -> str:
    """Return how many readings lie inside the 90 % intervals of each run that gives them."""
    body = []
    for data, title, mae in (
        ("etth1", "ETTh1", lambda row: row["mae"]),
        ("losloop", "LosLoop", lambda row: row["mae"]["all"]),
    ):
        for runs in by_settings(row for row in tested(data) if "coverage" in row):
            shares = [row["coverage"] for row in runs]
            each = ", ".join(f"{share:.1%}" for share in shares)
            error = f"{mean(mae(row) for row in runs):.3f}"
            cells = [title, runs[0]["run"], f"{mean(shares):.1%}", each, error]
            body.append([*cells, settings(runs[0])])
    return table(["data", "run", "inside 90 %", "per seed", "MAE", "settings"], body)


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
    "losloop": losloop,
    "losloop_validation": losloop_validation,
    "coverage": coverage,
    "airline": airline,
    "announced_events": announced_events,
}

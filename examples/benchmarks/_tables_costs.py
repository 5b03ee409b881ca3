"""Tables of what the methods cost: time, and memory of what is not an adapter."""

from _tables import rows, table


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


def backtests() -> str:
    """Return the time of backtests, and its ratio to the measure of each method."""
    body = []
    for row in rows("backtesting"):
        if row["run"] != "backtest":
            continue
        what = "last points" if row["last_points_only"] else "whole forecasts"
        for name, measure in (("calf", "forwards"), ("lemole", "dlinear")):
            cpu, clock = row[name]["cpu_seconds"], row[name]["seconds"]
            seconds = [f"{cpu[of]:.3f}" for of in (name, measure)]
            label = {"forwards": "its forward passes", "dlinear": "DLinear"}[measure]
            body.append(
                [
                    {"calf": "CALF", "lemole": "LeMoLE without texts"}[name],
                    what,
                    label,
                    *seconds,
                    f"{cpu['ratio']:.2f}",
                    f"{clock['ratio']:.2f}",
                ]
            )
    header = ["method", "result", "beside", "CPU s", "of the measure, CPU s", "ratio"]
    return table([*header, "by the clock"], body)


def single_forecasts() -> str:
    """Return what a forecast and a fold take above the forward pass."""
    names = ("forward", "darts", "sktime", "fold")
    body = [
        [
            {"calf": "CALF", "lemole": "LeMoLE without texts"}[row["method"]],
            *(f"{row['cpu_milliseconds'][name]:.1f}" for name in names),
            *(f"{row['milliseconds'][name]:.1f}" for name in names[1:]),
        ]
        for row in rows("backtesting")
        if row["run"] == "single"
    ]
    above = [
        f"{where}, {kind}" for kind in ("CPU ms", "ms") for where in ("darts", "sktime", "fold")
    ]
    return table(["method", "forward, CPU ms", *above], body)


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


def many_series() -> str:
    """Return memory and time of LLM-TS Net by number of series."""
    body = [
        [
            str(row["n_series"]),
            str(row["batch_size"]),
            row["backbone"].rpartition("/")[2],
            "yes" if row["inter"] else "no",
            *(
                f"{row[f'{name}_bytes'] / 2**20:.0f}"
                for name in ("kept", "pairs", "step", "inference", "process")
            ),
            *(f"{1000 * row[f'{name}_cpu_seconds']:.0f}" for name in ("step", "inference")),
            str(row["texts"]),
        ]
        for row in rows("many_series")
    ]
    header = ["series", "batch", "language model", "inter", "kept", "a stored matrix", "step"]
    return table([*header, "inference", "process", "step, ms", "inference, ms", "texts"], body)


BUILDERS = {
    "speed": speed,
    "speed_parts": speed_parts,
    "backtests": backtests,
    "single_forecasts": single_forecasts,
    "sktime_overhead": sktime_overhead,
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
    "many_series": many_series,
}

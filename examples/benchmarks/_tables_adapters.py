"""Tables of the ways to tune a language model: what they keep, train and learn."""

from typing import Any

from _tables import rows, table

METHODS = ("full", "lora", "lora-fa", "lora-amr")


def trained(row: dict[str, Any]) -> list[str]:
    """Return what each method trains, and the MiB that Adam holds for it."""
    numbers = [f"{row['trainable'][method]:,}" for method in METHODS]
    return [*numbers, *(f"{row['optimizer_bytes'][method] / 2**20:,.2f}" for method in METHODS)]


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
    body = [
        [row["model"], str(row["rank"]), *trained(row)]
        for row in rows("adapters")
        if row["run"] != "merged" and row["model"] != "gpt2, gelu_new"
    ]
    return table(["model", "r", *METHODS, *(f"{method}, Adam, MiB" for method in METHODS)], body)


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


def language_stage_memory() -> str:
    """Return what each method keeps of a step of the stage."""
    body = [
        [
            str(row["rank"]),
            *(f"{row['kept_bytes'][method] / 2**20:.2f}" for method in METHODS),
            f"{row['head_bytes'] / 2**20:.2f}",
            f"{row['saving']:.1%}",
        ]
        for row in rows("language_stage")
        if row["run"] == "memory"
    ]
    header = ["r", *(f"{method}, MiB" for method in METHODS)]
    return table([*header, "of it the head's, MiB", "LoRA-AMR below LoRA"], body)


def language_stage_trainable() -> str:
    """Return what each method trains in the stage, and what Adam holds for it."""
    stored = (row for row in rows("language_stage") if row["run"] == "memory")
    body = [[str(row["rank"]), *trained(row)] for row in stored]
    return table(["r", *METHODS, *(f"{method}, Adam, MiB" for method in METHODS)], body)


def language_stage_fall() -> str:
    """Return the rates that each method was tried with, and how far the loss fell with the best."""
    body = []
    for method in METHODS:
        tried, runs = stage_tried(method), stage_chosen(method)
        cells = [method, ", ".join(f"{row['rate']:g}: {row['loss_after']:.2f}" for row in tried)]
        cells += [f"{runs[0]['rate']:g}", f"{runs[0]['loss_before']:.2f}"]
        cells.append(", ".join(f"{row['loss_after']:.2f}" for row in runs))
        cells.append(", ".join(f"{row['fall']:.0%}" for row in runs))
        cells.append(", ".join(f"{share:.2f}" for share in stage_shares(method)))
        body.append(cells)
    header = ["method", "rate: loss after, first seed", "chosen", "loss before", "after, per seed"]
    return table([*header, "fall, per seed", "of LoRA's fall, per seed"], body)


def language_stage_share() -> str:
    """Return how much of the fall with LoRA there is with LoRA-AMR."""
    shares = stage_shares("lora-amr")
    return f"{min(shares):.2f} to {max(shares):.2f}"


def stage_rows(method: str) -> list[dict[str, Any]]:
    """Return the stored losses of a method, by seed and rate."""
    stored = [row for row in rows("language_stage") if row.get("method") == method]
    return sorted(stored, key=lambda row: (row["seed"], row["rate"]))


def stage_tried(method: str) -> list[dict[str, Any]]:
    """Return the rows of the first seed, one for each rate."""
    stored = stage_rows(method)
    return [row for row in stored if row["seed"] == stored[0]["seed"]]


def stage_chosen(method: str) -> list[dict[str, Any]]:
    """Return the rows of the rate whose loss is the lowest with the first seed, one per seed."""
    best = min(stage_tried(method), key=lambda row: row["loss_after"])["rate"]
    return [row for row in stage_rows(method) if row["rate"] == best]


def stage_shares(method: str) -> list[float]:
    """Return the fall with a method over that with LoRA, per seed."""
    pairs = zip(stage_chosen(method), stage_chosen("lora"), strict=True)
    return [row["fall"] / lora["fall"] for row, lora in pairs]


BUILDERS = {
    "adapters_memory": adapters_memory,
    "adapters_trainable": adapters_trainable,
    "adapters_merged": adapters_merged,
    "language_stage_memory": language_stage_memory,
    "language_stage_trainable": language_stage_trainable,
    "language_stage_fall": language_stage_fall,
    "language_stage_share": language_stage_share,
}

"""What a small language model learns from the descriptions, and what each way of tuning keeps.

The stage of LLM-TS Net before its training: the texts of the statistical describer on the windows
of ETTh1 (96 steps of seven series, as many windows as ``--windows``, evenly spread over the
training months), MiniLM, masked words. The methods adapt every linear map of the layers: LoRA-AMR;
LoRA of the same rank; LoRA whose first factor is frozen ("LoRA-FA") at rank r / 2 as LoRA-AMR has;
and full fine-tuning of the layers. All have alpha = 2 r, the same steps and the same batches.

"fall": the loss on a fixed sample of the corpus before and after. Every method runs with a few
learning rates and the first seed; the rate of the lowest loss afterwards, which is a loss on the
training's texts, runs with the other seeds as well.

"memory": the bytes of what autograd saves in one forward pass of the stage's own loss, each
storage once, without parameters and buffers; ``head_bytes`` of them are the head's and the loss's,
the same for all. Optimiser bytes are those of Adam, two float32 numbers per trainable one.

Results go to ``docs/results/language_stage.json``.

    TSLLM_DATA=... OMP_NUM_THREADS=1 python examples/benchmarks/language_stage.py
"""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from _memory import kept_bytes, storages
from _store import FOLDER, Results

from tsllm_estimators.darts._language import clear_tuned, fine_tune
from tsllm_estimators.darts._runtime import exclusive
from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE, load_backbone
from tsllm_estimators.llm.describe import load_describer
from tsllm_estimators.llm.language_modelling import LanguageModelling

LENGTH, TRAIN = 96, 12 * 30 * 24
#: Learning rates that each method is tried with.
RATES = {
    "lora-amr": (0.01, 0.03, 0.1),
    "lora": (0.001, 0.003, 0.01),
    "lora-fa": (0.003, 0.01, 0.03, 0.1),
    "full": (0.0001, 0.0003, 0.001),
}
_MAPS = r".*\.layer\.\d+\..*(query|key|value|dense)"


def corpus(n_windows: int) -> list[str]:
    """Return the descriptions of windows of ETTh1, or of random walks without TSLLM_DATA."""
    folder = os.environ.get("TSLLM_DATA")
    if folder is None:
        values = np.random.default_rng(0).normal(size=(1000, 7)).cumsum(0)
    else:
        path = Path(folder) / "ETTh1.csv"
        values = np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(1, 8))[:TRAIN]
    starts = np.linspace(0, len(values) - LENGTH, n_windows).astype(int)
    windows = torch.tensor(np.stack([values[start : start + LENGTH] for start in starts]))
    windows = (windows - windows.mean(1, keepdim=True)) / windows.std(1, keepdim=True)
    describer = load_describer("statistical", None)
    return describer.texts(describer.codes(windows.float()).flatten().tolist())


def stage(
    method: str, rank: int, backbone: str, texts: list[str], seed: int, **settings: Any
) -> LanguageModelling:
    """Return the stage with a language model that a method is about to tune."""
    kind = {"lora-amr": "LORA_AMR", "lora": "LORA", "lora-fa": "LORA"}
    adapter: Any = "full"
    if method in kind:
        rank = rank // 2 if method == "lora-fa" else rank
        adapter = {"peft_type": kind[method], "r": rank, "lora_alpha": 2 * rank}
        adapter["target_modules"] = _MAPS
    torch.manual_seed(seed)
    model = load_backbone(backbone).prepare(1, adapter=adapter)
    for name, parameter in model.named_parameters():
        if "pooler" in name or (method == "lora-fa" and ".lora_A." in name):
            parameter.requires_grad_(False)
    return LanguageModelling(model, texts, seed=seed, **settings)


def fall(*arguments: Any, **settings: Any) -> dict[str, Any]:
    """Return the losses before and after the stage."""
    clear_tuned()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with exclusive():
        trainer = pl.Trainer(accelerator="cpu", **quiet)
        summary = fine_tune(stage(*arguments, **settings), trainer, False)
    share = 1 - summary["loss_after"] / summary["loss_before"]
    return {**{k: v for k, v in summary.items() if k != "cached"}, "fall": share}


def memory(rank: int, backbone: str, texts: list[str], batch_size: int) -> dict[str, Any]:
    """Return what each method keeps for the backward pass of a step, and trains."""
    kept, trainable = {}, {}
    for method in RATES:
        settings = {"steps": 1, "lr": 0.01, "batch_size": batch_size}
        each = stage(method, rank, backbone, texts, 0, **settings).train()
        batch = next(each.batches())
        own = storages(*each.parameters(), *each.buffers(), *batch)
        kept[method] = kept_bytes(lambda each=each, batch=batch: each(batch), own)
        trainable[method] = sum(p.numel() for p in each.trainable().values())
    targets = batch.targets[batch.targets >= 0]
    states = torch.randn(len(targets), each.backbone.width, requires_grad=True)
    head = kept_bytes(lambda: F.cross_entropy(each.head(states).float(), targets), own)
    return {
        "tokens": int(batch.ids.numel()),
        "kept_bytes": kept,
        "head_bytes": head,
        "trainable": trainable,
        "optimizer_bytes": {method: 8 * n for method, n in trainable.items()},
        "saving": 1 - kept["lora-amr"] / kept["lora"],
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--ranks", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--windows", type=int, default=500)
    parser.add_argument("--results", type=Path, default=FOLDER / "language_stage.json")
    options = parser.parse_args(arguments)
    results, texts, name = Results(options.results), corpus(options.windows), options.backbone
    shared = {"backbone": name, "windows": options.windows, "batch_size": options.batch_size}
    for rank in options.ranks:
        key = {"run": "memory", "rank": rank, **shared}
        if key not in results:
            results.add(key, memory(rank, name, texts, options.batch_size))
    rank = options.ranks[0]
    for method, rates in RATES.items():
        settings = {"run": "fall", "method": method, "rank": rank, "steps": options.steps, **shared}
        tried = [(rate, options.seeds[0]) for rate in rates]
        for rate, seed in tried:
            key = {**settings, "rate": rate, "seed": seed}
            if key not in results:
                sizes = {"steps": options.steps, "lr": rate, "batch_size": options.batch_size}
                results.add(key, fall(method, rank, name, texts, seed, **sizes))
            if len(tried) == len(rates) and (rate, seed) == tried[-1]:
                best = min(rates, key=lambda rate: _loss(results, {**settings, "rate": rate}))
                tried += [(best, seed) for seed in options.seeds[1:]]


def _loss(results: Results, key: dict[str, Any]) -> float:
    rows = [row for row in results.rows if all(row.get(k) == v for k, v in key.items())]
    return rows[0]["loss_after"]


if __name__ == "__main__":
    main()

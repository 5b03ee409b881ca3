"""Speed of Time-LlaMA: against the number of variates, and what D-LoRA costs.

Inference windows per second at several numbers of variates, beside a model like PatchTST of the
same width and depth (each variate apart, patches of 16 steps every 8, a Transformer encoder over
them), in one process and in turn; how the time of a window grows with the variates; and the time
of the backbone with D-LoRA over the frozen one, with the FLOPs that the adapter adds. Medians and
ratios of medians. Results go to ``docs/results/time_llama.json``.

    OMP_NUM_THREADS=2 python examples/benchmarks/time_llama.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _store import FOLDER, Results
from speed import growth_exponent, in_turn
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE, Backbone, load_backbone
from tsllm_estimators.networks.base import Batch, Shapes
from tsllm_estimators.networks.time_llama import TimeLlama, TimeLlamaConfig

CONTEXT, HORIZON = 512, 96
PATCH, STRIDE = 16, 8


class PatchTransformer(nn.Module):
    """A model like PatchTST: each variate is a sequence of patches of its own."""

    def __init__(self, width: int, n_layers: int, n_heads: int, feed_forward: int) -> None:
        super().__init__()
        n_patches = (CONTEXT - PATCH) // STRIDE + 2  # the last step is repeated for one more
        self.embedding = nn.Linear(PATCH, width)
        self.positions = nn.Parameter(0.02 * torch.randn(n_patches, width))
        layer = nn.TransformerEncoderLayer(
            width, n_heads, feed_forward, batch_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.head = nn.Linear(n_patches * width, HORIZON)

    def forward(self, context: Tensor) -> Tensor:
        """Map windows (b, L, c) to forecasts (b, H, c)."""
        mean, deviation = context.mean(1, keepdim=True), context.std(1, keepdim=True) + 1e-5
        series = ((context - mean) / deviation).transpose(1, 2).flatten(0, 1)
        padded = torch.cat([series, series[:, -1:].expand(-1, STRIDE)], 1)
        tokens = self.embedding(padded.unfold(1, PATCH, STRIDE)) + self.positions
        forecast = self.head(self.encoder(tokens).flatten(1))
        return forecast.unflatten(0, (len(context), -1)).transpose(1, 2) * deviation + mean


@torch.no_grad()
def windows_per_second(backbone: str, n_variates: int, batch_size: int, rounds: int) -> Any:
    """Return the inference speed of Time-LlaMA and of the patch model."""
    shapes = Shapes(context_length=CONTEXT, horizon=HORIZON, n_variates=n_variates)
    network = TimeLlama(TimeLlamaConfig(backbone=backbone), shapes).eval()
    config = network.backbone.model.config
    patches = PatchTransformer(
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
    ).eval()
    context = torch.randn(batch_size, CONTEXT, n_variates)
    calls: dict[str, Callable[[], Any]] = {
        "time_llama": lambda: network(Batch(past_target=context)),
        "patches": lambda: patches(context),
    }
    times = in_turn(calls, rounds)
    return {
        "layers": config.num_hidden_layers,
        "windows_per_second": {name: batch_size / time for name, time in times.items()},
        "ahead": times["patches"] / times["time_llama"],
    }


def adapted(backbone: str, adapter: dict[str, Any] | None) -> Backbone:
    """Return a language model with an adapter that is past its start."""
    model = load_backbone(backbone).prepare(1, adapter=adapter).eval()
    for name, parameter in model.named_parameters():
        if "_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def overhead(backbone: str, batch_size: int, n_tokens: int, rounds: int) -> Any:
    """Return time and FLOPs of adapted backbones over those of the frozen one."""
    torch.manual_seed(0)
    lora = {"peft_type": "LORA", "r": 8, "target_modules": "all-linear"}
    routed = {"peft_type": "DYNALORA", "r": 8}
    models = {
        "frozen": adapted(backbone, None),
        "lora": adapted(backbone, lora),
        "dynalora": adapted(backbone, routed),
        "dynalora_top_1": adapted(backbone, {**routed, "top_n": 1}),
    }
    tokens = torch.randn(batch_size, n_tokens, models["frozen"].width)
    positions = torch.zeros(n_tokens, dtype=torch.long)
    flops = {}
    for name, model in models.items():
        # with gradients every module is computed: what may be skipped counts too
        with FlopCounterMode(display=False) as counter:
            model(tokens, positions=positions)
        flops[name] = counter.get_total_flops()
    with torch.no_grad():
        calls = {
            name: (lambda model=model: model(tokens, positions=positions))
            for name, model in models.items()
        }
        times = in_turn(calls, rounds)
    return {
        "milliseconds": {name: 1000 * time for name, time in times.items()},
        "time": {name: time / times["frozen"] - 1 for name, time in times.items()},
        "flops": {name: count / flops["frozen"] - 1 for name, count in flops.items()},
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--variates", nargs="+", type=int, default=[7, 21, 321, 862])
    parser.add_argument("--tokens", nargs="+", type=int, default=[7, 21, 64])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, default=FOLDER / "time_llama.json")
    options = parser.parse_args(arguments)
    results = Results(options.results)
    for n_variates in options.variates:
        batch_size = max(1, 224 // n_variates)
        key = {"run": "variates", "backbone": options.backbone, "n_variates": n_variates}
        if key not in results:
            measured = windows_per_second(options.backbone, n_variates, batch_size, options.rounds)
            results.add(key, {"batch_size": batch_size, **measured})
    for batch_size in options.batch_sizes:
        for n_tokens in options.tokens:
            key = {"run": "overhead", "backbone": options.backbone}
            key |= {"batch_size": batch_size, "n_tokens": n_tokens}
            if key not in results:
                rounds = 4 * options.rounds
                results.add(key, overhead(options.backbone, batch_size, n_tokens, rounds))
    key = {"run": "growth", "backbone": options.backbone, "n_variates": options.variates}
    if key not in results:
        rows = [row for row in results.rows if row["run"] == "variates"]
        speeds = [row["windows_per_second"]["time_llama"] for row in rows]
        seconds = [1 / speed for speed in speeds]
        exponent = growth_exponent([row["n_variates"] for row in rows], seconds)
        results.add(key, {"exponent": exponent})


if __name__ == "__main__":
    main()

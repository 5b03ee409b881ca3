"""What LoRA-AMR keeps for the backward pass, trains and costs at inference, beside its kin.

Language models of the shapes of GPT-2 and Llama with random weights, in float32, with SDPA and
without dropout; every linear map of their layers is adapted, and their inputs need gradients, as
behind a trained embedding. "Kept" are the bytes of what autograd saves in a forward pass: each
storage once, without parameters and buffers. It is not the peak of an allocator. GPT-2 comes with
its stock activation and with the fused form of the same function.

The methods: full fine-tuning; all weights frozen (the floor: what the gradient of the inputs
needs); LoRA, without and with dropout; LoRA whose first factor is frozen ("LoRA-FA"), at rank r / 2
as LoRA-AMR has; LoRA-AMR. The last two also with checkpointing of each layer. Optimiser bytes are
those of Adam, two float32 numbers per trainable one. The rows of Llama with 7 billion parameters
are computed, for a model and adapters in bfloat16, by a formula that gives the measured rows of
Llama to the byte. Merged forward passes are timed in turn with those of the base. Results go to
``docs/results/adapters.json``.

    OMP_NUM_THREADS=1 python examples/benchmarks/adapters.py
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _memory
import torch
from _store import FOLDER, Results
from peft import LoraConfig, PeftConfig, get_peft_model
from speed import in_turn
from torch import Tensor, nn
from transformers import AutoModel, GPT2Config, LlamaConfig

from tsllm_estimators.adapters import LoraAmrConfig

SHAPE = {"width": 384, "layers": 4, "heads": 6, "intermediate": 1024, "batch_size": 4, "tokens": 64}
SHAPE_7B = {
    **{"width": 4096, "layers": 32, "heads": 32, "intermediate": 11008},
    **{"batch_size": 1, "tokens": 2048},
}
MODELS = ("gpt2, gelu_new", "gpt2, gelu_pytorch_tanh", "llama")
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")],
}


def language_model(name: str, shape: dict[str, int]) -> nn.Module:
    """Return a random language model in training mode."""
    family, _, activation = name.partition(", ")
    sizes = {
        "vocab_size": 64,
        "hidden_size": shape["width"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "max_position_embeddings": shape["tokens"],
    }
    if family == "gpt2":
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config: Any = GPT2Config(**sizes, **off, activation_function=activation)
    else:
        config = LlamaConfig(**sizes, intermediate_size=shape["intermediate"])
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="sdpa").train()
    model.get_input_embeddings().requires_grad_(False)  # vectors come in place of words
    return model


def adapter(method: str, rank: int, targets: list[str]) -> PeftConfig:
    """Return the settings of an adapter of every linear map in the layers."""
    if method == "lora-amr":
        return LoraAmrConfig(r=rank, target_modules=targets)
    if method == "lora-fa":
        rank //= 2
    dropout = 0.1 if method == "lora, dropout 0.1" else 0.0
    return LoraConfig(r=rank, target_modules=targets, lora_dropout=dropout)


METHODS: dict[str, Callable[[nn.Module, int, list[str]], nn.Module]] = {
    "full": lambda model, rank, targets: model,
    "frozen": lambda model, rank, targets: model.requires_grad_(False),
    **{
        method: lambda model, rank, targets, method=method: get_peft_model(
            model, adapter(method, rank, targets)
        )
        for method in ("lora", "lora, dropout 0.1", "lora-fa", "lora-amr")
    },
}
CHECKPOINTED = ("lora-fa", "lora-amr")


def kept_bytes(model: nn.Module, embedded: Tensor) -> int:
    """Return the bytes that autograd keeps after a forward pass, without the model's own."""
    own = _memory.storages(*model.parameters(), *model.buffers())
    return _memory.kept_bytes(lambda: model(inputs_embeds=embedded).last_hidden_state, own)


def memory(name: str, rank: int, shape: dict[str, int]) -> dict[str, Any]:
    """Return what each method keeps and trains."""
    targets = TARGETS[name.partition(",")[0]]
    kept, trainable = {}, {}
    for method, build in METHODS.items():
        model = build(language_model(name, shape), rank, targets)
        if method == "lora-fa":
            for parameter_name, parameter in model.named_parameters():
                if ".lora_A." in parameter_name:
                    parameter.requires_grad_(False)
        embedded = torch.randn(shape["batch_size"], shape["tokens"], shape["width"])
        kept[method] = kept_bytes(model, embedded.requires_grad_())
        trainable[method] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if method in CHECKPOINTED:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            kept[f"{method}, checkpointed"] = kept_bytes(model, embedded)
    return {
        "kept_bytes": kept,
        "trainable": trainable,
        "optimizer_bytes": {method: 8 * n for method, n in trainable.items()},
        "saving": 1 - kept["lora-amr"] / kept["lora"],
    }


def computed(rank: int, shape: dict[str, int], itemsize: int) -> dict[str, Any]:
    """Return what :func:`memory` would, of a Llama with as many key heads as heads, by a formula.

    A number counts ``itemsize`` bytes, one of a norm or of the attention's logarithms four.
    """
    width, inner, heads = shape["width"], shape["intermediate"], shape["heads"]
    n_layers, n_tokens = shape["layers"], shape["batch_size"] * shape["tokens"]
    norm = 4 * (width + 1)  # its input, and one over its root mean square
    attention = itemsize * 4 * width + 4 * heads  # query, key, value, output; logarithms
    feedforward = itemsize * 3 * inner  # gate, its activation, up
    floor = n_layers * (2 * norm + attention + feedforward) + norm
    rotation = itemsize * 2 * (width // heads)  # cosine and sine, by position
    # of query, key and value; of gate and up; of down (of the output: the attention has kept it)
    inputs = itemsize * n_layers * (2 * width + inner)
    low = itemsize * n_layers * 7 * rank  # r numbers for each map
    # full fine-tuning also trains norms, whose gradient takes what they give before their weight
    normed = itemsize * (2 * n_layers + 1) * width
    per_token = {
        "full": floor + inputs + normed,
        "frozen": floor,
        "lora": floor + inputs + low,
        "lora-fa": floor + low // 2,
        "lora-amr": floor + low // 2,
    }
    kept = {
        method: n_tokens * numbers + shape["tokens"] * rotation
        for method, numbers in per_token.items()
    }
    widths = 4 * (2 * width) + 3 * (width + inner)  # in and out, of the seven maps
    trainable = {
        "full": n_layers * (4 * width**2 + 3 * width * inner + 2 * width) + width,
        "frozen": 0,
        "lora": n_layers * rank * widths,
        "lora-fa": n_layers * rank // 2 * (5 * width + 2 * inner),
        "lora-amr": n_layers * 7 * rank**2 // 2,
    }
    return {
        "kept_bytes": kept,
        "trainable": trainable,
        "optimizer_bytes": {method: 8 * n for method, n in trainable.items()},
        "saving": 1 - kept["lora-amr"] / kept["lora"],
    }


def merged(name: str, rank: int, shape: dict[str, int], rounds: int) -> dict[str, Any]:
    """Return the seconds of a forward pass: without, with and with a merged adapter."""
    targets = TARGETS[name.partition(",")[0]]
    embedded = torch.randn(shape["batch_size"], shape["tokens"], shape["width"])
    settings = adapter("lora-amr", rank, targets)
    models = {
        "base": language_model(name, shape).eval(),
        "merged": get_peft_model(language_model(name, shape), settings).merge_and_unload().eval(),
        "adapted": get_peft_model(language_model(name, shape), settings).eval(),
    }
    calls = {
        key: lambda model=model: model(inputs_embeds=embedded) for key, model in models.items()
    }
    with torch.no_grad():
        seconds = in_turn(calls, rounds)
    return {
        "seconds": seconds,
        "merged_ratio": seconds["merged"] / seconds["base"],
        "adapted_ratio": seconds["adapted"] / seconds["base"],
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--ranks", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--shape", type=json.loads, default=SHAPE, metavar="JSON")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--results", type=Path, default=FOLDER / "adapters.json")
    options = parser.parse_args(arguments)
    results, shape = Results(options.results), options.shape
    for name in options.models:
        for rank in options.ranks:
            key = {"run": "memory", "model": name, "rank": rank, "shape": shape}
            if key not in results:
                results.add(key, memory(name, rank, shape))
        key = {"run": "merged", "model": name, "rank": options.ranks[0], "shape": shape}
        if key not in results:
            results.add(key, merged(name, options.ranks[0], shape, options.rounds))
    for rank in options.ranks:
        key = {"run": "computed", "model": "llama, 7B", "rank": rank, "shape": SHAPE_7B}
        key["itemsize"] = 2  # bfloat16
        if key not in results:
            results.add(key, computed(rank, SHAPE_7B, key["itemsize"]))


if __name__ == "__main__":
    main()

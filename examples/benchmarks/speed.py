"""Time and memory of a training step and of an inference batch, beside a plain encoder.

The language model has the shape of GPT-2 cut to 6 layers (width 768, 12 heads, random weights); 7
variates, 96 steps to 96, float32. The measure is a ``torch.nn.TransformerEncoder`` of 6 layers and
width 768 with frozen weights, on as many tokens: its forward is compared with an inference batch,
its forward and backward with a training step. All are timed in turn, in one process; the figures
are medians and ratios of medians. Results go to ``docs/results/speed.json``.

    OMP_NUM_THREADS=2 python examples/benchmarks/speed.py
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _store import FOLDER, Results
from torch import Tensor, nn

N_VARIATES, CONTEXT, HORIZON, WORDS = 7, 96, 96, 500
SHAPE = {"n_embd": 768, "n_layer": 6, "n_head": 12}


def language_model(folder: str, shape: dict[str, int], vocabulary: int) -> str:
    """Write a random GPT-2 of a shape; returns its directory."""
    from transformers import AutoModel, GPT2Config
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(vocab_size=vocabulary, **ends, **shape)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


class Ours:
    """CALF as its engine runs it, without the loop around it."""

    def __init__(self, backbone: str, words: int) -> None:
        from tsllm_estimators.networks.base import Shapes
        from tsllm_estimators.networks.calf import CALF, CALFConfig

        shapes = Shapes(context_length=CONTEXT, horizon=HORIZON, n_variates=N_VARIATES)
        self.network = CALF(CALFConfig(backbone=backbone, n_principal_words=words), shapes)
        groups = self.network.parameter_groups()
        self.optimizer = torch.optim.Adam(groups, lr=2e-4, fused=True)

    def losses(self, context: Tensor, target: Tensor) -> Tensor:
        """Return the loss that a training step minimises."""
        from tsllm_estimators.networks.base import Batch

        forecast = self.network.train()(Batch(past_target=context))
        weights = self.network.loss_weights()
        loss = (forecast.parameters[..., 0] - target).abs().mean()
        return loss + sum(weights[k] * v.mean() for k, v in forecast.losses.items())

    def train(self, context: Tensor, target: Tensor) -> None:
        """Train one step."""
        self.losses(context, target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def predict(self, context: Tensor) -> None:
        """Forecast a batch."""
        from tsllm_estimators.networks.base import Batch

        with torch.no_grad():
            self.network.eval()(Batch(past_target=context))

    def parts(self, context: Tensor, target: Tensor, rounds: int) -> dict[str, float]:
        """Return the median seconds of the parts of a training step."""
        spent: dict[str, list[float]] = {}
        began: dict[str, float] = {}

        def start(name: str) -> None:
            began[name] = time.perf_counter()

        def stop(name: str) -> None:
            spent.setdefault(name, []).append(time.perf_counter() - began[name])

        hooks = []
        for name, module in self.network.named_children():
            if not isinstance(module, nn.ModuleList):
                before = module.register_forward_pre_hook(lambda *_, name=name: start(name))
                after = module.register_forward_hook(lambda *_, name=name: stop(name))
                hooks += [before, after]
        for _ in range(rounds + 1):
            start("forward")
            loss = self.losses(context, target)
            stop("forward")
            start("backward")
            loss.backward()
            stop("backward")
            start("optimiser")
            self.optimizer.step()
            self.optimizer.zero_grad()
            stop("optimiser")
        for hook in hooks:
            hook.remove()
        # the first round warms up; the head runs once for each branch
        n_calls = {name: len(values) // (rounds + 1) for name, values in spent.items()}
        found = {
            name: n_calls[name] * statistics.median(values[n_calls[name] :])
            for name, values in spent.items()
        }
        whole = found.pop("forward")
        steps = {name: found.pop(name) for name in ("backward", "optimiser")}
        return {**found, "the rest of forward": whole - sum(found.values()), **steps}


class Encoder:
    """The measure: frozen weights, gradients flow through to the tokens."""

    def __init__(self, shape: dict[str, int]) -> None:
        width = shape["n_embd"]
        layer = nn.TransformerEncoderLayer(
            width, shape["n_head"], 4 * width, batch_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, shape["n_layer"], enable_nested_tensor=False)
        self.encoder.requires_grad_(False)
        self.width = width

    def train(self, batch_size: int) -> None:
        """Run forward and backward."""
        tokens = torch.randn(batch_size, N_VARIATES, self.width, requires_grad=True)
        self.encoder.train()(tokens).mean().backward()

    def predict(self, batch_size: int) -> None:
        """Run forward."""
        with torch.no_grad():
            self.encoder.eval()(torch.randn(batch_size, N_VARIATES, self.width))


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each call, all called once per round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def growth_exponent(sizes: list[int], seconds: list[float]) -> float:
    """Return the slope of log time against log size, by least squares."""
    x, y = torch.tensor([sizes, seconds], dtype=torch.float64).log()
    x = x - x.mean()
    return ((x * y).sum() / x.square().sum()).item()


def measure(
    batch_size: int, rounds: int, shape: dict[str, int], vocabulary: int, words: int
) -> Any:
    """Return times and their ratios to the encoder's."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(language_model(folder, shape, vocabulary), words)
    encoder = Encoder(shape)
    torch.manual_seed(1)
    context, target = torch.randn(2, batch_size, CONTEXT, N_VARIATES).unbind(0)
    calls: dict[str, Callable[[], Any]] = {
        "train": lambda: ours.train(context, target),
        "predict": lambda: ours.predict(context),
        "encoder_train": lambda: encoder.train(batch_size),
        "encoder_predict": lambda: encoder.predict(batch_size),
    }
    times = in_turn(calls, rounds)
    return {
        "seconds": times,
        "train_ratio": times["train"] / times["encoder_train"],
        "predict_ratio": times["predict"] / times["encoder_predict"],
        "seconds_of_a_step": ours.parts(context, target, rounds),
    }


def peak_memory(batch_size: int, shape: dict[str, int], vocabulary: int, words: int) -> float:
    """Return the peak of a process that trains two steps, in GB."""
    with tempfile.TemporaryDirectory() as folder:
        language_model(folder, shape, vocabulary)
        arguments = {"backbone": folder, "batch_size": batch_size, "words": words}
        command = [sys.executable, __file__, "--peak", json.dumps(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def train_two_steps(backbone: str, batch_size: int, words: int) -> None:
    """Train and print the peak of this process."""
    ours = Ours(backbone, words)
    for _ in range(2):
        ours.train(*torch.randn(2, batch_size, CONTEXT, N_VARIATES).unbind(0))
    # not resource.getrusage, whose peak is inherited from the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6)


def overhead(rounds: int) -> dict[str, float]:
    """Return what the sktime face adds to a fit and to a forecast of the darts model, in ms."""
    import pandas as pd
    from darts import TimeSeries

    from tsllm_estimators import CALFForecaster, CALFModel

    small = {"backbone": "tiny", "d_ff": 16, "random_state": 0}
    index = pd.period_range("2000-01", periods=144, freq="M")
    y = pd.DataFrame({"y": np.sin(np.arange(144) / 2)}, index)
    sizes = {"context_length": 24, "horizon": 6, "likelihood": None, "scaling": None}
    forecaster = CALFForecaster(**small, **sizes, max_steps=4, device="cpu")
    trainer = {"max_steps": 4, "accelerator": "cpu"}
    model = CALFModel(24, 6, **small, n_epochs=10**9, pl_trainer_kwargs=trainer)
    series = TimeSeries.from_values(y.to_numpy(np.float32))
    fits = in_turn(
        {
            "sktime": lambda: forecaster.fit(y),
            "darts": lambda: model.untrained_model().fit(series),
        },
        rounds,
    )
    model.fit(series)
    fh = list(range(1, 7))
    forecasts = in_turn(
        {
            "sktime": lambda: forecaster.predict(fh),
            "darts": lambda: model.predict(6, series=series),
        },
        5 * rounds,
    )
    return {
        "fit_ms": 1000 * (fits["sktime"] - fits["darts"]),
        "predict_ms": 1000 * (forecasts["sktime"] - forecasts["darts"]),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", type=json.loads, default=SHAPE, metavar="JSON")
    parser.add_argument("--vocabulary", type=int, default=50_257)
    parser.add_argument("--words", type=int, default=WORDS)
    parser.add_argument("--results", type=Path, default=FOLDER / "speed.json")
    parser.add_argument("--peak", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak:
        train_two_steps(**options.peak)
        return
    results = Results(options.results)
    model = {"shape": options.shape, "vocabulary": options.vocabulary, "words": options.words}
    for batch_size in options.batch_sizes:
        key = {"run": "step", "batch_size": batch_size, **model}
        if key not in results:
            measured = measure(batch_size, options.rounds, **model)
            results.add(key, {**measured, "peak_gb": peak_memory(batch_size, **model)})
    key = {"run": "sktime"}
    if key not in results:
        results.add(key, overhead(4 * options.rounds))


if __name__ == "__main__":
    main()

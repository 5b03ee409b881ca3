"""Memory and time of LLM-TS Net by number of series.

The bare network with its defaults, 12 steps to 12, float32, L1 loss, Adam, on random walks. Each
case is a process of its own, which notes its resident memory when the network stands: its language
model is loaded and has read what is said of the batch. Then inference batches, then training steps:
the peak of the resident memory over a few of either, above what the process took before them, and
the median CPU time of one. The stage of the language model does not run here: it depends on the
texts, not on the number of series (``language_stage.py``).

"Kept" are the bytes that autograd saves in the forward pass of a step, each storage once, without
parameters and buffers. Beside them, computed: what an attention would keep that stores its matrix
of all pairs of series, batch x heads x series x series numbers of four bytes, once among the series
and once between the series and what is said of them. ``inter=False`` leaves the former attention
out; it is measured with the first of the language models and of the batch sizes. Results go to
``docs/results/many_series.json``. Peaks are read from ``/proc``, on Linux only.

    OMP_NUM_THREADS=1 python examples/benchmarks/many_series.py
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _memory import kept_bytes, storages
from _store import FOLDER, Results
from torch import Tensor

from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE
from tsllm_estimators.networks.base import Batch, Shapes
from tsllm_estimators.networks.llm_ts_net import LLMTSNet, LLMTSNetConfig

CONTEXT, HORIZON = 12, 12


def resident(line: str = "VmRSS") -> int:
    """Return the resident memory of this process in bytes, or its peak (``"VmHWM"``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(each.split()[1]) for each in lines if each.startswith(line))


def at_rest() -> int:
    """Return the resident memory, without what was freed and kept for later."""
    ctypes.CDLL(None).malloc_trim(0)
    return resident()


def repeated(call: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Return the peak of the resident memory over some calls, and the median CPU seconds of one."""
    at_rest()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    seconds = []
    for _ in range(rounds + 1):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return {"peak": resident("VmHWM"), "cpu_seconds": statistics.median(seconds[1:])}


def measure(n_series: int, batch_size: int, rounds: int, **settings: Any) -> dict[str, Any]:
    """Return memory in bytes and time in seconds of one network in this process."""
    torch.manual_seed(0)
    values = torch.randn(batch_size, CONTEXT + HORIZON, n_series).cumsum(1)
    shapes = Shapes(context_length=CONTEXT, horizon=HORIZON, n_variates=n_series)
    network = LLMTSNet(LLMTSNetConfig(**settings), shapes)
    windows = Batch(past_target=values.double())
    network.measure(windows)
    network.encode_texts(windows)
    batch, target = Batch(past_target=values[:, :CONTEXT]), values[:, CONTEXT:]
    optimizer = torch.optim.Adam(network.parameter_groups(), lr=network.learning_rate)
    weights, shares = network.loss_weights(), torch.ones(batch_size)

    def loss() -> Tensor:
        forecast = network(batch)
        error = (forecast.parameters[..., 0] - target).abs().mean()
        for name, one in forecast.losses.items():
            error = error + weights[name] * (one(shares) if callable(one) else one).mean()
        return error

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def predict() -> None:
        network(batch)

    built = at_rest()
    network.eval()
    inference = repeated(predict, rounds)
    network.train()
    training = repeated(step, rounds)
    parameters = [p for p in network.parameters() if p.requires_grad]
    return {
        "inference_bytes": inference["peak"] - built,
        "step_bytes": training["peak"] - built,
        "process_bytes": training["peak"],
        "kept_bytes": kept_bytes(loss, storages(*network.parameters(), *network.buffers())),
        "pairs_bytes": batch_size * network.config.n_heads * n_series**2 * 4,
        "inference_cpu_seconds": inference["cpu_seconds"],
        "step_cpu_seconds": training["cpu_seconds"],
        "texts": len(network.texts.texts),
        "trainable_parameters": sum(p.numel() for p in parameters),
    }


def measured_apart(**case: Any) -> dict[str, Any]:
    """Return what another process measures of a case."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", nargs="+", type=int, default=[207, 325, 862])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--backbones", nargs="+", default=["tiny", DEFAULT_BACKBONE])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=FOLDER / "many_series.json")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        print(json.dumps(measure(**options.case)))
        return
    results = Results(options.results)
    pairs = [(name, size) for name in options.backbones for size in options.batch_sizes]
    variants = [(*pairs[0], False), *((*pair, True) for pair in pairs)]
    for backbone, batch_size, inter in variants:
        for n_series in options.series:
            key = {"n_series": n_series, "batch_size": batch_size}
            key |= {"backbone": backbone, "inter": inter}
            if key not in results:
                results.add(key, measured_apart(**key, rounds=options.rounds))


if __name__ == "__main__":
    main()

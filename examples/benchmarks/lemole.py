"""Speed of LeMoLE beside darts' DLinear, and against the lookback.

ETTh1 as in ``etth1.py``, 336 hours to 96: seconds of a training epoch and of forecasting the
validation part, of DLinear (one matrix for all variates, L1 loss) and of LeMoLE with each kind of
text, with a warm text cache. All are called in turn in one process, in each round the other way
round; the figures are medians, and medians of the ratios to DLinear within a round, by the clock
and by the processor. Then training steps of the bare network at growing lookbacks, and an epoch
and a forecast at the longest. Results go to ``docs/results/lemole.json``.

    TSLLM_DATA=... OMP_NUM_THREADS=1 python examples/benchmarks/lemole.py
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import etth1
import numpy as np
import pandas as pd
import torch
from _store import FOLDER, Results
from darts import TimeSeries
from darts.models import DLinearModel
from pytorch_lightning.callbacks import Callback
from speed import growth_exponent, in_turn
from text import short_texts

from tsllm_estimators import LeMoLEModel
from tsllm_estimators.llm.pristine import DEFAULT_BACKBONE
from tsllm_estimators.networks.base import Batch, Shapes
from tsllm_estimators.networks.lemole import LeMoLE, LeMoLEConfig

LOOKBACK, HORIZON, N_VARIATES = 336, 96, 7
MEASURED_EPOCHS = 2  # of each fit, after one that warms up
MEASURED_STEPS = 10  # of the bare network, in each round

# What differs from LeMoLE's defaults; all of them against DLinear.
VARIANTS: dict[str, dict[str, Any]] = {
    "lemole": {},
    "text=none": {"text": "none"},
    "text=static": {"text": "static"},
    "text=calendar": {"text": "calendar"},
    "dynamic=window": {"dynamic": "window"},
}
MEASURE = "dlinear"

Seconds = tuple[float, float]  # by the clock, of the processor


def load(rows: int, synthetic: bool) -> tuple[TimeSeries, TimeSeries]:
    """Return the series to train on, and a third as much after it with one lookback before."""
    n = rows + rows // 3
    if synthetic:
        steps, rng = np.arange(n)[:, np.newaxis], np.random.default_rng(0)
        waves = np.sin(2 * np.pi * (steps / 24 + np.arange(N_VARIATES) / N_VARIATES))
        values = (waves + rng.normal(size=waves.shape)).astype(np.float32)
        frame = pd.DataFrame(values, pd.date_range("2016-07-01", periods=n, freq="h"))
    else:
        frame = etth1.load(Path(os.environ.get("TSLLM_DATA", ".")))[:n]
    return etth1.series(frame[:rows]), etth1.series(frame[rows - LOOKBACK :])


def now() -> Seconds:
    """Return what the clock and the processor have counted."""
    return time.perf_counter(), time.process_time()


def since(begin: Seconds) -> Seconds:
    """Return the seconds since."""
    clock, processor = now()
    return clock - begin[0], processor - begin[1]


class Epochs(Callback):
    """Seconds before the first epoch, and of each epoch."""

    def __init__(self) -> None:
        self.begin = now()
        self.before: Seconds | None = None
        self.seconds: list[Seconds] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the clock."""
        self.before = self.before or since(self.begin)
        self.begin = now()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stop the clock."""
        self.seconds.append(since(self.begin))


def build(name: str, lookback: int, backbone: str, batch_size: int, **trainer: Any) -> Any:
    """Return an untrained model."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    arguments: dict[str, Any] = {
        "input_chunk_length": lookback,
        "output_chunk_length": HORIZON,
        "batch_size": batch_size,
        "random_state": 0,
        "pl_trainer_kwargs": {"accelerator": "cpu", "enable_progress_bar": False, **quiet},
    }
    arguments["pl_trainer_kwargs"] |= trainer
    if name == MEASURE:
        return DLinearModel(**arguments, shared_weights=True, loss_fn=torch.nn.L1Loss())
    return LeMoLEModel(**arguments, backbone=backbone, **VARIANTS[name])


def fit(name: str, series: TimeSeries, n_epochs: int, **settings: Any) -> tuple[Any, Epochs]:
    """Return a trained model and how long it took."""
    epochs = Epochs()
    model = build(name, **settings, callbacks=[epochs])
    epochs.begin = now()
    model.fit(series, epochs=n_epochs)
    return model, epochs


def compared(call: Callable[[str], dict[str, Seconds]], rounds: int) -> dict[str, Any]:
    """Call for each model once per round; returns medians of what is counted, and of ratios."""
    names = [MEASURE, *VARIANTS]
    found: dict[str, list[dict[str, Seconds]]] = {}
    for turn in range(rounds):
        of_models = {name: call(name) for name in (names[::-1] if turn % 2 else names)}
        for what in of_models[MEASURE]:
            found.setdefault(what, []).append({name: of_models[name][what] for name in names})
    measured: dict[str, Any] = {}
    for what, turns in found.items():
        measured[what] = {}
        for kind, prefix in enumerate(("", "cpu_")):
            ratios = {n: [of[n][kind] / of[MEASURE][kind] for of in turns] for n in VARIANTS}
            measured[what] |= {
                f"{prefix}seconds": {n: median(of[n][kind] for of in turns) for n in names},
                f"{prefix}ratio": {n: median(values) for n, values in ratios.items()},
                f"{prefix}range": {n: [min(values), max(values)] for n, values in ratios.items()},
            }
    return measured


def train(series: TimeSeries, rounds: int, **settings: Any) -> dict[str, Any]:
    """Compare training epochs, and what comes before them."""

    def call(name: str) -> dict[str, Seconds]:
        _, epochs = fit(name, series, 1 + MEASURED_EPOCHS, **settings)
        assert epochs.before is not None
        clock, processor = zip(*epochs.seconds[1:], strict=True)
        return {"epoch": (median(clock), median(processor)), "before": epochs.before}

    for name in (MEASURE, *VARIANTS):  # imports what is imported late, and warms the text cache
        fit(name, series, 1, **settings, limit_train_batches=1)
    return compared(call, rounds)


def forecast(model: Any, series: TimeSeries) -> list[TimeSeries]:
    """Return the forecasts of all windows."""
    return model.historical_forecasts(
        series,
        forecast_horizon=HORIZON,
        retrain=False,
        last_points_only=False,
        predict_kwargs={"batch_size": 256},
    )


def inference(series: TimeSeries, ahead: TimeSeries, rounds: int, **settings: Any) -> Any:
    """Compare forecasts of models that have hardly been trained."""
    models = {
        name: fit(name, series, 1, **settings, limit_train_batches=1)[0]
        for name in (MEASURE, *VARIANTS)
    }
    n_windows = {len(forecast(model, ahead)) for model in models.values()}  # warms up

    def call(name: str) -> dict[str, Seconds]:
        begin = now()
        forecast(models[name], ahead)
        return {"forecast": since(begin)}

    (windows,) = n_windows
    return {"windows": windows, **compared(call, rounds)}


def steps(lookback: int, backbone: str, batch_size: int) -> Callable[[], None]:
    """Return what trains the bare network for some steps, with the texts of hourly data."""
    shapes = Shapes(context_length=lookback, horizon=HORIZON, n_variates=N_VARIATES)
    torch.manual_seed(0)
    network = LeMoLE(LeMoLEConfig(backbone=backbone), shapes).train()
    optimizer = torch.optim.Adam(network.parameter_groups(), lr=5e-4, fused=True)
    codes = torch.from_numpy(network.texts.vocabulary.codes(short_texts(168)))
    hours = torch.randint(168, (batch_size, 1)) + torch.arange(lookback + HORIZON)
    context = torch.randn(batch_size, lookback, N_VARIATES)
    target = torch.randn(batch_size, HORIZON, N_VARIATES)
    batch = Batch(past_target=context, stamps=codes[hours % 168])

    def call() -> None:
        for _ in range(MEASURED_STEPS):
            (network(batch).parameters[..., 0] - target).abs().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    return call


def growth(lookbacks: list[int], backbone: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Return how the time of a training step of the bare network grows with the lookback."""
    calls = {str(lookback): steps(lookback, backbone, batch_size) for lookback in lookbacks}
    seconds = [time / MEASURED_STEPS for time in in_turn(calls, rounds).values()]
    return {"seconds_of_a_step": seconds, "exponent": growth_exponent(lookbacks, seconds)}


def longest(series: TimeSeries, **settings: Any) -> dict[str, Any]:
    """Return the seconds of an epoch at a lookback, after one that warms up, and a forecast."""
    model, epochs = fit("lemole", series, 2, **settings)
    values = model.predict(HORIZON).values()
    return {
        "epoch": epochs.seconds[1][0],
        "cpu_epoch": epochs.seconds[1][1],
        "windows": model.training_summary["n_windows"],
        "parameters": sum(p.numel() for p in model.model.parameters() if p.requires_grad),
        "finite": bool(np.isfinite(values).all()),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=etth1.TRAIN, help="of the training part")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 256])
    parser.add_argument("--lookbacks", nargs="+", type=int, default=[512, 1024, 2048, 4096])
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--synthetic", action="store_true", help="noisy waves in place of ETTh1")
    parser.add_argument("--results", type=Path, default=FOLDER / "lemole.json")
    options = parser.parse_args(arguments)
    results = Results(options.results)
    series, ahead = load(options.rows, options.synthetic)
    data = {"data": "synthetic" if options.synthetic else "ETTh1", "rows": options.rows}
    network = {"backbone": options.backbone, "batch_size": options.batch_sizes[0]}
    for batch_size in options.batch_sizes:
        settings = {"lookback": LOOKBACK, "backbone": options.backbone, "batch_size": batch_size}
        key = {"run": "train", **data, **settings}
        if key not in results:
            results.add(key, {"load": load_average(), **train(series, options.rounds, **settings)})
    settings = {"lookback": LOOKBACK, **network}
    key = {"run": "inference", **data, **settings}
    if key not in results:
        measured = {"load": load_average()}
        results.add(key, measured | inference(series, ahead, options.rounds, **settings))
    key = {"run": "growth", "lookbacks": options.lookbacks, **network}
    if key not in results:
        measured = {"load": load_average()}
        results.add(key, measured | growth(options.lookbacks, **network, rounds=options.rounds))
    settings = {"lookback": max(options.lookbacks), **network}
    key = {"run": "longest", **data, **settings}
    if key not in results:
        results.add(key, {"load": load_average(), **longest(series, **settings)})


def load_average() -> float:
    """Return how many processes wanted to run in the last minute."""
    return round(os.getloadavg()[0], 2)


if __name__ == "__main__":
    main()

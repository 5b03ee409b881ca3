"""ETTh1, 96 hours ahead: error of the methods, of their controls and of plain baselines.

Standard protocol: rows 0-8639 train, 8640-11519 validate, 11520-14399 test, each later part
preceded by one lookback of context; every column standardised with the training rows; every
window counts. Settings are chosen with ``--split validation`` and ``--results`` elsewhere; runs
that read the test part are stored in ``docs/results/etth1.json``.

    TSLLM_DATA=... python examples/benchmarks/etth1.py --runs calf calf-none calf-random
"""

import time
from pathlib import Path
from typing import Any

import _gaussian
import numpy as np
import pandas as pd
import torch
from _runs import command_line, data_folder, run_missing
from darts import TimeSeries
from darts.models import DLinearModel, NaiveSeasonal
from darts.utils.likelihood_models.torch import GaussianLikelihood
from pytorch_lightning.callbacks import EarlyStopping

from tsllm_estimators import CALFModel, LeMoLEModel, LLMTSNetModel, TimeLlamaModel
from tsllm_estimators.adapters import record_routing

HORIZON = 96
TRAIN, VALIDATION, TEST = 8640, 11520, 14400

# One row per run: the model class and what differs from its defaults.
CALF = {"input_chunk_length": 96, "n_epochs": 4}
LEMOLE = {"input_chunk_length": 336, "n_epochs": 10, "early_stopping_patience": 3}
LLM_TS_NET = {"input_chunk_length": 336, "n_epochs": 10, "early_stopping_patience": 3}
TIME_LLAMA = {"input_chunk_length": 512, "n_epochs": 5}
# The papers' few-shot setting: the first context and 5 % of the windows after it.
FEW_SHOT = {"input_chunk_length": 512, "n_epochs": 20, "train_rows": 512 + (TRAIN - 512) // 20}
# One matrix for all variates, as in the paper; darts' default has one for each pair of them.
DLINEAR = {
    "input_chunk_length": 96,
    "n_epochs": 10,
    "batch_size": 64,
    "lr": 3e-4,
    "shared_weights": True,
}
RUNS: dict[str, tuple[type, dict[str, Any]]] = {
    "calf": (CALFModel, CALF),
    "calf-none": (CALFModel, {**CALF, "backbone": "none"}),
    "calf-random": (CALFModel, {**CALF, "backbone_weights": "random"}),
    "time-llama": (TimeLlamaModel, TIME_LLAMA),
    "time-llama-none": (TimeLlamaModel, {**TIME_LLAMA, "backbone": "none"}),
    "time-llama-random": (TimeLlamaModel, {**TIME_LLAMA, "backbone_weights": "random"}),
    "time-llama-frozen": (TimeLlamaModel, {**TIME_LLAMA, "adapter": None}),
    "time-llama-static-lora": (TimeLlamaModel, {**TIME_LLAMA, "top_n": None}),
    "time-llama-no-alignment": (TimeLlamaModel, {**TIME_LLAMA, "alignment": "none"}),
    # without statistics the prompt has 16 tokens, with them about 60 to run through every layer
    "time-llama-concat": (
        TimeLlamaModel,
        {**TIME_LLAMA, "alignment": "concat", "prompt_statistics": False},
    ),
    "time-llama-few-shot": (TimeLlamaModel, FEW_SHOT),
    "time-llama-none-few-shot": (TimeLlamaModel, {**FEW_SHOT, "backbone": "none"}),
    "dlinear-l1-few-shot": (
        DLinearModel,
        {**DLINEAR, **FEW_SHOT, "n_epochs": 40, "batch_size": 32, "lr": 1e-3},
    ),
    "lemole": (LeMoLEModel, LEMOLE),
    "lemole-static": (LeMoLEModel, {**LEMOLE, "text": "static"}),
    "lemole-dynamic": (LeMoLEModel, {**LEMOLE, "text": "dynamic"}),
    "lemole-calendar": (LeMoLEModel, {**LEMOLE, "text": "calendar"}),
    "lemole-none": (LeMoLEModel, {**LEMOLE, "text": "none"}),
    "lemole-hash": (LeMoLEModel, {**LEMOLE, "text_encoder": "hash"}),
    "lemole-learned": (LeMoLEModel, {**LEMOLE, "text_encoder": "learned"}),
    "lemole-window": (LeMoLEModel, {**LEMOLE, "dynamic": "window"}),
    "lemole-dated": (LeMoLEModel, {**LEMOLE, "stamps": "dated"}),
    "lemole-equal": (LeMoLEModel, {**LEMOLE, "text": "none", "lookbacks": [336] * 4}),
    "llm-ts-net": (LLMTSNetModel, LLM_TS_NET),
    "llm-ts-net-none": (LLMTSNetModel, {**LLM_TS_NET, "text": "none"}),
    "llm-ts-net-gaussian": (LLMTSNetModel, {**LLM_TS_NET, "likelihood": "gaussian"}),
    "dlinear-l1": (DLinearModel, DLINEAR),
    "dlinear-l1-336": (DLinearModel, {**DLINEAR, "input_chunk_length": 336}),
    "seasonal-naive-24": (NaiveSeasonal, {"K": 24}),
}


def load(data: Path) -> pd.DataFrame:
    """Return the standardised values by hour, shape (14400, 7), float32."""
    path = data / "ETTh1.csv"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} not found: set TSLLM_DATA to a folder with ETTh1.csv of the repository "
            "zhouhaoyi/ETDataset."
        )
    frame = pd.read_csv(path, index_col="date", parse_dates=True)[:TEST]
    train = frame[:TRAIN]
    return ((frame - train.mean()) / train.std(ddof=0)).astype(np.float32)


def errors(model: Any, frame: pd.DataFrame, start: int, stop: int) -> dict[str, Any]:
    """Return the errors over every window of a part, and what routers chose for them."""
    values, found = frame.to_numpy(), {}
    windows = np.lib.stride_tricks.sliding_window_view(values[start:stop], HORIZON, axis=0)
    windows, usage = windows.transpose(0, 2, 1), None
    if isinstance(model, NaiveSeasonal):
        steps = np.arange(HORIZON) % model.K - model.K
        forecast = np.stack([values[start + first + steps] for first in range(len(windows))])
    elif model.likelihood is not None:
        history = series(frame[start - model.input_chunk_length : stop])
        batches = {"batch_size": 256}
        forecast, deviations = _gaussian.parameters(model, history, predict_kwargs=batches)
        found["coverage"] = _gaussian.coverage(forecast, deviations, windows)
    else:
        history = series(frame[start - model.input_chunk_length : stop])
        with record_routing() as routing:
            forecasts = model.historical_forecasts(
                history,
                forecast_horizon=HORIZON,
                retrain=False,
                last_points_only=False,
                predict_kwargs={"batch_size": 256},
            )
        forecast = np.stack([one.values() for one in forecasts])
        usage = routing.usage().items()
    difference = forecast - windows
    found |= {
        "mse": float(np.square(difference).mean()),
        "mae": float(np.abs(difference).mean()),
        "windows": len(forecast),
    }
    return found | ({"routing": {layer: used._asdict() for layer, used in usage}} if usage else {})


def series(frame: pd.DataFrame) -> TimeSeries:
    """Return rows as a darts series with their calendar."""
    return TimeSeries(frame.index, frame.to_numpy(), freq="h", components=frame.columns)


def build(name: str, seed: int, settings: dict[str, Any]) -> Any:
    """Return the untrained model of a run."""
    model_class, arguments = RUNS[name][0], dict(settings)
    arguments.pop("train_rows", None)
    if model_class is NaiveSeasonal:
        return NaiveSeasonal(**arguments)
    arguments["pl_trainer_kwargs"] = {"accelerator": "cpu", "enable_progress_bar": False}
    if arguments.get("likelihood") == "gaussian":
        arguments["likelihood"] = GaussianLikelihood()
    if "lr" in arguments:
        arguments["optimizer_kwargs"] = {"lr": arguments.pop("lr")}
    if model_class is DLinearModel:  # what our models bring along
        arguments["loss_fn"] = torch.nn.L1Loss()
        arguments["pl_trainer_kwargs"]["callbacks"] = [EarlyStopping("val_loss", patience=3)]
    elif arguments.get("backbone_weights") == "random":
        arguments["backbone_kwargs"] = {"seed": seed}
    return model_class(output_chunk_length=HORIZON, random_state=seed, **arguments)


def run(name: str, seed: int, split: str, settings: dict[str, Any], frame: pd.DataFrame) -> dict:
    """Train one model and return what it reached."""
    model = build(name, seed, settings)
    begin = time.perf_counter(), time.process_time()
    network, epochs = None, 0
    if not isinstance(model, NaiveSeasonal):
        validation = frame[TRAIN - model.input_chunk_length : VALIDATION]
        train = frame[: settings.get("train_rows", TRAIN)]
        model.fit(series(train), val_series=series(validation))
        network, epochs = model.model, model.epochs_trained
    seconds, cpu_seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
    part = (VALIDATION, TEST) if split == "test" else (TRAIN, VALIDATION)
    trained = network.parameters() if network is not None else ()
    return {
        **errors(model, frame, *part),
        "epochs": epochs,
        "trainable_parameters": sum(p.numel() for p in trained if p.requires_grad),
        "fit_seconds": round(seconds, 1),
        "fit_cpu_seconds": round(cpu_seconds, 1),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run what is not stored yet, and store each result as soon as it is there."""
    options = command_line(__doc__, RUNS, "etth1").parse_args(arguments)
    frame = load(data_folder())
    run_missing(
        options,
        RUNS,
        lambda name, seed, settings: run(name, seed, options.split, settings, frame),
    )


if __name__ == "__main__":
    main()

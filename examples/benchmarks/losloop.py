"""LosLoop, an hour ahead: errors of LLM-TS Net, of its ablations and of plain baselines.

Speeds of 207 sensors every 5 minutes of one week; 12 steps in, 12 out, split 7:1:2 by time (1388,
190 and 393 windows; the later parts are preceded by 12 steps of context). All readings are
standardised with one mean and one deviation, those of the training part, so that the L1 loss of a
training is the reported error but for its unit; errors are in miles per hour. A reading of 0 or
NaN is missing and does not count (this file has none). Errors are of the 3rd, 6th and 12th step,
not of all steps up to it, and the mean over all 12. The time of day is known ahead, as its sine
and cosine; DLinear and NLinear of darts leave covariates out when they share weights.

Every network trains with the L1 loss and the same early stopping, and keeps its best validated
weights. Learning rate (1e-3 or 3e-4) and instance normalisation (on or off) are chosen with
``--split validation`` and ``--results`` elsewhere; runs that read the test part are stored in
``docs/results/losloop.json``. 100 epochs at most, which early stopping ends; 4 and 1e-3 alone for
one TiDE over all sensors (``tide-each``), whose epochs have 207 times as many windows. The mixer,
a small network of this benchmark that learns an adjacency, chose from 3e-3, too, and from batches
of 16 and 32.

    TSLLM_DATA=... python examples/benchmarks/losloop.py --runs last-value tsmixer mixer
"""

import time
from pathlib import Path
from typing import Any

import _gaussian
import _mixer
import darts.models
import numpy as np
import pandas as pd
import torch
from _runs import command_line, data_folder, run_missing
from darts import TimeSeries
from darts.utils.likelihood_models.torch import GaussianLikelihood
from pytorch_lightning.callbacks import EarlyStopping

import tsllm_estimators
from tsllm_estimators.darts._callbacks import BestWeights

CONTEXT, HORIZON = 12, 12
REPORTED = (3, 6, 12)  # steps ahead
PARTS = ("train", "validation", "test")
PATIENCE = 10  # epochs


def load(data: Path) -> pd.DataFrame:
    """Return the speeds in miles per hour by time and sensor, shape (2016, 207), float32."""
    path = data / "los_speed.csv"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} not found: set TSLLM_DATA to a folder with los_speed.csv of the repository "
            "lehaifeng/T-GCN."
        )
    frame = pd.read_csv(path).astype(np.float32)
    return frame.set_index(pd.date_range("2012-03-01", periods=len(frame), freq="5min"))


def part(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of a part: of a later one with the context before it."""
    edges = [0, int(0.7 * len(frame)), int(0.8 * len(frame)), len(frame)]
    place = PARTS.index(name)
    return frame[max(edges[place] - CONTEXT, 0) : edges[place + 1]]


def observed(speeds: np.ndarray) -> np.ndarray:
    """Return which readings there are: a missing one is marked by 0 or NaN."""
    return np.isfinite(speeds) & (speeds != 0)


def scale(frame: pd.DataFrame) -> tuple[float, float]:
    """Return mean and deviation of all readings of the training part."""
    speeds = part(frame, "train").to_numpy(np.float64)
    return float(speeds[observed(speeds)].mean()), float(speeds[observed(speeds)].std())


def series(frame: pd.DataFrame, name: str) -> TimeSeries:
    """Return the standardised readings of a part, one component per sensor, NaN where missing."""
    (mean, deviation), rows = scale(frame), part(frame, name)
    values = rows.where(observed(rows.to_numpy())).to_numpy()
    standardised = ((values - mean) / deviation).astype(np.float32)
    return TimeSeries(rows.index, standardised, freq="5min", components=rows.columns)


def time_of_day(index: pd.DatetimeIndex) -> TimeSeries:
    """Return sine and cosine of the time of day."""
    angle = 2 * np.pi * ((index - index.normalize()) / pd.Timedelta(days=1)).to_numpy()
    values = np.stack([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
    return TimeSeries(index, values, freq="5min", components=["sine", "cosine"])


def ahead(rows: np.ndarray) -> np.ndarray:
    """Return what every window of some rows is to forecast, shape (windows, 12, sensors)."""
    windows = np.lib.stride_tricks.sliding_window_view(rows[CONTEXT:], HORIZON, axis=0)
    return windows.transpose(0, 2, 1)


def errors(forecast: np.ndarray, speeds: np.ndarray) -> dict[str, Any]:
    """Return the errors over the readings that there are, at the reported steps and over all."""
    found: dict[str, Any] = {"mae": {}, "rmse": {}, "mape": {}}
    for step in (*REPORTED, "all"):
        at = slice(None) if step == "all" else step - 1
        counted = observed(speeds[:, at])
        actual = speeds[:, at][counted].astype(np.float64)
        absolute = np.abs(forecast[:, at][counted] - actual)
        found["mae"][str(step)] = float(absolute.mean())
        found["rmse"][str(step)] = float(np.square(absolute).mean() ** 0.5)
        found["mape"][str(step)] = float(100 * (absolute / actual).mean())
    return {**found, "windows": len(forecast)}


def last_readings(rows: pd.DataFrame) -> np.ndarray:
    """Return the last reading before every window's forecast, shape (windows, 1, sensors)."""
    filled = rows.where(observed(rows.to_numpy())).ffill().to_numpy()
    return filled[CONTEXT - 1 : -HORIZON, np.newaxis]


class LastValue:
    """Every step is the last reading."""

    def fit(self, frame: pd.DataFrame) -> None:
        """Learn nothing."""

    def forecast(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        """Return forecasts in miles per hour, shape (windows, 12, sensors)."""
        return last_readings(part(frame, name)).repeat(HORIZON, axis=1)


class Average:
    """Every step is the average of its time of day over the days of the training part.

    Parameters
    ----------
    days : {"all", "weekdays"}
        The days that count.
    smoothing : int
        Steps of a moving average over the average day, an odd number.
    residual : float
        Share of the last reading's distance to its average that is added.
    """

    def __init__(self, days: str = "all", smoothing: int = 1, residual: float = 0.0) -> None:
        self.days, self.smoothing, self.residual = days, smoothing, residual
        self.day = pd.DataFrame()

    def fit(self, frame: pd.DataFrame) -> None:
        """Average the training part."""
        rows = part(frame, "train")
        rows = rows.where(observed(rows.to_numpy()))
        if self.days == "weekdays":
            rows = rows[rows.index.dayofweek < 5]
        day, side = rows.groupby(rows.index.time).mean(), self.smoothing // 2
        round_midnight = pd.concat([day[len(day) - side :], day, day[:side]])
        smooth = round_midnight.rolling(self.smoothing, center=True, min_periods=1).mean()
        self.day = smooth[side : side + len(day)]

    def forecast(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        """Return forecasts in miles per hour, shape (windows, 12, sensors)."""
        rows = part(frame, name)
        average = self.day.loc[rows.index.time].to_numpy()
        before = average[CONTEXT - 1 : -HORIZON, np.newaxis]
        return ahead(average) + self.residual * (last_readings(rows) - before)


class Mixer:
    """The network of ``_mixer.py``."""

    def __init__(self, seed: int, n_epochs: int, batch_size: int, lr: float, **shape: Any) -> None:
        self.seed, self.shape = seed, shape
        self.training = {"n_epochs": n_epochs, "batch_size": batch_size, "lr": lr}
        self.model: Any = None
        self.epochs_trained = 0

    def windows(self, frame: pd.DataFrame, name: str) -> _mixer.Windows:
        """Return the standardised windows of a part."""
        rows = series(frame, name)
        calendar = time_of_day(rows.time_index)
        tensors = [torch.from_numpy(one.values(copy=False)) for one in (rows, calendar)]
        return _mixer.windows(*tensors, CONTEXT, HORIZON)

    def fit(self, frame: pd.DataFrame) -> None:
        """Train."""
        torch.manual_seed(self.seed)
        sizes = frame.shape[1], 2, CONTEXT, HORIZON
        self.model = _mixer.LearnedAdjacency(*sizes, **self.shape)
        parts = [self.windows(frame, name) for name in ("train", "validation")]
        trained = _mixer.train(self.model, *parts, **self.training, patience=PATIENCE)
        self.epochs_trained = trained

    def forecast(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        """Return forecasts in miles per hour, shape (windows, 12, sensors)."""
        mean, deviation = scale(frame)
        return _mixer.forecast(self.model, self.windows(frame, name)).numpy() * deviation + mean


class OfDarts:
    """A network of darts, ours among them.

    Parameters
    ----------
    model
        The untrained darts model.
    each_sensor : bool
        Every sensor is a series of its own, as against a component of one series.
    """

    def __init__(self, model: Any, each_sensor: bool = False) -> None:
        self.darts, self.each_sensor = model, each_sensor

    @property
    def model(self) -> torch.nn.Module:
        """Return the trained network."""
        return self.darts.model

    @property
    def epochs_trained(self) -> int:
        """Return how many epochs were trained."""
        return self.darts.epochs_trained

    def inputs(self, frame: pd.DataFrame, name: str) -> tuple[Any, Any]:
        """Return a part and its calendar, as the model reads them."""
        rows = series(frame, name)
        calendar = time_of_day(rows.time_index)
        if not self.each_sensor:
            return rows, calendar
        return [rows[sensor] for sensor in rows.components], [calendar] * rows.n_components

    def fit(self, frame: pd.DataFrame) -> None:
        """Train."""
        rows, calendar = self.inputs(frame, "train")
        validation, ahead_of_it = self.inputs(frame, "validation")
        if not self.darts.supports_future_covariates:
            calendar = ahead_of_it = None
        self.darts.fit(
            rows,
            future_covariates=calendar,
            val_series=validation,
            val_future_covariates=ahead_of_it,
        )

    def windows(self, frame: pd.DataFrame, name: str) -> dict[str, Any]:
        """Return the arguments of historical forecasts of every window of a part."""
        rows, calendar = self.inputs(frame, name)
        known = {"future_covariates": calendar} if self.darts.supports_future_covariates else {}
        return {"series": rows, "predict_kwargs": {"batch_size": 256}, **known}

    def forecast(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        """Return forecasts in miles per hour, shape (windows, 12, sensors)."""
        mean, deviation = scale(frame)
        if self.darts.likelihood is not None:
            found = _gaussian.parameters(self.darts, **self.windows(frame, name))[0]
        else:
            forecasts = self.darts.historical_forecasts(
                **self.windows(frame, name),
                forecast_horizon=HORIZON,
                retrain=False,
                last_points_only=False,
            )
            of_series = forecasts if self.each_sensor else [forecasts]
            found = np.concatenate([np.stack([w.values() for w in one]) for one in of_series], -1)
        return found * deviation + mean

    def coverage(self, frame: pd.DataFrame, name: str) -> float:
        """Return the share of the readings inside the 90 % intervals of a Gaussian forecast."""
        mean, deviation = scale(frame)
        means, deviations = _gaussian.parameters(self.darts, **self.windows(frame, name))
        speeds = ahead(part(frame, name).to_numpy())
        standardised = (speeds - mean) / deviation
        return _gaussian.coverage(means, deviations, standardised, counted=observed(speeds))


# The model of a run, and its settings, chosen on the validation part.
DARTS = {"n_epochs": 100, "batch_size": 32, "lr": 1e-3, "use_reversible_instance_norm": False}
NORMED = {**DARTS, "use_reversible_instance_norm": True}
MIXER = {"n_epochs": 100, "batch_size": 16, "lr": 3e-3, "instance_norm": False}
LLM_TS_NET: dict[str, Any] = {
    **{"n_epochs": 40, "early_stopping_patience": PATIENCE, "batch_size": 8, "lr": 3e-3},
    **{"normalization": "last", "level": True, "n_heads": 2, "n_groups": 1},
}
# The ablations have less epochs, and so has what they are compared with.
SHORT = {**LLM_TS_NET, "n_epochs": 12}
WEEKDAYS = {"days": "weekdays", "smoothing": 7}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "last-value": ("LastValue", {}),
    "average": ("Average", {"days": "all"}),
    "average-weekdays": ("Average", WEEKDAYS),
    "average-residual": ("Average", {**WEEKDAYS, "residual": 0.3}),
    "nlinear": ("NLinearModel", {**NORMED, "shared_weights": True}),
    "dlinear": ("DLinearModel", {**DARTS, "lr": 3e-4, "shared_weights": True, "kernel_size": 5}),
    "tide": ("TiDEModel", DARTS),
    "tide-each": ("TiDEModel", {**DARTS, "n_epochs": 4, "batch_size": 1024, "each_sensor": True}),
    "tsmixer": ("TSMixerModel", {**NORMED, "lr": 3e-4}),
    "mixer": ("Mixer", MIXER),
    "llm-ts-net": ("LLMTSNetModel", LLM_TS_NET),
    "llm-ts-net-no-text": ("LLMTSNetModel", {**LLM_TS_NET, "text": "none"}),
    "llm-ts-net-gaussian": ("LLMTSNetModel", {**LLM_TS_NET, "likelihood": "gaussian"}),
    "short": ("LLMTSNetModel", SHORT),
    "short-no-text": ("LLMTSNetModel", {**SHORT, "text": "none"}),
    "short-shared-text": ("LLMTSNetModel", {**SHORT, "text": "shared"}),
    "short-no-lm-stage": ("LLMTSNetModel", {**SHORT, "lm_steps": 0}),
    "short-hashed-words": ("LLMTSNetModel", {**SHORT, "text_encoder": "hash"}),
    "short-no-prompts": ("LLMTSNetModel", {**SHORT, "prompts": False}),
    "short-pool-4": ("LLMTSNetModel", {**SHORT, "n_prompts": 4}),
    "short-pool-64": ("LLMTSNetModel", {**SHORT, "n_prompts": 64}),
    "short-no-intra": ("LLMTSNetModel", {**SHORT, "intra": False}),
    "short-no-inter": ("LLMTSNetModel", {**SHORT, "inter": False}),
    "short-heads-4": ("LLMTSNetModel", {**SHORT, "n_heads": 4}),
    "short-groups-2": ("LLMTSNetModel", {**SHORT, "n_groups": 2}),
}


def build(name: str, seed: int, settings: dict[str, Any]) -> Any:
    """Return the untrained model of a run."""
    model, arguments = RUNS[name][0], dict(settings)
    if model in ("LastValue", "Average"):
        return globals()[model](**arguments)
    if model == "Mixer":
        return Mixer(seed, **arguments)
    each_sensor = arguments.pop("each_sensor", False)
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    trainer |= {"enable_checkpointing": False, "enable_model_summary": False}
    if "lr" in arguments:
        arguments["optimizer_kwargs"] = {"lr": arguments.pop("lr")}
    if arguments.get("likelihood") == "gaussian":
        arguments["likelihood"] = GaussianLikelihood()
    ours = hasattr(tsllm_estimators, model)
    if not ours:  # what our models bring along
        trainer["callbacks"] = [EarlyStopping("val_loss", patience=PATIENCE), BestWeights()]
        if "likelihood" not in arguments:
            arguments["loss_fn"] = torch.nn.L1Loss()
    built = getattr(tsllm_estimators if ours else darts.models, model)(
        input_chunk_length=CONTEXT,
        output_chunk_length=HORIZON,
        random_state=seed,
        pl_trainer_kwargs=trainer,
        **arguments,
    )
    return OfDarts(built, each_sensor)


def run(name: str, seed: int, split: str, settings: dict[str, Any], frame: pd.DataFrame) -> dict:
    """Train one model and return what it reached."""
    model = build(name, seed, settings)
    begin = time.perf_counter(), time.process_time()
    model.fit(frame)
    seconds, cpu_seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
    trained: dict[str, Any] = {}
    if isinstance(model, Mixer | OfDarts):  # darts forgets the epochs when it forecasts
        parameters = [p for p in model.model.parameters() if p.requires_grad]
        n_parameters = sum(p.numel() for p in parameters)
        trained = {"epochs": model.epochs_trained, "trainable_parameters": n_parameters}
    measured = errors(model.forecast(frame, split), ahead(part(frame, split).to_numpy()))
    if "likelihood" in settings:
        measured["coverage"] = model.coverage(frame, split)
    times = {"fit_seconds": round(seconds, 1), "fit_cpu_seconds": round(cpu_seconds, 1)}
    return {**measured, **trained, **times}


def main(arguments: list[str] | None = None) -> None:
    """Run what is not stored yet, and store each result as soon as it is there."""
    options = command_line(__doc__, RUNS, "losloop").parse_args(arguments)
    frame = load(data_folder())
    run_missing(
        options,
        RUNS,
        lambda name, seed, settings: run(name, seed, options.split, settings, frame),
    )


if __name__ == "__main__":
    main()

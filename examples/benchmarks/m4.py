"""M4 hourly, 48 hours ahead: one model for 414 series.

Series of 700 or 960 hours, each divided by its seasonal naive error within it: of a series in
these units the absolute error is MASE, and one loss is OWA (``_m4.OWALoss``). Where a run's
settings say ``log``, models see the logarithms. All train on windows of all series but for their
last 48 hours, which validate: they choose the settings (``--split validation`` and ``--results``
elsewhere) and the epoch whose weights are kept. What reads the test part, the 48 hours after it,
is stored in ``docs/results/m4.json``. An epoch has ``steps`` batches of windows drawn from all.

Where a run's settings name a ``share``, it trains on this share of the series, drawn at random,
and forecasts the last fifth of this draw, of which it saw none. ``--strategies`` starts from the
weights of ``unseen`` and fits them to that fifth, with each ``fit_strategy``.

    TSLLM_DATA=... python examples/benchmarks/m4.py --runs llm-ts-net llm-ts-net-no-text
"""

import tempfile
import time
from typing import Any

import _m4
import darts.models
import numpy as np
from _m4 import HORIZON, M4, SEASON, OWALoss
from _runs import command_line, data_folder, run_missing
from _store import Results
from darts import TimeSeries
from pytorch_lightning.callbacks import EarlyStopping

import tsllm_estimators
from tsllm_estimators._options import FIT_STRATEGIES
from tsllm_estimators.darts._callbacks import BestWeights

HELD_OUT = 0.2  # of the series, where a share of the others trains
COMMON: dict[str, Any] = {
    **{"context": 168, "n_epochs": 8, "steps": 200, "batch_size": 256, "log": True},
}
# The model of a run, and its settings, chosen on the validation part.
LLM_TS_NET: dict[str, Any] = {
    **COMMON,
    **{"n_epochs": 12, "steps": 250, "patch_length": 24, "d_model": 64, "n_layers": 3},
    **{"level": True, "dropout": 0, "head_dropout": 0, "prompts": False},
}
UNSEEN = {**LLM_TS_NET, "n_epochs": 8, "steps": 200, "n_layers": 2}
LEMOLE = {**COMMON, "lookbacks": [168, 96, 48, 24], "lr": 3e-3}
# The language models are run for every window: half of the steps, three layers, one branch.
HALF = {**COMMON, "steps": 100}
CALF = {
    **{**HALF, "lr": 5e-4, "d_ff": 512, "dropout": 0, "head_dropout": 0.1, "backbone_layers": 3},
    **{"output_weight": 0, "feature_weight": 0},
}
TIME_LLAMA = {**HALF, "d_hidden": 512, "head_dropout": 0.1}
TIDE = {
    **{**COMMON, "log": False, "lr": 1e-3, "hidden_size": 256, "temporal_decoder_hidden": 32},
    **{"decoder_output_dim": 16, "dropout": 0.1},
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "naive2": ("naive2", {}),
    "seasonal-naive": ("seasonal_naive", {}),
    "tide": ("TiDEModel", TIDE),
    "tide-log": ("TiDEModel", {**TIDE, "log": True, "n_epochs": 12, "steps": 250}),
    "llm-ts-net": ("LLMTSNetModel", LLM_TS_NET),
    "llm-ts-net-no-text": ("LLMTSNetModel", {**LLM_TS_NET, "text": "none"}),
    "calf": ("CALFModel", CALF),
    "calf-none": ("CALFModel", {**CALF, "backbone": "none", "backbone_layers": None}),
    "time-llama": ("TimeLlamaModel", TIME_LLAMA),
    "time-llama-none": ("TimeLlamaModel", {**TIME_LLAMA, "backbone": "none"}),
    "lemole": ("LeMoLEModel", LEMOLE),
    "lemole-none": ("LeMoLEModel", {**LEMOLE, "text": "none"}),
    "unseen": ("LLMTSNetModel", {**UNSEEN, "share": 0.8}),
    "unseen-tenth": ("LLMTSNetModel", {**UNSEEN, "share": 0.1}),
    "unseen-twentieth": ("LLMTSNetModel", {**UNSEEN, "share": 0.05}),
}


def seasonal_naive(values: _m4.Values) -> _m4.Values:
    """Forecast the last day again and again."""
    return np.resize(values[-SEASON:], HORIZON)


PLAIN = {"naive2": _m4.naive2, "seasonal_naive": seasonal_naive}


class Scaled:
    """Series as darts models see them: in their units, or the logarithms of that."""

    def __init__(self, m4: M4, log: bool) -> None:
        self.m4, self.log = m4, log
        self.units = np.array([_m4.scale(values) for values in _m4.split(m4, "validation")[0]])

    def __call__(self, part: str) -> list[TimeSeries]:
        """Return what may be known for a part."""
        found = []
        for values, unit in zip(_m4.split(self.m4, part)[0], self.units, strict=True):
            scaled = np.log(values / unit) if self.log else values / unit
            found.append(TimeSeries.from_values(scaled.astype(np.float32)))
        return found

    def errors(self, model: Any, part: str) -> dict[str, Any]:
        """Return the errors of a model's forecasts of a part."""
        forecasts = model.predict(HORIZON, series=self(part))
        scaled = np.array([one.values()[:, 0] for one in forecasts], np.float64)
        values = (np.exp(scaled) if self.log else scaled) * self.units[:, np.newaxis]
        history, actual = _m4.split(self.m4, part)
        return _m4.errors(values, actual, history)


def build(name: str, seed: int, settings: dict[str, Any], **more: Any) -> Any:
    """Return the untrained model of a run."""
    model, arguments = RUNS[name][0], {**settings, **more}
    trainer: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}
    trainer |= {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer["limit_train_batches"] = arguments.pop("steps")
    arguments.pop("share", None)
    arguments["loss_fn"] = OWALoss(logarithmic=arguments.pop("log"))
    if "lr" in arguments:
        arguments["optimizer_kwargs"] = {"lr": arguments.pop("lr")}
    ours = hasattr(tsllm_estimators, model)
    if not ours:  # what our models bring along
        trainer["callbacks"] = [EarlyStopping("val_loss", patience=10), BestWeights()]
        arguments["use_reversible_instance_norm"] = True
    return getattr(tsllm_estimators if ours else darts.models, model)(
        input_chunk_length=arguments.pop("context"),
        output_chunk_length=HORIZON,
        random_state=seed,
        pl_trainer_kwargs=trainer,
        **arguments,
    )


def of_series(m4: M4, chosen: np.ndarray) -> M4:
    """Return some of the series."""
    return M4([m4.names[i] for i in chosen], [m4.train[i] for i in chosen], m4.test[chosen])


def parted(m4: M4, share: float | None) -> tuple[M4, M4]:
    """Return the series to train on and those to forecast: all, or parts of one random draw."""
    if share is None:
        return m4, m4
    order = np.random.default_rng(0).permutation(len(m4.names))
    n_held_out = round(HELD_OUT * len(order))
    return of_series(m4, order[: round(share * len(order))]), of_series(m4, order[-n_held_out:])


def fit(model: Any, scaled: Scaled) -> dict[str, Any]:
    """Train a model, validate it on the last 48 hours; returns what the training cost."""
    begin = time.perf_counter(), time.process_time()
    ends = [one[-(model.input_chunk_length + HORIZON) :] for one in scaled("test")]
    model.fit(scaled("validation"), val_series=ends)
    seconds, cpu_seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
    parameters = [p for p in model.model.parameters() if p.requires_grad]
    return {
        "epochs": model.epochs_trained,
        "trainable_parameters": sum(p.numel() for p in parameters),
        "fit_seconds": round(seconds, 1),
        "fit_cpu_seconds": round(cpu_seconds, 1),
    }


def reached(model: Any, scaled: Scaled, part: str) -> dict[str, Any]:
    """Return the errors of a part, and beside those of the test the validation's OWA."""
    validation = scaled.errors(model, "validation")
    if part == "validation":
        return validation
    return {**scaled.errors(model, part), "validation_owa": validation["owa"]}


def run(name: str, seed: int, part: str, settings: dict[str, Any], m4: M4) -> dict[str, Any]:
    """Train one model and return what it reached."""
    if RUNS[name][0] in PLAIN:
        history, actual = _m4.split(m4, part)
        forecast = np.array([PLAIN[RUNS[name][0]](values) for values in history])
        return _m4.errors(forecast, actual, history)
    train, forecast_of = parted(m4, settings.get("share"))
    model = build(name, seed, settings)
    trained = fit(model, Scaled(train, settings["log"]))
    return {**reached(model, Scaled(forecast_of, settings["log"]), part), **trained}


def strategies(seed: int, part: str, epochs: int, m4: M4, results: Results) -> None:
    """Train on four fifths of the series, then fit the weights to the last one, in each way."""
    settings = RUNS["unseen"][1]
    keys = [
        {"run": "unseen-fitted", "fit_strategy": strategy, "epochs_of_fit": epochs, "seed": seed}
        | {"split": part, "settings": settings}
        for strategy in FIT_STRATEGIES
    ]
    if all(key in results for key in keys):
        return
    train, others = (Scaled(some, settings["log"]) for some in parted(m4, settings["share"]))
    model = build("unseen", seed, settings)
    fit(model, train)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for key in keys:
            if key in results:
                continue
            more = {"checkpoint": folder, "fit_strategy": key["fit_strategy"], "n_epochs": epochs}
            fitted = build("unseen", seed, settings, **more)
            measured = fit(fitted, others)
            results.add(key, {**reached(fitted, others, part), **measured})


def main(arguments: list[str] | None = None) -> None:
    """Run what is not stored yet, and store each result as soon as it is there."""
    parser = command_line(__doc__, RUNS, "m4", n_runs="*")
    parser.add_argument("--strategies", type=int, metavar="EPOCHS", help="epochs of each fit")
    options = parser.parse_args(arguments)
    m4 = _m4.load(data_folder())
    results = run_missing(
        options, RUNS, lambda name, seed, settings: run(name, seed, options.split, settings, m4)
    )
    for seed in options.seeds if options.strategies else []:
        strategies(seed, options.split, options.strategies, m4, results)


if __name__ == "__main__":
    main()

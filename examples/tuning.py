"""Tune a method on real data, ask whether its language model earned its place, and use the result.

The airline passengers are at hand with sktime. Optuna tries settings of the search space on
folds before the last two years, which stay unseen until the end; then the tuned forecaster, the
default one and a seasonal naive forecast these. A search ends with its trials or its seconds.

    python examples/tuning.py --method LeMoLE
"""

import argparse
import time

import optuna
import pandas as pd
from sktime.datasets import load_airline
from sktime.forecasting.base import BaseForecaster
from sktime.forecasting.model_evaluation import evaluate
from sktime.performance_metrics.forecasting import MeanAbsoluteError
from sktime.split import ExpandingWindowSplitter

import tsllm_estimators
from tsllm_estimators.tuning import suggest

HORIZON, HELD_OUT = 12, 24
METHODS = ("CALF", "LLMTSNet", "LeMoLE", "TimeLlama")


def folds(y: pd.Series, n_folds: int) -> ExpandingWindowSplitter:
    """Return a splitter whose folds are the last years of a series, each forecast at once."""
    return ExpandingWindowSplitter(
        fh=list(range(1, HORIZON + 1)),
        initial_window=len(y) - n_folds * HORIZON,
        step_length=HORIZON,
    )


def error(forecaster: BaseForecaster, y: pd.Series, n_folds: int) -> float:
    """Return the mean absolute error over the last years of a series."""
    found = evaluate(
        forecaster, folds(y, n_folds), y, scoring=MeanAbsoluteError(), error_score="raise"
    )
    return float(found["test_MeanAbsoluteError"].mean())


def search(forecaster: BaseForecaster, y: pd.Series, n_trials: int, seconds: float) -> optuna.Study:
    """Return a study of the forecaster's search space."""
    started = time.monotonic()

    def objective(trial: optuna.Trial) -> float:
        tried = forecaster.clone().set_params(**suggest(trial, forecaster, HORIZON))
        return error(tried, y, n_folds=2)

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=n_trials, timeout=seconds)
    print(f"{len(study.trials)} trials in {time.monotonic() - started:.0f} s")
    return study


def main(arguments: list[str] | None = None) -> pd.Series:
    """Tune, and return the errors on what was held out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=METHODS, default="LeMoLE")
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=120, help="for the search")
    parser.add_argument("--max-steps", type=int, default=100, help="of each training")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    y = load_airline()
    forecaster = getattr(tsllm_estimators, f"{options.method}Forecaster")(
        max_steps=options.max_steps, random_state=0
    )
    study = search(forecaster, y[:-HELD_OUT], options.trials, options.seconds)
    trials = study.trials_dataframe(attrs=("value", "params")).sort_values("value")
    print(trials.head().to_string(index=False))

    # what stands for the language model is one of the choices
    place = "params_backbone" if "params_backbone" in trials else "params_text"
    print(trials.groupby(place)["value"].min().rename("best error of each"))
    found = pd.Series(
        {
            "tuned": error(forecaster.clone().set_params(**study.best_params), y, 2),
            "default": error(forecaster, y, 2),
            "seasonal naive": (y - y.shift(12))[-HELD_OUT:].abs().mean(),
        },
        name="mean absolute error of the last two years",
    )
    print(found)
    return found


if __name__ == "__main__":
    main()

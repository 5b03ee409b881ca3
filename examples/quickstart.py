"""Fit, forecast and backtest a language-model forecaster like any other: `make quickstart`.

Takes sktime's airline passengers, forecasts the last 24 months with a 90 % interval, backtests
the forecaster in sktime and in darts beside a seasonal naive forecast and in an ensemble, prints
one table and draws the forecast.
"""

import argparse
import logging
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from darts import TimeSeries
from darts.metrics import mae as darts_mae
from sktime.datasets import load_airline
from sktime.forecasting.compose import EnsembleForecaster
from sktime.forecasting.model_evaluation import evaluate
from sktime.forecasting.naive import NaiveForecaster
from sktime.forecasting.theta import ThetaForecaster
from sktime.performance_metrics.forecasting import MeanAbsoluteError
from sktime.split import ExpandingWindowSplitter

from tsllm_estimators import CALFForecaster, CALFModel

# sktime 1.2 warns of a coming default whenever one of its own forecasters is made
logging.captureWarnings(True)
logging.getLogger("py.warnings").setLevel(logging.ERROR)

MONTHS = 24


def forecast(y: pd.Series, small: dict) -> tuple[pd.Series, pd.DataFrame]:
    """Forecast the last months of ``y`` from the months before, with a 90 % interval."""
    train = y[:-MONTHS]
    forecaster = CALFForecaster(random_state=0, **small)
    forecaster.fit(train, fh=list(range(1, MONTHS + 1)))
    return forecaster.predict(), forecaster.predict_interval(coverage=0.9)


def backtest_sktime(y: pd.Series, small: dict) -> dict[str, float]:
    """Return the mean absolute error of two refitted years, per forecaster.

    Every fold trains anew, so it trains half as long.
    """
    calf = CALFForecaster(**{"max_steps": 150, "random_state": 0, **small})
    forecasters = {
        "CALF": calf,
        "seasonal naive": NaiveForecaster(strategy="last", sp=12),
        "CALF + theta": EnsembleForecaster([("calf", calf), ("theta", ThetaForecaster(sp=12))]),
    }
    years = ExpandingWindowSplitter(fh=list(range(1, 13)), initial_window=120, step_length=12)
    return {
        name: evaluate(forecaster, years, y, scoring=MeanAbsoluteError(), error_score="raise")[
            "test_MeanAbsoluteError"
        ].mean()
        for name, forecaster in forecasters.items()
    }


def backtest_darts(y: pd.Series, small: dict) -> float:
    """Return the mean absolute error of darts' backtest on the last months, without refitting."""
    series = TimeSeries.from_series(y.to_timestamp()).astype("float32")
    settings = {"n_epochs": 40, **small}
    model = CALFModel(input_chunk_length=36, output_chunk_length=12, random_state=0, **settings)
    model.fit(series[:-MONTHS])
    model.predict(MONTHS)
    return model.backtest(
        series, start=len(series) - MONTHS, forecast_horizon=12, retrain=False, metric=darts_mae
    )


def draw(y: pd.Series, predicted: pd.Series, interval: pd.DataFrame, path: Path) -> None:
    """Draw the end of the series, the forecast and its interval."""
    lower, upper = interval.iloc[:, 0], interval.iloc[:, 1]
    months = predicted.index.to_timestamp()
    plt.switch_backend("agg")  # no window
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    axes.plot(y[-84:].index.to_timestamp(), y[-84:], color="0.2", label="passengers")
    axes.plot(months, predicted, color="tab:orange", label="CALF, median")
    axes.fill_between(months, lower, upper, color="tab:orange", alpha=0.25, lw=0, label="90 %")
    axes.axvline(months[0], color="0.7", lw=1, ls=":")
    axes.set(ylabel="passengers (thousands)", title="Airline passengers, 24 months held out")
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    """Run everything; print and return the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    output = Path(__file__).parent / "output" / "quickstart.png"
    parser.add_argument("--output", type=Path, default=output, help="where to write the picture")
    parser.add_argument("--smoke", action="store_true", help="a tiny backbone and two steps")
    options = parser.parse_args(arguments)
    in_sktime = {"backbone": "tiny", "max_steps": 2} if options.smoke else {}
    in_darts = {"backbone": "tiny", "n_epochs": 1} if options.smoke else {}

    begin = time.perf_counter()
    y = load_airline()
    predicted, interval = forecast(y, in_sktime)
    held_out = y[-MONTHS:]
    naive = NaiveForecaster(strategy="last", sp=12).fit(y[:-MONTHS]).predict(predicted.index)
    inside = (interval.iloc[:, 0] <= held_out) & (held_out <= interval.iloc[:, 1])
    backtests = backtest_sktime(y, in_sktime)
    rows = [
        ("24 months held out", "CALF", (predicted - held_out).abs().mean()),
        ("24 months held out", "seasonal naive", (naive - held_out).abs().mean()),
        *(("backtest in sktime, 2 years", name, error) for name, error in backtests.items()),
        ("backtest in darts, 12 months ahead", "CALF", backtest_darts(y, in_darts)),
    ]
    table = pd.DataFrame(rows, columns=["airline passengers", "forecaster", "MAE"])
    print(table.to_string(index=False, float_format="%.1f", justify="left"))
    print(f"90 % interval: {inside.sum()} of {MONTHS} months inside")
    draw(y, predicted, interval, options.output)
    print(f"picture: {options.output}, {time.perf_counter() - begin:.0f} s in all")
    return table


if __name__ == "__main__":
    main()

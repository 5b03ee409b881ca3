"""Learn from many hourly series, forecast another one: M4 hourly to ETTh1.

Trains one model on the 414 hourly series of the M4 competition and saves its weights. Then
forecasts ETTh1's oil temperature, of another kind and unit, a day ahead over its validation part:
from these weights as they are (zero-shot), with the head fitted to ETTh1, with everything fitted,
and from new weights. Each fit sees ``--days`` days before the validation part, which is little:
that is where weights from elsewhere are worth something. One table tells the mean absolute errors
beside that of the same hour of the day before.

    TSLLM_DATA=... python examples/transfer.py
"""

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks import _m4
from darts import TimeSeries

from tsllm_estimators import LLMTSNetModel

CONTEXT, AHEAD = 168, 24
TRAIN, VALIDATION = 8640, 11520  # rows of ETTh1 at which its parts end
SETTINGS: dict[str, Any] = {"patch_length": 24, "d_model": 64, "n_layers": 2, "batch_size": 256}
WAYS: dict[str, dict[str, Any]] = {
    "pretrained, zero-shot": {"fit_strategy": "zero-shot"},
    "pretrained, head": {"fit_strategy": "head"},
    "pretrained, full": {"fit_strategy": "full"},
    "new weights": {"checkpoint": None},
}


def oil(data: Path) -> np.ndarray:
    """Return ETTh1's oil temperature by hour, standardised with its training part."""
    path = data / "ETTh1.csv"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} not found: set TSLLM_DATA to a folder with ETTh1.csv of the repository "
            "zhouhaoyi/ETDataset."
        )
    values = pd.read_csv(path)["OT"].to_numpy()[:VALIDATION]
    return (values - values[:TRAIN].mean()) / values[:TRAIN].std()


def standardised(m4: _m4.M4) -> list[TimeSeries]:
    """Return the series of M4, each with mean 0 and deviation 1."""
    return [series((values - values.mean()) / values.std()) for values in m4.train]


def series(values: np.ndarray) -> TimeSeries:
    """Return values as a darts series."""
    return TimeSeries.from_values(values.astype(np.float32))


def build(steps: int, **settings: Any) -> LLMTSNetModel:
    """Return a model that trains for some steps."""
    return LLMTSNetModel(
        CONTEXT,
        AHEAD,
        n_epochs=1000,  # more than the steps allow
        random_state=0,
        pl_trainer_kwargs={"max_steps": steps, "accelerator": "cpu"},
        **SETTINGS,
        **settings,
    )


def error(model: LLMTSNetModel, values: np.ndarray) -> float:
    """Return the mean absolute error of every day of the validation part, forecast at once."""
    forecasts = model.historical_forecasts(
        series(values[TRAIN - CONTEXT :]),
        forecast_horizon=AHEAD,
        stride=AHEAD,
        retrain=False,
        last_points_only=False,
    )
    found = np.concatenate([one.values()[:, 0] for one in forecasts])
    return float(np.abs(found - values[TRAIN : TRAIN + len(found)]).mean())


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    """Run everything; print and return the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="of the training on M4")
    parser.add_argument("--fit-steps", type=int, default=100, help="of each fit to ETTh1")
    parser.add_argument("--days", type=int, default=28, help="of ETTh1 that a fit sees")
    parser.add_argument("--tiny", action="store_true", help="a tiny language model")
    options = parser.parse_args(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    data = Path(os.environ.get("TSLLM_DATA", "."))
    values, m4 = oil(data), _m4.load(data)
    small = {"backbone": "tiny", "lm_steps": 1} if options.tiny else {}

    rows = []
    naive = np.abs(values[TRAIN:] - values[TRAIN - AHEAD : -AHEAD]).mean()
    rows.append(("the day before", naive, 0.0))
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        pretrained = build(options.steps, **small)
        pretrained.fit(standardised(m4))
        pretrained.save_pretrained(folder)
        seconds = time.perf_counter() - begin
        print(f"trained on {len(m4.names)} series of M4 in {seconds:.0f} s", flush=True)
        for name, way in WAYS.items():
            begin = time.perf_counter()
            model = build(options.fit_steps, **{"checkpoint": folder, **small, **way})
            model.fit(series(values[TRAIN - 24 * options.days : TRAIN]))
            rows.append((name, error(model, values), time.perf_counter() - begin))
    table = pd.DataFrame(rows, columns=["ETTh1, oil temperature", "MAE", "seconds"])
    print(table.to_string(index=False, float_format="%.3f"))
    return table


if __name__ == "__main__":
    main()

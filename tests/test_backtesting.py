"""The benchmark of backtests in small."""

import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"


def test_the_benchmark_in_small(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    hours = pd.date_range("2016-07-01", periods=300, freq="h", name="date")
    frame = pd.DataFrame(rng.normal(size=(300, 7)).cumsum(0), hours, list("abcdefg"))
    frame.to_csv(tmp_path / "ETTh1.csv")
    monkeypatch.setenv("TSLLM_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(str(FOLDER))
    backtesting = importlib.import_module("backtesting")
    for name, value in {"TRAIN": 100, "VALIDATION": 200, "TEST": 300}.items():
        monkeypatch.setattr(backtesting.etth1, name, value)
    for name, value in {"CONTEXT": 12, "HORIZON": 6}.items():
        monkeypatch.setattr(backtesting, name, value)
    results = tmp_path / "results.json"
    arguments = ["--rounds", "1", "--backbone", "tiny", "--rows", "100", "--results", str(results)]
    backtesting.main(arguments)
    stored = json.loads(results.read_text())
    assert [row["run"] for row in stored] == ["backtest", "backtest", "single", "single"]
    assert [row.get("windows") for row in stored[:2]] == [95, 95]
    for row in stored[:2]:
        times = row["calf"]["cpu_seconds"]
        assert times["ratio"] == pytest.approx(times["calf"] / times["forwards"])
        assert row["lemole"]["seconds"].keys() == {"lemole", "lemole_forwards", "dlinear", "ratio"}
    shown = capsys.readouterr().out
    assert "95 windows, whole forecasts: CALF takes" in shown
    assert "ms in sktime, a fold" in shown
    backtesting.main(arguments)
    assert json.loads(results.read_text()) == stored


def test_windows_are_those_of_a_backtest(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    backtesting = importlib.import_module("backtesting")
    monkeypatch.setattr(backtesting, "CONTEXT", 3)
    monkeypatch.setattr(backtesting, "HORIZON", 2)
    values = np.arange(16.0).reshape(8, 2)
    windows = backtesting.windows_of(values)
    assert windows.shape == (4, 3, 2)
    np.testing.assert_array_equal(windows[1], values[1:4])

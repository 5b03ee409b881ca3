"""The examples on Ray and Dask in small: complete, in order, and equal to what one process finds.

They run in processes of their own, as workers ask for sockets and stay until their driver ends.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import distributed
import numpy as np
import pandas as pd
import psutil
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TIMEOUT = 400
DASK = ["--backbone", "tiny", "--series", "12", "--piece", "5", "--steps", "2", "--length", "160"]
RAY = ["--series", "60", "--piece", "10", "--length", "200", "--workers", "2"]


@pytest.fixture
def ray_example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("scale_out_ray")


@pytest.fixture
def dask_example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("scale_out_dask")


@pytest.fixture
def ray_environment():
    """Return an environment in which Ray writes into a folder whose name is short."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        yield {**os.environ, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "HOME": folder}


def example(name, *arguments):
    return [sys.executable, str(EXAMPLES / name), *map(str, arguments)]


def trained(ray_example, folder):
    """Return the directory of a model, and the pieces of the panel that the example makes."""
    rows = ray_example.panel(60, 200)
    ray_example.train(rows[:8], str(folder), "tiny", 2)
    return ray_example.packed(str(folder)), [rows[at : at + 10] for at in range(0, 60, 10)]


def check_equal(found, expected):
    assert found["id"].to_list() == list(range(60))
    for name in expected.columns.drop("worker"):
        for own, other in zip(found[name], expected[name], strict=True):
            np.testing.assert_array_equal(own, other)


def test_a_worker_forecasts_and_backtests_as_darts_does(ray_example, tmp_path):
    model, pieces = trained(ray_example, tmp_path)
    found = ray_example.in_this_process(ray_example.Forecasts, model, pieces)
    darts = ray_example.CALFModel.from_pretrained(tmp_path)
    series = [ray_example.TimeSeries.from_values(v.astype(np.float32)) for v in pieces[2]["values"]]
    whole = darts.predict(24, series=series[3], predict_likelihood_parameters=True)
    for name, level in (("low", "0.050"), ("median", "0.500"), ("high", "0.950")):
        expected = whole[f"0_q{level}"].values()[:, 0]
        np.testing.assert_allclose(found[name][23], expected, rtol=1e-5)

    errors = ray_example.in_this_process(ray_example.Backtests, model, pieces[2:3])
    values = pieces[2]["values"].iloc[3]
    starts = range(96, len(values) - 24 + 1, 24)
    assert errors["days"][3] == len(starts)
    for start, error in zip(starts, errors["mae"][3], strict=True):
        known = ray_example.TimeSeries.from_values(values[:start].astype(np.float32))
        one = darts.predict(24, series=known, predict_likelihood_parameters=True)["0_q0.500"]
        expected = np.abs(one.values()[:, 0] - values[start : start + 24]).mean()
        assert error == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT)
@pytest.mark.parametrize("task", ["forecast", "backtest"])
def test_ray_finds_what_one_process_finds(ray_example, ray_environment, task, tmp_path):
    model, pieces = trained(ray_example, tmp_path / "model")
    results = tmp_path / "results.parquet"
    files = ["--model", tmp_path / "model", "--output", results]
    command = example("scale_out_ray.py", *RAY, *files, "--task", task)
    subprocess.run(command, check=True, cwd=tmp_path, env=ray_environment, timeout=TIMEOUT)
    found = pd.read_parquet(results)
    check_equal(found, ray_example.in_this_process(ray_example.TASKS[task], model, pieces))
    assert os.getpid() not in set(found["worker"])


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT)
def test_what_a_killed_worker_had_is_done_again(ray_example, ray_environment, tmp_path):
    model, pieces = trained(ray_example, tmp_path / "model")
    results = tmp_path / "results.parquet"
    files = ["--model", tmp_path / "model", "--output", results]
    command = example("scale_out_ray.py", *RAY, *files, "--task", "backtest")
    command += ["--piece", "10", "--workers", "1"]
    driver = subprocess.Popen(command, cwd=tmp_path, env=ray_environment)
    try:
        worker = at_work(driver.pid)
        worker.send_signal(signal.SIGKILL)
        assert driver.wait(TIMEOUT) == 0
    finally:
        driver.kill()
    found = pd.read_parquet(results)
    check_equal(found, ray_example.in_this_process(ray_example.Backtests, model, pieces))
    assert set(found["worker"]) - {worker.pid}


def at_work(driver):
    """Return the process of an actor that has its model and computes, once there is one."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        for process in psutil.Process(driver).children(recursive=True):
            try:
                title = " ".join(process.cmdline())
            except psutil.Error:  # has ended since
                continue
            if "MapWorker(MapBatches" in title and "__init__" not in title:
                return process
        time.sleep(0.05)
    raise TimeoutError("no actor of Ray has begun to work")


def test_pieces_are_forecast_as_the_whole_panel(dask_example, monkeypatch):
    """Without a client one after another, with one by a worker, here a thread."""
    y = dask_example.panel(7, 160)
    settings = {"backbone": "tiny", "context_length": 96, "horizon": 24, "max_steps": 2}
    forecaster = dask_example.CALFForecaster(
        **settings, random_state=0, device="cpu", fit_strategy="zero-shot"
    ).pretrain(y)
    pieces = dask_example.pieces_of(y, 3)
    assert [len(piece.index.unique("id")) for piece in pieces] == [3, 3, 1]
    found = dask_example.forecasts(None, forecaster, pieces)
    expected = dask_example.forecast(y, forecaster)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
    # it would ask an address outside for the name of this machine
    monkeypatch.setattr(distributed.comm.inproc, "get_ip", lambda: "127.0.0.1")
    thread = {"processes": False, "n_workers": 1, "threads_per_worker": 1}
    with distributed.Client(**thread, dashboard_address=None) as client:
        by_worker = dask_example.forecasts(client, forecaster, pieces[::-1])
    pd.testing.assert_frame_equal(by_worker, found, check_exact=True)


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT)
@pytest.mark.parametrize("task", ["forecast", "backtest", "each"])
def test_dask_finds_what_one_process_finds(dask_example, task, tmp_path, capsys):
    script = (
        "import sys, scale_out_dask\n"
        "if __name__ == '__main__':\n"
        "    scale_out_dask.main(sys.argv[2:]).to_pickle(sys.argv[1])\n"
    )
    (tmp_path / "run.py").write_text(script)
    command = [sys.executable, "run.py", "results.pkl", *DASK, "--task", task]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=TIMEOUT)
    found = pd.read_pickle(tmp_path / "results.pkl")
    expected = dask_example.main([*DASK, "--task", task, "--serial"])
    columns = [name for name in expected if "time" not in str(name)]
    assert len(columns) >= (1 if task == "each" else 3)
    pd.testing.assert_frame_equal(found[columns], expected[columns], check_exact=True)


@pytest.fixture
def benchmark(monkeypatch):
    for name in ("PYTHONPATH", "RAY_worker_niceness"):
        monkeypatch.setenv(name, "")  # which the benchmark sets
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    return importlib.import_module("scale_out")


def test_throughput_counts_while_all_workers_work(benchmark):
    """Two workers, four pieces of ten series and two seconds; the second starts a second later."""
    pieces = [(1, 0.0), (1, 2.0), (2, 1.0), (2, 3.0)]
    rows = [
        {
            "worker": worker,
            "begin": at,
            "end": at + 2,
            "cpu_seconds": 0.5,
            "megabytes": 100 * worker,
        }
        for worker, at in pieces
        for _ in range(10)
    ]
    found = benchmark.summary(pd.DataFrame(rows), 40, asked=-3.0)
    assert found["seconds_of_start"] == 4
    assert found["seconds_per_1000"] == pytest.approx(1000 * 3 / 30)
    assert found["cpu_seconds_per_1000"] == pytest.approx(1000 * 2 / 40)
    assert found["seconds_in_all"] == 8
    assert found["megabytes_of_a_worker"] == 150
    assert found["workers"] == 2


def test_the_scale_out_benchmark_in_small(benchmark, tmp_path):
    """In this process; what is stored is not measured again."""
    results = tmp_path / "scale_out.json"
    sizes = ["--series", "20", "--piece", "8", "--length", "200", "--rounds", "1"]
    for _ in range(2):
        benchmark.main([*sizes, "--workers", "0", "--backbone", "tiny", "--results", str(results)])
    forecast, backtest = json.loads(results.read_text())
    assert forecast["n_forecasts"] == 20
    assert forecast["result_bytes_of_1000"] == 1000 * (8 + 3 * 24 * 4)
    lengths = benchmark.scale_out_ray.panel(20, 200)["values"].map(len)
    assert backtest["n_forecasts"] == sum((n - 96) // 24 for n in lengths)
    for row in (forecast, backtest):
        assert row["cpu_seconds_per_1000"] > 0
        assert 0 < row["seconds_of_start"] < row["seconds_in_all"]
        assert 10_000 < row["model_bytes"] < 1_000_000

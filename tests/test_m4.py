"""The M4 benchmark in small: its files, its errors by hand, Naive2, and runs on made-up data."""

import importlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"


@pytest.fixture
def m4(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("m4")


@pytest.fixture
def files(m4):
    return m4._m4


@pytest.fixture
def published(files, data_folder):
    if not (data_folder / "m4_hourly_train.csv").exists():
        pytest.skip("needs m4_hourly_train.csv in TSLLM_DATA, see CONTRIBUTING.md")
    return files.load(data_folder)


def days(n_hours, level=10.0, slope=0.0, seed=0):
    """Return a day's shape, again and again, with a little noise."""
    hours = np.arange(n_hours)
    noise = 0.1 * np.random.default_rng(seed).normal(size=n_hours)
    return level + slope * hours + 2 * np.sin(2 * np.pi * hours / 24) + noise


def written(folder, lengths):
    """Write made-up series as the published files hold them: ragged rows, names in quotes."""
    values = [days(n + 48, level=10 * (i + 1), seed=i) for i, n in enumerate(lengths)]
    for part, start, stop in (("train", 0, -48), ("test", -48, None)):
        rows = [own[start:stop] for own in values]
        width = max(map(len, rows))
        lines = [",".join(f'"V{i + 1}"' for i in range(width + 1))]
        for i, row in enumerate(rows):
            cells = [f'"H{i + 1}"', *(f'"{v:.4f}"' for v in row), *[""] * (width - len(row))]
            lines.append(",".join(cells))
        (folder / f"m4_hourly_{part}.csv").write_text("\n".join(lines) + "\n")
    return values


def test_series_of_the_published_files(published):
    assert (published.names[0], published.names[-1]) == ("H1", "H414")
    lengths, counts = np.unique([len(values) for values in published.train], return_counts=True)
    assert dict(zip(lengths.tolist(), counts.tolist(), strict=True)) == {700: 169, 960: 245}
    assert published.test.shape == (414, 48)


def test_naive2_has_the_published_errors(files, published):
    """Which need the season's test, its factors and both errors to be those of the organisers."""
    history, actual = files.split(published, "test")
    forecast = np.array([files.naive2(values) for values in history])
    found = files.errors(forecast, actual, history)
    assert found["smape"] == pytest.approx(18.383, abs=5e-4)
    assert found["mase"] == pytest.approx(2.395, abs=5e-4)
    assert found["owa"] == 1
    assert found["series"] == 414


def test_files_are_read_as_they_are_published(files, tmp_path):
    values = written(tmp_path, [100, 130])
    m4 = files.load(tmp_path)
    assert m4.names == ["H1", "H2"]
    assert [len(one) for one in m4.train] == [100, 130]
    np.testing.assert_allclose(m4.train[1], values[1][:130], atol=1e-4)
    np.testing.assert_allclose(m4.test[1], values[1][130:], atol=1e-4)


def test_a_missing_file_says_where_it_is_published(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set TSLLM_DATA.*Mcompetitions/M4-methods"):
        files.load(tmp_path)


def test_the_parts_share_no_hour_to_forecast(files):
    series = [np.arange(100.0), np.arange(200.0)]
    m4 = files.M4(["a", "b"], series, np.arange(1000.0, 1096).reshape(2, 48))
    history, actual = files.split(m4, "validation")
    assert [len(values) for values in history] == [52, 152]
    np.testing.assert_array_equal(actual, [np.arange(52.0, 100), np.arange(152.0, 200)])
    history, actual = files.split(m4, "test")
    assert [len(values) for values in history] == [100, 200]
    assert actual is m4.test


def test_errors_by_hand(files):
    """A series that grows by 1 an hour has a seasonal naive error of 24."""
    history = [np.arange(100.0)]
    actual, forecast = np.full((1, 48), 10.0), np.full((1, 48), 30.0)
    assert files.scale(history[0]) == 24
    assert files.smape(forecast, actual) == pytest.approx([200 * 20 / 40])
    assert files.mase(forecast, actual, history) == pytest.approx([20 / 24])
    naive2 = np.array([files.naive2(history[0])])
    expected = 100 / files.smape(naive2, actual)[0], 20 / 24 / files.mase(naive2, actual, history)
    found = files.errors(forecast, actual, history)
    assert found["owa"] == pytest.approx((expected[0] + expected[1][0]) / 2)
    assert (found["smape"], found["mase"]) == pytest.approx((100, 20 / 24))


def test_errors_are_those_of_sktime(files):
    from sktime.performance_metrics.forecasting import MeanAbsolutePercentageError as Percentage
    from sktime.performance_metrics.forecasting import MeanAbsoluteScaledError

    values = days(200, slope=0.01)
    history, actual, forecast = (
        [values[:152]],
        values[np.newaxis, 152:],
        values[np.newaxis, 100:148],
    )
    smape = Percentage(symmetric=True)(actual[0], forecast[0])
    assert files.smape(forecast, actual)[0] == pytest.approx(100 * smape)
    mase = MeanAbsoluteScaledError(sp=24)(actual[0], forecast[0], y_train=history[0])
    assert files.mase(forecast, actual, history)[0] == pytest.approx(mase)


def test_seasonal_factors_by_hand(files):
    """A level of 8 times the factors, in which the trend is exact but for the ends."""
    factors = np.array([0.5, 1.0, 1.5, 1.0])
    values = 8 * np.tile(factors, 5)[:18]
    np.testing.assert_allclose(files.seasonal_factors(values, 4), factors)
    odd = np.array([0.5, 1.0, 1.5])
    np.testing.assert_allclose(files.seasonal_factors(8 * np.tile(odd, 4), 3), odd)


def test_naive2_goes_on_with_the_season(files):
    factors = np.array([0.5, 1.0, 1.5, 1.0])
    values = 8 * np.tile(factors, 5)[:18]  # ends on the second factor
    found = files.naive2(values, season=4, horizon=6)
    np.testing.assert_allclose(found, 8 * factors[[2, 3, 0, 1, 2, 3]])


def test_naive2_is_the_last_value_where_there_is_no_season(files):
    noise = 10 + np.random.default_rng(0).normal(size=200)
    assert not files.is_seasonal(noise, 24)
    np.testing.assert_array_equal(files.naive2(noise), np.full(48, noise[-1]))
    assert files.is_seasonal(days(200), 24)
    assert not files.is_seasonal(days(71), 24)  # less than three seasons
    assert not files.is_seasonal(np.full(200, 3.0), 24)


def test_the_significance_of_a_season_is_bartletts(files):
    """Computed from the autocorrelations of statsmodels at the limit, from both sides."""
    from statsmodels.tsa.stattools import acf

    rng, found = np.random.default_rng(0), []
    for share in np.linspace(0, 1.5, 40):
        values = rng.normal(size=120) + share * np.sin(2 * np.pi * np.arange(120) / 12)
        lags = acf(values, nlags=12, fft=False)[1:]
        limit = 1.645 * np.sqrt((1 + 2 * (lags[:11] ** 2).sum()) / 120)
        assert files.is_seasonal(values, 12) == (abs(lags[11]) > limit)
        found.append(files.is_seasonal(values, 12))
    assert 5 < sum(found) < 35


def test_the_loss_is_owa_of_series_in_their_scale(files):
    history = [days(200, level=100, seed=seed) for seed in range(3)]
    units = np.array([files.scale(values) for values in history])[:, np.newaxis]
    rng = np.random.default_rng(0)
    actual = 100 + rng.normal(size=(3, 48))
    forecast = 100 + rng.normal(size=(3, 48))
    tensors = [torch.tensor(values / units).unsqueeze(-1) for values in (forecast, actual)]
    published = (
        files.smape(forecast, actual).mean() / 18.383
        + files.mase(forecast, actual, history).mean() / 2.395
    ) / 2
    assert files.OWALoss()(*tensors).item() == pytest.approx(published)


def test_the_loss_of_zeros_is_a_number_and_has_gradients(files):
    forecast = torch.zeros(2, 48, 1, requires_grad=True)
    loss = pickle.loads(pickle.dumps(files.OWALoss()))(forecast, torch.zeros(2, 48, 1))
    loss.backward()
    assert loss.item() == 0
    assert forecast.grad.isfinite().all()


def test_runs_in_small(m4, tmp_path, monkeypatch):
    """A second call finds everything stored; the made-up days are forecast, not the last hour."""
    folder = tmp_path / "data"
    folder.mkdir()
    written(folder, [300, 320, 310, 300, 330])
    monkeypatch.setenv("TSLLM_DATA", str(folder))
    results = tmp_path / "results.json"
    call = ["--seeds", "0", "--results", str(results)]
    small = ["--set", "steps=2", "n_epochs=1", "context=48", "batch_size=16", "d_model=16"]
    m4.main([*call, "--runs", "naive2", "seasonal-naive"])
    m4.main([*call, "--runs", "llm-ts-net-no-text", *small])
    first = results.read_text()
    rows = json.loads(first)
    assert [row["run"] for row in rows] == ["naive2", "seasonal-naive", "llm-ts-net-no-text"]
    assert rows[0]["owa"] == 1
    assert rows[1]["mase"] < 1.2
    assert rows[2]["series"] == 5
    assert rows[2]["trainable_parameters"] > 1000
    assert 0 < rows[2]["validation_owa"] != rows[2]["owa"] > 0
    m4.main([*call, "--runs", "llm-ts-net-no-text", *small])
    assert results.read_text() == first


def test_forecasts_come_back_in_the_units_of_the_files(m4, files):
    """What darts forecasts of scaled logarithms, here what follows, has no error."""
    values = [days(200, level=100 * (1 + i), seed=i) for i in range(3)]
    data = files.M4(["a", "b", "c"], [v[:-48] for v in values], np.array([v[-48:] for v in values]))

    class Prophet:
        def predict(self, n, series):
            ahead = [np.log(v[-n:] / unit) for v, unit in zip(values, scaled.units, strict=True)]
            assert [len(one) for one in series] == [152] * 3
            return [m4.TimeSeries.from_values(own) for own in ahead]

    scaled = m4.Scaled(data, log=True)
    assert scaled.units[0] == files.scale(values[0][:-96])
    np.testing.assert_allclose(
        scaled("validation")[1].values()[:, 0], np.log(values[1][:-96] / scaled.units[1]), rtol=1e-6
    )
    found = scaled.errors(Prophet(), "test")
    assert found["smape"] == pytest.approx(0, abs=1e-9)
    assert found["mase"] == pytest.approx(0, abs=1e-9)


def test_series_that_are_forecast_unseen_are_not_trained_on(m4, files):
    data = files.M4([str(i) for i in range(50)], [np.arange(9.0)] * 50, np.zeros((50, 48)))
    train, held_out = m4.parted(data, 0.8)
    assert (len(train.names), len(held_out.names)) == (40, 10)
    assert set(train.names) | set(held_out.names) == set(data.names)
    few, same = m4.parted(data, 0.1)
    assert few.names == train.names[:5]
    assert same.names == held_out.names
    assert m4.parted(data, None) == (data, data)


@pytest.fixture
def small_strategies(m4, files, tmp_path, monkeypatch):
    monkeypatch.setitem(m4.RUNS, "unseen", ("LLMTSNetModel", {
        **m4.RUNS["unseen"][1], "steps": 2, "n_epochs": 1, "context": 48, "d_model": 16,
        "batch_size": 16, "backbone": "tiny", "lm_steps": 1,
    }))  # fmt: skip
    folder = tmp_path / "data"
    folder.mkdir()
    written(folder, [200] * 10)
    monkeypatch.setenv("TSLLM_DATA", str(folder))
    results = tmp_path / "results.json"
    m4.main(["--runs", "--strategies", "1", "--seeds", "0", "--results", str(results)])
    return {row["fit_strategy"]: row for row in json.loads(results.read_text())}


@pytest.mark.slow
def test_strategies_fit_the_unseen_series_in_their_way(small_strategies):
    rows = small_strategies
    assert list(rows) == ["full", "adapter", "head", "zero-shot"]
    assert all(row["series"] == 2 for row in rows.values())
    sizes = [rows[name]["trainable_parameters"] for name in ("full", "adapter", "head")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    assert len({row["owa"] for row in rows.values()}) == 4
    assert rows["zero-shot"]["epochs"] == 0


def stored(run, seed, owa, series=414, **more):
    row = {"run": run, "seed": seed, "split": "test", "settings": {}, "series": series}
    costs = {"trainable_parameters": 1500, "fit_cpu_seconds": 7.0}
    return {**row, "smape": 20 * owa, "mase": 2 * owa, "owa": owa, **costs, **more}


def test_tables_part_what_was_trained_on_all_series_from_the_rest(m4, tmp_path, monkeypatch):
    tables = importlib.import_module("_tables_global")
    monkeypatch.setattr(importlib.import_module("_tables"), "DOCS", tmp_path)
    (tmp_path / "results").mkdir()
    rows = [
        stored("worse", 0, 0.6),
        *(stored("best", seed, owa, validation_owa=0.5) for seed, owa in ((0, 0.4), (1, 0.42))),
        stored("best", 0, 0.1, split="validation"),
        stored("few", 0, 0.7, series=83, settings={"share": 0.1}),
        stored("many", 0, 0.3, 83, settings={"share": 0.8}, fit_strategy="head"),
        stored("many", 0, 0.35, 83, settings={"share": 0.8}, fit_strategy="zero-shot"),
    ]
    (tmp_path / "results" / "m4.json").write_text(json.dumps(rows))
    cells = [line.strip("| ").split(" | ") for line in tables.m4().splitlines()[2:]]
    assert [line[0] for line in cells] == ["best", "worse"]
    best = ["best", "8.20", "0.820", "0.410", "0.4000, 0.4200", "0.500", "1,500", "7"]
    assert cells[0][:8] == best
    cells = [line.strip("| ").split(" | ") for line in tables.m4_unseen().splitlines()[2:]]
    assert cells == [
        ["10%", "zero-shot", "14.00", "1.400", "0.7000", "0", "", "0"],
        ["80%", "head", "6.00", "0.600", "0.3000", "1,500", "7", "0"],
        ["80%", "zero-shot", "7.00", "0.700", "0.3500", "0", "7", "0"],
    ]

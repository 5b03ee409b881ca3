"""The LosLoop benchmark: its protocol by hand, and its code on a few days of a few sensors."""

import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
DAY = 24 * 12


@pytest.fixture
def losloop(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("losloop")


@pytest.fixture
def mixer(losloop):
    return losloop._mixer


@pytest.fixture
def gaussian(losloop):
    return losloop._gaussian


@pytest.fixture
def frame(losloop, tmp_path):
    """Three days of three sensors, each at its own level, read as the published file is."""
    rng = np.random.default_rng(0)
    waves = np.sin(2 * np.pi * np.arange(3 * DAY) / DAY)[:, np.newaxis]
    speeds = np.array([20, 40, 60]) + 5 * waves + rng.normal(size=(3 * DAY, 3))
    pd.DataFrame(speeds, columns=["7", "8", "9"]).to_csv(tmp_path / "los_speed.csv", index=False)
    return losloop.load(tmp_path)


def numbered(n_rows, start="2012-03-01"):
    """Return one sensor whose reading is 1 + the number of its row."""
    index = pd.date_range(start, periods=n_rows, freq="5min")
    return pd.DataFrame({"7": np.arange(1.0, n_rows + 1)}, index)


def test_windows_of_the_published_file(losloop, data_folder):
    frame = losloop.load(data_folder)
    assert frame.shape == (2016, 207)
    assert str(frame.index[-1]) == "2012-03-07 23:55:00"
    assert losloop.observed(frame.to_numpy()).all()
    counts = [len(losloop.ahead(losloop.part(frame, name).to_numpy())) for name in losloop.PARTS]
    assert counts == [1388, 190, 393]


def test_last_value_and_average_of_the_published_file(losloop, data_folder):
    """The protocol is right if forecasts without a training give the known errors."""
    frame = losloop.load(data_folder)
    known = {
        "last-value": (3.562, 4.367, 5.765, 4.408),
        "average": (5.377, 5.363, 5.324, 5.357),
        "average-residual": (3.852, 4.059, 4.308, 4.043),
    }
    for name, mae in known.items():
        found = losloop.run(name, 0, "test", losloop.RUNS[name][1], frame)
        assert tuple(found["mae"].values()) == pytest.approx(mae, abs=1e-3)
    assert found["rmse"]["12"] == pytest.approx(7.446, abs=1e-3)
    assert found["mape"]["12"] == pytest.approx(12.57, abs=1e-2)


def test_missing_file_says_where_it_is_published(losloop, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set TSLLM_DATA.*lehaifeng/T-GCN"):
        losloop.load(tmp_path)


def test_later_parts_bring_their_context_and_share_no_step_to_forecast(losloop):
    frame = numbered(200)
    parts = [losloop.part(frame, name)["7"].to_numpy() for name in losloop.PARTS]
    assert [(rows[0], rows[-1]) for rows in parts] == [(1, 140), (129, 160), (149, 200)]
    targets = [set(losloop.ahead(rows[:, np.newaxis]).ravel()) for rows in parts]
    assert targets == [set(range(13, 141)), set(range(141, 161)), set(range(161, 201))]
    first = losloop.ahead(parts[1][:, np.newaxis])[0, :, 0]
    np.testing.assert_array_equal(first, np.arange(141, 153))


def test_scale_is_that_of_the_readings_of_the_training_part(losloop):
    frame = numbered(100)
    frame.iloc[[3, 5], 0] = [0, np.nan]
    train = np.delete(np.arange(1.0, 71), [3, 5])
    assert losloop.scale(frame) == pytest.approx((train.mean(), train.std()))
    values = losloop.series(frame, "train").values()[:, 0]
    assert np.flatnonzero(np.isnan(values)).tolist() == [3, 5]
    assert np.nanmean(values) == pytest.approx(0, abs=1e-6)
    assert np.nanstd(values) == pytest.approx(1)


def test_time_of_day(losloop):
    index = pd.date_range("2012-03-01", periods=DAY + 1, freq="5min")
    values = losloop.time_of_day(index).values()
    np.testing.assert_allclose(values[[0, DAY // 4, -1]], [[0, 1], [1, 0], [0, 1]], atol=1e-6)


def test_missing_readings_do_not_count(losloop):
    """By hand; a step where half of the readings are missing weighs half in the mean of all."""
    speeds = np.full((2, 12, 1), 10.0)
    forecast = speeds + np.arange(1.0, 13).reshape(1, 12, 1)
    forecast[1] -= 2 * np.arange(1.0, 13).reshape(12, 1)  # as far below
    found = losloop.errors(forecast, speeds)
    assert found["mae"] == {"3": 3, "6": 6, "12": 12, "all": 6.5}
    assert found["rmse"]["all"] == pytest.approx(np.sqrt(np.mean(np.arange(1, 13) ** 2)))
    assert found["mape"] == pytest.approx({"3": 30, "6": 60, "12": 120, "all": 65})
    assert found["windows"] == 2
    speeds[0, 11], speeds[1, 5], forecast[0, 2] = 0, np.nan, 110
    found = losloop.errors(forecast, speeds)
    assert found["mae"]["12"] == 12
    assert found["mae"]["6"] == 6
    assert found["mae"]["3"] == (100 + 3) / 2
    assert found["rmse"]["3"] == pytest.approx(np.sqrt((100**2 + 3**2) / 2))
    assert found["mae"]["all"] == pytest.approx((2 * 78 - 12 - 6 - 3 + 100) / 22)


def test_a_forecast_that_is_not_a_number_shows(losloop):
    speeds = np.full((2, 12, 1), 10.0)
    forecast = speeds.copy()
    forecast[0, 11] = np.nan
    mae = losloop.errors(forecast, speeds)["mae"]
    assert mae["3"] == 0
    assert np.isnan([mae["12"], mae["all"]]).all()


def test_last_value_is_the_last_that_was_read(losloop):
    frame = numbered(200)
    frame.iloc[161, 0] = 0  # of the test part
    forecast = losloop.LastValue().forecast(frame, "test")
    assert forecast.shape == (29, 12, 1)
    assert (forecast == forecast[:, :1]).all()
    np.testing.assert_array_equal(forecast[:4, 0, 0], [160, 161, 161, 163])


def test_average_of_a_time_of_day(losloop):
    """Friday to Monday, each day one higher; the test part is on Monday."""
    frame = numbered(4 * DAY, start="2012-03-02")
    frame["7"] = np.tile(np.arange(DAY) + 1000.0, 4) + np.repeat(np.arange(4), DAY)
    frame.iloc[5, 0] = 0
    train = losloop.part(frame, "train")["7"]

    def day(**settings):
        average = losloop.Average(**settings)
        average.fit(frame)
        return average, average.day["7"].to_numpy()

    everything = day()[1]
    assert everything[5] == 1005 + 1.5  # of Saturday and Sunday, the reading is missing
    assert everything[6] == 1006 + 1
    assert everything[-1] == 1000 + DAY - 1 + 0.5  # the training part ends on Sunday
    weekdays = day(days="weekdays")[1]
    assert np.isnan(weekdays[5])
    assert weekdays[6] == train.iloc[6]
    smooth = day(days="weekdays", smoothing=3)[1]
    assert smooth[5] == (weekdays[4] + weekdays[6]) / 2
    assert smooth[0] == pytest.approx((weekdays[-1] + weekdays[0] + weekdays[1]) / 3)

    times = losloop.ahead(losloop.part(frame, "test").to_numpy())
    plain = times - day()[0].forecast(frame, "test")
    assert (plain[0] == 2).all()  # Monday is 3, the average of the three days before 1
    assert (plain[-1] == 2.5).all()
    for residual, left in ((0.5, 1), (1.0, 0)):
        found = times - day(residual=residual)[0].forecast(frame, "test")
        np.testing.assert_allclose(found[0], left, atol=1e-9)


def cut(mixer, frame, losloop, name="train"):
    rows = losloop.series(frame, name)
    calendar = losloop.time_of_day(rows.time_index)
    tensors = [torch.from_numpy(one.values()) for one in (rows, calendar)]
    return mixer.windows(*tensors, losloop.CONTEXT, losloop.HORIZON)


def test_windows_of_the_mixer_are_those_of_the_errors(losloop, mixer, frame):
    windows = cut(mixer, frame, losloop)
    rows = losloop.series(frame, "train").values()
    np.testing.assert_array_equal(windows.target, losloop.ahead(rows))
    np.testing.assert_array_equal(windows.past[5], rows[5:17])
    times = losloop.time_of_day(frame.index).values()
    np.testing.assert_array_equal(windows.calendar[5], times[5:29])


def test_the_mixer_mixes_sensors_and_knows_the_time(losloop, mixer, frame):
    windows = cut(mixer, frame, losloop)
    torch.manual_seed(0)
    network = mixer.LearnedAdjacency(3, 2, 12, 12)
    normed = mixer.LearnedAdjacency(3, 2, 12, 12, instance_norm=True)
    normed.load_state_dict(network.state_dict())
    plain = mixer.forecast(network, windows)
    assert plain.shape == windows.target.shape
    assert not torch.allclose(mixer.forecast(normed, windows), plain)
    other = windows.past.clone()
    other[:, 3, 0] += 1
    changed = mixer.forecast(network, windows._replace(past=other)) - plain
    assert (changed.abs().amax((0, 1)) > 1e-4).all()
    later = windows._replace(calendar=windows.calendar.roll(20, dims=0))
    assert not torch.allclose(mixer.forecast(network, later), plain)
    up = windows._replace(past=2 * windows.past + 5)
    expected = 2 * mixer.forecast(normed, windows) + 5
    torch.testing.assert_close(mixer.forecast(normed, up), expected, atol=1e-3, rtol=1e-3)


def test_the_mixer_keeps_its_best_weights_and_stops_early(losloop, mixer, frame, monkeypatch):
    train, validation = (cut(mixer, frame, losloop, name) for name in ("train", "validation"))
    torch.manual_seed(0)
    network = mixer.LearnedAdjacency(3, 2, 12, 12)
    settings = {"batch_size": 64, "n_epochs": 30, "patience": 2}
    losses = []

    def watched(network, of):
        found = forecast(network, of)
        losses.append((found - of.target).abs().mean().item())
        return found

    forecast = mixer.forecast
    monkeypatch.setattr(mixer, "forecast", watched)
    epochs = mixer.train(network, train, validation, lr=0.03, **settings)
    assert epochs == len(losses) == int(np.argmin(losses)) + 1 + 2 < 30
    kept = (forecast(network, validation) - validation.target).abs().mean().item()
    assert kept == pytest.approx(min(losses))


def test_baselines_keep_their_best_weights_and_stop_early(losloop, frame, monkeypatch):
    monkeypatch.setattr(losloop, "PATIENCE", 2)
    settings = {**losloop.RUNS["dlinear"][1], "n_epochs": 30, "lr": 0.1}
    model = losloop.build("dlinear", 0, settings)
    model.fit(frame)
    stopping = model.darts.trainer_params["callbacks"][0]
    assert model.epochs_trained < 30
    actual = losloop.ahead(losloop.part(frame, "validation").to_numpy())
    mae = losloop.errors(model.forecast(frame, "validation"), actual)["mae"]["all"]
    assert mae / losloop.scale(frame)[1] == pytest.approx(stopping.best_score.item(), rel=1e-3)


def test_coverage_by_hand(gaussian):
    readings = np.array([0.0, 1.6, 1.7, -1.6, 100])
    means, deviations = np.zeros(5), np.ones(5)
    assert gaussian.coverage(means, deviations, readings) == pytest.approx(3 / 5)
    assert gaussian.coverage(means, deviations, readings, level=0.5) == pytest.approx(1 / 5)
    assert gaussian.coverage(means, 2 * deviations, readings) == pytest.approx(4 / 5)
    counted = np.array([True, True, True, True, False])
    assert gaussian.coverage(means, deviations, readings, counted=counted) == pytest.approx(3 / 4)


OURS = ("LLMTSNetModel", {"backbone": "tiny", "d_model": 8, "lm_steps": 1, "n_epochs": 1})


@pytest.mark.parametrize("name", ["dlinear", "ours"])
def test_a_likelihood_reports_its_coverage(losloop, frame, monkeypatch, name):
    """The forecasts are the means, and nothing is sampled."""
    monkeypatch.setitem(losloop.RUNS, "ours", OURS)
    settings = {**losloop.RUNS[name][1], "n_epochs": 1, "likelihood": "gaussian"}
    model = losloop.build(name, 0, settings)
    model.fit(frame)
    found = [model.forecast(frame, "test") for _ in range(2)]
    np.testing.assert_array_equal(*found)
    inputs = {key: model.windows(frame, "test").get(key) for key in ("series", "future_covariates")}
    inputs["series"] = inputs["series"][:12]
    one = model.darts.predict(12, **inputs, predict_likelihood_parameters=True)
    mean, deviation = losloop.scale(frame)
    np.testing.assert_allclose(found[0][0], one.values()[:, 0::2] * deviation + mean, rtol=1e-4)
    found = losloop.run(name, 0, "test", settings, frame)
    assert 0 < found["coverage"] <= 1
    assert found["coverage"] == model.coverage(frame, "test")
    del settings["likelihood"]
    assert "coverage" not in losloop.run(name, 0, "test", settings, frame)


def test_our_models_read_missing_readings_and_the_time(losloop, frame, monkeypatch):
    monkeypatch.setitem(losloop.RUNS, "ours", OURS)
    model = losloop.build("ours", 0, OURS[1])
    holes = frame.copy()
    holes.iloc[::7, 1] = 0
    model.fit(holes)
    plain = model.forecast(holes, "test")
    assert np.isfinite(plain).all()
    np.testing.assert_array_equal(plain, model.forecast(holes.replace(0, np.nan), "test"))
    assert model.darts.uses_future_covariates
    dlinear = losloop.build("dlinear", 0, losloop.RUNS["dlinear"][1])
    assert "future_covariates" not in dlinear.windows(frame, "test")


def test_ablations_change_what_their_name_says(losloop):
    """One argument of the model, which it does not have so itself."""
    for start, n_names in (("short", 11), ("llm-ts-net", 2)):
        full = losloop.build(start, 0, losloop.RUNS[start][1]).darts.model_params
        names = [name for name in losloop.RUNS if name.startswith(f"{start}-")]
        assert len(names) == n_names
        for name in names:
            built = losloop.build(name, 0, losloop.RUNS[name][1]).darts.model_params
            assert sum(full.get(argument) != value for argument, value in built.items()) == 1


def test_each_sensor_as_a_series_of_its_own(losloop, frame):
    """One network for all, so that it has fewer weights; sensors stay in their order."""
    settings = {**losloop.RUNS["tide-each"][1], "n_epochs": 1}
    assert settings["each_sensor"]
    each = losloop.build("tide-each", 0, {**settings, "use_reversible_instance_norm": True})
    each.fit(frame)
    forecast = each.forecast(frame, "validation")
    actual = losloop.ahead(losloop.part(frame, "validation").to_numpy())
    assert forecast.shape == actual.shape
    np.testing.assert_allclose(forecast.mean((0, 1)), actual.mean((0, 1)), atol=10)
    together = losloop.build("tide", 0, {**settings, "each_sensor": False})
    together.fit(frame)
    sizes = [sum(p.numel() for p in one.model.parameters()) for one in (each, together)]
    assert sizes[0] < sizes[1]


def test_runs_in_small(losloop, frame, tmp_path, monkeypatch):
    """A second call finds everything stored; a setting is part of a row's key."""
    monkeypatch.setenv("TSLLM_DATA", str(tmp_path))
    results = tmp_path / "results.json"
    runs = ["last-value", "tsmixer", "mixer"]
    call = ["--seeds", "0", "--split", "validation", "--results", str(results), "--runs"]
    losloop.main([*call, "last-value"])
    losloop.main([*call, "tsmixer", "mixer", "--set", "n_epochs=1"])
    first = results.read_text()
    rows = json.loads(first)
    assert [row["run"] for row in rows] == runs
    for row in rows:
        assert row["windows"] == len(losloop.ahead(losloop.part(frame, "validation").to_numpy()))
        assert all(0 < row[kind]["all"] < 100 for kind in ("mae", "rmse", "mape"))
    assert [row["epochs"] for row in rows[1:]] == [1, 1]
    assert all(row["trainable_parameters"] > 100 for row in rows[1:])
    losloop.main([*call, "tsmixer", "mixer", "--set", "n_epochs=1"])
    assert results.read_text() == first
    losloop.main([*call, "mixer", "--set", "n_epochs=1", "lr=0.03"])
    changed = json.loads(results.read_text())[-1]
    assert changed["settings"]["lr"] == 0.03
    assert changed["mae"]["all"] != rows[-1]["mae"]["all"]

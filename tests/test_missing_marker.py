"""A value that stands for a missing reading is read as NaN, in the data's own units."""

import json

import numpy as np
import pandas as pd
import pytest
import torchmetrics
from darts.dataprocessing.transformers import Scaler
from darts.metrics import mae
from support import METHODS, darts_series, monthly, sine

from tsllm_estimators.explain import alignment

CONTEXT, HORIZON = 12, 6
CALF = next(method for method in METHODS if method.name == "calf")


def readings(n=80, columns=2, marker=0.0, seed=0):
    """Return noisy sines with a marker here and there, and the same with NaN there."""
    values = sine(n, columns, seed=seed) + 3
    missing = np.random.default_rng(5).random(values.shape) < 0.2
    missing[-1] = False
    return np.where(missing, np.float32(marker), values), np.where(missing, np.nan, values)


def both_series(**settings):
    return tuple(darts_series(values) for values in readings(**settings))


def both_frames(n=60, columns=1, seed=0):
    frame = monthly(n, columns)
    return tuple(
        pd.DataFrame(values.astype(float), index=frame.index, columns=frame.columns)
        for values in readings(n, columns, seed=seed)
    )


def same(first, second):
    return np.array_equal(first.all_values(), second.all_values(), equal_nan=True)


# darts --------------------------------------------------------------------------------------


def test_darts_trains_and_forecasts_as_with_nan(method):
    marked, gapped = both_series()
    before = marked.copy()
    forecasts, losses = [], []
    for series, marker in [(marked, 0.0), (gapped, None), (marked, None)]:
        metric = torchmetrics.MeanAbsoluteError()
        model = method.darts(CONTEXT, HORIZON, missing_marker=marker, torch_metrics=metric)
        model.fit(series, val_series=series[30:])
        losses.append({k: v.item() for k, v in model.trainer.callback_metrics.items()})
        forecasts.append(model.predict(15))
    assert same(forecasts[0], forecasts[1])
    assert not same(forecasts[0], forecasts[2])
    assert losses[0] == losses[1] != losses[2]
    assert losses[0].keys() >= {"train_loss", "val_loss", "val_MeanAbsoluteError"}
    assert marked == before


def test_darts_reads_the_marker_in_every_series(method):
    marked, gapped = zip(both_series(), both_series(n=70, seed=1), strict=True)
    reader = method.darts(CONTEXT, HORIZON, missing_marker=0.0, few_shot=0.8).fit(marked)
    other = method.darts(CONTEXT, HORIZON, few_shot=0.8).fit(gapped)
    for found, expected in zip(
        reader.predict(HORIZON, series=marked), other.predict(HORIZON, series=gapped), strict=True
    ):
        assert same(found, expected)
    assert not same(other.predict(HORIZON, series=marked[0]), expected)


@pytest.mark.parametrize("marker", [0.1, np.float64(0.1), np.float32(0.1)])
def test_the_marker_is_compared_in_the_precision_of_the_series(marker):
    marked, gapped = both_series(marker=0.1)
    assert marked.dtype == np.float32
    reader = CALF.darts(CONTEXT, HORIZON, missing_marker=marker)
    found = reader._observed(marked)
    assert same(found, gapped)
    assert found.dtype == np.float32
    assert reader._observed(gapped) is gapped


@pytest.mark.parametrize(
    "how",
    [
        {"retrain": False},
        {"retrain": False, "enable_optimization": False},
        {"retrain": 2, "train_length": 40},
    ],
    ids=["optimised", "one by one", "retrained"],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_darts_looks_back_as_with_nan(method, how, scaled):
    """Also through a scaler, which moves the marker, and an observation to its place."""
    settings = {"start": 61, "forecast_horizon": 3, "stride": 3, **how}
    marked, gapped = both_series(columns=1)
    reader, other = method.darts(CONTEXT, HORIZON, missing_marker=0.0), method.darts()
    if not how["retrain"]:
        other.fit(gapped)
        reader.fit(gapped)
    if scaled:
        settings["data_transformers"] = {"series": Scaler().fit(gapped[60:])}
    found = reader.historical_forecasts(marked, **settings)
    expected = other.historical_forecasts(gapped, **settings)
    assert same(found, expected)
    assert not same(found, other.historical_forecasts(marked, **settings))
    settings = {**settings, "metric": mae}
    assert reader.backtest(marked, **settings) == other.backtest(gapped, **settings)
    assert reader.backtest(series=[marked], **settings) == other.backtest([gapped], **settings)
    del settings["metric"]
    found = reader.residuals(marked, **settings)
    assert same(found, other.residuals(gapped, **settings))
    assert np.isnan(found.values()).any()
    assert reader.model_params["missing_marker"] == 0.0


def test_darts_feeds_back_forecasts_as_they_are(method):
    series = darts_series(sine(80))
    first = method.darts(CONTEXT, HORIZON).fit(series).predict(20)
    for step in (0, HORIZON - 1):
        marker = first.values()[step, 0]
        reader = method.darts(CONTEXT, HORIZON, missing_marker=marker).fit(series)
        assert same(reader.predict(20), first)


def test_darts_leaves_covariates_alone(method):
    flags = darts_series(np.arange(100)[:, np.newaxis] % 3)
    static = pd.DataFrame({"place": [0.0]})
    marked = both_series(columns=1)[0].with_static_covariates(static)
    gapped = both_series(columns=1)[1].with_static_covariates(static)
    used = {"past_covariates": flags, "future_covariates": flags}
    reader = method.darts(CONTEXT, HORIZON, missing_marker=0.0).fit(marked, **used)
    other = method.darts(CONTEXT, HORIZON).fit(gapped, **used)
    assert same(reader.predict(15, **used), other.predict(15, **used))


def test_darts_keeps_the_marker(method, tmp_path):
    marked, _ = both_series(columns=1)
    model = method.darts(CONTEXT, HORIZON, missing_marker=np.float32(0)).fit(marked)
    expected = model.predict(HORIZON)
    model.save(str(tmp_path / "model.pt"))
    model.save_pretrained(tmp_path / "shared")
    for loaded in (
        method.model.load(str(tmp_path / "model.pt")),
        method.model.from_pretrained(tmp_path / "shared"),
        model.untrained_model(),
    ):
        assert loaded.model_params["missing_marker"] == 0.0
        if loaded.model is not None:
            found = loaded.predict(HORIZON, series=marked).values()
            np.testing.assert_allclose(found, expected.values(), rtol=1e-6)
    without = method.model.from_pretrained(tmp_path / "shared", missing_marker=None)
    found = without.predict(HORIZON, series=marked).values()
    assert not np.allclose(found, expected.values(), rtol=1e-3)
    forecaster = method.forecaster.from_pretrained(tmp_path / "shared")
    assert forecaster.missing_marker == 0.0


def test_darts_says_where_there_are_only_markers(method):
    values, _ = readings()
    reader = method.darts(CONTEXT, HORIZON, missing_marker=0.0).fit(darts_series(values))
    values[-CONTEXT:, 1] = 0
    message = r"component '1' has no observation in the 12 steps"
    with pytest.raises(ValueError, match=message):
        reader.predict(HORIZON, series=darts_series(values))
    values[:, 1] = 0
    message = "series: component '1' of series 0 has no observation at all, 80 of 80 values"
    with pytest.raises(ValueError, match=message):
        method.darts(CONTEXT, HORIZON, missing_marker=0.0).fit(darts_series(values))


# sktime -------------------------------------------------------------------------------------


def test_sktime_fits_forecasts_and_updates_as_with_nan(method):
    marked, gapped = both_frames(72, 2)
    before = marked.copy()
    fh = [-59, -1, 0, 1, 6, 9]
    found = []
    for y, marker in [(marked, 0.0), (gapped, None), (marked, None)]:
        forecaster = method.sktime(horizon=6, context_length=12, missing_marker=marker)
        steps = [forecaster.fit(y[:60]).predict(fh)]
        steps.append(forecaster.predict_quantiles([1, 9], alpha=[0.1, 0.9]))
        steps.append(forecaster.update(y[60:66], update_params=False).predict(fh))
        steps.append(forecaster.update(y[64:]).predict(fh))
        found.append(steps)
    for reader, expected, other in zip(*found, strict=True):
        pd.testing.assert_frame_equal(reader, expected, check_exact=True)
        assert (reader.to_numpy() != other.to_numpy()).any()
    pd.testing.assert_frame_equal(marked, before)


def test_sktime_scales_without_the_marker_and_reads_it_before(method):
    """The mean, which is 0 once it is scaled, is an observation."""
    y = pd.DataFrame({"a": np.tile([9, 10, 11, 0], 15)})
    forecaster = method.sktime(horizon=6, context_length=12, missing_marker=0).fit(y)
    assert forecaster._scales[None][0] == 10.0
    gapped = y.astype(float).replace(0, np.nan)
    other = method.sktime(horizon=6, context_length=12).fit(gapped)
    fh = [-3, 1, 15]
    pd.testing.assert_frame_equal(forecaster.predict(fh), other.predict(fh), check_exact=True)
    fitted = forecaster._engine, forecaster._cur_y, None, forecaster._scales
    target = forecaster._series(*fitted)[None].target
    assert np.isnan(target).sum() == (target == 0).sum() == 15


def test_sktime_feeds_back_forecasts_as_they_are(method):
    y = monthly()
    fh = list(range(1, 21))
    first = method.sktime(horizon=6).fit(y).predict(fh)
    marker = first.iloc[2, 0]
    reader = method.sktime(horizon=6, missing_marker=marker).fit(y)
    pd.testing.assert_frame_equal(reader.predict(fh), first, check_exact=True)


def test_sktime_reads_the_marker_in_panels_and_in_pretraining(method):
    frames = [both_frames(seed=seed) for seed in (0, 1)]
    marked, gapped = (
        pd.concat(dict(zip("ab", column, strict=True)), names=["series", "time"])
        for column in zip(*frames, strict=True)
    )
    forecasts = [
        method.sktime(horizon=6, missing_marker=marker).pretrain(y).fit(y).predict([0, 1, 9])
        for y, marker in [(marked, 0.0), (gapped, None)]
    ]
    pd.testing.assert_frame_equal(*forecasts, check_exact=True)
    forecasts = [
        method.sktime(horizon=6, missing_marker=marker, broadcasting=True).fit(y).predict([1, 9])
        for y, marker in [(marked, 0.0), (gapped, None)]
    ]
    pd.testing.assert_frame_equal(*forecasts, check_exact=True)


def test_sktime_leaves_X_alone(method):
    marked, gapped = both_frames()
    X = pd.DataFrame({"flag": np.arange(72.0) % 3}, index=monthly(72).index)
    forecasts = [
        method.sktime(horizon=6, missing_marker=marker).fit(y, X[:60]).predict([1, 9], X[60:])
        for y, marker in [(marked, 0.0), (gapped, None)]
    ]
    pd.testing.assert_frame_equal(*forecasts, check_exact=True)


def test_sktime_keeps_the_marker(method, tmp_path):
    marked, _ = both_frames()
    forecaster = method.sktime(horizon=6, missing_marker=np.float32(0)).fit(marked)
    expected = forecaster.predict([1, 6])
    forecaster.save_pretrained(tmp_path / "shared")
    loaded = method.forecaster.from_pretrained(tmp_path / "shared", device="cpu")
    assert loaded.missing_marker == 0.0
    pd.testing.assert_frame_equal(loaded.fit(marked).predict([1, 6]), expected)
    forecaster.save(tmp_path / "saved")
    again = method.forecaster.load_from_path(tmp_path / "saved.zip")
    pd.testing.assert_frame_equal(again.predict([1, 6]), expected)


def test_an_engine_on_scaled_values_knows_no_marker(method, tmp_path):
    marked, _ = both_frames()
    method.sktime(horizon=6, missing_marker=0.0).fit(marked).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["arguments"]["missing_marker"] is None
    assert method.model.from_pretrained(tmp_path).model_params["missing_marker"] is None


def test_sktime_says_where_there_are_only_markers(method):
    y, _ = both_frames(columns=2)
    forecaster = method.sktime(horizon=6, context_length=12, missing_marker=0.0).fit(y[:40])
    y.iloc[40:, 1] = 0.0
    message = "y: column 'v1' has no observation in the 12 steps up to"
    with pytest.raises(ValueError, match=message):
        forecaster.update(y[40:], update_params=False).predict([1])
    y.iloc[:, 1] = 0.0
    with pytest.raises(ValueError, match="y: column 'v1' has no observation at all, 60 of 60"):
        method.sktime(missing_marker=0.0).fit(y)


# both ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marker", "error"),
    [("0", TypeError), (True, TypeError), (np.nan, ValueError), (np.inf, ValueError)],
)
def test_markers_are_finite_numbers(method, marker, error):
    message = r"missing_marker must be a number in \(-inf, inf\) or None, found"
    with pytest.raises(error, match=message):
        method.darts(missing_marker=marker)
    with pytest.raises(error, match=message):
        method.sktime(missing_marker=marker).fit(monthly())
    panel = pd.concat({"a": monthly(), "b": monthly(seed=1)})
    with pytest.raises(error, match=message):
        method.sktime(missing_marker=marker).pretrain(panel)


def test_explain_reads_the_marker_too():
    marked, gapped = both_series(columns=1)
    model = CALF.darts(CONTEXT, HORIZON, missing_marker=0.0).fit(marked)
    frame, gapped_frame = both_frames()
    forecaster = CALF.sktime(horizon=6, context_length=12, missing_marker=0.0).fit(frame)
    for estimator, with_marker, with_nan in [
        (model, marked, gapped),
        (forecaster, frame, gapped_frame),
    ]:
        found = alignment(estimator, with_marker).distances
        assert found.notna().all()
        pd.testing.assert_series_equal(found, alignment(estimator, with_nan).distances)
        pd.testing.assert_series_equal(found, alignment(estimator).distances)

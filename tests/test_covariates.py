"""Covariates of every kind matter, in both faces, whatever the direction of attention."""

import numpy as np
import pandas as pd
import pytest
import torch
from darts import TimeSeries
from darts.metrics import mae
from support import sine

from tsllm_estimators.networks.base import Batch, Shapes
from tsllm_estimators.networks.blocks import CovariateTokens

CONTEXT, HORIZON = 12, 6
KINDS = ("past", "future", "static")


def data(n=60, columns=2):
    """Return a target with two static features, and two covariates that go on after it."""
    rng = np.random.default_rng(3)
    features = pd.DataFrame({"size": [3.0], "age": [40.0]})
    series = TimeSeries.from_values(sine(n, columns)).with_static_covariates(features)
    covariates = TimeSeries.from_values(rng.normal(5, 2, (n + 30, 2)).astype(np.float32))
    return series, covariates


def fitted(method, kinds=KINDS, columns=2, **settings):
    series, covariates = data(columns=columns)
    used = {f"{kind}_covariates": covariates for kind in kinds if kind != "static"}
    model = method.darts(CONTEXT, HORIZON, use_static_covariates="static" in kinds, **settings)
    return model.fit(series, **used), series, used


def changed(series, step, component=1, by=1.0):
    values = series.all_values(copy=True)
    values[step, component] += by
    return series.with_values(values)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("architecture", ["gpt2", "bert"])  # causal, bidirectional
def test_one_changed_value_moves_the_forecast(method, language_models, architecture, columns):
    model, series, used = fitted(method, columns=columns, backbone=language_models[architecture])
    plain = model.predict(HORIZON, series=series, **used).values()
    covariates = used["past_covariates"]
    last, future = len(series) - 1, len(series) + HORIZON - 1
    for name, step in [("past", last), ("future", last), ("future", future)]:
        other = {**used, f"{name}_covariates": changed(covariates, step)}
        assert not np.array_equal(model.predict(HORIZON, series=series, **other).values(), plain)
    features = series.static_covariates.copy()
    features.iloc[0, 1] += 1
    moved = model.predict(HORIZON, series=series.with_static_covariates(features), **used)
    assert not np.array_equal(moved.values(), plain)


def test_covariates_reach_every_variate_through_a_causal_language_model(method, language_models):
    """Behind the variates, they would have no effect on a model that looks back only."""
    model, series, used = fitted(method, backbone=language_models["gpt2"])
    network = model.model.network.eval()
    batch = windows(series, used, requires_grad=True)
    for component in range(2):
        forecast = network(batch).parameters[:, :, component].sum()
        for name in ("past_covariates", "future_covariates", "static_covariates"):
            (gradient,) = torch.autograd.grad(forecast, getattr(batch, name), retain_graph=True)
            assert gradient.abs().amin() > 0, name


def windows(series, used, requires_grad=False):
    n = len(series)
    past = used["past_covariates"].values()[n - CONTEXT : n]
    future = used["future_covariates"].values()[n - CONTEXT : n + HORIZON]
    static = series.static_covariates.to_numpy().astype(np.float32)
    covariates = [torch.tensor(v).unsqueeze(0) for v in (past, future, static[0])]
    context = torch.tensor(series.values()[n - CONTEXT :]).unsqueeze(0)
    return Batch(context, *(v.requires_grad_(requires_grad) for v in covariates))


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_outside_the_window_does_not_matter(method, kind):
    model, series, used = fitted(method, kinds=(kind,))
    plain = model.predict(HORIZON, series=series, **used)
    if kind == "static":
        without = method.darts(CONTEXT, HORIZON, use_static_covariates=False).fit(series)
        assert not np.array_equal(without.predict(HORIZON).values(), plain.values())
        return
    n = len(series)
    outside = [n - CONTEXT - 1, n if kind == "past" else n + HORIZON]
    for step in outside:
        other = {f"{kind}_covariates": changed(used[f"{kind}_covariates"], step, by=9.0)}
        assert np.array_equal(
            model.predict(HORIZON, series=series, **other).values(), plain.values()
        )


def test_a_known_future_is_learned(method):
    """A jump that only the future covariate announces is forecast."""
    rng = np.random.default_rng(0)
    flag = (rng.random((400, 1)) < 0.25).astype(np.float32)
    target = TimeSeries.from_values(flag + 0.05 * rng.standard_normal((400, 1)).astype(np.float32))
    covariates = TimeSeries.from_values(flag)
    learning = {"n_epochs": 25, "optimizer_kwargs": {"lr": 3e-3}, **method.known(head_dropout=0.0)}
    wide = {"hidden_size": 64, "num_attention_heads": 4}  # than the known steps are many
    errors = []
    for used in ({}, {"future_covariates": covariates}):
        model = method.darts(CONTEXT, HORIZON, backbone_kwargs=wide, **learning)
        model.fit(target[:340], **used)
        settings = {"start": 340, "retrain": False, "forecast_horizon": 6, "metric": mae}
        errors.append(model.backtest(target, **settings, **used))
    assert errors[1] < 0.4 * errors[0]


def test_the_units_of_covariates_do_not_matter(method):
    """Up to rounding; what matters is the deviation from the mean of the training data."""
    series, covariates = data()
    forecasts = []
    for factor, shift in [(1, 0), (1000, 7)]:
        used = {"past_covariates": covariates * factor + shift}
        model = method.darts(CONTEXT, HORIZON).fit(series, **used)
        forecasts.append(model.predict(HORIZON, **used).values())
    np.testing.assert_allclose(*forecasts, rtol=1e-3, atol=1e-3)


def test_the_level_of_a_covariate_counts(method):
    """A flag that is up over the whole window is not the same as one that is down."""
    model, series, used = fitted(method, kinds=("future",))
    level = used["future_covariates"] * 0
    forecasts = [
        model.predict(HORIZON, series=series, future_covariates=level + v) for v in (0.0, 1.0)
    ]
    assert not np.array_equal(*(f.values() for f in forecasts))


def test_covariate_tokens_tell_covariates_apart():
    torch.manual_seed(0)
    shapes = Shapes(context_length=4, horizon=2, n_variates=1, n_past_covariates=2)
    tokens = CovariateTokens(shapes, width=8)
    covariates = torch.ones(1, 4, 2)
    found = tokens(Batch(torch.zeros(1, 4, 1), past_covariates=covariates))
    assert found.shape == (1, 2, 8)
    assert not torch.equal(found[:, 0], found[:, 1])


def test_covariate_tokens_standardise_with_the_training_data_and_skip_what_is_missing():
    torch.manual_seed(0)
    shapes = Shapes(context_length=4, horizon=2, n_variates=1, n_future_covariates=2)
    tokens = CovariateTokens(shapes, width=8)
    seen = torch.randn(50, 6, 2, dtype=torch.float64) * torch.tensor([1.0, 100.0]) + 40
    seen[0, :3] = torch.nan
    tokens.measure(Batch(torch.zeros(50, 6, 1), future_covariates=seen))
    values = seen[~seen.isnan().any(-1)]
    torch.testing.assert_close(tokens.future_location.double(), values.mean(0))
    torch.testing.assert_close(tokens.future_scale.double(), values.std(0, correction=0))
    mean = values.mean(0).float().expand(1, 6, 2)
    at_mean = tokens(Batch(torch.zeros(1, 4, 1), future_covariates=mean))
    missing = tokens(Batch(torch.zeros(1, 4, 1), future_covariates=mean * torch.nan))
    torch.testing.assert_close(at_mean, missing, rtol=1e-4, atol=1e-4)


def test_covariates_work_past_the_horizon_and_in_backtests(method):
    model, series, used = fitted(method)
    assert np.isfinite(model.predict(15, series=series, **used).values()).all()
    history = model.historical_forecasts(series, start=40, retrain=False, stride=5, **used)
    assert np.isfinite(history.values()).all()


def test_static_covariates_of_each_component_and_category_codes(method):
    features = pd.DataFrame({"size": [3.0, 4.0], "code": [0.0, 1.0]})
    series = TimeSeries.from_values(sine(60, 2)).with_static_covariates(features)
    model = method.darts(CONTEXT, HORIZON).fit(series)
    assert model.model.network.shapes.n_static_covariates == 4
    features.iloc[1, 1] = 0.0
    other = series.with_static_covariates(features)
    plain, moved = (model.predict(HORIZON, series=s).values() for s in (series, other))
    assert not np.array_equal(plain, moved)


def test_saved_models_keep_the_scale_of_covariates(method, tmp_path):
    model, series, used = fitted(method)
    model.save(str(tmp_path / "model.pt"))
    loaded = method.model.load(str(tmp_path / "model.pt"))
    first, second = (m.predict(9, series=series, **used) for m in (model, loaded))
    assert np.array_equal(first.values(), second.values())


def test_missing_or_short_covariates_at_prediction_are_an_error(method):
    series, covariates = data()
    used = {"past_covariates": covariates, "future_covariates": covariates}
    model = method.darts(CONTEXT, HORIZON)
    model.fit([series, series], **{name: [value, value] for name, value in used.items()})
    for name in used:
        other = {k: v for k, v in used.items() if k != name}
        with pytest.raises(ValueError, match=f"matching {name} must be passed"):
            model.predict(HORIZON, series=series, **other)
    short = {**used, "future_covariates": covariates[: len(series) + 2]}
    with pytest.raises(ValueError, match="future_covariates"):
        model.predict(HORIZON, series=series, **short)


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_that_cannot_use_covariates_refuses_them(method, kind, monkeypatch):
    """As darts does: static ones, which come along with a series, are left out."""
    monkeypatch.setattr(method.network, "covariates_used", frozenset(KINDS) - {kind})
    series, covariates = data()
    model = method.darts(CONTEXT, HORIZON)
    if kind == "static":
        assert method.darts(CONTEXT, HORIZON).fit(series).uses_static_covariates is False
        return
    with pytest.raises(ValueError, match=f"does not support `{kind}_covariates`"):
        model.fit(series, **{f"{kind}_covariates": covariates})

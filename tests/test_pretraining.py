"""Weights from elsewhere in sktime: pretrain, checkpoint=, fit_strategy, sharing."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sktime.forecasting.model_selection import ForecastingGridSearchCV
from sktime.split import ExpandingWindowSplitter
from support import darts_series, monthly, sine

STRATEGIES = ["full", "adapter", "head", "zero-shot"]


def panel(n=4, length=60):
    frames = {f"s{i}": monthly(length, seed=i) * (i + 1) for i in range(n)}
    return pd.concat(frames, names=["series", "month"])


def pretrained(method, **settings):
    return method.sktime(**settings).pretrain(panel(), fh=[1, 2, 3, 4])


def weights(forecaster):
    module = forecaster._engine.model.model
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_pretrained_weights_forecast_a_series_they_never_saw(method):
    forecaster = pretrained(method, fit_strategy="zero-shot", max_steps=60, lr=3e-3)
    y = monthly(80, seed=9)
    forecast = forecaster.fit(y[:-4]).predict([1, 2, 3, 4])
    assert forecaster._engine.horizon == 4
    assert (forecast - y[-4:]).abs().to_numpy().mean() < 0.6
    other = forecaster.fit(100 * y[:-4] + 50).predict([1, 2, 3, 4])
    np.testing.assert_allclose((other - 50) / 100, forecast, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fit_trains_the_part_that_the_strategy_names(method, strategy):
    y = monthly()
    forecaster = pretrained(method, fit_strategy=strategy)
    start = {n: p.detach().clone() for n, p in
             forecaster.pretrained_model_.model.model.named_parameters()}  # fmt: skip
    moved = {n for n, p in weights(forecaster.fit(y)).items() if not torch.equal(p, start[n])}
    network = forecaster._engine.model.model.network
    parts = {"full": ("",), "zero-shot": (), **network.parts}[strategy]
    assert all(n.removeprefix("network.").startswith(parts) for n in moved)
    assert bool(moved) == (strategy != "zero-shot")
    if strategy == "full":
        assert not all(
            n.removeprefix("network.").startswith(network.parts["adapter"]) for n in moved
        )
    if strategy == "adapter":
        assert not all(n.removeprefix("network.").startswith(network.parts["head"]) for n in moved)


def test_strategies_forecast_differently(method):
    y = monthly()
    forecasts = {
        tuple(pretrained(method, fit_strategy=s).fit(y).predict([1, 2]).to_numpy().ravel())
        for s in STRATEGIES
    }
    assert len(forecasts) == len(STRATEGIES)


def test_fits_do_not_change_the_pretrained_weights(method):
    forecaster = pretrained(method)
    before = copy.deepcopy(forecaster.pretrained_model_.model.model.state_dict())
    first = forecaster.fit(monthly()).predict([1, 2])
    again = forecaster.fit(monthly()).predict([1, 2])
    pd.testing.assert_frame_equal(first, again)
    after = forecaster.pretrained_model_.model.model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if "_extra" not in n)
    assert not np.array_equal(first, method.sktime(horizon=4).fit(monthly()).predict([1, 2]))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f)),
                                       lambda f: f.clone()])  # fmt: skip
def test_copies_keep_the_pretrained_weights(method, duplicate):
    forecaster = pretrained(method, fit_strategy="zero-shot")
    expected = forecaster.clone().fit(monthly()).predict([1, 3])
    twin = duplicate(forecaster)
    assert twin.state == "pretrained"
    pd.testing.assert_frame_equal(twin.fit(monthly()).predict([1, 3]), expected)


def test_pretraining_again_goes_on(method):
    forecaster = pretrained(method, fit_strategy="zero-shot")
    once = forecaster.clone().fit(monthly()).predict([1, 2])
    forecaster.pretrain(panel())
    twice = forecaster.fit(monthly()).predict([1, 2])
    assert forecaster._engine.horizon == 4
    assert not np.array_equal(once, twice)


@pytest.mark.parametrize("broadcasting", [False, True])
def test_panels_are_forecast_with_pretrained_weights(method, broadcasting):
    forecaster = pretrained(method, fit_strategy="zero-shot", broadcasting=broadcasting)
    forecast = forecaster.fit(panel(3)).predict([1, 2])
    assert len(forecast) == 6
    alone = pretrained(method, fit_strategy="zero-shot").fit(panel(3).loc["s1"]).predict([1, 2])
    np.testing.assert_allclose(forecast.loc["s1"], alone, rtol=1e-4, atol=1e-5)


def test_weights_of_another_shape_are_refused(method):
    forecaster = pretrained(method)
    with pytest.raises(ValueError, match=r"y: number of columns: the weights .* for 1, found 2"):
        forecaster.fit(monthly(columns=2))
    X = monthly(seed=3).rename(columns={"v0": "price"})
    with pytest.raises(ValueError, match="X: past and future columns"):
        forecaster.fit(monthly(), X)
    assert np.isfinite(forecaster.fit(monthly()).predict([1]).to_numpy()).all()


def test_a_strategy_without_weights_is_an_error(method):
    for strategy in STRATEGIES[1:]:
        with pytest.raises(ValueError, match=f"fit_strategy='{strategy}' needs weights"):
            method.sktime(fit_strategy=strategy).fit(monthly())
    with pytest.raises(ValueError, match="fit_strategy must be one of"):
        method.sktime(fit_strategy="body").fit(monthly())


def test_updates_follow_the_strategy(method):
    y = monthly()
    still = pretrained(method, fit_strategy="zero-shot").fit(y[:-6])
    before = weights(still)
    still.update(y[-6:])
    assert all(torch.equal(p, before[n]) for n, p in weights(still).items())
    head = pretrained(method, fit_strategy="head").fit(y[:-6])
    before = weights(head)
    head.update(y[-6:])
    moved = {n for n, p in weights(head).items() if not torch.equal(p, before[n])}
    assert moved
    parts = head._engine.model.model.network.parts["head"]
    assert all(n.removeprefix("network.").startswith(parts) for n in moved)


# sharing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [None, "quantile", "gaussian"])
def test_a_shared_forecaster_forecasts_equal(method, likelihood, tmp_path):
    y = monthly(columns=2)
    forecaster = method.sktime(horizon=4, likelihood=likelihood).fit(y)
    forecaster.save_pretrained(tmp_path)
    loaded = method.forecaster.from_pretrained(tmp_path, device="cpu")
    loaded.fit(y)
    fh = [-1, 1, 4, 9]
    pd.testing.assert_frame_equal(loaded.predict(fh), forecaster.predict(fh), rtol=0)
    if likelihood is not None:
        pd.testing.assert_frame_equal(
            loaded.predict_interval(fh), forecaster.predict_interval(fh), rtol=0
        )
    assert loaded.get_params()[method.width] == forecaster.get_params()[method.width] == 16
    assert "components `v0`, `v1`" in (tmp_path / "README.md").read_text()


def test_what_one_face_shares_the_other_loads(method, tmp_path):
    y = monthly()
    forecaster = method.sktime(horizon=4, scaling=None, likelihood=None).fit(y)
    forecaster.save_pretrained(tmp_path / "sktime")
    model = method.model.from_pretrained(tmp_path / "sktime")
    by_darts = model.predict(4, series=darts_series(y)).values()
    np.testing.assert_allclose(by_darts, forecaster.predict([1, 2, 3, 4]), rtol=1e-6)
    method.darts().fit(darts_series(sine(60))).save_pretrained(tmp_path / "darts")
    loaded = method.forecaster.from_pretrained(tmp_path / "darts", device="cpu").fit(y)
    expected = method.model.from_pretrained(tmp_path / "darts").predict(6, series=darts_series(y))
    np.testing.assert_allclose(loaded.predict(list(range(1, 7))), expected.values(), rtol=1e-5)


def test_a_checkpoint_survives_tuning(method, tmp_path):
    """sktime's tuners drop what pretrain learned, but not an argument."""
    y = monthly()["v0"]
    method.sktime(horizon=3, max_steps=30).fit(y[:40]).save_pretrained(tmp_path)
    start = method.forecaster.from_pretrained(tmp_path, device="cpu", lr=1e-9, max_steps=1)
    search = ForecastingGridSearchCV(
        start,
        cv=ExpandingWindowSplitter(fh=[1, 2, 3], initial_window=50, step_length=5),
        param_grid={"fit_strategy": ["zero-shot", "head"]},
        backend="None",
        error_score="raise",
    )
    search.fit(y, fh=[1, 2, 3])
    best = search.best_forecaster_.predict([1, 2, 3])
    expected = method.forecaster.from_pretrained(tmp_path, device="cpu").fit(y).predict([1, 2, 3])
    np.testing.assert_allclose(best.to_numpy().ravel(), expected.to_numpy().ravel(), atol=1e-4)


def test_training_starts_from_a_checkpoint(method, tmp_path):
    y = monthly()
    first = method.sktime(horizon=4).fit(y)
    first.save_pretrained(tmp_path)
    forecasts = [
        method.sktime(horizon=4, checkpoint=tmp_path, fit_strategy=s, lr=1e-2).fit(y).predict([1])
        for s in STRATEGIES
    ]
    assert len({float(f.iloc[0, 0]) for f in forecasts}) == len(STRATEGIES)
    pd.testing.assert_frame_equal(forecasts[-1], first.predict([1]), rtol=0)
    with pytest.raises(ValueError, match="do not fit this model"):
        method.sktime(checkpoint=tmp_path, **{method.width: 8}).fit(y)
    with pytest.raises(ValueError, match="likelihood: the weights"):
        method.sktime(checkpoint=tmp_path, likelihood="gaussian").fit(y)
    with pytest.raises(OSError, match=r"found no config\.json"):
        method.sktime(checkpoint=tmp_path / "elsewhere").fit(y)


@pytest.mark.parametrize("history", ["pickle", "deepcopy", "pretrain", "checkpoint"])
def test_forecasters_of_every_history_can_be_shared(method, history, tmp_path):
    y = monthly()
    if history == "pretrain":
        forecaster = pretrained(method, fit_strategy="head").fit(y)
    else:
        forecaster = method.sktime(horizon=4).fit(y)
    if history == "checkpoint":
        forecaster.save_pretrained(tmp_path / "first")
        forecaster = method.sktime(horizon=4, checkpoint=tmp_path / "first").fit(y)
    copies = {"pickle": lambda f: pickle.loads(pickle.dumps(f)), "deepcopy": copy.deepcopy}
    forecaster = copies.get(history, lambda f: f)(forecaster)
    forecaster.save_pretrained(tmp_path / "shared")
    loaded = method.forecaster.from_pretrained(tmp_path / "shared", device="cpu").fit(y)
    pd.testing.assert_frame_equal(loaded.predict([1, 4]), forecaster.predict([1, 4]), rtol=0)


def test_what_cannot_be_shared_says_so(method, tmp_path):
    many = method.sktime(broadcasting=True).fit(panel(2))
    with pytest.raises(ValueError, match="one for each instance in forecasters_"):
        many.save_pretrained(tmp_path / "shared")
    X = monthly().set_axis(pd.Index([("a", "b")], tupleize_cols=False), axis=1)
    odd = method.sktime().fit(monthly(), X)
    with pytest.raises(ValueError, match=r"must be texts or integers .* found \[\('a', 'b'\)\]"):
        odd.save_pretrained(tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_what_json_cannot_say_of_a_forecaster_stays_behind(method, tmp_path):
    generator = np.random.RandomState(0)
    forecaster = method.sktime(random_state=generator, trainer_kwargs={"callbacks": []})
    forecaster.fit(monthly()).save_pretrained(tmp_path)
    loaded = method.forecaster.from_pretrained(tmp_path)
    assert loaded.random_state is None
    assert loaded.trainer_kwargs is None
    pd.testing.assert_frame_equal(
        loaded.fit(monthly()).predict([1]), forecaster.predict([1]), rtol=1e-6
    )


def test_a_pretrained_forecaster_can_be_shared(method, tmp_path):
    forecaster = pretrained(method, fit_strategy="zero-shot")
    forecaster.save_pretrained(tmp_path)
    loaded = method.forecaster.from_pretrained(tmp_path, device="cpu").fit(monthly())
    expected = forecaster.fit(monthly()).predict([1, 4])
    pd.testing.assert_frame_equal(loaded.predict([1, 4]), expected, rtol=0)
    with pytest.raises(ValueError, match="needs a fitted or pretrained forecaster"):
        method.sktime().save_pretrained(tmp_path)


def test_shared_covariates_are_checked_by_name(method, tmp_path):
    y, X = monthly(), monthly(70, columns=2, seed=5)
    settings = {"horizon": 4, "past_covariates": ["v1"]}
    forecaster = method.sktime(**settings).fit(y, X[:60])
    forecaster.save_pretrained(tmp_path)
    loaded = method.forecaster.from_pretrained(tmp_path, device="cpu").fit(y, X[:60])
    expected = forecaster.predict([1, 4], X[60:])
    pd.testing.assert_frame_equal(loaded.predict([1, 4], X[60:]), expected, rtol=0)
    with pytest.raises(ValueError, match="X: past and future columns"):
        method.forecaster.from_pretrained(tmp_path, past_covariates=None).fit(y, X[:60])

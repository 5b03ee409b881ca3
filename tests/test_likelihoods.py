"""Likelihoods in sktime: quantiles, intervals, variances and distributions are one thing."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from sktime.performance_metrics.forecasting.probabilistic import CRPS, LogLoss
from support import monthly

from tsllm_estimators.sktime._engine import _darts_likelihood
from tsllm_estimators.sktime._likelihoods import (
    BOUNDED,
    DISCRETE,
    LOCATION_SCALE,
    QUANTILES,
    quantiles_of,
)

FH = [-2, 1, 4, 9]  # fitted, within the horizon, past it
RAW = {"scaling": None, "normalization": None}


def settings(likelihood):
    return {"likelihood": likelihood, "horizon": 4, **(RAW if likelihood in BOUNDED else {})}


def within_support(likelihood, n=60):
    y = monthly(n)
    if likelihood == "bernoulli":
        return (y > 0).astype(float)
    if likelihood in DISCRETE:
        return (3 + 2 * y).round().clip(lower=0)
    if likelihood == "beta":
        return 0.5 + 0.3 * y.clip(-1, 1)
    return y + 3 if likelihood in BOUNDED else y


EVERY = ["quantile", *LOCATION_SCALE, *BOUNDED]


@pytest.mark.parametrize("likelihood", EVERY)
def test_every_likelihood_forecasts_within_its_support(method, likelihood):
    y = within_support(likelihood)
    forecaster = method.sktime(**settings(likelihood)).fit(y)
    quantiles = forecaster.predict_quantiles(FH, alpha=[0.05, 0.5, 0.95])["v0"]
    assert np.isfinite(quantiles.to_numpy()).all()
    assert (np.diff(quantiles, axis=1) >= 0).all()
    np.testing.assert_allclose(quantiles[0.5], forecaster.predict(FH)["v0"], rtol=1e-6, atol=1e-9)
    if likelihood in BOUNDED:
        values = quantiles.to_numpy()
        assert values.min() >= 0
        assert likelihood not in ("beta", "bernoulli") or values.max() <= 1
        assert likelihood not in DISCRETE or (values == values.round()).all()


def test_a_step_is_forecast_alike_whatever_else_is_asked_for(method):
    forecaster = method.sktime(horizon=4).fit(monthly())
    alone = forecaster.predict_interval([1, 4])
    np.testing.assert_allclose(forecaster.predict_interval([1, 4, 9])[:2], alone, rtol=1e-6)


@pytest.mark.parametrize("likelihood", EVERY)
def test_quantiles_are_those_of_darts_distribution(likelihood):
    """Compared with a large sample that darts' likelihood draws from the same parameters."""
    torch.manual_seed(0)
    darts = _darts_likelihood(likelihood)
    raw = torch.randn(1, 1, 1, darts.num_parameters) * 0.5 + 0.3
    if likelihood == "quantile":
        raw = raw.sort().values
    samples = darts.sample(raw.expand(60_000, -1, -1, -1)).flatten().double().numpy()
    parameters = (
        torch.stack(darts._params_from_output(raw), -1) if likelihood != "quantile" else raw
    )
    levels = [0.1, 0.3, 0.5, 0.8]
    found = quantiles_of(likelihood, parameters.double().numpy(), levels, QUANTILES).flatten()
    # the share of the sample at or below a quantile, and below it, enclose its level
    at_most = np.array([(samples <= q + 1e-9).mean() for q in found])
    below = np.array([(samples < q - 1e-9).mean() for q in found])
    assert (at_most >= np.array(levels) - 0.01).all()
    assert (below <= np.array(levels) + 0.01).all()


@pytest.mark.parametrize("likelihood", ["quantile", "gaussian", "poisson", "gamma"])
def test_intervals_variances_and_distributions_agree(method, likelihood):
    y = within_support(likelihood)
    forecaster = method.sktime(**settings(likelihood)).fit(y)
    levels = [0.05, 0.25, 0.5, 0.95]
    quantiles = forecaster.predict_quantiles(FH, alpha=levels)
    distribution = forecaster.predict_proba(FH)
    tolerance = {"rtol": 1e-6, "atol": 1e-9}
    rounded = {"atol": 2e-4 * y.std().item()}  # to four decimals of the spread, by skpro
    np.testing.assert_allclose(distribution.quantile(levels), quantiles, **rounded)
    interval = forecaster.predict_interval(FH, coverage=0.9)
    np.testing.assert_allclose(interval["v0"][0.9], quantiles["v0"][[0.05, 0.95]], **tolerance)
    np.testing.assert_allclose(forecaster.predict_var(FH), distribution.var(), **tolerance)
    pd.testing.assert_index_equal(distribution.index, quantiles.index)
    parameters = forecaster._engine._parameters(
        list(forecaster._series(forecaster._engine, y, None, forecaster._scales).values()), 4
    )[0, [0, 3], 0]
    scale = forecaster._scales[None][1][0]
    exact = {
        "gaussian": lambda mean, sigma: (scale * sigma) ** 2,
        "poisson": lambda rate: rate,
        "gamma": lambda shape, rate: shape / rate**2,
    }
    if likelihood in exact:
        expected = exact[likelihood](*parameters.T)
        np.testing.assert_allclose(distribution.var().iloc[1:3, 0], expected, rtol=0.05)


def test_distributions_can_be_scored(method):
    y = monthly()
    forecaster = method.sktime(horizon=4).fit(y[:-4])
    distribution = forecaster.predict_proba([1, 2, 3, 4])
    for metric in (CRPS(), LogLoss()):
        assert np.isfinite(metric(y[-4:], distribution))


def test_distributions_of_panels_have_a_row_for_every_instance(method):
    from sktime.utils._testing.hierarchical import _make_hierarchical

    y = _make_hierarchical((2, 2), min_timepoints=30, max_timepoints=30)
    forecaster = method.sktime(horizon=2).fit(y)
    distribution = forecaster.predict_proba([1, 2])
    pd.testing.assert_index_equal(distribution.index, forecaster.predict([1, 2]).index)
    np.testing.assert_allclose(distribution.quantile([0.5]), forecaster.predict([1, 2]), atol=1e-3)


def test_a_shift_leaves_widths_and_a_factor_multiplies_them(method):
    y = monthly()
    fh = [1, 4]
    plain, shifted, stretched = (
        method.sktime(horizon=4, likelihood="gaussian").fit(v).predict_var(fh).to_numpy()
        for v in (y, y + 1000, y * 10)
    )
    np.testing.assert_allclose(shifted, plain, rtol=1e-2)
    np.testing.assert_allclose(stretched, 100 * plain, rtol=1e-2)


def test_joint_distributions_are_refused(method):
    forecaster = method.sktime().fit(monthly())
    with pytest.raises(ValueError, match="cov must be False"):
        forecaster.predict_var([1, 2], cov=True)
    with pytest.raises(ValueError, match="marginal must be True"):
        forecaster.predict_proba([1, 2], marginal=False)


@pytest.mark.parametrize("change", [{"scaling": "standard"}, {"normalization": "window"}])
def test_likelihoods_of_positive_values_need_data_as_it_is(method, change):
    with pytest.raises(ValueError, match="likelihood='poisson' needs scaling=None and norm"):
        method.sktime(likelihood="poisson", **{**RAW, **change}).fit(monthly() + 3)


def test_normalization_is_a_switch(method):
    y = monthly() + 3
    kinds = method.network.Config.normalizations
    forecasts = [method.sktime(normalization=n).fit(y).predict([1, 2]) for n in kinds]
    for one, other in itertools.combinations(forecasts, 2):
        assert not np.allclose(one, other, rtol=1e-3)
    with pytest.raises(ValueError, match="normalization must be one of"):
        method.sktime(normalization="revin").fit(y)


def test_counts_are_learned(method):
    """The median of a Poisson likelihood finds the rate of each half of the season."""
    rng = np.random.default_rng(0)
    months = np.arange(120)
    rate = np.where(months % 12 < 6, 2.0, 12.0)
    y = pd.Series(rng.poisson(rate), index=pd.period_range("2000-01", periods=120, freq="M"))
    learning = {"max_steps": 300, "lr": 1e-2, "context_length": 24, "horizon": 12}
    forecast = method.sktime(likelihood="poisson", **RAW, **learning).fit(y).predict(range(1, 13))
    low, high = forecast.to_numpy()[:6].mean(), forecast.to_numpy()[6:].mean()
    assert 0 <= low < 5
    assert 8 < high < 17

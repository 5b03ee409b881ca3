"""Missing values are masked from the window to the loss; nothing at all is an error."""

import importlib

import numpy as np
import pytest
import torch
from darts import TimeSeries
from darts.utils.likelihood_models.torch import GaussianLikelihood, QuantileRegression
from support import darts_series, monthly, sine

from tsllm_estimators.networks.base import Batch
from tsllm_estimators.networks.blocks import normalize_window

CONTEXT, HORIZON = 12, 6
LIKELIHOODS = [None, GaussianLikelihood(), QuantileRegression([0.1, 0.5, 0.9])]
by_name = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda v: type(v).__name__)


def gapped(n=80, columns=2, share=0.2):
    """Return noisy sines with single gaps and, in the last column, a late start."""
    values = sine(n, columns)
    values[np.random.default_rng(5).random(values.shape) < share] = np.nan
    values[: n // 3, -1] = np.nan
    values[-1] = 0.5
    return values


def test_statistics_are_those_of_what_was_observed():
    window = torch.tensor([[1.0, 5.0], [3.0, torch.nan], [torch.nan, 7.0]]).unsqueeze(0)
    normal, (location, scale) = normalize_window(window, torch.tensor(1e-3))
    torch.testing.assert_close(location[0, 0], torch.tensor([2.0, 6.0]))
    torch.testing.assert_close(scale[0, 0], torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(normal[0], torch.tensor([[-1.0, -1.0], [1.0, 0.0], [0.0, 1.0]]))
    filled, _ = normalize_window(window, torch.tensor(2.0), normalization=None)
    torch.testing.assert_close(filled[0], torch.tensor([[0.5, 2.5], [1.5, 3.0], [1.0, 3.5]]))


@by_name
def test_forecasts_of_gapped_series_are_finite(method, likelihood):
    series = darts_series(gapped())
    model = method.darts(CONTEXT, HORIZON, likelihood=likelihood)
    model.fit(series, val_series=series)
    assert np.isfinite(model.predict(15).values()).all()
    assert all(torch.isfinite(p).all() for p in model.model.parameters())


@by_name
def test_missing_targets_weigh_nothing(method, likelihood):
    """The loss is the mean over what was observed, and its gradient knows nothing else."""
    model = method.darts(CONTEXT, HORIZON, likelihood=likelihood).fit(darts_series(sine(60)))
    module = model.model.eval()
    context = torch.tensor(sine(40)).unfold(0, CONTEXT, 7).transpose(1, 2)
    output = module(darts_input(context))
    target = torch.randn(len(context), HORIZON, 1)
    holes = target.clone()
    holes[:, 2:4] = torch.nan
    kept = [0, 1, 4, 5]
    criterion = module.train_criterion
    found = module._compute_loss(output, holes, criterion, None)
    part = output.replace(prediction=output.prediction[:, kept])
    expected = module._compute_loss(part, target[:, kept], criterion, None)
    torch.testing.assert_close(found, expected)
    weights = torch.rand(target.shape)
    if likelihood is not None or module._task_loss is not None:
        found = module._compute_loss(output, holes, criterion, weights)
        expected = module._compute_loss(part, target[:, kept], criterion, weights[:, kept])
        torch.testing.assert_close(found, expected)


def darts_input(context):
    from darts.utils.data.torch_datasets.utils import PLModuleInput

    return PLModuleInput(past_target=context)


def test_a_loss_of_the_user_sees_no_missing_value(method):
    model = method.darts(CONTEXT, HORIZON, loss_fn=torch.nn.HuberLoss())
    series = darts_series(gapped())
    assert np.isfinite(model.fit(series, sample_weight=None).predict(6).values()).all()


def test_metrics_skip_what_is_missing(method):
    import torchmetrics

    series = darts_series(gapped())
    model = method.darts(CONTEXT, HORIZON, torch_metrics=torchmetrics.MeanAbsoluteError())
    model.fit(series, val_series=series)
    assert np.isfinite(model.trainer.callback_metrics["val_MeanAbsoluteError"].item())


def test_missing_values_count_as_the_mean_of_the_window(method, monkeypatch):
    statistics, home = [], importlib.import_module(method.network.__module__)

    def normalize(*args):
        window, found = normalize_window(*args)
        statistics.append(found)
        return window, found

    monkeypatch.setattr(home, "normalize_window", normalize)
    model = method.darts(CONTEXT, HORIZON).fit(darts_series(sine(60)))
    network = model.model.network.eval()
    context = torch.tensor(sine(CONTEXT)).unsqueeze(0)
    context[0, 3:6] = torch.nan
    full = context.clone()
    full[0, 3:6] = context.nanmean()
    # equal location; the deviation of what was observed is larger than with the mean filled in
    statistics.clear()
    for values in (context, full):
        network(Batch(values))
    found, filled = statistics
    torch.testing.assert_close(found.location, filled.location)
    assert found.scale > filled.scale


def test_training_learns_through_gaps(method):
    values = sine(200)
    values[np.random.default_rng(1).random(values.shape) < 0.3] = np.nan
    settings = {"n_epochs": 20, "optimizer_kwargs": {"lr": 3e-3}, **method.known(head_dropout=0.0)}
    model = method.darts(CONTEXT, HORIZON, **settings).fit(darts_series(values))
    whole = darts_series(sine(200, seed=9))
    forecast = model.predict(6, series=whole[:150])
    assert np.abs(forecast.values() - whole[150:156].values()).mean() < 0.35


def test_a_window_without_an_observation_is_an_error_that_says_where(method):
    values = sine(60, 2)
    model = method.darts(CONTEXT, HORIZON).fit(darts_series(values))
    values[-CONTEXT:, 1] = np.nan
    with pytest.raises(ValueError, match=r"component '1' has no observation in the 12 steps .* 60"):
        model.predict(6, series=darts_series(values))
    values[:, 1] = np.nan
    series = [darts_series(sine(60, 2)), darts_series(values)]
    message = "series: component '1' of series 1 has no observation at all, 60 of 60 values"
    with pytest.raises(ValueError, match=message):
        method.darts(CONTEXT, HORIZON).fit(series)


def test_training_windows_without_an_observation_teach_nothing(method):
    """A long outage in training is skipped: whatever the model says there has no weight."""
    values = sine(120)
    values[40:80] = np.nan
    model = method.darts(CONTEXT, HORIZON).fit(darts_series(values))
    assert np.isfinite(model.predict(6).values()).all()
    module = model.model.eval()
    empty = torch.full((1, CONTEXT, 1), torch.nan)
    known = torch.tensor(sine(CONTEXT)).unsqueeze(0)
    output = module(darts_input(torch.cat([empty, known])))
    target = torch.randn(2, HORIZON, 1)
    found = module._compute_loss(output, target, module.train_criterion, None)
    alone = module._compute_loss(
        module(darts_input(known)), target[1:], module.train_criterion, None
    )
    torch.testing.assert_close(found, alone)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("where", ["series", "past_covariates", "future_covariates"])
def test_infinite_values_are_an_error_that_says_where(method, where, value):
    good = TimeSeries.from_values(sine(80, 2))
    values = sine(80, 2)
    values[50, 1] = value
    bad = TimeSeries.from_values(values)
    message = rf"{where}: component '1' of series 0 is infinite at 50; replace"
    used = {"past_covariates": good, "future_covariates": good}
    inputs = {"series": good[:60], **used}
    model = method.darts(CONTEXT, HORIZON).fit(**inputs)
    for call in (method.darts(CONTEXT, HORIZON).fit, lambda **k: model.predict(6, **k)):
        with pytest.raises(ValueError, match=message):
            call(**{**inputs, where: bad})
    assert np.isfinite(model.predict(6, **inputs).values()).all()


def test_sktime_masks_gaps_and_ragged_starts(method):
    y = monthly(columns=2)
    y.iloc[10:13, 0] = y.iloc[-1, 0] = np.nan
    y.iloc[:20, 1] = np.nan
    forecaster = method.sktime(horizon=6)
    assert forecaster.get_tag("capability:missing_values")
    fh = [-59, -58, -30, 0, 1, 6, 9]
    forecast = forecaster.fit(y).predict(fh)
    assert np.isfinite(forecast.to_numpy()).all()
    scale = forecaster._scales[None]
    np.testing.assert_allclose(scale[0], y.mean())
    np.testing.assert_allclose(scale[1], y.std(ddof=0))


def test_sktime_says_where_there_is_nothing(method):
    y = monthly(columns=2)
    forecaster = method.sktime(horizon=6, context_length=12).fit(y)
    y.iloc[:, 1] = np.nan
    with pytest.raises(ValueError, match=r"y: column 'v1' has no observation at all"):
        method.sktime().fit(y)
    gap = monthly(72, columns=2)[60:]
    gap["v1"] = np.nan
    with pytest.raises(
        ValueError, match=r"y: column 'v1' has no observation in the 12 steps up to"
    ):
        forecaster.update(gap, update_params=False).predict([1])
    y = monthly(columns=2)
    y.iloc[30, 0] = np.inf
    with pytest.raises(ValueError, match=r"y: column 'v0' is infinite at 2002-07"):
        method.sktime().fit(y)

"""One network, three ways to it: bare, through darts, through sktime."""

import warnings

import numpy as np
import pytest
import torch
from darts.utils.likelihood_models.torch import GaussianLikelihood
from support import darts_series, monthly

from tsllm_estimators.networks.base import Batch

SHAPES = {"context": 12, "horizon": 6}


def fitted(method, likelihood, columns=2):
    """Fit the sktime face and hand its very weights to a darts model and a bare network."""
    y = monthly(columns=columns).reset_index(drop=True)  # a bare network knows no calendar
    forecaster = method.sktime(
        context_length=12, horizon=6, scaling=None, likelihood=likelihood
    ).fit(y)
    state = forecaster._engine.model.model.state_dict()
    darts_likelihood = GaussianLikelihood() if likelihood else None
    model = method.darts(**SHAPES, likelihood=darts_likelihood, n_epochs=1)
    model.fit(darts_series(y)).model.load_state_dict(state)
    module = forecaster._engine.model.model
    network = method.network(module.network.config, module.network.shapes)
    network.load_state_dict(module.network.state_dict())
    return y, forecaster, model, network.eval()


@pytest.mark.parametrize("columns", [1, 2])
def test_faces_and_network_agree_for_the_same_weights(method, columns):
    y, forecaster, model, network = fitted(method, None, columns)
    context = torch.tensor(y.to_numpy()[-12:], dtype=torch.float32).unsqueeze(0)
    with torch.no_grad():
        bare = network(Batch(past_target=context)).parameters[0, ..., 0].numpy()
    by_darts = model.predict(6, series=darts_series(y)).values()
    by_sktime = forecaster.predict([1, 2, 3, 4, 5, 6]).to_numpy()
    np.testing.assert_allclose(by_darts, bare, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_sktime, bare, rtol=1e-5, atol=1e-6)
    long = model.predict(15, series=darts_series(y)).values()
    np.testing.assert_allclose(forecaster.predict(list(range(1, 16))), long, rtol=1e-6)


def test_likelihood_parameters_agree(method):
    y, forecaster, model, _ = fitted(method, "gaussian")
    parameters = model.predict(
        6, series=darts_series(y), predict_likelihood_parameters=True
    ).values()
    means, deviations = parameters[:, ::2], parameters[:, 1::2]
    fh = list(range(1, 7))
    np.testing.assert_allclose(forecaster.predict(fh), means, rtol=1e-6)
    quantiles = forecaster.predict_quantiles(fh, alpha=[0.8413447460685429])
    np.testing.assert_allclose(quantiles, means + deviations, rtol=1e-5)


def test_equal_settings_train_equal_models(method):
    """The faces add nothing of their own to the training: same data, same seed, same steps."""
    y = monthly(columns=2)
    forecaster = method.sktime(
        context_length=12, horizon=6, scaling=None, likelihood=None, max_steps=None, num_epochs=2
    ).fit(y)
    seed = forecaster._engine.model.model_params["random_state"]
    model = method.darts(**SHAPES, random_state=seed).fit(darts_series(y))
    np.testing.assert_array_equal(forecaster.predict([1, 6]), model.predict(6).values()[[0, 5]])


def test_both_faces_are_quiet_unless_asked(method, capfd, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = monthly()
        method.sktime(validation_split=0.3).fit(y).predict_interval([1, 30])
        model = method.darts().fit(darts_series(y), val_series=darts_series(y))
        model.predict(20)
        model.historical_forecasts(darts_series(y), retrain=False)
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""
    model.fit(darts_series(y), epochs=1, verbose=True)
    assert "Epoch" in "".join(capfd.readouterr())


def test_the_loggers_volume_is_restored(method):
    import logging

    names = ("pytorch_lightning", "darts", "lightning_fabric")
    before = {name: logging.getLogger(name).level for name in names}
    method.darts().fit(darts_series(monthly())).predict(1)
    assert {name: logging.getLogger(name).level for name in names} == before

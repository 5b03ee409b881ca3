"""Looking into fitted estimators: the figures are those of their definitions, in both faces."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wasserstein_distance
from support import METHODS, darts_series, monthly, sine

from tsllm_estimators.explain import alignment, plot_alignment
from tsllm_estimators.llm.backbone import load_backbone

CALF = next(method for method in METHODS if method.name == "calf")


@pytest.fixture(scope="module")
def fitted():
    return CALF.darts().fit(darts_series(sine(80, 2)))


def test_attention_and_variance_are_shares(fitted):
    found = alignment(fitted)
    assert found.attention.shape == (2, 16)
    np.testing.assert_allclose(found.attention.sum(axis=1), 1, rtol=1e-5)
    assert found.explained_variance.is_monotonic_decreasing
    assert found.explained_variance.sum() == pytest.approx(1, abs=1e-5)


def test_distances_are_wasserstein_distances(fitted):
    import torch

    from tsllm_estimators.networks.base import Batch

    network, values = fitted.model.network.eval(), sine(80, 2)
    windows = np.lib.stride_tricks.sliding_window_view(values, 12, axis=0).transpose(0, 2, 1)
    with torch.no_grad():
        tokens, _ = network.time_tokens(Batch(past_target=torch.tensor(windows.copy())))
    tokens = tokens.flatten(0, 1).numpy()
    words = load_backbone("tiny").word_embeddings.numpy()
    expected = np.mean(
        [wasserstein_distance(tokens[:, i], words[:, i]) for i in range(words.shape[1])]
    )
    assert alignment(fitted).distances["time tokens", "words"] == pytest.approx(expected, rel=0.02)


def test_both_faces_can_be_looked_at():
    y = monthly(columns=2)
    forecaster = CALF.sktime(context_length=12, horizon=6).fit(y)
    found = alignment(forecaster)
    assert list(found.attention.index) == ["v0", "v1"]
    pd.testing.assert_series_equal(alignment(forecaster, y).distances, found.distances)
    other = alignment(forecaster, y + np.linspace(0, 9, 60)[:, np.newaxis] ** 2)
    assert not np.allclose(other.distances, found.distances)


def test_what_cannot_be_looked_at_is_an_error(fitted):
    with pytest.raises(ValueError, match="series must have 12 points or more, found 5"):
        alignment(fitted, darts_series(sine(5, 2)))
    several = CALF.darts().fit([darts_series(sine(80))] * 2)
    with pytest.raises(ValueError, match="series must be given"):
        alignment(several)
    alone = CALF.darts(output_weight=0.0, feature_weight=0.0).fit(darts_series(sine(80)))
    with pytest.raises(ValueError, match="no textual branch"):
        alignment(alone)
    series = darts_series(sine(80))
    with pytest.raises(ValueError, match="estimator uses covariates"):
        alignment(CALF.darts().fit(series, past_covariates=series))


def test_plot_shows_the_most_attended_words(fitted):
    import matplotlib.pyplot as plt

    found = alignment(fitted)
    figure = plot_alignment(found, top=5)
    image = figure.axes[1].images[0].get_array()
    assert image.shape == (2, 5)
    assert image.max() == pytest.approx(found.attention.to_numpy().max())
    plt.close(figure)

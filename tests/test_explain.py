"""Looking into fitted estimators: the figures are those of their definitions, in both faces."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wasserstein_distance
from support import METHODS, darts_series, monthly, sine

from tsllm_estimators.adapters import RouterCollapseWarning
from tsllm_estimators.explain import (
    alignment,
    plot_alignment,
    plot_routing,
    prompt_sensitivity,
    routing_table,
)
from tsllm_estimators.llm.backbone import load_backbone

CALF = next(method for method in METHODS if method.name == "calf")
TIME_LLAMA = next(method for method in METHODS if method.name == "time_llama")


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


@pytest.fixture(scope="module")
def routed():
    settings = {"n_epochs": 3, "top_n": 2, "optimizer_kwargs": {"lr": 0.02}}
    return TIME_LLAMA.darts(**settings).fit(darts_series(sine(80, 2)))


def test_routing_is_told_by_layer_window_and_epoch(routed):
    by_window = routing_table(routed, by="window")
    assert by_window.index.names == ["window", "layer"]
    assert by_window.dtypes.eq(bool).all()
    assert (by_window.sum(axis=1) == 2).all()
    assert len(by_window) == 2 * (80 - 12 + 1)

    by_layer = routing_table(routed)
    shares = by_layer.drop(columns=["entropy", "commonest"])
    pd.testing.assert_frame_equal(
        shares, by_window.groupby("layer", sort=False).mean(), check_names=False
    )
    activations = shares.to_numpy() / 2
    entropy = -np.where(activations > 0, activations * np.log(activations + 1e-300), 0).sum(1)
    np.testing.assert_allclose(by_layer["entropy"], entropy / np.log(6))
    for layer, rows in by_window.groupby("layer"):
        commonest = rows.value_counts(normalize=True).iloc[0]
        assert by_layer.loc[layer, "commonest"] == pytest.approx(commonest)

    by_epoch = routing_table(routed, by="epoch")
    assert by_epoch.index.get_level_values("epoch").unique().tolist() == [0, 1, 2]
    assert (by_epoch.columns == by_layer.columns).all()
    assert not np.allclose(by_epoch.loc[0], by_epoch.loc[2])


def test_routing_of_another_series_differs_and_both_faces_tell_it(routed):
    other = routing_table(routed, darts_series(np.cumsum(sine(80, 2, seed=3), axis=0)))
    assert not np.allclose(other, routing_table(routed))
    forecaster = TIME_LLAMA.sktime(context_length=12, horizon=6).fit(monthly(columns=2))
    for by in ("layer", "window", "epoch"):
        assert not routing_table(forecaster, by=by).empty


def test_history_of_routing_is_shared_with_the_model(routed, tmp_path):
    routed.save_pretrained(tmp_path)
    again = TIME_LLAMA.model.from_pretrained(tmp_path)
    pd.testing.assert_frame_equal(
        routing_table(again, by="epoch"), routing_table(routed, by="epoch")
    )
    series = darts_series(sine(80, 2))
    pd.testing.assert_frame_equal(routing_table(again, series), routing_table(routed, series))


def test_routing_is_drawn(routed):
    figure = plot_routing(routed)
    assert len(figure.axes[0].texts) == 2 * 6
    assert len(figure.axes[1].lines) == 2 + 1


def test_layers_keep_their_order(tmp_path):
    from transformers import AutoModel, BertConfig

    shape = {"hidden_size": 8, "num_hidden_layers": 11, "num_attention_heads": 1}
    AutoModel.from_config(BertConfig(vocab_size=4, intermediate_size=8, **shape)).save_pretrained(
        tmp_path
    )
    settings = {"backbone": str(tmp_path), "backbone_layers": 11, "alignment": "none"}
    model = TIME_LLAMA.darts(**settings, lora_rank=2, n_epochs=1).fit(darts_series(sine(40)))
    layers = [f"encoder.layer.{i}" for i in range(11)]
    by_window = routing_table(model, by="window")
    assert by_window.index.get_level_values("layer")[:11].tolist() == layers
    assert by_window.index.get_level_values("window")[:22].tolist() == [0] * 11 + [1] * 11
    assert routing_table(model).index.tolist() == layers


def test_one_of_many_forecasters_must_be_chosen():
    from sktime.utils._testing.hierarchical import _make_hierarchical

    panel = _make_hierarchical((2,), min_timepoints=40, max_timepoints=40, random_state=0)
    forecaster = TIME_LLAMA.sktime(context_length=6, horizon=2, broadcasting=True).fit(panel)
    with pytest.raises(ValueError, match="look at one of its forecasters_"):
        routing_table(forecaster)


def test_without_a_router_there_is_nothing_to_tell():
    model = TIME_LLAMA.darts(top_n=None).fit(darts_series(sine(60)))
    for by in ("layer", "epoch"):
        with pytest.raises(ValueError, match="no router to look at"):
            routing_table(model, by=by)
    with pytest.raises(ValueError, match="by must be one of"):
        routing_table(model, by="module")


@pytest.mark.parametrize("collapses", [True, False])
def test_a_collapsed_router_is_told_of(collapses, recwarn):
    """A router whose weights hardly move keeps the subset of its bias; with one it can choose."""
    series = darts_series(sine(100, 2))
    model = TIME_LLAMA.darts(n_epochs=60, batch_size=32, load_balancing_weight=1.0)
    model.fit(series, epochs=1)
    for name, parameter in model.model.named_parameters():
        if "dynalora_gate" in name:
            parameter.data.mul_(0.0 if collapses else 100.0)
            parameter.requires_grad_(not collapses)
    model.fit(series)
    told = [w for w in recwarn if issubclass(w.category, RouterCollapseWarning)]
    assert len(told) == int(collapses)
    if collapses:
        assert "encoder.layer.0, encoder.layer.1" in str(told[0].message)


def test_a_prompt_is_altered_and_the_model_left_alone(routed):
    before = routed.predict(6).values()
    found = prompt_sensitivity(routed)
    assert list(found.index) == ["real", "empty", "gibberish", "shuffled"]
    assert found.loc["real", "change"] == 0
    assert (found["change"].drop(["real", "shuffled"]) > 1e-4).all()
    assert found.loc["shuffled", "change"] < 1e-6  # attention to words knows no order
    assert found["words"].tolist() == [found.loc["real", "words"], 0, *found["words"][["real"] * 2]]
    np.testing.assert_array_equal(routed.predict(6).values(), before)
    prompt = routed.model.network.prompts()
    assert prompt == routed.training_summary["prompts"]
    again = prompt_sensitivity(routed, kinds=["gibberish"], seed=1)
    assert again.loc["gibberish", "change"] != found.loc["gibberish", "change"]


def test_order_of_the_words_counts_in_a_sentence():
    settings = {"alignment": "concat", "residual": None, "optimizer_kwargs": {"lr": 0.02}}
    model = TIME_LLAMA.darts(**settings).fit(darts_series(sine(60)))
    assert prompt_sensitivity(model).loc["shuffled", "change"] > 1e-4


def test_errors_of_the_real_prompt_are_those_of_the_forecasts(routed):
    series = darts_series(sine(30, 2, seed=5))
    found = prompt_sensitivity(routed, series).loc["real"]
    forecasts = routed.historical_forecasts(
        series, forecast_horizon=6, retrain=False, last_points_only=False
    )
    errors = [f.values() - series.slice_intersect(f).values() for f in forecasts]
    assert found["mse"] == pytest.approx(np.square(errors).mean(), rel=1e-4)
    assert found["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)


def test_models_without_a_prompt_have_none_to_alter(fitted):
    with pytest.raises(ValueError, match="estimator has no prompt to change"):
        prompt_sensitivity(fitted)

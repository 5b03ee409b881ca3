"""What windows retrieve: tables of both faces, what is warned of, and whether kinds are told."""

import numpy as np
import pandas as pd
import pytest
import torch
from darts import TimeSeries
from support import METHODS, darts_series, monthly, sine

from tsllm_estimators.explain import plot_retrievals, prompt_retrievals
from tsllm_estimators.networks.base import Batch
from tsllm_estimators.networks.retrieval import PromptCollapseWarning

NET, OTHER = (
    next(method for method in METHODS if method.name == name) for name in ("llm_ts_net", "calf")
)
CONTEXT, HORIZON = 12, 6
PLAIN = {"text": "none", "n_prompts": 8, "top_k": 3}
SERIES = TimeSeries.from_values(sine(80, 2), columns=["load", "heat"])


@pytest.fixture(scope="module")
def fitted():
    return NET.darts(CONTEXT, HORIZON, **PLAIN).fit(SERIES)


def collapsed(model):
    """Let the same keys win every window."""
    with torch.no_grad():
        model.model.network.pool.of_query.weight.zero_()
    return model


def test_there_is_a_row_for_each_window_and_series(fitted):
    found = prompt_retrievals(fitted)
    n = 80 - CONTEXT + 1
    for table in (found.prompts, found.weights):
        assert table.shape == (2 * n, 3)
        assert table.index.names == ["window", "series"]
        assert table.index.get_level_values("series")[:2].tolist() == ["load", "heat"]
        assert table.index.get_level_values("window").unique().tolist() == list(range(n))
        assert table.columns.tolist() == [1, 2, 3]
        assert table.columns.name == "rank"
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-5)
    assert (found.weights.to_numpy() > 0).all()
    assert (found.weights.diff(axis=1).iloc[:, 1:].to_numpy() <= 0).all()  # the best first
    assert found.prompts.apply(lambda row: row.nunique(), axis=1).eq(3).all()


def test_use_and_diversity_are_those_of_the_table(fitted):
    found = prompt_retrievals(fitted)
    counts = np.bincount(found.prompts.to_numpy().ravel(), minlength=8)
    np.testing.assert_allclose(found.use, counts / counts.sum(), rtol=1e-5)
    assert found.use.sum() == pytest.approx(1, abs=1e-5)
    assert (found.use.index.name, len(found.use)) == ("prompt", 8)
    shares = found.use[found.use > 0]
    assert found.diversity == pytest.approx(np.exp(-(shares * np.log(shares)).sum()) / 8, rel=1e-5)


def test_a_row_is_what_the_network_retrieves_for_a_window(fitted):
    found, network = prompt_retrievals(fitted), fitted.model.network.eval()
    window = torch.from_numpy(SERIES.values()[5 : 5 + CONTEXT]).unsqueeze(0)
    with torch.no_grad():
        own = network.retrieve(Batch(past_target=window))
    assert found.prompts.loc[5].to_numpy().tolist() == own.indices[0].tolist()
    np.testing.assert_allclose(found.weights.loc[5], own.weights[0], rtol=1e-5)


def test_long_series_are_looked_at_in_places(fitted):
    found = prompt_retrievals(fitted, darts_series(sine(3000, 2)))
    assert 256 <= found.prompts.index.get_level_values("window").nunique() < 512


def test_another_series_retrieves_something_else(fitted):
    other = darts_series(np.cumsum(sine(80, 2, seed=3), axis=0))
    assert not prompt_retrievals(fitted, other).prompts.equals(prompt_retrievals(fitted).prompts)


def test_both_faces_tell():
    y = monthly(columns=2)
    forecaster = NET.sktime(context_length=CONTEXT, horizon=HORIZON, **PLAIN).fit(y)
    found = prompt_retrievals(forecaster)
    assert found.prompts.shape == (2 * (60 - CONTEXT + 1), 3)
    assert found.prompts.index.get_level_values("series")[:2].tolist() == ["v0", "v1"]
    pd.testing.assert_frame_equal(prompt_retrievals(forecaster, y).prompts, found.prompts)
    # in the units of the training
    other = prompt_retrievals(forecaster, 1000 * y + 7).prompts
    pd.testing.assert_frame_equal(other, found.prompts)


def test_covariates_are_no_part_of_it():
    y, X = monthly(), monthly(seed=1).rename(columns={"v0": "x"})
    forecaster = NET.sktime(context_length=CONTEXT, horizon=HORIZON, **PLAIN).fit(y, X=X)
    assert forecaster._engine.model.model.network.covariates.n_tokens
    assert prompt_retrievals(forecaster).prompts.shape == (60 - CONTEXT + 1, 3)
    model = NET.darts(**PLAIN).fit(SERIES, past_covariates=SERIES)
    assert prompt_retrievals(model).prompts.shape == (2 * (80 - CONTEXT + 1), 3)


@pytest.mark.parametrize("changes", [{"level": True}, {"patch_length": 5}, {"text": "series"}])
def test_every_setting_can_be_looked_at(changes):
    model = NET.darts(**{**PLAIN, **changes}).fit(SERIES)
    assert prompt_retrievals(model).prompts.to_numpy().max() < 8


def test_gaps_are_no_matter(fitted):
    values = sine(80, 2)
    values[10:30, 1] = np.nan
    assert prompt_retrievals(fitted, darts_series(values)).weights.notna().all(axis=None)


def test_what_cannot_be_looked_at_is_an_error(fitted):
    with pytest.raises(ValueError, match="series must have 12 points or more, found 5"):
        prompt_retrievals(fitted, SERIES[:5])
    several = NET.darts(**PLAIN).fit([SERIES] * 2)
    with pytest.raises(ValueError, match="series must be given"):
        prompt_retrievals(several)
    assert len(prompt_retrievals(several, SERIES).prompts)
    with pytest.raises(ValueError, match=r"no prompts to look at: .* prompts=False"):
        prompt_retrievals(NET.darts(text="none", prompts=False).fit(SERIES))
    with pytest.raises(ValueError, match="LLMTSNetModel or LLMTSNetForecaster, found CALFModel"):
        prompt_retrievals(OTHER.darts().fit(SERIES))
    with pytest.raises(ValueError, match="estimator must be fitted"):
        prompt_retrievals(NET.darts())
    with pytest.raises(Exception, match="not been fitted"):
        prompt_retrievals(NET.sktime())


def test_always_the_same_prompts_are_warned_of(recwarn):
    model = NET.darts(**PLAIN).fit(SERIES)
    prompt_retrievals(model)
    assert not [w for w in recwarn if w.category is PromptCollapseWarning]
    with pytest.warns(PromptCollapseWarning, match="retrieves the same 3 of 8 prompts"):
        found = prompt_retrievals(collapsed(model))
    assert found.diversity == pytest.approx(3 / 8)
    everything = NET.darts(**{**PLAIN, "top_k": 8}).fit(SERIES)
    recwarn.clear()
    prompt_retrievals(everything)  # there is nothing else to retrieve
    assert not [w for w in recwarn if w.category is PromptCollapseWarning]


def test_a_training_whose_prompts_collapse_warns():
    """A key whose scores are out of reach, and nothing that balances."""
    settings = {**PLAIN, "top_k": 1, "balance_weight": 0.0, "pull_weight": 0.0, "n_epochs": 60}
    model = collapsed(NET.darts(**settings).fit(SERIES, epochs=1))
    model.model.network.pool.of_query.weight.requires_grad_(False)
    with pytest.warns(PromptCollapseWarning, match="same 1 of 8 prompts .* Raise balance_weight"):
        model.fit(SERIES, epochs=60)
    assert model.training_summary["prompts_used"]["diversity"] < 0.3


def test_a_plot_shows_use_and_the_first_prompts(fitted):
    import matplotlib.pyplot as plt

    found = prompt_retrievals(fitted)
    figure = plot_retrievals(found)
    use, windows = figure.axes[:2]
    assert [bar.get_height() for bar in use.patches] == pytest.approx(found.use.tolist())
    assert (use.get_xlabel(), windows.get_xlabel()) == ("prompt", "window")
    assert [label.get_text() for label in windows.get_yticklabels()] == ["load", "heat"]
    image = windows.images[0].get_array()
    shown = dict(zip(["load", "heat"], image, strict=True))
    for name, row in shown.items():
        expected = found.prompts[1].xs(name, level="series")
        assert row.tolist() == expected.tolist()
    plt.close(figure)


# Retrieval tells kinds of windows apart --------------------------------------------------------

KINDS = ("rises", "falls", "sine", "shift")


def patterns(n, rng, length, horizon):
    """Return n segments (n, length + horizon) and their kinds, at random."""
    steps = np.arange(length + horizon)
    kinds = rng.integers(len(KINDS), size=n)
    line = (steps - length / 2) / (length / 2)
    phase = rng.uniform(0, 2 * np.pi, (n, 1))
    place = rng.integers(length // 4, 3 * length // 4, (n, 1))
    shapes = [
        np.broadcast_to(line, (n, len(steps))),
        np.broadcast_to(-line, (n, len(steps))),
        np.sin(2 * np.pi * steps / 8 + phase),
        np.where(steps < place, -1.0, 1.0),
    ]
    shape = np.choose(kinds[:, np.newaxis], shapes)
    shape = shape + 0.2 * rng.standard_normal(shape.shape)
    level, amplitude = 3 * rng.standard_normal((n, 1)), rng.uniform(0.5, 2, (n, 1))
    return (level + amplitude * shape).astype(np.float32), kinds


def named(model, segments, kinds=None, names=None):
    """Return the kind that each prompt stands for, or the kinds of segments by those."""
    with torch.no_grad():
        batch = Batch(past_target=torch.tensor(segments[:, :24]).unsqueeze(-1))
        indices = model.model.network.eval().retrieve(batch).indices[:, 0].numpy()
    if names is None:
        counts = np.zeros((32, len(KINDS)))
        np.add.at(counts, (indices, kinds[:, np.newaxis]), 1)
        return counts.argmax(1)
    votes = names[indices]  # (n, K)
    counts = np.stack([(votes == kind).sum(1) for kind in range(len(KINDS))], 1)
    counts = counts + 0.5 * np.eye(len(KINDS))[votes[:, 0]]  # ties: the first rank's
    return counts.argmax(1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_prompts_tell_kinds_of_windows_apart(seed):
    """What unseen windows retrieve names their kind; chance is a quarter."""
    rng = np.random.default_rng(seed)
    segments, kinds = patterns(640, rng, 24, 12)
    series = [TimeSeries.from_values(segment) for segment in segments]
    model = NET.model(
        24, 12, text="none", n_prompts=32, n_epochs=30, batch_size=32, random_state=seed,
        pl_trainer_kwargs={"accelerator": "cpu"},
    ).fit(series)  # fmt: skip
    assert model.training_summary["n_steps"] == 600
    unseen, expected = patterns(1000, rng, 24, 12)
    found = named(model, unseen, names=named(model, segments, kinds))
    assert (found == expected).mean() >= 0.8
    assert model.training_summary["prompts_used"]["diversity"] > 0.3

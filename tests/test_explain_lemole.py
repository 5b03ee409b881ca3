"""What drives LeMoLE's forecast: parts sum to it, and only what is identified stays the same."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from darts import TimeSeries
from darts.utils.likelihood_models.torch import (
    GaussianLikelihood,
    PoissonLikelihood,
    QuantileRegression,
)
from support import METHODS, darts_series, monthly, sine

from tsllm_estimators.darts import text_covariates
from tsllm_estimators.explain import (
    alignment,
    expert_contributions,
    modulation_table,
    plot_experts,
    prompt_sensitivity,
    routing_table,
)
from tsllm_estimators.explain._experts import contributions
from tsllm_estimators.explain._intervention import forecast, shown_to_lemole

LEMOLE, OTHER = (
    next(method for method in METHODS if method.name == name) for name in ("lemole", "calf")
)
LEVEL = 1000.0  # of the series, that parts are not to lose digits to it


def lemole(**changes):
    """Return a model of 12 + 6 steps with three experts."""
    return LEMOLE.darts(**{"lookbacks": [12, 6, 3], "text_encoder": "hash", **changes})


def dated(values, start="2020-01-01"):
    times = pd.date_range(start, periods=len(values), freq="D")
    return TimeSeries(times, np.asarray(values, dtype=np.float32))


def events(times, name="event"):
    return text_covariates(
        [["sale", "", "strike"][i % 7 % 3] for i in range(len(times))], times, name
    )


@pytest.fixture
def still():
    """Return a model whose experts can be set: no texts, and no bias yet."""
    series = dated(sine(60))
    settings = {"normalization": "last", "cnn_layers": 1, "kernel_size": 1}
    return lemole(text="none", **settings).fit(series), series


def experts_of(model):
    """Return the weights of the three experts, without those of the training."""
    weights = model.model.network.experts.weights
    with torch.no_grad():
        model.model.network.experts.bias.zero_()
        for bias in model.model.network.mixing.biases:
            bias.zero_()
        for weight in weights:
            weight.zero_()
    return weights


def parts_of(model, *arguments):
    shown = shown_to_lemole(model, *(*arguments, *[None] * (4 - len(arguments))))
    return shown, [contributions(shown.network, batch) for batch in shown.batches]


# Parts sum to the forecast -------------------------------------------------------------------

SETTINGS = {
    "plain": {},
    "own weights": {"shared_experts": False},
    "mixed variates": {"mix_variates": True, "shared_experts": False},
    "residual": {"fusion": "residual", "normalization": "last"},
    "one convolution": {"cnn_layers": 1, "kernel_size": 1, "normalization": None},
    "quantiles": {"likelihood": QuantileRegression([0.1, 0.5, 0.9])},
    "a width": {"likelihood": GaussianLikelihood(), "mix_variates": True},
    "a count": {"likelihood": PoissonLikelihood(), "normalization": None},
    "the default lookbacks": {"lookbacks": None},
    "equal lookbacks": {"lookbacks": [6, 6, 4]},
    "no text": {"text": "none"},
    "the calendar": {"text": "calendar", "dynamic": "window"},
}


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_parts_sum_to_the_forecast(settings, columns):
    values = sine(60, columns)
    values = values + (3 if "likelihood" in settings else LEVEL)
    model = lemole(**settings, optimizer_kwargs={"lr": 0.02}).fit(dated(values))
    shown, found = parts_of(model)
    for batch, parts in zip(shown.batches, found, strict=True):
        whole = forecast(shown.network, batch)
        for kind in ("bands", "experts"):
            np.testing.assert_allclose(sum(parts[kind].values()), whole, rtol=1e-8, atol=1e-8)
    tables = expert_contributions(model)
    for table in (tables.by_band, tables.by_expert):
        np.testing.assert_allclose(table.sum(axis=1), 1)
        assert table.index.tolist() == [1, 2, 3, 4, 5, 6]
        assert table.index.name == "step"
        assert (table.to_numpy() >= 0).all()


@pytest.mark.parametrize("normalization", ["instance", "last", None])
def test_what_is_explained_is_what_is_predicted(normalization):
    series = dated(10 * sine(60, 2) + 5)
    model = lemole(normalization=normalization).fit(series)
    shown = shown_to_lemole(model, series[-18:], None, None, None)
    (batch,) = shown.batches
    context = batch.past_target[0]
    if normalization == "instance":
        location, unit = context.mean(0), (context.var(0, correction=0)) ** 0.5
    else:
        location, unit = context[-1] if normalization else 0.0, shown.network.unit
    predicted = model.predict(6, series=series[-18:-6]).values()
    found = forecast(shown.network, batch)[0] * unit + location
    np.testing.assert_allclose(found, predicted, rtol=1e-4)


def test_gaps_contribute_nothing_and_break_nothing():
    values = sine(60, 2)
    values[5:20, 0] = values[33, 1] = np.nan
    model = lemole().fit(dated(values))
    shown, found = parts_of(model)
    for batch, parts in zip(shown.batches, found, strict=True):
        np.testing.assert_allclose(
            sum(parts["bands"].values()), forecast(shown.network, batch), atol=1e-8
        )


# What is identified --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expert", "steps", "band"),
    [(2, slice(None), "1-3 back"), (1, slice(0, 3), "4-6 back"), (0, slice(0, 6), "7-12 back")],
)
def test_the_band_whose_steps_have_weights_has_all_the_share(still, expert, steps, band):
    model, series = still
    experts_of(model)[expert].data[:, steps] = 1.0
    found = expert_contributions(model, series)
    assert list(found.by_band) == ["1-3 back", "4-6 back", "7-12 back", "other"]
    assert list(found.by_expert) == ["last 12", "last 6", "last 3", "other"]
    np.testing.assert_allclose(found.by_band[band], 1)
    np.testing.assert_allclose(found.by_expert.iloc[:, expert], 1)


def test_a_step_of_the_horizon_is_told_by_its_own_weights(still):
    model, series = still
    full, _, short = experts_of(model)
    full.data[:, 0, 5] = 1.0  # the oldest step, the last step of the forecast
    short.data[:, 2, 0] = 1.0
    short.data[:, 0, 0] = -1.0
    found = expert_contributions(model, series).by_band
    assert found.loc[1, "1-3 back"] == found.loc[6, "7-12 back"] == 1
    assert not found.loc[2:5].to_numpy().any()  # nothing contributes, nothing has a share


@pytest.mark.parametrize("text", ["none", "both"])
@pytest.mark.parametrize(
    ("normalization", "change"),
    [*((n, "to a nested expert") for n in ("instance", "last", None)), ("instance", "a constant")],
)
def test_other_experts_of_the_same_forecasts_have_the_same_bands(normalization, text, change):
    """Weights of the last 3 steps can be any expert's: the forecasts are the same ones.

    Nor does a constant added to all weights change them, where the values of a window sum to 0.
    """
    series = dated(sine(60, 2))
    model = lemole(normalization=normalization, text=text, cnn_layers=1).fit(series)
    network, generator = model.model.network, torch.Generator().manual_seed(0)
    kernel = network.mixing.kernels[0]
    kernel.data = kernel.data.mean(1, keepdim=True).expand_as(kernel).clone()  # experts count alike
    before, predicted = expert_contributions(model), model.predict(6).values()
    full, _, short = network.experts.weights
    if change == "a constant":
        full.data += torch.randn(full.shape[2:], generator=generator)
    else:
        moved = torch.randn(short.shape, generator=generator)
        full.data[:, -3:] += moved
        short.data -= moved
    after = expert_contributions(model)
    np.testing.assert_allclose(model.predict(6).values(), predicted, atol=2e-5)
    np.testing.assert_allclose(after.by_band, before.by_band, atol=1e-5)
    if change == "to a nested expert":
        assert np.abs(after.by_expert - before.by_expert).to_numpy().max() > 0.05


def test_what_is_not_identified_is_said():
    series = dated(sine(60))
    found = expert_contributions(lemole().fit(series))
    assert not found.identified
    assert "by_expert (not identified)" in str(found)
    assert "not identified" in found.note
    assert found.note in repr(found)
    alone = expert_contributions(lemole(lookbacks=[4]).fit(series))
    assert alone.identified
    assert "(not identified)" not in str(alone)
    assert list(alone.by_band) == ["1-4 back", "5-12 back", "other"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.identified = True


def test_equal_experts_are_told_apart():
    found = expert_contributions(lemole(lookbacks=[6, 1, 6]).fit(dated(sine(60))))
    assert list(found.by_expert) == ["last 6 (1)", "last 1", "last 6 (2)", "other"]
    assert list(found.by_band) == ["1 back", "2-6 back", "7-12 back", "other"]


def test_no_expert_sees_beyond_the_longest_lookback():
    series = dated(sine(60))
    for normalization, seen in [("last", False), (None, False), ("instance", True)]:
        found = expert_contributions(lemole(lookbacks=[6], normalization=normalization).fit(series))
        assert found.by_band["7-12 back"].any() == seen


# Modulation ----------------------------------------------------------------------------------


def test_a_modulation_that_is_neutral_changes_nothing():
    model = lemole().fit(dated(sine(60, 2)), future_covariates=events(dated(sine(66))))
    for name, parameter in model.model.network.named_parameters():
        if name.startswith(("static.", "stamps.", "future_texts.")):
            parameter.data.zero_()
    found = modulation_table(model)
    assert found.columns.get_level_values(0).unique().tolist() == [
        *("static", "dynamic", "calendar", "text:event"),
    ]
    assert found.columns.names == ["modulation", "measure"]
    assert found.index.tolist() == [1, 2, 3, 4, 5, 6]
    assert not found.to_numpy().any()


@pytest.fixture(scope="module")
def told():
    """Return a model that was trained on a series which jumps at events."""
    times = dated(sine(126))
    happens = np.random.default_rng(0).random(126) < 0.25
    texts = text_covariates(["sale" if one else "" for one in happens], times, "event")
    values = 0.2 * sine(126) + 3 * happens[:, np.newaxis]
    settings = {"n_epochs": 60, "optimizer_kwargs": {"lr": 0.01}, "dropout": 0.0}
    model = lemole(**settings, description="sales of a shop")
    return model.fit(dated(values)[:120], future_covariates=texts), dated(values), texts


def test_texts_that_matter_have_an_effect_that_varies(told):
    model, *_ = told
    found = modulation_table(model)
    event, calendar = found["text:event"], found["calendar"]
    assert (event[["gamma", "beta"]].mean() > 0.01).all()
    assert event["variation"].min() > 0.3
    assert event["variation"].mean() > 3 * calendar["variation"].mean()
    assert (found["dynamic", "effect"] > 0.3).all()
    # one description says the same of all windows
    assert found["static", "effect"].min() > 0
    np.testing.assert_allclose(found["static", "variation"], 0, atol=1e-12)


def test_strength_is_that_of_the_networks_own_gamma_and_beta(told):
    model, *_ = told
    shown = shown_to_lemole(model, None, None, None, None)
    with torch.no_grad():
        parts = [shown.network.dynamic_modulation(batch) for batch in shown.batches]
        expected = torch.cat(parts, 1).abs().mean((1, 2))
        static = shown.network.static_modulation(shown.batches[0]).abs().mean((1, 2))
    found = modulation_table(model)
    np.testing.assert_allclose(found["dynamic"][["gamma", "beta"]].T, expected)
    np.testing.assert_allclose(found["static"][["gamma", "beta"]].T, static)


def test_effect_is_what_empty_texts_change_in_the_forecasts(told):
    """Without the words of a column, a forecast of darts moves as much as the table says."""
    model, series, texts = told
    one = series[100:118]  # one window
    window = series[100:112]
    silent = text_covariates([""] * 126, texts, "event")
    change = [
        model.predict(6, series=window, future_covariates=t).values() for t in (texts, silent)
    ]
    expected = np.abs(change[0] - change[1])[:, 0] / window.values().std()
    found = modulation_table(model, one, future_covariates=texts)["text:event"]
    np.testing.assert_allclose(found["effect"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["variation"], 0, atol=1e-12)  # one window is its own mean


def test_the_point_forecasts_own_modulation_is_measured():
    model = lemole(likelihood=GaussianLikelihood()).fit(dated(sine(60, 2)))
    network = model.model.network
    for parameter in network.static.parameters():
        parameter.data.zero_()
    bias = network.static.linear.bias.data.view(2, 2, 2, 6)  # gamma and beta, c, group, step
    bias[0, 0, 0], bias[1, :, 0], bias[:, :, 1] = 0.5, -2.0, 7.0
    found = modulation_table(model)["static"]
    np.testing.assert_allclose(found["gamma"], 0.25)
    np.testing.assert_allclose(found["beta"], 2)


def test_static_covariates_modulate_without_texts():
    series = dated(sine(60)).with_static_covariates(pd.DataFrame({"size": [3.0]}))
    model = lemole(text="none").fit(series)
    assert modulation_table(model).columns.get_level_values(0).unique().tolist() == ["static"]
    with pytest.raises(ValueError, match="nothing that modulates its forecast"):
        modulation_table(lemole(text="none").fit(dated(sine(60))))


def test_columns_of_the_past_and_ahead_keep_their_names():
    series, times = dated(sine(60)), dated(sine(66))
    texts = {"past_covariates": events(times), "future_covariates": events(times)}
    model = lemole().fit(series, **texts)
    names = modulation_table(model).columns.get_level_values(0).unique().tolist()
    assert names == ["static", "dynamic", "calendar", "text:event (past)", "text:event"]
    ignored = lemole(text="static").fit(series, **texts)
    assert modulation_table(ignored).columns.get_level_values(0).unique().tolist() == ["static"]


# Faces, covariates, errors -------------------------------------------------------------------


def test_both_faces_agree():
    times = pd.date_range("2020-01-01", periods=66, freq="D")
    y = pd.DataFrame(sine(60, 2).astype(float), index=times[:60], columns=["a", "b"])
    X = pd.DataFrame({"event": ["sale", "", "rain"] * 22, "price": range(66)}, index=times)
    settings = {"lookbacks": [12, 6, 3], "text_encoder": "hash", "description": "two waves"}
    host = {"context_length": 12, "horizon": 6, "scaling": None, "likelihood": None}
    host |= {"max_steps": None, "num_epochs": 2}
    forecaster = LEMOLE.sktime(**settings, **host, ema_decay=None).fit(y, X[:60])
    seed = forecaster._engine.model.model_params["random_state"]
    series = dated(y)
    texts = text_covariates(X["event"], times, "event")
    future = texts.stack(TimeSeries(times, X[["price"]].to_numpy(np.float32)))
    model = lemole(**settings, random_state=seed, ema_decay=None)
    model.fit(series, future_covariates=future)
    for by_sktime, by_darts in [
        (expert_contributions(forecaster), expert_contributions(model)),
        (
            expert_contributions(forecaster, y, X),
            expert_contributions(model, series, None, None, future),
        ),
    ]:
        pd.testing.assert_frame_equal(by_sktime.by_band, by_darts.by_band, rtol=1e-4)
        pd.testing.assert_frame_equal(by_sktime.by_expert, by_darts.by_expert, rtol=1e-4)
    for by_sktime, by_darts in [
        (modulation_table(forecaster), modulation_table(model)),
        (
            modulation_table(forecaster, y[:30], X=X),
            modulation_table(model, series[:30], future_covariates=future),
        ),
    ]:
        pd.testing.assert_frame_equal(by_sktime, by_darts, rtol=1e-3, atol=1e-6)
        assert by_darts["text:event", "effect"].all()


def test_the_estimator_stays_as_it_is(told):
    model, series, texts = told
    before = model.predict(6).values()
    state = {k: v.clone() for k, v in model.model.state_dict().items() if torch.is_tensor(v)}
    expert_contributions(model)
    modulation_table(model, series, future_covariates=texts)
    np.testing.assert_array_equal(model.predict(6).values(), before)
    after = model.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert {v.dtype for v in after.values() if torch.is_tensor(v)} == {torch.float32}
    model.fit(series[:120], future_covariates=texts, epochs=1)


@pytest.mark.parametrize("kind", ["past_covariates", "future_covariates"])
def test_numeric_covariates_count_as_other(kind):
    series, number = dated(sine(60)), dated(np.linspace(0, 1, 66)[:, np.newaxis])
    model = lemole(optimizer_kwargs={"lr": 0.05}).fit(series, **{kind: number})
    found = expert_contributions(model)
    pd.testing.assert_frame_equal(
        expert_contributions(model, series, **{kind: number}).by_band, found.by_band
    )
    assert found.by_band["other"].all()
    for look in (expert_contributions, modulation_table):
        with pytest.raises(ValueError, match=f"{kind}: the network was made for some"):
            look(model, series)


def test_encoders_and_shifted_forecasts_are_looked_at_as_they_were_trained():
    encoders = {"cyclic": {"future": ["dayofweek"]}}
    series = dated(sine(60))
    model = lemole(add_encoders=encoders, output_chunk_shift=2).fit(series)
    pd.testing.assert_frame_equal(modulation_table(model, series), modulation_table(model))
    with pytest.raises(ValueError, match="series must have 20 points or more, found 19"):
        expert_contributions(model, series[:19])


def test_saved_and_zero_shot_models_can_be_looked_at(told, tmp_path):
    model, series, texts = told
    model.save_pretrained(tmp_path)
    again = LEMOLE.model.from_pretrained(tmp_path, fit_strategy="zero-shot")
    pd.testing.assert_frame_equal(
        modulation_table(again, series, future_covariates=texts),
        modulation_table(model, series, future_covariates=texts),
        rtol=1e-4,
        atol=1e-6,
    )


def test_instances_have_descriptions_and_scales_of_their_own():
    frames = {key: (9**i * monthly(40, seed=i)) for i, key in enumerate("ab")}
    panel = pd.concat(frames, names=["key", "time"])
    described = {"a": "a small wave", "b": "a large wave of the sea"}
    forecaster = LEMOLE.sktime(
        context_length=12, horizon=6, description=described, text_encoder="hash", max_steps=60
    ).fit(panel)
    first = modulation_table(forecaster)
    pd.testing.assert_frame_equal(modulation_table(forecaster, frames["a"]), first)
    pd.testing.assert_frame_equal(modulation_table(forecaster, panel.loc[["a"]]), first)
    second = modulation_table(forecaster, panel.loc[["b"]])
    assert not np.allclose(second["static", "gamma"], first["static", "gamma"])


def test_new_texts_of_another_series_are_read(told):
    model, series, texts = told
    other = text_covariates(["flood"] * 126, texts, "event")
    found = modulation_table(model, series, future_covariates=other)["text:event"]
    assert found["effect"].min() > 0
    assert not np.allclose(found, modulation_table(model)["text:event"])


def test_what_cannot_be_looked_at_is_an_error(told):
    model, series, texts = told
    used = {"future_covariates": texts}
    with pytest.raises(ValueError, match="series must have 18 points or more, found 17"):
        expert_contributions(model, series[:17], **used)
    with pytest.raises(ValueError, match="series must have 1 columns"):
        expert_contributions(model, dated(sine(60, 2)), **used)
    with pytest.raises(ValueError, match=r"expected the components of text \['text:event'\]"):
        modulation_table(model, series)
    with pytest.raises(ValueError, match="X must be None"):
        modulation_table(model, X=pd.DataFrame())
    with pytest.raises(ValueError, match="series must be given"):
        expert_contributions(lemole().fit([series, series]))
    with pytest.raises(ValueError, match="must be fitted"):
        expert_contributions(lemole())


def test_what_a_forecaster_needs_is_said():
    y, X = monthly(), pd.DataFrame({"event": ["sale", ""] * 30}, index=monthly().index)
    forecaster = LEMOLE.sktime(context_length=12, horizon=6, text_encoder="hash").fit(y, X)
    with pytest.raises(ValueError, match=r"X: expected the columns \['event'\]"):
        modulation_table(forecaster, y)
    with pytest.raises(ValueError, match="past_covariates must be None: a forecaster takes"):
        modulation_table(forecaster, past_covariates=X)
    with pytest.raises(ValueError, match="has not been fitted"):
        expert_contributions(LEMOLE.sktime())
    several = pd.concat({"a": y, "b": y}, names=["key", "time"])
    broadcast = LEMOLE.sktime(broadcasting=True, text="none").fit(several, fh=[1, 2])
    with pytest.raises(ValueError, match="look at one of its forecasters_"):
        expert_contributions(broadcast)


def test_methods_are_looked_at_with_what_is_theirs(told):
    model, *_ = told
    other = OTHER.darts().fit(dated(sine(60)))
    for look in (expert_contributions, modulation_table):
        with pytest.raises(ValueError, match=r"must be a fitted LeMoLEModel or .* found CALFModel"):
            look(other)
    with pytest.raises(ValueError, match=r"must be a fitted CALFModel or .* found LeMoLEModel"):
        alignment(model)
    with pytest.raises(ValueError, match="no prompt to change"):
        prompt_sensitivity(model)
    for by in ("layer", "window", "epoch"):
        with pytest.raises(ValueError, match="no router to look at"):
            routing_table(model, by=by)


# The picture ---------------------------------------------------------------------------------


def test_bands_experts_and_modulations_are_drawn(told):
    import matplotlib.pyplot as plt

    model, *_ = told
    found = expert_contributions(model)
    figure = plot_experts(found)
    bands, experts = figure.axes
    tops = [patch.get_data().values for patch in bands.patches]
    np.testing.assert_allclose(np.transpose(tops), found.by_band.cumsum(axis=1))
    assert "not identified" in experts.get_title()
    plt.close(figure)
    table = modulation_table(model)
    figure = plot_experts(found, table)
    lines = figure.axes[2].lines
    expected = ["static", "dynamic", "calendar", "text:event"]
    assert [line.get_label() for line in lines[::2]] == expected
    np.testing.assert_allclose(lines[0].get_ydata(), table["static", "effect"])
    np.testing.assert_allclose(lines[-1].get_ydata(), table["text:event", "variation"])
    plt.close(figure)


def test_one_expert_and_one_step_are_drawn():
    import matplotlib.pyplot as plt

    model = LEMOLE.darts(12, 1, lookbacks=[12], text_encoder="hash").fit(darts_series(sine(40)))
    figure = plot_experts(expert_contributions(model), modulation_table(model))
    assert figure.axes[1].get_title() == "Experts"
    labels = [line.get_label() for line in figure.axes[2].lines[::2]]
    assert labels == ["static", "calendar"]  # which is all that is dynamic
    assert figure.axes[0].get_xlim() == (0.5, 1.5)
    plt.close(figure)

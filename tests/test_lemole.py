"""The network of LeMoLE: its experts, their mixture, its texts, its switches."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from darts import TimeSeries
from support import METHODS, darts_series, monthly, sine

from tsllm_estimators._calendar import stamps_of
from tsllm_estimators.networks.base import Batch, Shapes
from tsllm_estimators.networks.lemole import TEXTS, LeMoLE, LeMoLEConfig
from tsllm_estimators.networks.linear_experts import Experts, Mixing

LEMOLE = next(method for method in METHODS if method.name == "lemole")
LENGTH, HORIZON, N = 12, 6, 4


def build(n_variates=3, seed=0, shapes=None, **settings):
    torch.manual_seed(seed)
    config = LeMoLEConfig(**{"backbone": "tiny", "d_hidden": 8, **settings})
    shapes = {
        "context_length": LENGTH, "horizon": HORIZON, "n_variates": n_variates, **(shapes or {}),
    }  # fmt: skip
    return LeMoLE(config, Shapes(**shapes)).eval()


def trained(seed=0, **settings):
    """Return a network whose conditioners and mixtures have left their start."""
    network = build(seed=seed, **settings)
    torch.manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return network


def batch(network, n_variates=3, seed=0, start="2020-01-06", freq="h", **texts):
    """Return windows of a calendar, in the codes of a network's vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randn(N, LENGTH, n_variates, generator=generator)
    if not network.config.texts_read:
        return Batch(past_target=windows)
    vocabulary = network.texts.vocabulary
    index = pd.date_range(start, periods=N + LENGTH + HORIZON, freq=freq)
    stamps, where = stamps_of(index, dated=network.config.stamps == "dated")
    if network.config.dynamic == "window":
        from tsllm_estimators.darts._texts import _spans

        stamps, where = _spans(stamps, where, LENGTH)
    codes = torch.from_numpy(vocabulary.codes(stamps)[where])
    steps = torch.arange(N).unsqueeze(1) + torch.arange(LENGTH + HORIZON)
    coded = {k: torch.from_numpy(vocabulary.codes(v.ravel()).reshape(v.shape))
             for k, v in texts.items()}  # fmt: skip
    return Batch(past_target=windows, stamps=codes[steps], **coded)


@torch.no_grad()
def forecast(network, **kwargs):
    return network(batch(network, **kwargs)).parameters


# experts and mixture ------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mix_variates", [True, False])
def test_mixed_maps_forecast_what_mixed_forecasts_are(shared, mix_variates):
    """The product with the mixed maps equals the convolutions over the experts' forecasts."""
    shapes = Shapes(context_length=LENGTH, horizon=HORIZON, n_variates=2)
    torch.manual_seed(0)
    experts = Experts([12, 6, 5], shared, shapes)
    mixing = Mixing(3, 2, 3, 2 if mix_variates else 1)
    for parameter in [*experts.parameters(), *mixing.parameters()]:
        torch.nn.init.normal_(parameter)
    window = torch.randn(N, LENGTH, 2)

    forecasts = torch.stack(
        [
            torch.einsum("blc,clh->bch", window[:, -len(w[0]) :], w[..., 0].expand(2, -1, -1)) + b
            for w, b in zip(experts.weights, experts.bias[..., 0], strict=True)
        ]
    )  # (m, b, c, H)
    kernel, bias = mixing.kernel()
    channels = forecasts.permute(1, 0, 2, 3)  # (b, m, c, H)
    channels = (
        channels.reshape(N, 6, -1) if mix_variates else channels.transpose(1, 2).flatten(0, 1)
    )
    expected = F.conv1d(channels, kernel, bias, padding=kernel.shape[-1] // 2)
    found = experts(window, mixing)[..., 0]
    torch.testing.assert_close(found, expected.reshape(N, 2, HORIZON), rtol=1e-4, atol=1e-4)


def test_convolutions_one_after_another_are_one():
    torch.manual_seed(0)
    mixing = Mixing(4, 3, 3, 1)
    for parameter in mixing.parameters():
        torch.nn.init.normal_(parameter)
    values = torch.randn(5, 4, 30)
    expected = values
    for kernel, bias in zip(mixing.kernels, mixing.biases, strict=True):
        expected = F.conv1d(expected, kernel, bias, padding=1)
    found = F.conv1d(values, *mixing.kernel(), padding=3)
    # the edges differ: between the layers there is no horizon that ends
    torch.testing.assert_close(found[..., 2:-2], expected[..., 2:-2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, expected)


def test_the_mixture_starts_as_the_mean_of_the_experts():
    network = build(text="none", cnn_layers=3, lookbacks=[12, 4])
    window = torch.randn(N, LENGTH, 3)
    own = [
        torch.einsum("blc,lh->bch", window[:, -len(weight[0]) :], weight[0, :, :, 0])
        for weight in network.experts.weights
    ]
    found = network.experts(window, network.mixing)[..., 0]
    torch.testing.assert_close(found, torch.stack(own).mean(0))


def test_lookbacks():
    assert build().lookbacks == [12, 6, 3, 1]
    assert build(shapes={"context_length": 3}).lookbacks == [3, 1]
    assert build(lookbacks=[2, 12, 2]).lookbacks == [2, 12, 2]
    with pytest.raises(ValueError, match=r"lookbacks must be at most 12, .* found 13"):
        build(lookbacks=[13])


def test_an_expert_sees_its_last_steps_only():
    network = trained(text="none", lookbacks=[5], normalization=None)
    windows = torch.randn(N, LENGTH, 3)
    changed = windows.clone()
    changed[:, :-5] += 1
    with torch.no_grad():
        first, second = (network(Batch(past_target=w)).parameters for w in (windows, changed))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    changed[:, -5:] += 1
    with torch.no_grad():
        assert not torch.allclose(network(Batch(past_target=changed)).parameters, first)


def test_variates_are_apart_unless_mixed():
    for mixed in (False, True):
        network = trained(mix_variates=mixed)
        one = batch(network)
        other = copy.copy(one)
        other.past_target = one.past_target.clone()
        other.past_target[..., 2] *= -3
        with torch.no_grad():
            first, second = network(one).parameters, network(other).parameters
        assert torch.allclose(first[:, :, :2], second[:, :, :2], atol=1e-5) is not mixed


# texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_texts_start_without_an_effect(text):
    """What conditions the forecast starts from the mixture itself."""
    for fusion in ("concat", "residual"):
        control, network = build(text="none"), build(text=text, fusion=fusion)
        network.load_state_dict(control.state_dict(), strict=False)
        torch.testing.assert_close(forecast(network), forecast(control))


def test_what_is_not_chosen_is_not_read():
    other = {"start": "2021-05-05 13:00"}
    moved = {}
    for text in TEXTS:
        network = trained(text=text)
        moved[text] = not torch.equal(forecast(network), forecast(network, **other))
    reads = {"both": True, "static": False, "dynamic": True, "calendar": True, "none": False}
    assert moved == reads


@pytest.mark.parametrize("text", ["both", "dynamic", "calendar"])
@pytest.mark.parametrize("dynamic", ["step", "window"])
def test_a_recurring_calendar_does_not_know_the_year(text, dynamic):
    weeks_later = {"start": "2021-01-04"}  # a Monday, too
    for stamps, equal in (("recurring", True), ("dated", False)):
        network = trained(text=text, dynamic=dynamic, stamps=stamps)
        first, second = forecast(network), forecast(network, **weeks_later)
        assert torch.allclose(first, second, atol=1e-6) is equal


def test_without_a_calendar_places_are_told():
    """Both a batch without stamps and one whose stamps say nothing."""
    network = trained()
    with_none = forecast(network, freq="h")
    bare = Batch(past_target=batch(network).past_target)
    with torch.no_grad():
        placed = network(bare).parameters
    assert not torch.allclose(with_none, placed)
    told = network.texts.vocabulary.entries
    assert [f"step {step} ahead" for step in range(1, HORIZON + 1)] == [
        entry for entry in told if str(entry).startswith("step ")
    ]


def columns(step, text, shape=(N, LENGTH + HORIZON, 1)):
    texts = np.full(shape, "", dtype=object)
    if step is not None:
        texts[:, step] = text
    return texts


@pytest.mark.parametrize("encoder", ["backbone", "hash", "learned"])
def test_a_text_moves_the_steps_that_it_is_learned_to_move(encoder):
    """At first its own step of the horizon; without any text nothing is added."""
    network = build(text="dynamic", shapes={"n_future_texts": 1}, text_encoder=encoder)
    torch.nn.init.normal_(network.future_texts[0].projection.linear.weight)
    silent = forecast(network, future_texts=columns(None, ""))
    torch.testing.assert_close(silent, forecast(build(text="none")))
    told = forecast(network, future_texts=columns(LENGTH + 2, "strike"))
    # the last convolution sees a step beside it
    assert [h for h in range(HORIZON) if not torch.allclose(told[:, h], silent[:, h])] in (
        [2], [1, 2, 3],
    )  # fmt: skip
    other = forecast(network, future_texts=columns(LENGTH + 2, "sale"))
    assert not torch.allclose(told, other)
    before = forecast(network, future_texts=columns(3, "strike"))
    torch.testing.assert_close(before, silent)


def test_the_last_text_of_the_past_moves_all_steps():
    shape = (N, LENGTH, 1)
    network = build(text="both", shapes={"n_past_texts": 1})
    torch.nn.init.normal_(network.past_texts[0].projection.linear.weight)
    silent = forecast(network, past_texts=columns(None, "", shape))
    told = forecast(network, past_texts=columns(LENGTH - 1, "strike", shape))
    assert ((told - silent).abs().amin((0, 2, 3)) > 0).all()


def test_texts_that_the_network_was_made_for_must_come():
    network = build(shapes={"n_future_texts": 1})
    with pytest.raises(
        ValueError, match=r"future_texts: the network was made for some, found none"
    ):
        network(batch(network))


def test_the_description_conditions_the_forecast():
    network = trained(text="static")
    first = forecast(network)
    network.config.__dict__["description"] = "Heat of a kiln"
    assert not torch.allclose(first, forecast(network))
    own = np.array([network.prompt("Heat of a kiln")] * 2 + [network.prompt("Load")] * 2)
    each = forecast(network, static_texts=own)
    torch.testing.assert_close(each[:2], forecast(network)[:2])
    assert not torch.allclose(each[2:], forecast(network)[2:])


def test_no_step_of_the_training_runs_the_language_model(monkeypatch):
    from tsllm_estimators.llm.text import TextEncoder

    network, calls, pooled = build(), [], TextEncoder.pooled
    monkeypatch.setattr(
        TextEncoder, "pooled", lambda *args, **kwargs: calls.append(1) or pooled(*args, **kwargs)
    )
    one = batch(network)
    network.measure(one)
    network.encode_texts(one)
    n_calls = len(calls)
    assert n_calls > 0
    for _ in range(3):
        network.train()(one).parameters.sum().backward()
    assert len(calls) == n_calls


def test_vectors_of_texts_are_centred_and_scaled_by_the_training():
    network = build()
    one = batch(network)
    network.measure(one)
    network.encode_texts(one)
    projection = network.stamps.projection
    rows = network.texts()[one.stamps[:, LENGTH:].unique()]
    torch.testing.assert_close(projection.location, rows.mean(0))
    scaled = (rows - projection.location) / projection.scale
    assert scaled.square().mean().item() == pytest.approx(1, rel=1e-3)
    # one text has nothing to be centred by
    assert not network.static_text.location.any()


def test_many_texts_are_mapped_as_few():
    """Only those of the batch are mapped where a vocabulary is large."""
    network = trained()
    plain = forecast(network)
    network.texts.vocabulary.codes(f"text {number}" for number in range(200))
    torch.testing.assert_close(forecast(network), plain)
    assert len(network.texts.rows) > N * HORIZON


def test_dropped_texts_are_no_texts_and_the_others_count_more():
    network = trained(text="dynamic", dropout=0.5)
    one = batch(network)
    codes, rows = one.stamps, network.texts
    network.stamps.train()
    told = network.stamps.projection(codes, rows())
    network.stamps.eval()
    plain = network.stamps.projection(codes, rows())
    is_kept = (told != 0).all(0)
    assert 0.3 < is_kept.float().mean() < 0.7
    torch.testing.assert_close(told[:, is_kept], 2 * plain[:, is_kept])
    assert not told[:, ~is_kept].any()


def test_what_the_user_says_is_never_dropped():
    network = build(shapes={"n_future_texts": 1, "n_past_texts": 1}, dropout=0.5)
    own = [*network.future_texts, *network.past_texts]
    assert [column.projection.dropout.p for column in own] == [0.0, 0.0]
    assert network.stamps.projection.dropout.p == 0.5


def test_rows_made_for_a_forecast_can_be_trained_on():
    network = build()
    with torch.inference_mode():
        network(batch(network))
    network.train()(batch(network)).parameters.sum().backward()


# switches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lookbacks", (None, [12, 12, 12, 12], [4])),
        ("shared_experts", (True, False)),
        ("cnn_layers", (1, 2)),
        ("kernel_size", (1, 3)),
        ("mix_variates", (False, True)),
        ("fusion", ("concat", "residual")),
        ("text", TEXTS),
        ("dynamic", ("step", "window")),
        ("stamps", ("recurring", "dated")),
        ("description", (None, "Heat of a kiln")),
        ("text_encoder", ("backbone", "hash", "learned")),
        ("backbone_weights", ("pretrained", "random")),
        ("causal", (None, True)),
        ("d_hidden", (4, 8)),
        ("dropout", (0.0, 0.5)),
        ("task_loss", ("l1", "mse")),
        ("normalization", ("instance", "last", None)),
    ],
)
def test_a_switch_changes_what_is_learned(name, values, language_models):
    values_of_series = 3 + sine(60, 2)
    times = pd.date_range("2020-01-01", periods=60, freq="D")
    series = TimeSeries(times, values_of_series)
    forecasts = []
    for value in values:
        settings = {"backbone": language_models["bert"], name: value}
        model = LEMOLE.darts(LENGTH, HORIZON, n_epochs=3, **settings)
        forecasts.append(tuple(model.fit(series).predict(HORIZON).values().ravel()))
    assert len(set(forecasts)) == len(values)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"backbone": "none"}, ValueError, "only encodes texts, .* text_encoder='hash'"),
        ({"lookbacks": []}, TypeError, r"lookbacks must be a list .* found \[\]"),
        ({"lookbacks": [0]}, ValueError, "lookbacks must be an integer >= 1, found 0"),
        ({"lookbacks": 12}, TypeError, "lookbacks must be a list .* found 12"),
        ({"kernel_size": 4}, ValueError, "kernel_size must be odd, found 4"),
        ({"cnn_layers": 0}, ValueError, "cnn_layers must be an integer >= 1"),
        ({"fusion": "sum"}, ValueError, "fusion must be one of"),
        ({"text": "all"}, ValueError, "text must be one of"),
        ({"dynamic": "day"}, ValueError, "dynamic must be one of"),
        ({"stamps": "iso"}, ValueError, "stamps must be one of"),
        ({"text_encoder": "tfidf"}, ValueError, "text_encoder must be one of"),
        ({"description": 3}, TypeError, "description must be a text, a dict of texts .* found 3"),
        ({"description": {"a": 3}}, TypeError, "description must be .* found 3 for 'a'"),
        ({"dropout": 1.0}, ValueError, "dropout must be a number"),
        ({"normalization": "window"}, ValueError, "normalization must be one of"),
    ],
)
def test_bad_settings_say_what_to_do(settings, error, message):
    with pytest.raises(error, match=message):
        LeMoLEConfig(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stamps": "dated"}, "stamps: the saved weights were trained on 'recurring'.* 'dated'"),
        ({"text_encoder": "hash"}, "text_encoder: the saved weights were trained on 'backbone'"),
        ({"backbone_weights": "random", "backbone_kwargs": {"seed": 5}}, "backbone: the saved"),
    ],
)
def test_weights_of_other_vectors_are_refused(changes, message):
    state = build().state_dict()
    with pytest.raises((ValueError, RuntimeError), match=message):
        build(**changes).load_state_dict(state)


def test_nothing_frozen_is_saved():
    state = build().state_dict()
    assert not [name for name in state if "backbone" in name or "rows" in name]
    assert state["texts._extra_state"]["backbone"] == "tiny"
    assert not [name for name in build(text="none").state_dict() if "extra_state" in name]


def test_without_text_no_language_model_is_loaded(monkeypatch):
    from tsllm_estimators.networks import texts

    def refuse(*args, **kwargs):
        raise AssertionError("a language model was asked for")

    monkeypatch.setattr(texts, "load_text_encoder", refuse)
    for settings in ({"text": "none"}, {"text": "calendar"}, {"text_encoder": "hash"}):
        model = LEMOLE.darts(LENGTH, HORIZON, **{**settings, "backbone": "no/such-model"})
        assert np.isfinite(model.fit(darts_series(monthly())).predict(HORIZON).values()).all()


def test_a_width_is_conditioned_apart_from_a_location():
    quantiles = build(shapes={"parameters": ("location",) * 3, "location": 1})
    gaussian = build(shapes={"parameters": ("location", "scale")})
    assert (quantiles.n_groups, gaussian.n_groups) == (1, 2)
    assert forecast(quantiles).shape == (N, HORIZON, 3, 3)
    assert forecast(gaussian).shape == (N, HORIZON, 3, 2)


def test_one_step_ahead_works():
    network = trained(shapes={"horizon": 1})
    assert network(Batch(past_target=torch.randn(2, LENGTH, 3))).parameters.shape == (2, 1, 3, 1)


def test_long_contexts_work():
    network = build(shapes={"context_length": 4096, "horizon": 96}, text="none")
    assert network.lookbacks == [4096, 2048, 1024, 512]
    assert network(Batch(past_target=torch.randn(2, 4096, 3))).parameters.shape == (2, 96, 3, 1)


def test_samples_of_a_dropped_description_differ():
    model = LEMOLE.darts(LENGTH, HORIZON, text="static", n_epochs=20).fit(darts_series(sine(60)))
    samples = model.predict(HORIZON, num_samples=20, mc_dropout=True).all_values()
    assert samples.std(axis=2).max() > 1e-3


def test_descriptions_of_no_series_are_refused():
    with pytest.raises(
        ValueError, match=r"description: .* such as '0', found the keys \['sales'\]"
    ):
        LEMOLE.darts(LENGTH, HORIZON, description={"sales": "Sold"}).fit(darts_series(sine(60)))
    with pytest.raises(ValueError, match=r"description: .* keys of instances such as None"):
        LEMOLE.sktime(description={"sales": "Sold"}).fit(monthly())


def test_descriptions_of_a_hierarchy_are_shared(tmp_path):
    y = pd.concat({("g", "a"): monthly(40), ("g", "b"): monthly(40, seed=1)}, names=["g", "s", "t"])
    told = {("g", "a"): "Heat of a kiln", ("g", "b"): "Load of a city"}
    forecaster = LEMOLE.sktime(description=told, horizon=4).fit(y)
    forecaster.save_pretrained(tmp_path)
    loaded = LEMOLE.forecaster.from_pretrained(tmp_path, device="cpu").fit(y)
    pd.testing.assert_frame_equal(loaded.predict([1, 2]), forecaster.predict([1, 2]))


def test_texts_are_encoded_before_every_training(tmp_path, monkeypatch):
    calls = []
    encode = LeMoLE.encode_texts
    monkeypatch.setattr(
        LeMoLE, "encode_texts", lambda self, *args: calls.append(args) or encode(self, *args)
    )
    series = darts_series(monthly())
    model = LEMOLE.darts().fit(series)
    model.fit(series, epochs=1)
    model.save_pretrained(tmp_path)
    LEMOLE.darts(checkpoint=str(tmp_path)).fit(series)
    assert len(calls) == 3

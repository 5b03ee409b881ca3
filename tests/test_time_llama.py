"""The network of Time-LlaMA: its prompt, its alignment, its routers, its switches."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig
from support import METHODS, darts_series, monthly, sine

from tsllm_estimators.adapters import LoraAmrConfig
from tsllm_estimators.llm.backbone import Backbone
from tsllm_estimators.networks.base import Batch, Shapes
from tsllm_estimators.networks.time_llama import TimeLlama, TimeLlamaConfig

TIME_LLAMA = next(method for method in METHODS if method.name == "time_llama")


def build(n_variates=3, seed=0, shapes=None, **settings):
    torch.manual_seed(seed)
    config = TimeLlamaConfig(**{"backbone": "tiny", **settings})
    shapes = {"context_length": 12, "horizon": 6, "n_variates": n_variates, **(shapes or {})}
    return TimeLlama(config, Shapes(**shapes)).eval()


def batch(n_variates=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(past_target=torch.randn(4, 12, n_variates, generator=generator))


def trained(seed=0, **settings):
    """Return a network whose adapter, router and residual gate have left their start."""
    network = build(seed=seed, **settings)
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and ("dynalora" in name or "lora_B" in name or name == "gate"):
            torch.nn.init.normal_(parameter)
    return network


@torch.no_grad()
def forecast(network, **kwargs):
    return network(batch(**kwargs)).parameters


def balance(output):
    """Return the load-balancing loss of each window, all of equal share."""
    return output.losses["load_balancing"](torch.ones(4))


def trainable(network, part=""):
    return {n for n, p in network.named_parameters() if p.requires_grad and n.startswith(part)}


def test_forecast_has_the_shape_of_the_contract():
    network = build(shapes={"parameters": ("location", "scale")})
    assert forecast(network).shape == (4, 6, 3, 2)


def test_what_trains_is_what_the_paper_trains():
    names = trainable(build(), "backbone.")
    assert names
    assert all("dynalora_" in name for name in names)
    norms = trainable(build(train_layer_norms=True), "backbone.") - names
    assert norms
    assert all("LayerNorm" in name for name in norms)
    assert not trainable(build(adapter=None), "backbone.")
    assert len(trainable(build(adapter="full"), "backbone.")) > 30


def test_any_peft_adapter_will_do():
    for config, part in ((LoraConfig(r=2), "lora_A"), (LoraAmrConfig(r=4), "lora_amr_C")):
        names = trainable(build(adapter=config), "backbone.")
        assert any(part in name for name in names)
        assert not any("router" in name for name in names)


def test_every_trainable_weight_gets_a_gradient():
    network = trained(d_hidden=8).train()
    output = network(batch())
    (output.parameters.square().mean() + balance(output).mean()).backward()
    without = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_the_network_starts_as_the_one_without_a_language_model():
    settings = {"backbone_kwargs": {"hidden_size": 16, "num_attention_heads": 2}}
    control = build(backbone="none", **settings)
    network = build()
    mine = {k: v for k, v in network.state_dict().items() if not k.startswith("backbone.")}
    control.load_state_dict(mine, strict=False)
    control.prompt_words = network.prompt_words
    torch.testing.assert_close(forecast(network), forecast(control))
    assert not torch.allclose(forecast(trained()), forecast(network))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alignment", "none"),
        ("alignment", "concat"),
        ("positions", "ordered"),
        ("residual", "plain"),
        ("residual", None),
        ("top_n", 2),
        ("top_n", None),
        ("gate", "soft"),
        ("pooling", "last"),
        ("pooling", "max"),
        ("description", "Heat of a kiln"),
        ("variate_names", ["a", "b", "c"]),
        ("prompt", "Something else"),
        ("prompt", ""),
        ("lora_alpha", 4.0),
        ("n_heads", 2),
        ("adapter", None),
        ("normalization", None),
    ],
)
def test_a_switch_changes_the_forecast_of_equal_weights(name, value):
    settings = {name: value}
    default, changed = trained(), trained(**settings)
    state = {k: v for k, v in default.state_dict().items() if k in changed.state_dict()}
    state.pop("_extra_state")  # the prompt
    changed.load_state_dict(state, strict=False)
    assert not torch.allclose(forecast(default), forecast(changed), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("load_balancing_weight", (0.0, 10.0)),
        ("lora_dropout", (0.0, 0.5)),
        ("head_dropout", (0.0, 0.5)),
        ("lora_rank", (2, 4)),
        ("d_hidden", (None, 8)),
        ("train_layer_norms", (False, True)),
        ("task_loss", ("l1", "mse")),
        ("prompt_statistics", (False, True)),
    ],
)
def test_a_switch_changes_what_is_learned(name, values):
    series = darts_series(sine(60, 2))
    forecasts = [
        TIME_LLAMA.darts(optimizer_kwargs={"lr": 0.01}, **{name: value}).fit(series).predict(6)
        for value in values
    ]
    assert not np.allclose(forecasts[0].values(), forecasts[1].values(), atol=1e-6)


def test_order_of_the_columns_says_nothing_where_positions_are_shared():
    order = [2, 0, 1]
    shuffled = Batch(past_target=batch().past_target[..., order])
    for positions, equal in (("shared", True), ("ordered", False)):
        network = trained(positions=positions)
        with torch.no_grad():
            found = network(shuffled).parameters
        assert torch.allclose(found, forecast(network)[:, :, order], atol=1e-5) is equal


@pytest.mark.parametrize("causal", [True, False])
def test_under_a_causal_mask_a_variate_sees_those_before_it(language_models, causal):
    network = trained(backbone=language_models["llama"], causal=causal, top_n=None)
    changed = batch()
    changed.past_target[..., 2] += torch.randn(4, 12)
    with torch.no_grad():
        moved = (network(changed).parameters - forecast(network)).abs().amax((0, 1, 3)) > 1e-6
    assert moved.tolist() == ([False, False, True] if causal else [True, True, True])


def test_many_variates_stand_at_one_place(language_models):
    assert (
        forecast(build(n_variates=40, backbone=language_models["gpt2"]), n_variates=40)
        .isfinite()
        .all()
    )
    with pytest.raises(ValueError, match="takes at most 32 tokens one after another, found 40"):
        build(n_variates=40, backbone=language_models["gpt2"], positions="ordered")


def test_prompt_says_what_is_asked_and_what_the_data_are():
    network = build(description="Load of a city", variate_names=["north", "south", "east"])
    (prompt,) = network.prompts()
    for words in ("Load of a city", "north, south and east", "6 time steps", "12"):
        assert words in prompt
    assert "deviation" not in prompt  # nothing has been measured
    network.measure(Batch(past_target=torch.tensor(sine(18, 3)).unsqueeze(0)))
    assert prompt in network.prompts()[0]
    assert "deviation" in network.prompts()[0]
    assert build(alignment="none").prompts() == []
    assert build(prompt="Mine").prompts() == ["Mine"]


def test_prompt_does_not_depend_on_the_units_of_the_data():
    prompts = []
    for values in (sine(60), 1000 * sine(60) + 7):
        model = TIME_LLAMA.darts().fit(darts_series(values))
        prompts += model.model.network.prompts()
        assert model.training_summary["prompts"] == prompts[-1:]
    assert prompts[0] == prompts[1]


def test_words_are_keys_and_values_of_the_whole_batch():
    network, shapes = build(), []
    network.attention.register_forward_pre_hook(
        lambda _, args: shapes.extend(tuple(tensor.shape) for tensor in args)
    )
    forecast(network)
    n_words = len(network.prompt_words)
    assert shapes == [(1, 4 * 3, 16), (1, n_words, 16), (1, n_words, 16)]


def test_prompt_is_embedded_once_per_fit(monkeypatch):
    calls, embed = [], Backbone.embed_text
    monkeypatch.setattr(Backbone, "embed_text", lambda *a: calls.append(a[1]) or embed(*a))
    series = darts_series(sine(60, 2))
    model = TIME_LLAMA.darts(n_epochs=3).fit(series)
    assert len(calls) == 2  # of the bare task, then with the statistics of the data
    model.predict(20)
    assert len(calls) == 2


def test_words_of_a_concatenated_prompt_run_through_the_language_model():
    lengths = []
    for alignment in ("concat", "cross_attention"):
        network = build(alignment=alignment)
        network.backbone.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
        forecast(network)
    assert lengths == [3 + len(network.prompt_words), 3]


def test_another_prompt_can_be_set_and_travels_with_the_weights():
    network = trained()
    before = forecast(network)
    network.set_prompt("Quite another task.")
    after = forecast(network)
    assert not torch.allclose(before, after)
    other = trained(seed=1)
    other.load_state_dict(network.state_dict())
    assert other.prompts() == ["Quite another task."]
    torch.testing.assert_close(forecast(other), after)
    torch.testing.assert_close(forecast(copy.deepcopy(network)), after)
    assert not any("prompt" in name for name in network.state_dict())  # but in the extra state


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"description": "Something else"},
            "description: the saved weights were trained with None",
        ),
        ({"prompt": "Mine"}, "prompt: the saved weights were trained with None, found 'Mine'"),
        ({"alignment": "concat"}, "do not fit this model"),
        (
            {"prompt_statistics": False},
            "prompt_statistics: the saved weights were trained with True",
        ),
    ],
)
def test_weights_of_another_prompt_are_refused(settings, message, tmp_path):
    series = darts_series(sine(60, 2))
    TIME_LLAMA.darts().fit(series).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        TIME_LLAMA.darts(checkpoint=tmp_path, **settings).fit(series)
    with pytest.raises(ValueError, match=message):
        TIME_LLAMA.model.from_pretrained(tmp_path, **settings)


def test_routers_of_a_peft_config_are_balanced_too():
    adapter = {"peft_type": "DYNALORA", "r": 2, "top_n": 2}
    network = build(adapter=adapter, load_balancing_weight=0.5).train()
    assert "load_balancing" in network(batch()).losses
    assert network.loss_weights() == {"load_balancing": 0.5}
    with pytest.raises(ValueError, match="no effect with adapter=None"):
        build(adapter=None, load_balancing_weight=0.5)


def test_an_empty_prompt_of_a_decoder_has_no_words(language_models):
    network = build(backbone=language_models["gpt2"], prompt="")
    assert len(network.prompt_words) == 0
    assert forecast(network).isfinite().all()


def test_load_balancing_is_a_loss_of_training_only():
    network = trained()
    assert network.eval()(batch()).losses == {}
    assert balance(network.train()(batch())).shape == (4,)
    assert trained(top_n=None).train()(batch()).losses == {}
    assert trained(load_balancing_weight=0.0).train()(batch()).losses == {}
    assert network.loss_weights() == {"load_balancing": 0.01}


def test_windows_without_a_share_do_not_balance():
    network, shares = trained().train(), torch.tensor([1.0, 1.0, 0.0, 0.0])
    windows = batch()
    losses = []
    for values in (windows.past_target, windows.past_target.clone()):
        if losses:
            values[2:] = 9 * torch.randn_like(values[2:])
        torch.manual_seed(0)
        losses.append(network(Batch(values)).losses["load_balancing"](shares)[:2])
    torch.testing.assert_close(*losses)
    alone = network(windows).losses["load_balancing"]
    assert not torch.allclose(alone(torch.ones(4))[:2], alone(shares)[:2])


def test_checkpointed_layers_train_alike():
    """The routers' gates reach layers that are computed a second time."""
    gradients = []
    for checkpointed in (False, True):
        network = trained().train()
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointed:
            network.backbone.model.gradient_checkpointing_enable()
        output = network(batch())
        (output.parameters.square().mean() + balance(output).mean()).backward()
        gradients.append([p.grad for p in network.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_heads": 3}, r"n_heads must divide the width of the backbone \(16\), found 3"),
        ({"top_n": 7}, "top_n must be at most 6, the modules of 'encoder.layer.0'"),
        ({"lora_rank": 17}, "r must be at most 16"),
        ({"variate_names": ["a"]}, "variate_names must name the 3 variates, found 1"),
        ({"alignment": "both"}, "alignment must be one of"),
        ({"positions": "none"}, "positions must be one of"),
        ({"residual": True}, "residual must be one of"),
        ({"gate": "warm"}, "gate must be one of"),
        ({"top_n": 0}, "top_n must be an integer >= 1"),
        ({"alignment": "none", "description": "x"}, "description='x' has no effect with alignment"),
        ({"prompt": "x", "description": "y"}, "has no effect with a prompt of your own"),
        ({"top_n": None, "gate": "soft"}, "gate='soft' has no effect with top_n=None"),
        ({"adapter": None, "lora_rank": 2}, "lora_rank=2 has no effect with adapter=None"),
        (
            {"adapter": {"peft_type": "DYNALORA", "target_modules": ["q_proj"]}},
            r"expected names of linear maps, found \['q_proj'\]; this model has .*self.key",
        ),
    ],
)
def test_bad_settings_are_errors_at_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize(
    "settings", [{"prompt": 3}, {"description": b"x"}, {"variate_names": "ab"}]
)
def test_texts_must_be_texts(settings):
    with pytest.raises(TypeError, match=next(iter(settings))):
        build(**settings)


def test_a_prompt_too_long_for_the_language_model_is_an_error(language_models):
    with pytest.raises(ValueError, match="takes at most 32 tokens one after another"):
        build(backbone=language_models["gpt2"], alignment="concat", prompt="word " * 40)


def test_names_of_the_variates_reach_the_prompt_of_both_faces():
    names = ["north", "south"]
    forecaster = TIME_LLAMA.sktime(context_length=12, horizon=6, variate_names=names)
    forecaster.fit(monthly(columns=2))
    model = TIME_LLAMA.darts(variate_names=names).fit(darts_series(sine(60, 2)))
    for fitted in (forecaster._engine.model, model):
        assert "north and south" in fitted.training_summary["prompts"][0]

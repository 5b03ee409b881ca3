"""The network of CALF: its branches, its losses, its switches."""

import pytest
import torch
from peft import LoraConfig

from tsllm_estimators.networks.base import Batch, Shapes
from tsllm_estimators.networks.calf import CALF, CALFConfig

GAUSSIAN = {"parameters": ("location", "scale")}


def build(n_variates=3, seed=0, shapes=None, **settings):
    torch.manual_seed(seed)
    config = CALFConfig(**{"backbone": "tiny", "d_ff": 16, **settings})
    shapes = {"context_length": 12, "horizon": 6, "n_variates": n_variates, **(shapes or {})}
    return CALF(config, Shapes(**shapes))


def batch(n_variates=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(past_target=torch.randn(4, 12, n_variates, generator=generator))


def losses(network, **kwargs):
    torch.manual_seed(1)
    return means(network.train()(batch(**kwargs)))


def means(forecast):
    """Return the mean of each auxiliary loss over the windows."""
    assert all(values.shape == (len(forecast.parameters),) for values in forecast.losses.values())
    return {name: values.mean() for name, values in forecast.losses.items()}


def trainable(network, part=""):
    return {n for n, p in network.named_parameters() if p.requires_grad and n.startswith(part)}


def test_forecast_has_the_shape_of_the_contract():
    forecast = build(shapes=GAUSSIAN)(batch())
    assert forecast.parameters.shape == (4, 6, 3, 2)


def test_textual_branch_and_match_run_in_training_only(monkeypatch):
    network = build()
    calls = []
    for part in (network.text_branch, network.match):
        part.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    assert network.eval()(batch()).losses == {}
    assert calls == []
    assert network.train()(batch()).losses
    assert calls == ["MultiheadAttention", "Backbone"]


def test_branches_share_frozen_weights_and_nothing_that_trains():
    network = build()
    text = dict(network.text_branch.named_parameters())
    shared = [
        name
        for name, p in network.time_branch.named_parameters()
        if name in text and p.data_ptr() == text[name].data_ptr()
    ]
    assert any("attention" in name or "dense" in name for name in shared)
    assert not trainable(network, "time_branch") & set(shared)


def test_what_trains_is_what_the_paper_trains():
    network = build()
    time, text = trainable(network, "time_branch."), trainable(network, "text_branch.")
    assert all("lora_" in n or "LayerNorm" in n or "position" in n for n in time)
    assert {("lora_" in n, "LayerNorm" in n, "position" in n) for n in time} == {
        (True, False, False),
        (False, True, False),
        (False, False, True),
    }
    assert [n.split(".")[-2] for n in text] == ["position_embeddings"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"adapter": None}, {"LayerNorm", "position_embeddings"}),
        ({"adapter": None, "train_layer_norms": False}, {"position_embeddings"}),
        ({"adapter": None, "train_position_embeddings": False}, {"LayerNorm"}),
        (
            {"adapter": None, "train_layer_norms": False, "train_position_embeddings": False},
            set(),
        ),
    ],
)
def test_trainable_parts_are_switches(settings, expected):
    names = trainable(build(**settings), "time_branch.")
    assert {
        part for part in ("LayerNorm", "position_embeddings") if any(part in n for n in names)
    } == expected
    assert not any("lora_" in n for n in names)


def test_full_adapter_trains_every_weight_of_the_temporal_branch_only():
    network = build(adapter="full")
    assert len(trainable(network, "time_branch.")) > 30
    assert len(trainable(network, "text_branch.")) == 1


def test_rank_and_peft_config_reach_lora():
    sizes = {
        rank: sum(p.numel() for n, p in build(**settings).named_parameters() if "lora_" in n)
        for rank, settings in [
            (8, {}),
            (2, {"lora_rank": 2}),
            (4, {"adapter": LoraConfig(r=4, lora_alpha=8)}),
        ]
    }
    assert sizes[8] == 2 * sizes[4] == 4 * sizes[2] == 2 * 3 * 2 * 8 * 16


def test_adapter_at_start_changes_nothing():
    plain, adapted = build(adapter=None), build()
    adapted.load_state_dict(plain.state_dict(), strict=False)
    found, expected = (n.eval()(batch()).parameters for n in (adapted, plain))
    torch.testing.assert_close(found, expected)


def test_gradients_flow_through_the_frozen_branch_into_the_match_module():
    network = build()
    forecast = network.train()(batch())
    sum(means(forecast).values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in network.match.parameters())
    frozen = [p for p in network.text_branch.parameters() if not p.requires_grad]
    assert frozen
    assert all(p.grad is None for p in frozen)


def test_every_trainable_weight_gets_a_gradient():
    network = build()
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():  # LoRA's B starts at zero: no gradient to A
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    forecast = network.train()(batch())
    (forecast.parameters.square().mean() + sum(means(forecast).values())).backward()
    missing = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_losses_are_named_and_the_last_level_counts_most():
    network = build(output_weight=0.5, feature_weight=0.1)
    assert set(losses(network)) == set(network.loss_weights())
    weights = network.loss_weights()
    assert weights["output_consistency"] == 0.5
    levels = [weights[f"feature_level_{level}"] for level in range(3)]
    assert levels == pytest.approx([0.1 * 0.8**2, 0.1 * 0.8, 0.1])


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"output_weight": 0.0}, {"feature_level_0", "feature_level_1", "feature_level_2"}),
        ({"feature_weight": 0.0}, {"output_consistency"}),
        ({"output_weight": 0.0, "feature_weight": 0.0}, set()),
    ],
)
def test_a_weight_of_0_switches_a_loss_and_its_parts_off(settings, names):
    network = build(**settings)
    assert set(losses(network)) == names
    has_text, has_levels = bool(names), "feature_level_0" in names
    assert hasattr(network, "text_branch") is hasattr(network, "match") is has_text
    assert hasattr(network, "time_projections") is has_levels


@pytest.mark.parametrize("which", ["output_loss", "feature_loss"])
def test_distances_are_switches(which):
    names = ["l1", "mse", "smooth_l1", "smape"] + ["mase"] * (which == "output_loss")
    totals = {
        name: sum(v for v in losses(build(**{which: name})).values()).item() for name in names
    }
    assert len(set(totals.values())) == len(names)


def test_mase_is_l1_in_units_of_the_windows_change():
    network = build(n_variates=1, output_loss="mase")
    x = batch(1)
    change = x.past_target.diff(dim=1).abs().mean(1, keepdim=True)
    time, text = torch.randn(4, 6, 1, 1), torch.randn(4, 6, 1, 1)
    found = network._output_distance(time, text, x.past_target)
    torch.testing.assert_close(found, ((time - text)[..., 0].abs() / change).mean((1, 2)))


def test_consistency_compares_locations_only():
    network = build(shapes=GAUSSIAN)
    time, text = torch.randn(4, 6, 3, 2), torch.randn(4, 6, 3, 2)
    text[..., 0] = time[..., 0]
    assert (network._output_distance(time, text, batch().past_target) == 0).all()


def test_losses_do_not_depend_on_the_units_of_the_data():
    network = build(head_dropout=0.0, dropout=0.0, lora_dropout=0.0)
    network.train()
    network.time_branch.eval()
    once = network(batch()).losses
    network.unit.fill_(1000.0)
    scaled = network(Batch(past_target=1000 * batch().past_target + 7)).losses
    for name, value in once.items():
        torch.testing.assert_close(scaled[name], value, rtol=1e-4, atol=1e-6)


def test_projections_have_their_own_learning_rate():
    network = build(projection_lr=3e-5)
    rest, projections = network.parameter_groups()
    assert "lr" not in rest
    assert projections["lr"] == 3e-5
    assert len(projections["params"]) == 2 * 3
    named = {id(p) for n, p in network.named_parameters() if p.requires_grad}
    grouped = [id(p) for group in (rest, projections) for p in group["params"]]
    assert sorted(grouped) == sorted(named)
    assert len(build(feature_weight=0.0).parameter_groups()) == 1


def test_number_of_principal_words_is_a_switch():
    assert build().principal_words.shape == (16, 16)
    assert build(n_principal_words=4).principal_words.shape == (4, 16)
    with pytest.raises(ValueError, match="n_principal_words must be at most 16"):
        build(n_principal_words=17)
    few, many = (losses(build(n_principal_words=k))["output_consistency"] for k in (2, 16))
    assert few != many


def test_causal_backbone_sees_earlier_variates_only(language_models):
    for causal, moves in [(None, [False, True, True]), (False, [True, True, True])]:
        network = build(backbone=language_models["gpt2"], causal=causal).eval()
        # the token encoder mixes all variates: look at the backbone behind it
        tokens = torch.randn(1, 3, 16)
        changed = tokens.clone()
        changed[:, 1] = changed[:, 1].flip(-1)
        difference = network.time_branch(tokens) != network.time_branch(changed)
        assert difference.any(-1)[0].tolist() == moves


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "bert"])
def test_any_language_model_trains(language_models, name):
    network = build(backbone=language_models[name])
    forecast = network.train()(batch())
    total = forecast.parameters.mean() + sum(means(forecast).values())
    total.backward()
    assert total.isfinite()


@pytest.mark.parametrize("name", ["none", "attention", "transformer"])
def test_stand_ins_keep_everything_else_equal(name):
    kwargs = {"hidden_size": 16, "num_attention_heads": 2}
    network, reference = build(backbone=name, backbone_kwargs=kwargs), build()
    assert set(losses(network)) <= set(losses(reference))
    own = {n.split(".")[0] for n, _ in network.named_parameters()}
    assert own | {"time_branch", "text_branch"} == {
        n.split(".")[0] for n, _ in reference.named_parameters()
    }


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"n_heads must divide the width of the backbone \(16\)"):
        build(n_heads=3)
    assert build(n_heads=4).encoder.self_attn.num_heads == 4


def test_dropouts_are_switches():
    for name in ("dropout", "head_dropout", "lora_dropout"):
        dry = build(**{"dropout": 0.0, "head_dropout": 0.0, "lora_dropout": 0.0})
        wet = build(**{"dropout": 0.0, "head_dropout": 0.0, "lora_dropout": 0.0, name: 0.5})
        for network in (dry, wet):
            for n, p in network.named_parameters():
                if "lora_B" in n:
                    torch.nn.init.ones_(p)
            network.train()
            network.time_branch.model.eval() if name != "lora_dropout" else None
        torch.manual_seed(0)
        outputs = [wet(batch()).parameters for _ in range(2)]
        assert not torch.equal(*outputs), name


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"adapter": "qlora"}, ValueError, r"adapter must be one of \['lora', 'full'\]"),
        ({"adapter": "full", "lora_rank": 4}, ValueError, "lora_rank belongs to adapter='lora'"),
        ({"lora_rank": 0}, ValueError, "lora_rank must be an integer >= 1, found 0"),
        ({"lora_rank": 2.5}, TypeError, "lora_rank must be an integer"),
        ({"dropout": 1.0}, ValueError, r"dropout must be a number in \[0.0, 1\)"),
        ({"head_dropout": -0.1}, ValueError, "head_dropout must be a number"),
        ({"task_loss": "mape"}, ValueError, "task_loss must be one of"),
        ({"feature_loss": "mase"}, ValueError, "feature_loss must be one of"),
        ({"output_weight": float("nan")}, ValueError, "output_weight must be a number"),
        ({"causal": "yes"}, TypeError, "causal must be True or False"),
        ({"backbone_weights": "frozen"}, ValueError, "backbone_weights must be one of"),
        ({"backbone_kwargs": [1]}, TypeError, "backbone_kwargs must be a dict or None"),
        ({"backbone_layers": 0}, ValueError, "backbone_layers must be an integer >= 1 or None"),
    ],
)
def test_impossible_arguments_are_refused_at_construction(settings, error, message):
    with pytest.raises(error, match=message):
        CALFConfig(**settings)

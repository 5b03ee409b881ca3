"""What is shared: directories without pickle, from either face, into either face."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from darts import TimeSeries
from darts.utils.likelihood_models.torch import GaussianLikelihood, QuantileRegression
from safetensors.torch import load_file
from support import darts_series, sine

LIKELIHOODS = [None, GaussianLikelihood(prior_sigma=2.0), QuantileRegression([0.1, 0.5, 0.9])]
by_name = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda v: type(v).__name__)
SERIES = darts_series(sine(80, 2))


def saved(method, folder, **settings):
    model = method.darts(**settings).fit(SERIES)
    model.save_pretrained(folder)
    return model


def forecast(model, **kwargs):
    return model.predict(9, series=SERIES, random_state=1, **kwargs).all_values()


@by_name
def test_a_shared_model_forecasts_bit_equal(method, likelihood, tmp_path):
    model = saved(method, tmp_path / "shared", likelihood=likelihood)
    loaded = method.model.from_pretrained(tmp_path / "shared")
    sampling = {} if likelihood is None else {"num_samples": 5}
    assert np.array_equal(forecast(loaded, **sampling), forecast(model, **sampling))
    assert loaded.likelihood == model.likelihood
    assert loaded.model_params[method.width] == model.model_params[method.width] == 16


def test_there_is_no_pickle_and_no_frozen_weight_in_it(method, tmp_path):
    model = saved(method, tmp_path)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    adapters = {f for f in files if f.startswith("adapters/")}
    assert files - adapters == {"config.json", "model.safetensors", "README.md"}
    assert {f.split("/")[-1] for f in adapters} <= {
        "adapter_config.json", "adapter_model.safetensors", "README.md",
    }  # fmt: skip
    stored = dict(load_file(tmp_path / "model.safetensors"))
    for name in adapters:
        if name.endswith(".safetensors"):
            stored |= load_file(tmp_path / name)
    trains = sum(p.numel() for p in model.model.parameters() if p.requires_grad)
    buffers = sum(b.numel() for b in model.model.buffers())
    assert trains <= sum(t.numel() for t in stored.values()) <= trains + buffers


def test_the_adapter_loads_with_peft_alone(adapted_method, tmp_path):
    """Adapted Hugging Face model = the network's own language model."""
    from peft import PeftModel

    from tsllm_estimators.llm.backbone import Backbone, load_backbone

    model = saved(
        adapted_method,
        tmp_path,
        **adapted_method.known(train_layer_norms=False, train_position_embeddings=False),
    )
    for folder in (tmp_path / "adapters").iterdir():
        own = next(m for n, m in model.model.named_modules() if n.endswith(f".{folder.name}"))
        assert isinstance(own, Backbone)
        adapted = PeftModel.from_pretrained(load_backbone("tiny").model, str(folder)).eval()
        tokens = torch.randn(2, 2, own.width)
        with torch.no_grad():
            expected = own.eval()(tokens)
            found = adapted(inputs_embeds=tokens).last_hidden_state
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(expected, load_backbone("tiny").eval()(tokens))


def test_what_an_adapter_drew_and_froze_is_saved(adapted_method, tmp_path):
    """LoRA-AMR's frozen factors are random: no name of a language model brings them back."""
    adapter = {"peft_type": "LORA_AMR", "r": 4}
    model = saved(
        adapted_method, tmp_path / "shared", adapter=adapter, optimizer_kwargs={"lr": 0.01}
    )
    path = str(tmp_path / "model.pt")
    model.save(path)
    copied = adapted_method.darts(adapter=adapter)
    copied.load_weights(path)
    loaded = [adapted_method.model.load(path), copied]
    loaded.append(adapted_method.model.from_pretrained(tmp_path / "shared"))
    for other in loaded:
        assert np.array_equal(forecast(other), forecast(model))
    other.enable_finetuning = True  # darts' switch unfreezes what it finds
    other._setup_finetuning(other.model)
    drawn = [p for n, p in other.model.named_parameters() if "lora_amr_B" in n or "lora_amr_D" in n]
    assert drawn
    assert not any(p.requires_grad for p in drawn)


def test_a_directory_can_move_and_serves_another_process(method, tmp_path):
    model = saved(method, tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "second")
    assert str(tmp_path) not in (tmp_path / "second" / "config.json").read_text()
    np.save(tmp_path / "context.npy", SERIES.values())
    code = (
        "import sys, numpy, torch; torch.set_num_threads(1)\n"
        "from darts import TimeSeries\n"
        f"from tsllm_estimators.darts import {method.model.__name__} as Model\n"
        "model = Model.from_pretrained(sys.argv[1] + '/second')\n"
        "series = TimeSeries.from_values(numpy.load(sys.argv[1] + '/context.npy'))\n"
        "forecast = model.predict(9, series=series, random_state=1)\n"
        "numpy.save(sys.argv[1] + '/forecast.npy', forecast.all_values())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ)
    assert np.array_equal(np.load(tmp_path / "forecast.npy"), forecast(model))


def test_a_language_model_that_moved_is_named_anew(method, language_models, tmp_path):
    shutil.copytree(language_models["bert"], tmp_path / "here")
    model = method.darts(backbone=str(tmp_path / "here")).fit(SERIES)
    model.save_pretrained(tmp_path / "shared")
    model.save(str(tmp_path / "model.pt"))
    expected = forecast(model)
    shutil.move(tmp_path / "here", tmp_path / "there")
    there = {"backbone": str(tmp_path / "there")}
    with pytest.raises(OSError, match="here"):
        method.model.from_pretrained(tmp_path / "shared")
    loaded = method.model.from_pretrained(tmp_path / "shared", **there)
    assert np.array_equal(forecast(loaded), expected)
    assert np.array_equal(
        forecast(method.model.load(str(tmp_path / "model.pt"), **there)), expected
    )
    other = method.darts(**there)
    other.load_weights(str(tmp_path / "model.pt"))
    assert np.array_equal(forecast(other), expected)
    with pytest.raises(ValueError, match="the saved weights were trained on"):
        method.darts(backbone=language_models["gpt2"]).load_weights(str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match="the saved weights were trained on"):
        method.model.from_pretrained(tmp_path / "shared", backbone=language_models["gpt2"])


def test_the_card_tells_data_settings_metrics_and_prompts(method, tmp_path):
    named = TimeSeries.from_values(sine(80, 2), columns=["load", "heat"])
    method.darts().fit(named, val_series=named).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    for part in ("1 series, 80 points", "`load`, `heat`", "| past target | 12 x 2 |", "val_loss"):
        assert part in card
    assert "63 training windows" in card
    assert f"| `{method.width}` | `16` |" in card
    assert "## Prompts" in card
    assert f"{method.model.__name__}.from_pretrained" in card
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["training"]["n_steps"] == 4
    assert config["method"] == method.name


def test_models_that_know_less_of_their_training_are_shared_too(method, tmp_path):
    from darts.utils.data.torch_datasets.training_dataset import SequentialTorchTrainingDataset

    windows = SequentialTorchTrainingDataset(SERIES, input_chunk_length=12, output_chunk_length=6)
    trained = method.darts().fit_from_dataset(windows)
    trained.save_pretrained(tmp_path / "windows")
    assert "the series are not known" in (tmp_path / "windows" / "README.md").read_text()
    method.darts().fit(SERIES).save(str(tmp_path / "model.pt"))
    loaded = method.darts()
    loaded.load_weights(str(tmp_path / "model.pt"))
    loaded.save_pretrained(tmp_path / "loaded")
    assert "Trained elsewhere" in (tmp_path / "loaded" / "README.md").read_text()
    again = method.model.from_pretrained(tmp_path / "loaded")
    assert np.array_equal(forecast(again), forecast(loaded))


def test_covariates_and_precision_survive(method, tmp_path):
    features = pd.DataFrame({"size": [3.0]})
    series = TimeSeries.from_values(sine(80).astype(np.float64)).with_static_covariates(features)
    used = {"past_covariates": series, "future_covariates": series[:70]}
    model = method.darts().fit(series[:60], **used)
    model.save_pretrained(tmp_path)
    loaded = method.model.from_pretrained(tmp_path)
    first, second = (m.predict(6, series=series[:60], **used) for m in (model, loaded))
    assert first.dtype == np.float64
    assert np.array_equal(first.values(), second.values())


def test_a_loaded_model_goes_on_training(method, tmp_path):
    saved(method, tmp_path)
    loaded = method.model.from_pretrained(tmp_path, optimizer_kwargs={"lr": 1e-2})
    before = forecast(loaded)
    loaded.fit(SERIES)
    assert not np.array_equal(forecast(loaded), before)


def test_adapters_of_any_kind_and_language_models_of_other_dtypes_are_shared(
    adapted_method, tmp_path
):
    from peft import LoraConfig

    settings = [
        {"adapter": LoraConfig(r=2, target_modules={"query"}, use_rslora=True)},
        {"adapter": "full"},
        {"backbone_kwargs": {"dtype": "bfloat16"}},
    ]
    for number, changes in enumerate(settings):
        model = saved(adapted_method, tmp_path / str(number), **changes)
        loaded = adapted_method.model.from_pretrained(tmp_path / str(number))
        assert np.array_equal(forecast(loaded), forecast(model)), changes
    model = adapted_method.darts(backbone_kwargs={"dtype": torch.bfloat16}).fit(SERIES)
    with pytest.raises(ValueError, match=r"backbone_kwargs=.* cannot be saved without pickle"):
        model.save_pretrained(tmp_path / "plain")


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": None},
        {"backbone": "none", "backbone_kwargs": {"hidden_size": 8, "num_attention_heads": 2}},
    ],
    ids=["nothing", "a stand-in"],
)
def test_models_without_an_adapter_are_shared(running_method, changes, tmp_path):
    model = saved(running_method, tmp_path, **changes)
    loaded = running_method.model.from_pretrained(tmp_path)
    assert np.array_equal(forecast(loaded), forecast(model))


def test_a_precision_of_the_user_wins(method, tmp_path):
    saved(method, tmp_path)
    for precision, dtype in [("bf16-true", torch.bfloat16), ("64-true", torch.float64)]:
        trainer = {"precision": precision, "accelerator": "cpu"}
        loaded = method.model.from_pretrained(tmp_path, pl_trainer_kwargs=trainer)
        assert loaded.model.dtype == dtype
        assert loaded.trainer_params["precision"] == precision


# checkpoint= and fit_strategy ---------------------------------------------------------------


def test_training_starts_from_a_checkpoint(method, tmp_path):
    model = saved(method, tmp_path)
    still = method.darts(checkpoint=tmp_path, fit_strategy="zero-shot").fit(SERIES)
    assert np.array_equal(forecast(still), forecast(model))
    settings = {"optimizer_kwargs": {"lr": 1e-6}, "ema_decay": None}
    tuned = method.darts(checkpoint=str(tmp_path), **settings).fit(SERIES)
    np.testing.assert_allclose(forecast(tuned), forecast(model), atol=1e-3)
    assert not np.array_equal(forecast(tuned), forecast(model))


@pytest.mark.parametrize("strategy", ["full", "adapter", "head", "zero-shot"])
def test_a_strategy_trains_its_part_and_nothing_else(method, tmp_path, strategy):
    start = saved(method, tmp_path).model
    model = method.darts(checkpoint=tmp_path, fit_strategy=strategy).fit(SERIES).model
    trains = {n for n, p in start.named_parameters() if p.requires_grad}
    parts = {"full": ("",), "zero-shot": (), **model.network.parts}[strategy]
    expected = {n for n in trains if n.removeprefix("network.").startswith(parts)}
    others = dict(start.named_parameters())
    # keys of attention have a bias without a gradient: it shifts all scores alike
    idle = {n for n in expected if n.endswith(("in_proj_bias", "key.bias"))}
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, others[n])}
    assert expected - idle <= moved <= expected


def test_a_strategy_without_weights_is_an_error(method):
    for strategy in ("adapter", "head", "zero-shot"):
        with pytest.raises(ValueError, match=f"fit_strategy='{strategy}' needs weights to start"):
            method.darts(fit_strategy=strategy).fit(SERIES)
    with pytest.raises(ValueError, match="fit_strategy must be one of"):
        method.darts(fit_strategy="body")
    with pytest.raises(TypeError, match="checkpoint must be a directory"):
        method.darts(checkpoint=3)


# what cannot be loaded ----------------------------------------------------------------------


def damaged(folder, how):
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "no JSON":
        (folder / "config.json").write_text("{")
    elif how == "foreign":
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    elif how == "other method":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "method": "prophet"}))
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "cut weights":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("no config", OSError, "found no config.json"),
        ("no JSON", OSError, "is not JSON, so it is damaged"),
        ("foreign", ValueError, "expected the format 'tsllm-estimators/1', found None"),
        ("other method", ValueError, "found one of 'prophet'"),
        ("no weights", OSError, "damaged or incomplete"),
        ("cut weights", OSError, "damaged or incomplete"),
    ],
)
def test_what_is_damaged_or_foreign_is_refused(method, tmp_path, how, error, message):
    saved(method, tmp_path)
    damaged(tmp_path, how)
    with pytest.raises(error, match=message):
        method.model.from_pretrained(tmp_path)
    model = method.darts(checkpoint=tmp_path)
    with pytest.raises(error, match=message):
        model.fit(SERIES)


def test_weights_that_do_not_fit_are_refused(method, tmp_path):
    saved(method, tmp_path)
    message = "the weights in .* do not fit this model"
    with pytest.raises(ValueError, match=message):
        method.model.from_pretrained(tmp_path, **{method.width: 8})
    with pytest.raises(ValueError, match=message):
        method.darts(horizon=5, checkpoint=tmp_path).fit(SERIES)


def test_what_only_pickle_could_save_is_refused(method, tmp_path):
    with pytest.raises(ValueError, match="needs a fitted model"):
        method.darts().save_pretrained(tmp_path / "new")
    model = method.darts(add_encoders={"custom": {"future": [year]}})
    with pytest.raises(ValueError, match="add_encoders with functions"):
        model.fit(dated()).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def year(index):
    return index.year


def dated():
    times = pd.date_range("2020-01-31", periods=80, freq="ME")
    return TimeSeries.from_times_and_values(times, sine(80))


def test_encoders_without_a_state_are_shared(method, tmp_path):
    encoders = {"cyclic": {"future": ["month"]}, "datetime_attribute": {"past": ["year"]}}
    model = method.darts(add_encoders=encoders).fit(dated())
    model.save_pretrained(tmp_path)
    loaded = method.model.from_pretrained(tmp_path)
    first, second = (m.predict(9, series=dated()).values() for m in (model, loaded))
    assert np.array_equal(first, second)


def test_optimiser_classes_survive_and_loggers_stay_behind(method, tmp_path):
    from pytorch_lightning.loggers import CSVLogger

    settings = {
        "optimizer_cls": torch.optim.SGD,
        "lr_scheduler_cls": torch.optim.lr_scheduler.StepLR,
        "lr_scheduler_kwargs": {"step_size": 1},
        "pl_trainer_kwargs": {"logger": CSVLogger(tmp_path / "log"), "gradient_clip_val": 0.5},
    }
    saved(method, tmp_path / "shared", **settings)
    loaded = method.model.from_pretrained(tmp_path / "shared").model_params
    assert loaded["optimizer_cls"] is torch.optim.SGD
    assert loaded["lr_scheduler_cls"] is torch.optim.lr_scheduler.StepLR
    assert loaded["pl_trainer_kwargs"] == {"gradient_clip_val": 0.5}

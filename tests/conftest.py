"""Every test runs offline, with its home and caches in a temporary directory."""

import os
import shutil
import tempfile

_HOME = tempfile.mkdtemp(prefix="tsllm-tests-")
for _name in ("HOME", "HF_HOME", "MPLCONFIGDIR", "TSLLM_CACHE", "XDG_CACHE_HOME"):
    os.environ[_name] = os.path.join(_HOME, _name.lower())
    os.makedirs(os.environ[_name], exist_ok=True)
os.environ["HF_HUB_OFFLINE"] = "1"  # also for the processes that tests start
os.environ["MPLBACKEND"] = "agg"

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from support import ADAPTED, METHODS, RUNNING  # noqa: E402

torch.set_num_threads(1)


def pytest_generate_tests(metafunc):
    """Run a test that asks for a ``method``, an adapted or a running one with each."""
    kinds = {"method": METHODS, "adapted_method": ADAPTED, "running_method": RUNNING}
    for name, methods in kinds.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, methods, ids=lambda method: method.name)


@pytest.fixture(autouse=True)
def _no_files_left(request, tmp_path_factory):
    """Run in an empty working directory and fail if something was written into it."""
    before, folder = os.getcwd(), tmp_path_factory.mktemp("cwd")
    os.chdir(folder)
    yield
    os.chdir(before)
    left = [path.name for path in Path(folder).iterdir()]
    assert not left, f"files left in the working directory: {left}"


@pytest.fixture
def data_folder():
    """Return the folder of the real data, or skip."""
    if "TSLLM_DATA" not in os.environ:
        pytest.skip("needs TSLLM_DATA: a folder of real data, see CONTRIBUTING.md")
    return Path(os.environ["TSLLM_DATA"])


@pytest.fixture(scope="session")
def language_models(tmp_path_factory):
    """Return directories of tiny random language models with a tokenizer, by architecture."""
    import transformers as hf

    import tsllm_estimators

    tokenizer = Path(tsllm_estimators.__file__).parent / "llm" / "tiny"
    shape = {"vocab_size": 128, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    grouped = {**shape, "num_key_value_heads": 1, "intermediate_size": 32}
    configs = {
        "gpt2": hf.GPT2Config(vocab_size=128, n_embd=16, n_layer=3, n_head=2, n_positions=32),
        "llama": hf.LlamaConfig(**grouped),
        "qwen2": hf.Qwen2Config(**grouped),
        "bert": hf.BertConfig(**shape, intermediate_size=32, max_position_embeddings=32),
    }
    folders = {}
    for name, config in configs.items():
        torch.manual_seed(7)  # not the seed of backbone_weights="random"
        folders[name] = str(tmp_path_factory.mktemp(name))
        hf.AutoModel.from_config(config).save_pretrained(folders[name])
        for file in tokenizer.glob("tokenizer*.json"):
            shutil.copy(file, folders[name])
    return folders

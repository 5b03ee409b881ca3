"""The chat describer against a server that runs a language model."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch

import tsllm_estimators
from tsllm_estimators.llm import text_cache
from tsllm_estimators.llm.describe import StatisticalDescriber, load_describer
from tsllm_estimators.llm.wording import clear_descriptions

EXTRA = ("fastapi", "uvicorn", "pydantic", "openai")
MISSING = [name for name in EXTRA if importlib.util.find_spec(name) is None]
TEMPLATE = "{% for message in messages %}{{ message['content'] }} the{% endfor %}"
STARTS = 120  # seconds that a slow machine may need

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"needs the extra [serving], which is not installed: no {MISSING}"
    ),
]


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """Run `transformers serve` on a free port; return its address and the name of its model."""
    import transformers as hf

    folder = tmp_path_factory.mktemp("served")
    config = hf.GPT2Config(
        vocab_size=128, n_embd=16, n_layer=2, n_head=2, n_positions=512, eos_token_id=0
    )
    torch.manual_seed(3)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny = Path(tsllm_estimators.__file__).parent / "llm" / "tiny"
    for file in tiny.glob("tokenizer*.json"):
        shutil.copy(file, folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve"]
    options = {"host": "127.0.0.1", "port": port, "device": "cpu", "dtype": "float32"}
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    log = tmp_path_factory.mktemp("log") / "log.txt"
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, cwd=log.parent, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(url, process, log):
    """Wait until a server answers."""
    end = time.monotonic() + STARTS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the server did not start within {STARTS} s: {log.read_text()}")


def test_a_served_model_describes_windows(served, tmp_path, monkeypatch):
    monkeypatch.setenv("TSLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(text_cache, "_unusable", set())
    clear_descriptions()
    base_url, model = served
    kwargs = {"base_url": base_url, "model": model, "max_tokens": 12, "timeout": 60}
    describer = load_describer("chat", kwargs)
    windows = torch.randn(20, 24, 3, generator=torch.Generator().manual_seed(0)).cumsum(1)
    codes = describer.codes(windows).unique().tolist()
    texts = describer.texts(codes)
    assert len(codes) > 10
    assert all(texts)
    assert texts != StatisticalDescriber().texts(codes)

    # what it says is what the same model says here
    here = load_describer("huggingface", {"model": model, "max_new_tokens": 12})
    assert here.texts(codes) == texts

    clear_descriptions()  # as a new process; nothing is asked again
    unreachable = load_describer("chat", {**kwargs, "timeout": 1e-6, "max_retries": 0})
    assert unreachable.texts(codes) == texts

    with pytest.raises(OSError, match=r"in 1 try: status 500.*base_url, model and the key fit"):
        load_describer("chat", {**kwargs, "model": "nobody/nothing", "max_retries": 0}).text(1)

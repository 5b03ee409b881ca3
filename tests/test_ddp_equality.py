"""Two processes train as one does at the same global batch; the script says what is trained."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ddp_equality_script import train, windows

from tsllm_estimators.darts._budget import interruptible

SCRIPT = Path(__file__).parent / "ddp_equality_script.py"
CPU = {"accelerator": "cpu", "devices": 1}
TIMEOUT = 240


def environment(**changes):
    return {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", **changes}


def trained_by_two(name, run, folder, strategy="ddp"):
    """Return what each of two processes found."""
    trainer = json.dumps({"accelerator": "cpu", "devices": 2, "strategy": strategy})
    command = [sys.executable, str(SCRIPT), name, run, str(folder), trainer]
    subprocess.run(command, check=True, cwd=folder, env=environment(), timeout=TIMEOUT)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def trained_by_one(name, run, folder):
    folder.mkdir()
    model = train(name, run, folder, **CPU)
    return model, torch.load(folder / "0.pt")


def check_alike(one, two):
    assert one["rates"] == two["rates"]
    assert len(one["losses"]) == len(two["losses"])
    for own, other in zip(one["losses"], two["losses"], strict=True):
        assert own == pytest.approx(other, rel=1e-5)
    assert one["weights"].keys() == two["weights"].keys()
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-4, atol=1e-5)


def check_equal(first, second):
    assert first["rates"] == second["rates"]
    for name, weight in first["weights"].items():
        assert torch.equal(second["weights"][name], weight), name


def test_two_processes_train_as_one_does_with_all_windows(tmp_path):
    """The routers are balanced over the windows of both: their loss is not a mean over windows."""
    _, one = trained_by_one("time_llama", "balanced", tmp_path / "one")
    first, second = trained_by_two("time_llama", "balanced", tmp_path, "ddp_fork")
    assert "train_load_balancing" in one["losses"][0]
    check_equal(first, second)
    check_alike(one, first)


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT)
@pytest.mark.parametrize("run", ["balanced", "stopped"])
def test_two_processes_train_every_method_as_one_does(method, run, tmp_path):
    """With auxiliary losses that count, and where validation ends it and chooses the weights."""
    model, one = trained_by_one(method.name, run, tmp_path / "one")
    first, second = trained_by_two(method.name, run, tmp_path)
    check_equal(first, second)
    check_alike(one, first)
    n_epochs = len(one["losses"])
    assert 3 < n_epochs < 60 if run == "stopped" else n_epochs == 5
    series = windows(2, run)
    expected = [forecast.values() for forecast in model.predict(6, series=series)]
    for loaded in (
        *(method.model.load(str(tmp_path / f"model_{rank}.pt")) for rank in (0, 1)),
        method.model.from_pretrained(tmp_path / "pretrained", pl_trainer_kwargs=CPU),
    ):
        found = [forecast.values() for forecast in loaded.predict(6, series=series)]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    for rank in (0, 1):  # each has forecast all three series
        found = np.load(tmp_path / f"forecasts_{rank}.npy")
        np.testing.assert_allclose(found, 3 * expected[:1], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT)
def test_two_nodes_of_torchrun_train_as_one_process_does(tmp_path):
    """Two agents on this machine stand for two nodes."""
    _, one = trained_by_one("lemole", "balanced", tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trainer = json.dumps({**CPU, "num_nodes": 2, "strategy": "ddp"})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    torchrun += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    script = [str(SCRIPT), "lemole", "balanced", str(tmp_path), trainer]
    nodes = [
        subprocess.Popen([*torchrun, "--node-rank", rank, *script], cwd=tmp_path, env=environment())
        for rank in ("0", "1")
    ]
    try:
        assert [node.wait(TIMEOUT) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    check_equal(first, second)
    check_alike(one, first)


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT)
@pytest.mark.parametrize("run", ["timed", "gaps"])
def test_processes_stay_together(run, tmp_path):
    """Though each has a clock of its own, and batches without any target."""
    first, second = trained_by_two("time_llama", run, tmp_path)
    check_equal(first, second)
    assert len(first["rates"]) == (5 if run == "timed" else 32)
    assert len({rates[0] for rates in first["rates"]}) > 1


@pytest.mark.filterwarnings("ignore:'pin_memory'")
def test_a_batch_without_targets_has_a_gradient_of_all_that_trains(method):
    """DDP waits for the gradient of each parameter, from each process."""
    model = method.darts(n_epochs=1, batch_size=4)
    model.fit(windows(0, "balanced"))
    module = model.model.train()
    module.log = lambda *_, **__: None
    loader = model.trainer.train_dataloader
    batch = next(iter(loader))
    trained = {}
    for name, share in (("observed", 1.0), ("nothing", torch.nan)):
        module.zero_grad()
        nowhere = batch.future_target * share
        loss = module.training_step(batch.replace(future_target=nowhere), 0)
        loss.backward()
        trained[name] = {n for n, p in module.named_parameters() if p.grad is not None}
        moves = any(p.grad.any() for p in module.parameters() if p.grad is not None)
        assert moves == (name == "observed")
    assert trained["nothing"] == trained["observed"]


@pytest.mark.parametrize("n_processes", [1, 2])
def test_ctrl_c_ends_a_step_early_only_where_no_other_process_waits(n_processes):
    loop = SimpleNamespace(min_epochs=1, epoch_loop=SimpleNamespace(min_steps=None))
    trainer = SimpleNamespace(world_size=n_processes, fit_loop=loop)
    before = signal.getsignal(signal.SIGINT)
    with interruptible(trainer):
        assert (signal.getsignal(signal.SIGINT) is before) == (n_processes == 2)
    assert signal.getsignal(signal.SIGINT) is before

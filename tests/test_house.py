"""The house stands: imports go down, names agree, the package is light to import."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import METHODS, signature

import tsllm_estimators
from tsllm_estimators._docs import document, parameter_docs, section
from tsllm_estimators._options import EngineOptions

PACKAGE = Path(tsllm_estimators.__file__).parent
ROOT = "tsllm_estimators"
FLOORS = {"adapters": 0, "llm": 1, "networks": 2, "darts": 3, "sktime": 4, "explain": 5}
# What a floor may import from outside, of the libraries that mark the floors.
HOSTS = {
    "llm": set(),
    "adapters": set(),
    "networks": set(),
    "darts": {"darts", "pytorch_lightning", "pandas"},
    "sktime": {"sktime", "pandas", "darts"},
    "explain": {"pandas", "darts"},
}
LIBRARIES = {"darts", "sktime", "pandas", "pytorch_lightning"}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Return the full names that a file imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def floor(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    here = floor(path)
    if here is None:
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == ROOT and len(parts) > 1 and parts[1] in FLOORS:
            same = parts[1] == here
            assert same or FLOORS[parts[1]] < FLOORS[here], f"{path.name} imports {name}"
        if parts[0] in LIBRARIES:
            assert parts[0] in HOSTS[here], f"{path.name} imports {name}"


def test_only_the_engine_knows_darts():
    knowing = {
        p.name
        for p in (PACKAGE / "sktime").glob("*.py")
        for n in imports(p)
        if n.split(".")[0] == "darts" or n.startswith("tsllm_estimators.darts._")
    }
    assert knowing == {"_engine.py"}


def test_only_compat_touches_semi_private_names_of_darts():
    for path in (PACKAGE / "darts").glob("*.py"):
        if path.name != "_compat.py":
            hidden = [n for n in imports(path) if n.startswith("darts.models.forecasting.")]
            assert not hidden, f"{path.name}: {hidden}"


def test_methods_do_not_import_each_other():
    files = {method.network.__module__ for method in METHODS}
    for path in (PACKAGE / "networks").glob("*.py"):
        own = f"{ROOT}.networks.{path.stem}"
        if own in files:
            assert not [n for n in imports(path) for f in files - {own} if n.startswith(f)]


def test_files_stay_readable():
    long = {p.name: n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_import_is_light():
    code = "import sys, tsllm_estimators as t; dir(t); t.__all__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "numpy", "pandas", "darts", "sktime", "transformers", "peft"}


def test_sktime_face_imports_darts_lightning_and_peft_late():
    code = "import sys; from tsllm_estimators import CALFForecaster as C; C(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"darts", "pytorch_lightning", "peft", "transformers"}


def test_all_estimators_lists_the_public_classes():
    everything = tsllm_estimators.all_estimators()
    others = {"__version__", "all_estimators", "DynaLoraConfig", "LoraAmrConfig"}
    assert {*everything, *others} == set(tsllm_estimators.__all__)
    by_face = [tsllm_estimators.all_estimators(face) for face in ("darts", "sktime")]
    assert {**by_face[0], **by_face[1]} == everything
    with pytest.raises(ValueError, match="face must be one of"):
        tsllm_estimators.all_estimators("prophet")


# The hosts' own words: everything else has one name and one default in both faces.
DARTS_WORDS = {
    *("input_chunk_length", "output_chunk_length", "output_chunk_shift", "n_epochs"),
    "use_static_covariates",
}
SKTIME_WORDS = {
    *("context_length", "horizon", "num_epochs", "max_steps", "max_time", "num_update_epochs"),
    *("likelihood", "num_samples", "scaling", "broadcasting", "validation_split"),
    "past_covariates",
    *("lr", "batch_size", "device", "trainer_kwargs", "random_state", "verbose"),
}


def test_names_and_defaults_agree(method):
    config = {**method.network.Config.defaults(), **vars(EngineOptions())}
    model, forecaster = signature(method.model), signature(method.forecaster)
    assert {k: v for k, v in model.items() if k not in DARTS_WORDS} == config
    assert {k: v for k, v in forecaster.items() if k not in SKTIME_WORDS} == config
    assert model.keys() >= DARTS_WORDS
    assert forecaster.keys() >= SKTIME_WORDS


def test_every_argument_is_explained_once(method):
    for cls in (method.model, method.forecaster):
        explained = parameter_docs(cls)
        assert explained.keys() >= signature(cls).keys()
        assert not re.search(r"\{[a-z]+\}", cls.__doc__)
        assert "arXiv" in section(cls, "References")
        assert cls.__doc__.count(method.network.Config.__doc__.split("\n\n")[1]) == 1
    config = method.network.Config
    assert parameter_docs(config).keys() == config.defaults().keys()


def test_an_unexplained_argument_is_an_error():
    class Unexplained:
        """Text.

        Parameters
        ----------
        {parameters}
        """

        def __init__(self, mystery):
            pass

    with pytest.raises(TypeError, match=r"no source explains the parameters \['mystery'\]"):
        document(EngineOptions)(Unexplained)


def test_sockets_are_blocked_but_loopback():
    import socket

    from pytest_socket import SocketConnectBlockedError

    with pytest.raises(SocketConnectBlockedError):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=1).close()


def test_home_and_caches_are_temporary():
    import os
    import tempfile

    for name in ("HOME", "HF_HOME", "MPLCONFIGDIR", "TSLLM_CACHE"):
        assert os.environ[name].startswith(tempfile.gettempdir())

"""README, guide, docstrings and examples run: in small here, as they stand among the slow tests."""

import doctest
import importlib
import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest
from support import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{n}.md" for n in ("guide", "pipelines", "tuning"))]
BLOCKS = [
    pytest.param(match.group(1), id=f"{page.name}-{match.start()}")
    for page in PAGES
    for match in re.finditer(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
]


def small(code):
    """Make every model of a block small; what the block shows stays the same."""
    code = code.replace('"sentence-transformers/all-MiniLM-L6-v2"', '"tiny"')
    code = re.sub(r"n_epochs=\d+", "n_epochs=1", code)
    for method in METHODS:
        model, forecaster = method.model.__name__, method.forecaster.__name__
        code = re.sub(rf"{model}\((?=[^)])", r'\g<0>backbone="tiny", ', code)
        code = re.sub(r'(backbone="tiny", )((?:\d+, )+)', r"\2\1", code)  # positions come first
        code = re.sub(rf"{forecaster}\((?!backbone)", r'\g<0>backbone="tiny", ', code)
        code = re.sub(rf"{forecaster}\(", r"\g<0>max_steps=2, ", code)
    return code


def test_there_are_blocks_to_run():
    assert len(BLOCKS) >= 6


@pytest.mark.parametrize("code", BLOCKS)
def test_blocks_run_in_small(code, capsys):
    exec(compile(small(code), "block", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("code", BLOCKS)
def test_blocks_run_as_they_stand(code, capsys):
    exec(compile(code, "block", "exec"), {})


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "tsllm_estimators").rglob("*.py"))
]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    module = importlib.import_module(name.removesuffix(".__init__"))
    assert doctest.testmod(module).failed == 0


def test_every_estimator_has_an_example():
    for method in METHODS:
        assert ">>>" in method.model.__doc__
        assert ">>>" in method.forecaster.__doc__


def test_quickstart_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    quickstart = importlib.import_module("quickstart")
    picture = tmp_path / "quickstart.png"
    table = quickstart.main(["--smoke", "--output", str(picture)])
    assert len(table) == 6
    assert table["MAE"].notna().all()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "seasonal naive" in capsys.readouterr().out


def test_benchmarks_in_small(tmp_path, monkeypatch, capsys):
    """With synthetic data of the same shape; a second call finds everything stored."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    values = np.sin(np.arange(400)[:, np.newaxis] / 4 + np.arange(7)) + rng.normal(size=(400, 7))
    frame = pd.DataFrame(values, columns=list("abcdefg"))
    frame.insert(0, "date", pd.date_range("2016-07-01", periods=400, freq="h"))
    frame.to_csv(tmp_path / "ETTh1.csv", index=False)
    monkeypatch.setenv("TSLLM_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    etth1 = importlib.import_module("etth1")
    parts = {"HORIZON": 6, "TRAIN": 150, "VALIDATION": 250, "TEST": 400}
    for name, value in parts.items():
        monkeypatch.setattr(etth1, name, value)
    results = tmp_path / "results.json"
    runs = ["--runs", "calf", "dlinear-l1", "seasonal-naive-24", "--seeds", "0"]
    small = {
        "calf": {"input_chunk_length": 24, "n_epochs": 1, "backbone": "tiny"},
        "dlinear-l1": {"input_chunk_length": 24, "n_epochs": 1, "shared_weights": True},
    }
    for name, settings in small.items():
        monkeypatch.setitem(etth1.RUNS, name, (etth1.RUNS[name][0], settings))
    etth1.main([*runs, "--results", str(results)])
    first = results.read_text()
    assert first.count('"windows": 145') == 3
    etth1.main([*runs, "--results", str(results)])
    assert results.read_text() == first

    airline = importlib.import_module("airline")
    tiny = ["--set", 'backbone="tiny"', "max_steps=2", "--seeds", "0"]
    airline.main([*tiny, "--results", str(tmp_path / "airline.json")])
    assert "seasonal naive 71.2; better in" in capsys.readouterr().out


def test_the_speed_benchmark_in_small(tmp_path, monkeypatch):
    """Times are machines' business; what is compared, and that it is stored once, is ours."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    speed = importlib.import_module("speed")
    shape = json.dumps({"n_embd": 32, "n_layer": 2, "n_head": 2})
    sizes = ["--batch-sizes", "4", "--rounds", "1", "--vocabulary", "64", "--words", "8"]
    results = tmp_path / "speed.json"
    for _ in range(2):
        speed.main([*sizes, "--shape", shape, "--results", str(results)])
    step, sktime = json.loads(results.read_text())
    assert step["train_ratio"] == step["seconds"]["train"] / step["seconds"]["encoder_train"]
    parts = step["seconds_of_a_step"]
    assert {"time_branch", "text_branch", "match", "head", "backward", "optimiser"} <= parts.keys()
    assert all(value > 0 for value in [*step["seconds"].values(), parts["text_branch"]])
    assert 0.1 < step["peak_gb"] < 2
    assert {"fit_ms", "predict_ms"} <= sktime.keys()


def test_the_adapter_benchmark_in_small(tmp_path, monkeypatch):
    """The formula behind the computed rows gives what is measured, to the byte."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    adapters = importlib.import_module("adapters")
    shape = {"width": 64, "layers": 2, "heads": 2, "intermediate": 96, "batch_size": 2, "tokens": 8}
    sizes = ["--ranks", "4", "--rounds", "1", "--shape", json.dumps(shape)]
    results = tmp_path / "adapters.json"
    for _ in range(2):
        adapters.main([*sizes, "--results", str(results)])
    rows = json.loads(results.read_text())
    runs = [(row["run"], row["model"].partition(",")[0]) for row in rows]
    each = [(run, name) for name in ("gpt2", "gpt2", "llama") for run in ("memory", "merged")]
    assert runs == [*each, ("computed", "llama")]
    for row in rows[:-1:2]:
        kept = row["kept_bytes"]
        assert kept["frozen"] < kept["lora-amr"] < kept["lora"] < kept["lora, dropout 0.1"]
        assert kept["lora-amr, checkpointed"] < kept["frozen"] / 2
        assert row["trainable"]["lora-amr"] < row["trainable"]["lora-fa"] / 4
        assert row["saving"] == 1 - kept["lora-amr"] / kept["lora"]
    formula = adapters.computed(4, shape, 4)
    for name in ("kept_bytes", "trainable", "optimizer_bytes"):
        assert formula[name].items() <= rows[4][name].items()
    timed = rows[5]["seconds"]
    assert rows[5]["merged_ratio"] == timed["merged"] / timed["base"]


def test_the_time_llama_benchmark_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    benchmark = importlib.import_module("time_llama")
    results = tmp_path / "time_llama.json"
    sizes = ["--variates", "2", "4", "--tokens", "3", "--batch-sizes", "2", "--rounds", "1"]
    for _ in range(2):
        benchmark.main([*sizes, "--backbone", "tiny", "--results", str(results)])
    few, many, overhead, growth = json.loads(results.read_text())
    assert growth["n_variates"] == [2, 4]
    seconds = [1 / row["windows_per_second"]["time_llama"] for row in (few, many)]
    assert growth["exponent"] == pytest.approx(benchmark.growth_exponent([2, 4], seconds))
    speed = many["windows_per_second"]
    assert many["ahead"] == pytest.approx(speed["time_llama"] / speed["patches"])
    assert few["batch_size"] > many["batch_size"]
    assert overhead["flops"]["lora"] == pytest.approx(overhead["flops"]["dynalora"], rel=0.2)
    assert overhead["flops"]["frozen"] == 0
    sizes = [2, 4, 8]
    assert benchmark.growth_exponent(sizes, [3 * n**2 for n in sizes]) == pytest.approx(2)


def test_the_text_benchmark_in_small(tmp_path, monkeypatch, capsys):
    """In one process here; each row has a cache of its own, which is full the second time."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    text = importlib.import_module("text")
    assert len(set(text.stamps(500))) == 500
    assert len(set(text.short_texts(400))) == 168
    full = []

    def run(command, env, **_):
        folder = Path(env["TSLLM_CACHE"])
        full.append((folder, any(file.is_file() for file in folder.rglob("*"))))
        monkeypatch.setenv("TSLLM_CACHE", str(folder))
        capsys.readouterr()
        text.main(command[2:])
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out)

    monkeypatch.setattr(text.subprocess, "run", run)
    results = tmp_path / "text.json"
    sizes = ["--n", "500", "--n-short", "7", "--backbone", "tiny"]
    for _ in range(2):
        text.main([*sizes, "--results", str(results)])
    assert [is_full for _, is_full in full] == [False, True] * 2
    assert full[0][0] == full[1][0] != full[2][0] == full[3][0]
    rows = json.loads(results.read_text())
    assert [(row["run"], row["n"]) for row in rows] == [("stamps", 500), ("short texts", 7)]
    for row in rows:
        assert 0 < row["seconds_of_loading_the_model"] < row["seconds_from_disk"]
        assert row["seconds_from_memory"] > 0
        assert row["seconds_first"] > 0
    assert 0 < rows[1]["megabytes_on_disk"] < rows[0]["megabytes_on_disk"] < 1


def test_the_lemole_benchmark_in_small(tmp_path, monkeypatch):
    """Ratios are within a round, whose order alternates; their median is what counts."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    lemole = importlib.import_module("lemole")
    results = tmp_path / "lemole.json"
    sizes = ["--rows", "450", "--rounds", "1", "--batch-sizes", "16", "--lookbacks", "16", "32"]
    for _ in range(2):
        lemole.main([*sizes, "--synthetic", "--backbone", "tiny", "--results", str(results)])
    train, inference, growth, longest = json.loads(results.read_text())
    for measured in (train["epoch"], train["before"], inference["forecast"]):
        assert measured["seconds"].keys() - measured["ratio"].keys() == {"dlinear"}
        for kind in ("", "cpu_"):
            seconds = measured[f"{kind}seconds"]
            for name, ratio in measured[f"{kind}ratio"].items():  # of the one round
                assert ratio == pytest.approx(seconds[name] / seconds["dlinear"])
    assert inference["windows"] == 150 - 96 + 1
    exponent = lemole.growth_exponent([16, 32], growth["seconds_of_a_step"])
    assert growth["exponent"] == pytest.approx(exponent)
    assert (longest["lookback"], longest["windows"]) == (32, 450 - 32 - 96 + 1)
    assert longest["finite"]

    called = []

    def call(name):
        called.append(name)
        turn = (len(called) - 1) // 6  # a machine that gets slower
        return {"epoch": (2**turn * (1 if name == "dlinear" else 2 + turn), 1.0)}

    found = lemole.compared(call, rounds=3)["epoch"]
    assert called[:6] == called[11:5:-1] == called[12:]
    assert found["seconds"]["dlinear"] == 2
    assert found["ratio"]["lemole"] == 3
    assert found["range"]["lemole"] == [2, 4]
    assert found["cpu_ratio"]["lemole"] == 1


def test_the_many_series_benchmark_in_small(tmp_path, monkeypatch, capsys):
    """In one process here. What is kept grows with the series, not with their pairs."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    many_series = importlib.import_module("many_series")
    cases = []

    def run(command, **_):
        cases.append(json.loads(command[-1]))
        many_series.main(command[2:])
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out)

    monkeypatch.setattr(many_series.subprocess, "run", run)
    results = tmp_path / "many_series.json"
    sizes = ["--series", "50", "100", "--batch-sizes", "2", "3", "--rounds", "1"]
    for _ in range(2):
        many_series.main([*sizes, "--backbones", "tiny", "--results", str(results)])
    variants = [(2, False), (2, True), (3, True)]
    found = [(row["batch_size"], row["inter"], row["n_series"]) for row in cases]
    assert found == [(*variant, n) for variant in variants for n in (50, 100)]
    rows = json.loads(results.read_text())
    _, alone, few, many, _, larger = rows
    assert [row["pairs_bytes"] for row in (few, many)] == [2 * 4 * n**2 * 4 for n in (50, 100)]
    assert many["kept_bytes"] < 2.2 * few["kept_bytes"]
    assert alone["kept_bytes"] < many["kept_bytes"] < larger["kept_bytes"]
    for row in rows:
        assert 0 <= row["inference_bytes"] < row["process_bytes"]
        assert 0 < row["step_bytes"] < row["process_bytes"]
        assert row["inference_cpu_seconds"] > 0
        assert row["step_cpu_seconds"] > 0
        assert row["texts"] > 1
    assert alone["trainable_parameters"] < many["trainable_parameters"]


def test_a_peak_is_that_of_its_calls(monkeypatch):
    """Neither what was held before them, nor what has been freed before."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    many_series = importlib.import_module("many_series")
    megabyte, before = 2**20, bytearray(400 * 2**20)
    del before
    begin = many_series.at_rest()
    found = many_series.repeated(lambda: bytearray(100 * megabyte).count(1), rounds=1)
    assert 95 * megabyte < found["peak"] - begin < 130 * megabyte


def test_missing_data_say_where_they_are_published(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    etth1 = importlib.import_module("etth1")
    with pytest.raises(FileNotFoundError, match=r"set TSLLM_DATA.*zhouhaoyi/ETDataset"):
        etth1.load(tmp_path)


def test_seasonal_naive_on_the_real_data_is_the_published_one(data_folder, monkeypatch):
    """The protocol is right if a forecast without parameters gives the known errors."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    etth1 = importlib.import_module("etth1")
    values = etth1.load(data_folder)
    naive = etth1.build("seasonal-naive-24", 0, {"K": 24})
    found = etth1.errors(naive, values, etth1.VALIDATION, etth1.TEST)
    assert found["windows"] == 2785
    assert found["mse"] == pytest.approx(0.5122, abs=1e-4)
    assert found["mae"] == pytest.approx(0.4333, abs=1e-4)


def test_tables_are_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    module = runpy.run_path(str(ROOT / "examples" / "benchmarks" / "tables.py"))
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert module["fill"](page) == page


def test_documented_commands_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    wanted = {"quickstart", "test", "check", "test-full", "bench", "docs", "examples", "lock"}
    assert wanted <= targets
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        assert set(re.findall(r"^make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets


def test_nothing_in_the_repository_names_a_machine():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    files = [ROOT / name for name in listed.stdout.split()] or list(ROOT.glob("*.md"))
    pattern = re.compile(r"(^|[^a-zA-Z0-9_.])/(root|home|tmp|work|farm)/")
    for file in files:
        if file.suffix in {".py", ".md", ".toml", ".json", ".txt"} and file != Path(__file__):
            assert not pattern.search(file.read_text()), file

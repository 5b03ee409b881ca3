"""The tables of docs/benchmarks.md: which rows they take, and what they make of them."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"


@pytest.fixture
def builders(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tables").BUILDERS


@pytest.fixture
def store(builders, tmp_path, monkeypatch):
    """Return a function that stores the rows of a benchmark where the builders look."""
    monkeypatch.setattr(importlib.import_module("_tables"), "DOCS", tmp_path)
    (tmp_path / "results").mkdir()

    def stored(name, rows):
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(rows))

    return stored


def cells(text):
    """Return the rows of a table without its header."""
    return [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]


def losloop(run, seed, error, split="test", **more):
    by_step = {"3": error, "6": error + 1, "12": error + 2, "all": error + 1}
    row = {"run": run, "seed": seed, "split": split, "settings": {"lr": 0.1}, **more}
    return {**row, "mae": by_step, "rmse": by_step, "mape": by_step, "fit_cpu_seconds": 5.0}


def test_no_table_is_built_twice(builders):
    names = ("errors", "costs", "adapters", "global")
    parts = [importlib.import_module(f"_tables_{name}") for name in names]
    assert len(builders) == sum(len(part.BUILDERS) for part in parts)


def test_losloop_takes_the_mean_over_the_seeds_of_equal_settings(builders, store):
    rows = [
        losloop("a", seed, error, trainable_parameters=1200) for seed, error in ((0, 3), (1, 4))
    ]
    rows += [
        losloop("a", 0, 1, split="validation"),
        losloop("a", 0, 5, settings={}),
        losloop("b", 0, 7),
    ]
    store("losloop", rows)
    first, other, plain = cells(builders["losloop"]())
    errors = ["3.50", "4.50", "5.50", "4.50", "3.50", "4.50", "5.50", "5.50"]
    assert first == ["a", *errors, "5.00, 6.00", "1,200", "5", "lr=0.1"]
    assert other[:2] == ["a", "5.00"]
    assert plain[0] == "b"
    assert plain[-3] == "0"


def test_validation_rows_are_in_the_order_of_their_error(builders, store):
    rows = [losloop("b", 0, 3), losloop("a", 0, 2), losloop("b", 0, 1)]
    store("losloop_validation", rows)
    found = cells(builders["losloop_validation"]())
    assert [row[:2] for row in found] == [["b", "1.000"], ["b", "3.000"], ["a", "2.000"]]


def test_coverage_takes_the_rows_that_have_it(builders, store):
    store("losloop", [losloop("a", 0, 3), losloop("u", 0, 3, coverage=0.8)])
    shared = {"run": "g", "split": "test", "settings": {}, "mae": 0.25}
    store("etth1", [{**shared, "seed": seed, "coverage": 0.9 + 0.04 * seed} for seed in (0, 1)])
    etth1, traffic = cells(builders["coverage"]())
    assert etth1[:5] == ["ETTh1", "g", "92.0%", "90.0%, 94.0%", "0.250"]
    assert traffic == ["LosLoop", "u", "80.0%", "80.0%", "4.000", "lr=0.1"]


def test_the_rate_of_the_stage_is_chosen_with_the_first_seed(builders, store):
    """The other seed may say otherwise, and is not asked."""
    falls = {("lora", 0.1): (0.4, 0.5), ("lora", 0.2): (0.3,), ("lora-amr", 0.1): (0.2, 0.35)}
    falls |= {("lora-amr", 0.3): (0.1,), ("lora-fa", 0.1): (0.4, 0.5), ("full", 0.1): (0.8, 0.8)}
    store(
        "language_stage",
        [
            {"run": "fall", "method": method, "rate": rate, "seed": seed, "fall": share}
            | {"loss_before": 10.0, "loss_after": 10 * (1 - share)}
            for (method, rate), shares in falls.items()
            for seed, share in enumerate(shares)
        ],
    )
    found = {row[0]: row[1:] for row in cells(builders["language_stage_fall"]())}
    tried = "0.1: 8.00, 0.3: 9.00"
    assert found["lora-amr"] == [tried, "0.1", "10.00", "8.00, 6.50", "20%, 35%", "0.50, 0.70"]
    assert found["full"][-1] == "2.00, 1.60"
    assert builders["language_stage_share"]() == "0.50 to 0.70"


def test_many_series_are_in_mebibytes_and_milliseconds(builders, store):
    names = ("kept", "pairs", "step", "inference", "process")
    row = {f"{name}_bytes": place * 2**20 for place, name in enumerate(names, 1)}
    row |= {"step_cpu_seconds": 0.2, "inference_cpu_seconds": 0.05, "texts": 9}
    row |= {"n_series": 207, "batch_size": 16, "backbone": "some/model", "inter": False}
    store("many_series", [row])
    expected = ["207", "16", "model", "no", "1", "2", "3", "4", "5", "200", "50", "9"]
    assert cells(builders["many_series"]()) == [expected]

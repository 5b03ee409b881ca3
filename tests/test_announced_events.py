"""The example of announced events in small: text helps where it tells of events, and only there."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTROLS = ["... shuffled in time", 'text="none"']


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("announced_events")


def test_announcements_halve_the_error_of_events_and_change_forecasts(example, tmp_path, capsys):
    picture, results = tmp_path / "events.png", tmp_path / "events.json"
    files = ["--output", str(picture), "--results", str(results)]
    runs = ["--runs", "announcements", *CONTROLS, "--seeds", "4"]
    table, forecasts = example.main(["--small", *runs, *files])

    told, shuffled, none = table["weeks with events"]
    assert told < none / 2
    assert shuffled > 0.8 * none

    day = forecasts["nothing"].index[2]  # the first of the event
    nothing = forecasts["nothing"][day]
    assert forecasts["a sale"][day] > 1.15 * nothing
    assert forecasts["a strike"][day] < 0.85 * nothing

    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [row["run"] for row in json.loads(results.read_text())] == table.index.to_list()
    assert "what if there were nothing" in capsys.readouterr().out


def test_the_shop_tells_of_events_in_words_alone(example):
    y, X, truth = example.shop(0)
    assert ((X["announcement"] != "") == (truth["effect"] != 0)).all()
    assert len(y) == example.TRAIN + example.TEST
    before = set(X["announcement"][: example.TRAIN])
    assert not before & set(X["announcement"][truth["new"]])
    assert 0.3 < truth["new"].sum() / (truth["effect"][example.TRAIN :] != 0).sum() < 0.7


def test_controls_tell_something_else(example):
    _, X, _ = example.shop(0)
    shuffled = example.told("shuffled", X, example.TRAIN, seed=0)
    for part in (slice(None, example.TRAIN), slice(example.TRAIN, None)):
        assert sorted(shuffled["announcement"][part]) == sorted(X["announcement"][part])
    assert (shuffled != X).to_numpy().any()
    alike = example.told("alike", X, example.TRAIN, seed=0)["announcement"]
    assert set(alike) == {"", "An event"}
    assert ((alike == "") == (X["announcement"] == "")).all()


def test_what_if_leaves_the_announcements_as_they_are(example):
    class Forecaster:
        def predict(self, X):
            return X

    _, X, _ = example.shop(0)
    asked = example.what_if(Forecaster(), X[:7], [1, 3], "Parade")["announcement"]
    assert (asked == "Parade").to_list() == [False, True, False, True, False, False, False]
    assert "Parade" not in set(X["announcement"])

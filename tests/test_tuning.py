"""Search spaces: every choice is one, and tuners of both hosts take them."""

import importlib
from pathlib import Path

import optuna
import pytest
from darts.metrics import mae
from optuna.distributions import CategoricalDistribution, FloatDistribution
from sktime.forecasting.model_selection import ForecastingGridSearchCV, ForecastingOptunaSearchCV
from sktime.split import SingleWindowSplitter
from support import METHODS, darts_series, monthly, signature, sine

from tsllm_estimators.tuning import SPACES, Range, distributions, grid, search_space, suggest

ROOT = Path(__file__).parents[1]
optuna.logging.set_verbosity(optuna.logging.ERROR)
SPLIT = SingleWindowSplitter(fh=[1, 2, 3])


def small(space):
    """Return a space in which the language model is a small one."""
    return {
        name: tuple("tiny" if "MiniLM" in str(value) else value for value in choices)
        if isinstance(choices, tuple)
        else choices
        for name, choices in space.items()
    }


def test_a_space_holds_the_defaults_of_both_faces(method):
    for cls in (method.forecaster, method.model):
        for name, choices in search_space(cls).items():
            if name == "lr":
                assert choices.low < method.network.learning_rate < choices.high
            else:
                assert signature(cls)[name] in choices
                assert len(set(choices)) == len(choices) > 1
    assert {"none"} < set(SPACES[method.name].get("backbone", SPACES[method.name].get("text")))


def test_every_choice_forecasts_differently(method):
    y = monthly(60, columns=2)
    found = {}
    for name, choices in small(SPACES[method.name]).items():
        values = choices.values() if isinstance(choices, Range) else choices
        forecasts = {}
        for value in values:
            forecaster = method.forecaster(
                **{**method.small(max_steps=3, random_state=0, context_length=24), name: value}
            )
            forecasts[value] = tuple(forecaster.fit(y).predict([1, 2]).to_numpy().ravel())
        assert len(set(forecasts.values())) == len(values), name
        found[name] = forecasts
    assert found.keys() == SPACES[method.name].keys()


def test_contexts_are_multiples_of_the_horizon(method):
    assert search_space(method.forecaster, horizon=6)["context_length"] == (12, 24, 48)
    assert search_space(method.model(12, 6), horizon=6)["input_chunk_length"] == (12, 24, 48)
    assert "context_length" not in search_space(method.sktime())


def test_a_space_is_the_same_in_every_form(method):
    space = search_space(method.forecaster, horizon=4)
    lists, of_optuna = grid(method.forecaster, 4), distributions(method.forecaster, 4)
    assert lists.keys() == of_optuna.keys() == space.keys()
    for name, choices in space.items():
        if isinstance(choices, Range):
            low, middle, high = lists[name]
            assert (low, high) == (choices.low, choices.high)
            assert middle == pytest.approx((low * high) ** 0.5, rel=0.05)
            assert of_optuna[name] == FloatDistribution(low, high, log=True)
        else:
            assert lists[name] == list(choices)
            assert of_optuna[name] == CategoricalDistribution(choices)
    fixed = {**{name: values[-1] for name, values in lists.items()}, "lr": 1e-3}
    assert suggest(optuna.trial.FixedTrial(fixed), method.forecaster, 4) == fixed
    of_darts = {name: v for name, v in fixed.items() if name not in ("lr", "context_length")}
    expected = {**of_darts, "input_chunk_length": 32, "optimizer_kwargs": {"lr": 1e-3}}
    trial = optuna.trial.FixedTrial({**of_darts, "input_chunk_length": 32, "lr": 1e-3})
    assert suggest(trial, method.model, 4) == expected
    assert grid(method.model)["optimizer_kwargs"] == [{"lr": lr} for lr in lists["lr"]]


def test_sktime_tuners_take_it(method):
    y = monthly(60)["v0"]
    space = distributions(method.forecaster)
    space = {name: d for name, d in space.items() if name not in ("backbone", "text")}
    sampler = optuna.samplers.RandomSampler(seed=1)
    search = ForecastingOptunaSearchCV(
        method.sktime(context_length=24), SPLIT, space, n_evals=3, sampler=sampler
    ).fit(y)
    scores = search.cv_results_.filter(like="mean_test").iloc[:, 0]
    assert scores.nunique() == 3
    assert search.best_score_ == scores.min()
    assert search.best_params_.keys() == space.keys()
    lists = {"lr": grid(method.forecaster)["lr"]}
    found = ForecastingGridSearchCV(method.sktime(), SPLIT, lists, backend="None").fit(y)
    assert found.best_params_["lr"] in lists["lr"]
    assert found.cv_results_.filter(like="mean_test").iloc[:, 0].nunique() == 3


def test_a_study_of_a_darts_model_takes_it(method):
    series = darts_series(sine(80))
    tried = []

    def objective(trial):
        arguments = suggest(trial, method.model)
        given = {name: v for name, v in arguments.items() if name not in ("backbone", "text")}
        model = method.darts(**given, n_epochs=1)
        assert model.model_params.items() >= given.items()
        tried.append(mae(series[-6:], model.fit(series[:-6]).predict(6)))
        return tried[-1]

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    study.optimize(objective, n_trials=3)
    assert study.best_value == min(tried)
    assert len(set(tried)) == 3


def test_what_has_no_space_is_refused():
    for other in ("calf", SPLIT, optuna):
        with pytest.raises(TypeError, match=r"estimator must be a forecaster or a model of this"):
            search_space(other)


def test_the_page_shows_the_spaces():
    page = (ROOT / "docs" / "tuning.md").read_text()
    table = page.split("<!-- spaces -->\n")[1].split("\n<!-- end -->")[0]
    assert table.splitlines()[2:] == rows()


def rows():
    """Return the rows of the page's table."""
    found = []
    for method in METHODS:
        default = {**method.network.Config.defaults(), "lr": method.network.learning_rate}
        for name, choices in SPACES[method.name].items():
            if isinstance(choices, Range):
                shown = f"{choices.low:g} to {choices.high:g}, logarithmic (**{default[name]:g}**)"
            else:
                marked = [f"**`{c!r}`**" if c == default[name] else f"`{c!r}`" for c in choices]
                shown = ", ".join(marked)
            found.append(f"| {method.forecaster.__name__} | `{name}` | {shown} |")
    return found


def test_the_example_in_small(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = importlib.import_module("tuning")
    monkeypatch.setitem(SPACES, "lemole", {"text": ("both", "none"), "lr": Range(1e-3, 2e-3)})
    found = example.main(["--method", "LeMoLE", "--trials", "3", "--max-steps", "2"])
    assert list(found.index) == ["tuned", "default", "seasonal naive"]
    assert found["tuned"] != found["default"]
    assert found["seasonal naive"] == pytest.approx(47.583, abs=1e-3)
    shown = capsys.readouterr().out
    assert "3 trials in" in shown
    assert "best error of each" in shown

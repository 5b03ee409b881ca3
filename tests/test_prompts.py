"""Prompts: what they say, and that they say it of the series and not of its unit."""

import math
import random

import pytest
import torch

from tsllm_estimators.llm.prompts import (
    PROMPT_KINDS,
    PromptStatistics,
    alter_prompt,
    compose_prompt,
    prompt_statistics,
)

STATISTICS = PromptStatistics(-1.8, 0.0, 2.1, "upward", (12, 24))
PROMPT = compose_prompt(
    context_length=48,
    horizon=12,
    description="Load of 3 cities",
    variate_names=["A", "b"],
    statistics=STATISTICS,
)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def windows_of(series, length):
    """Return all windows of a series (t,), shape (n, length, 1)."""
    return series.unfold(0, length, 1).unsqueeze(-1)


def seasonal(n=300, period=12, seed=0):
    time = torch.arange(n, dtype=torch.float64)
    noise = torch.randn(n, generator=generator(seed), dtype=torch.float64)
    return torch.sin(2 * math.pi * time / period) + 0.3 * noise


def random_windows(seed):
    """Return windows of three kinds of series: noise, random walk, small integers (many ties)."""
    noise = torch.randn(9, 30, 2, generator=generator(seed), dtype=torch.float64)
    return [noise, noise.cumsum(1), (2 * noise).round()][seed % 3]


def test_a_prompt_says_what_is_known_in_one_paragraph():
    assert PROMPT == (
        "About the data: Load of 3 cities. The variates are A and b. The task is to forecast 12 "
        "time steps ahead from the last 48. Brought to mean 0 and deviation 1, values run from "
        "-1.8 to 2.1 with a median of 0.0 and a trend upward; their autocorrelation is highest at "
        "lags 12 and 24."
    )


def test_what_is_unknown_is_left_out():
    task = "The task is to forecast 1 time step ahead from the last 24."
    assert compose_prompt(context_length=24, horizon=1) == task
    assert compose_prompt(context_length=24, horizon=1, description=" ", variate_names=[]) == task
    level = STATISTICS._replace(trend="level", lags=())
    text = compose_prompt(context_length=24, horizon=1, statistics=level)
    assert text.endswith("a median of 0.0 and no trend.")


def test_white_space_and_full_stops_of_the_user_are_cleaned():
    text = compose_prompt(
        context_length=2, horizon=2, description=" Hourly\n  load. ", variate_names=["a\tb", 3, "c"]
    )
    assert text.startswith("About the data: Hourly load. The variates are a b, 3 and c. The task")
    one = compose_prompt(context_length=2, horizon=2, variate_names=["OT"])
    assert one.startswith("The variate is OT. ")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"context_length": 0}, ValueError, "context_length must be an integer >= 1, found 0"),
        ({"horizon": 1.5}, TypeError, "horizon must be an integer >= 1, found 1.5"),
        ({"description": 3}, TypeError, "description must be a text about the data or None"),
        ({"variate_names": "OT"}, TypeError, "variate_names must be a list of names"),
    ],
)
def test_arguments_of_another_kind_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        compose_prompt(**{"context_length": 4, "horizon": 2, **change})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(12))
def test_another_unit_and_level_give_the_same_text(seed, dtype):
    windows = random_windows(seed).to(dtype)
    windows[0, :5], windows[1, :, 0], windows[2] = torch.nan, 0.1, torch.nan
    first, second = (prompt_statistics(w) for w in (windows, 1000 * windows + 7))
    assert first == second
    assert first != prompt_statistics(windows.exp())  # the statistics do see the values


def test_ties_are_not_broken_by_float_error():
    """Exact ties: a maximum of 1.25 between two decimals, and equal autocorrelations."""
    halfway = torch.zeros(2, 26, 1, dtype=torch.float64)
    halfway[0, :13], halfway[1, :8] = 1.0, 1.0  # normalised maxima 1 and 1.5
    integers = torch.randint(3, (200, 1, 12, 1), generator=generator(0)).double()
    for windows in [halfway, *integers]:
        expected = prompt_statistics(windows)
        for scale, shift in [(1000, 7), (0.1, 0), (3e-5, 0.3), (7, -11)]:
            assert prompt_statistics(scale * windows + shift) == expected


def test_statistics_are_those_of_normalised_windows():
    windows = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0], [900.0, 800.0, 700.0, 600.0, 500.0]])
    found = prompt_statistics(windows[:1].unsqueeze(-1))
    assert found[:4] == (-1.4, 0.0, 1.4, "upward")  # 2 / sqrt(2)
    assert prompt_statistics(windows[1:].unsqueeze(-1)).trend == "downward"
    assert prompt_statistics(windows.unsqueeze(-1)).trend == "level"  # one up, one down
    skewed = torch.tensor([0.0, 0.0, 0.0, 4.0]).reshape(1, 4, 1)  # mean 1, deviation sqrt(3)
    assert prompt_statistics(skewed)[:3] == (-0.6, -0.6, 1.7)
    two_middle_values = torch.tensor([0.0, 1.0, 3.0, 8.0]).reshape(1, 4, 1)  # 2, mean 3, sqrt(9.5)
    assert prompt_statistics(two_middle_values).median == -0.3
    gap = torch.tensor([0.0, torch.nan, torch.nan, torch.nan, 0.0, 4.0]).reshape(1, 6, 1)
    assert prompt_statistics(gap)[:3] == (-0.7, -0.7, 1.4)  # of what is there
    nearly_zero = torch.tensor([0.0, 0.97, 2.0]).reshape(1, 3, 1)
    assert str(prompt_statistics(nearly_zero).median) == "0.0"  # and not -0.0


@pytest.mark.parametrize("period", [7, 12])
def test_lags_are_the_seasons_in_steps(period):
    assert prompt_statistics(windows_of(seasonal(period=period), 49)).lags[0] == period


def test_lags_survive_missing_values():
    windows = windows_of(seasonal(), 48).clone()
    windows[torch.rand(windows.shape, generator=generator(1)) < 0.2] = torch.nan
    assert prompt_statistics(windows).lags == (12, 24)


@pytest.mark.parametrize("kind", ["walks", "integers"])
@pytest.mark.parametrize("seed", range(8))
def test_lags_match_a_direct_autocorrelation(kind, seed):
    noise = torch.randn(4, 40, 1, generator=generator(seed), dtype=torch.float64)
    windows = noise.cumsum(1) if kind == "walks" else noise[:1, :12].round()  # these have ties
    n_steps, half = windows.shape[1], windows.shape[1] // 2
    values = (windows - windows.mean(1, keepdim=True)) / windows.std(1, correction=0, keepdim=True)
    by_lag = {0: 1.0}
    for lag in range(1, half + 2):
        product = (values[:, lag:] * values[:, :-lag]).sum(1).mean().item()
        by_lag[lag] = round(product / n_steps, 4)
    good = [lag for lag in range(1, half + 1) if by_lag[lag] >= 0.1]
    peaks = [k for k in good if by_lag[k - 1] <= by_lag[k] > by_lag[k + 1]]
    expected = sorted(peaks or good, key=lambda lag: -by_lag[lag])[:5]
    assert prompt_statistics(windows).lags == tuple(expected)


def test_equal_lags_count_once_and_come_in_order():
    """Autocorrelations -1/3, 1/6, 1/6, -1/3, 1/6, -1/2: lags 2 and 3 are one peak, 5 another."""
    windows = torch.tensor([0.0, 2, 1, 1, 2, 1, 2, 0, 1, 1, 0]).reshape(1, 11, 1)
    assert prompt_statistics(windows).lags == (3, 5)


def test_a_series_without_peaks_has_the_nearest_lags_and_noise_has_none():
    walk = torch.arange(60.0).reshape(1, 60, 1)
    assert prompt_statistics(walk).lags == (1, 2, 3, 4, 5)
    noise = torch.randn(500, 60, 1, generator=generator(0))
    assert prompt_statistics(noise).lags == ()


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_short_constant_and_missing_windows_have_statistics(n_steps):
    nothing = PromptStatistics(0.0, 0.0, 0.0, "level", ())
    for value in (torch.nan, 0.1, 1e6):
        assert prompt_statistics(torch.full((2, n_steps, 2), value)) == nothing
    assert isinstance(prompt_statistics(torch.randn(2, n_steps, 2)), PromptStatistics)


def test_windows_without_an_axis_or_a_value_are_refused():
    for shape in [(4, 5), (0, 5, 1), (4, 0, 1)]:
        with pytest.raises(ValueError, match=r"windows must have shape \(n, t, c\)"):
            prompt_statistics(torch.zeros(shape))


def test_many_windows_are_sampled_evenly_to_the_last():
    """A trend turns in the middle: looking at the first windows only would miss it."""
    up = torch.arange(6.0).reshape(1, 6, 1)
    half = torch.cat([up.expand(3000, 6, 1), -up.expand(3000, 6, 1)])
    assert prompt_statistics(half).trend == "level"
    assert prompt_statistics(torch.cat([half, -up.expand(1500, 6, 1)])).trend == "downward"


def test_altered_prompts_differ_and_keep_their_length():
    altered = {kind: alter_prompt(PROMPT, kind) for kind in PROMPT_KINDS}
    assert altered["real"] == PROMPT
    assert altered["empty"] == ""
    assert len(set(altered.values())) == 4
    for kind in ("gibberish", "shuffled"):
        assert len(altered[kind]) == len(PROMPT)
        assert len(altered[kind].split()) == len(PROMPT.split())


def test_gibberish_keeps_the_kind_of_each_character():
    def kinds(text):
        return "".join(
            "d" if c.isdigit() else "u" if c.isupper() else "l" if c.isalpha() else c for c in text
        )

    gibberish = alter_prompt(PROMPT, "gibberish")
    assert kinds(gibberish) == kinds(PROMPT)
    assert not set(PROMPT.split()) & {word for word in gibberish.split() if len(word) > 3}


def test_shuffled_prompts_have_the_same_words_in_another_order():
    for seed in range(20):  # half of the orders of two words are their own
        assert alter_prompt("one two", "shuffled", seed) == "two one"
    assert alter_prompt("one one", "shuffled") == "one one"
    assert sorted(alter_prompt(PROMPT, "shuffled").split()) == sorted(PROMPT.split())


def test_altered_prompts_follow_their_seed_and_leave_the_global_generators_alone():
    random.seed(3)
    torch.manual_seed(3)
    states = random.getstate(), torch.get_rng_state()
    for kind in ("gibberish", "shuffled"):
        first, again, other = (alter_prompt(PROMPT, kind, seed) for seed in (0, 0, 1))
        assert first == again != other
    prompt_statistics(windows_of(seasonal(), 24))
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"kind must be one of .*'gibberish'.*found 'poem'"):
        alter_prompt(PROMPT, "poem")

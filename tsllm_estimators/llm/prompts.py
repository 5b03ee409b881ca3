"""Prompts: what a person would tell a language model about a forecasting task, as plain text.

Axes: n windows, t time steps, c variates.
"""

import random
import re
import string
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from tsllm_estimators._validate import check_choice, check_integer

PROMPT_KINDS = ("real", "empty", "gibberish", "shuffled")

_MAX_WINDOWS = 1024
_MAX_VALUES = 2**20  # of all windows looked at together: 8 MiB in float64, half a second
_N_LAGS = 5
_WEAK = 0.1  # mean correlations below it, with time or with the past, count as none
# Values are rounded to so many decimals before anything is decided by them: the same series in
# another unit differs by float error, which must not break ties (a median of 0, equal lags).
_DECIMALS = 4


class PromptStatistics(NamedTuple):
    """What a typical window looks like once it has mean 0 and deviation 1.

    Attributes
    ----------
    minimum, median, maximum : float
        Means over windows and variates, rounded to one decimal.
    trend : {"upward", "downward", "level"}
        Direction of the mean correlation with time.
    lags : tuple of int
        At most five lags, in steps, after which windows resemble themselves most, the best first;
        empty where there are none.
    """

    minimum: float
    median: float
    maximum: float
    trend: str
    lags: tuple[int, ...]


def compose_prompt(
    *,
    context_length: int,
    horizon: int,
    description: str | None = None,
    variate_names: Iterable[object] | None = None,
    statistics: PromptStatistics | None = None,
) -> str:
    """Return the prompt of a forecasting task, one paragraph; the same arguments, the same text.

    Parameters
    ----------
    context_length, horizon : int
        Time steps that a forecast sees, and time steps that it forecasts.
    description : str, optional
        What the data are, in the user's words; nothing is said of them when None or blank.
    variate_names : iterable, optional
        Names of the variates, all of which are listed.
    statistics : PromptStatistics, optional
        Returned by :func:`prompt_statistics`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.

    Examples
    --------
    >>> compose_prompt(context_length=48, horizon=12, description="Load of a city")
    'About the data: Load of a city. The task is to forecast 12 time steps ahead from the last 48.'
    """
    check_integer("context_length", context_length, 1)
    check_integer("horizon", horizon, 1)
    sentences = [
        _about(description),
        _variates(variate_names),
        f"The task is to forecast {horizon} time step{_s(horizon)} ahead from the last "
        f"{context_length}.",
        _statistics(statistics),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def prompt_statistics(windows: Tensor) -> PromptStatistics:
    """Return what the training windows have in common, whatever their unit and level.

    Each window and variate is brought to mean 0 and deviation 1 first (a constant or missing one
    counts as 0), so that y and 1000 y + 7 have the same statistics. At most 1024 windows, evenly
    spread, are looked at; fewer where they are large.

    Parameters
    ----------
    windows : Tensor
        Shape (n, t, c), original scale, any float dtype; NaN is a missing value.

    Raises
    ------
    ValueError
        If ``windows`` has not three axes, or one of them is empty.

    Notes
    -----
    The lags are the largest peaks of the mean autocorrelation up to t // 2 steps. Its largest
    values would be lags 1, 2, 3 for every smooth series, and tell nothing of its seasons; they are
    taken where there is no peak. Correlations below 0.1 count as none.
    """
    if windows.ndim != 3 or not windows.numel():
        raise ValueError(
            "windows must have shape (n, t, c), windows by time steps by variates, each at least "
            f"1, found {tuple(windows.shape)}."
        )
    windows = windows.detach()
    values, observed = _normalised(windows[_spread(windows).to(windows.device)])  # (n, t, c) both
    present = values.masked_fill(~observed, torch.nan)
    # torch takes the lower of two middle values: that of -x is the upper one of x
    medians = (present.nanmedian(1).values - (-present).nanmedian(1).values) / 2
    return PromptStatistics(
        minimum=_one_decimal(values.amin(1)),
        median=_one_decimal(medians.nan_to_num()),
        maximum=_one_decimal(values.amax(1)),
        trend=_trend(values),
        lags=_lags(values),
    )


def alter_prompt(prompt: str, kind: str, seed: int = 0) -> str:
    """Return a prompt that says less, to see what the words of a prompt are worth.

    Parameters
    ----------
    prompt : str
        The prompt.
    kind : {"real", "empty", "gibberish", "shuffled"}
        The prompt itself; no text; a random letter for each letter and digit for each digit (as
        many words and characters, though a tokenizer may cut them into more tokens); or the same
        words in another order.
    seed : int
        Seed of the letters or of the order.

    Raises
    ------
    ValueError
        If ``kind`` is not one of ``PROMPT_KINDS``.
    """
    check_choice("kind", kind, PROMPT_KINDS)
    generator = random.Random(seed)
    if kind == "empty":
        return ""
    if kind == "gibberish":
        return "".join(_other(character, generator) for character in prompt)
    if kind == "shuffled":
        words = prompt.split()
        order = list(words)
        while order == words and len(set(words)) > 1:
            generator.shuffle(order)
        remaining = iter(order)
        return re.sub(r"\S+", lambda _: next(remaining), prompt)
    return prompt


def _about(description: str | None) -> str:
    if not isinstance(description, str | None):
        raise TypeError(
            "description must be a text about the data or None, found "
            f"{description!r} of type {type(description).__name__}."
        )
    text = " ".join((description or "").split())
    if not text:
        return ""
    return f"About the data: {text}" + ("" if text[-1] in ".!?" else ".")


def _variates(names: Iterable[object] | None) -> str:
    if isinstance(names, str):
        raise TypeError(f"variate_names must be a list of names or None, found the text {names!r}.")
    listed = [" ".join(str(name).split()) for name in names or ()]
    if not listed:
        return ""
    return f"The variate{'s are' if len(listed) > 1 else ' is'} {_enumerate(listed)}."


def _statistics(statistics: PromptStatistics | None) -> str:
    if statistics is None:
        return ""
    text = (
        "Brought to mean 0 and deviation 1, values run from "
        f"{statistics.minimum:.1f} to {statistics.maximum:.1f} with a median of "
        f"{statistics.median:.1f} and "
    )
    text += "no trend" if statistics.trend == "level" else f"a trend {statistics.trend}"
    if statistics.lags:
        lags = _enumerate([str(lag) for lag in statistics.lags])
        text += f"; their autocorrelation is highest at lag{_s(len(statistics.lags))} {lags}"
    return f"{text}."


def _s(number: int) -> str:
    return "" if number == 1 else "s"


def _enumerate(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _spread(windows: Tensor) -> Tensor:
    """Return the positions of the windows to look at, evenly spread from the first to the last."""
    n_windows = min(len(windows), _MAX_WINDOWS, max(1, _MAX_VALUES // windows[0].numel()))
    return torch.linspace(0, len(windows) - 1, n_windows, dtype=torch.float64).round().long()


def _normalised(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Return windows (n, t, c) with mean 0 and deviation 1, missing values as 0, and a mask."""
    observed = windows.isfinite()
    # A window that varies by no more than the rounding of its values is constant.
    resolution = 4 * torch.finfo(windows.dtype).eps
    values = windows.double().masked_fill(~observed, 0.0)
    count = observed.sum(1, keepdim=True).clamp_min(1)
    centred = (values - values.sum(1, keepdim=True) / count).masked_fill(~observed, 0.0)
    deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
    constant = deviation <= resolution * values.abs().amax(1, keepdim=True)
    return (centred / deviation.masked_fill(constant, 1.0)).masked_fill(constant, 0.0), observed


def _one_decimal(values: Tensor) -> float:
    return round(_robust(values.mean().item()), 1) + 0.0  # no -0.0


def _robust(value: float) -> float:
    return round(value, _DECIMALS)


def _trend(values: Tensor) -> str:
    """Return the direction of the mean correlation of ``values`` (n, t, c) with time."""
    n_steps = values.shape[1]
    time = torch.arange(n_steps, dtype=values.dtype, device=values.device)
    time = (time - time.mean()) / time.std(correction=0).clamp_min(1e-9)
    correlation = _robust((time @ values.mean((0, 2))).item() / n_steps)
    if abs(correlation) < _WEAK:
        return "level"
    return "upward" if correlation > 0 else "downward"


def _lags(values: Tensor) -> tuple[int, ...]:
    """Return the lags of the largest peaks of the mean autocorrelation of ``values`` (n, t, c)."""
    n_steps = values.shape[1]
    spectrum = torch.fft.rfft(values, n=2 * n_steps, dim=1)  # as long again, so it does not wrap
    power = spectrum.abs().square().mean((0, 2))
    correlation = (torch.fft.irfft(power, n=2 * n_steps) / n_steps).round(decimals=_DECIMALS)
    before, here, after = (correlation[i : i + n_steps // 2] for i in range(3))
    good = here >= _WEAK
    peak = good & (here >= before) & (here > after)
    candidates = (peak if peak.any() else good).nonzero().squeeze(1)
    order = here[candidates].argsort(descending=True, stable=True)  # of equal ones the shorter lag
    return tuple((candidates[order[:_N_LAGS]] + 1).tolist())


def _other(character: str, generator: random.Random) -> str:
    if character.isdigit():
        return generator.choice(string.digits)
    if character.isalpha():
        letters = string.ascii_uppercase if character.isupper() else string.ascii_lowercase
        return generator.choice(letters)
    return character

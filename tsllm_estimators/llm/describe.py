"""Describers: a window of a series becomes a code of a finite alphabet, a code becomes a text.

Codes are computed inside a network, for thousands of windows at once; texts are made once for
each distinct code, so that a language model is asked at most as many times as there are codes.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tsllm_estimators._validate import check_choice

#: Who describes: thresholds and fixed sentences, a causal language model, or a chat endpoint.
DESCRIBERS = ("statistical", "huggingface", "chat")

# Bounds between the levels, all in units of the window's own deviation, chosen so that windows of
# 12 steps of traffic and of 96 and 336 steps of ETTh1 use every level. They are odd numbers on
# purpose: small windows of round values meet none of them exactly, where rounding would decide.
_FLAT = 1e-2  # a deviation below it, in the units of the windows, is no movement at all
_SLOPE = (-0.67, -0.27, 0.27, 0.67)  # correlation with time
_CHANGE = (-0.63, 0.63)  # mean of the last third less that of the first
_ROUGHNESS = (0.41, 1.63)  # mean square of a step's change; that of white noise is 2
_SWING = 0.53  # a step so far from the trend is above or below it
_PEAK = 0.43  # share of the variance about the trend that one frequency needs to be a cycle
_LEAST_VARIANCE = 0.053  # about the trend: cycles of less do not count
_CYCLES = (1, 4)  # in a window: up to the first it is one slow wave, up to the second a few cycles
_TIE = 0.053  # values, and frequencies, that are closer than this count as equal

# A trend: level of the slope and level of the change. Where both contradict, the slope counts.
_TRENDS = (
    "falls steadily",
    "tends to fall and ends lower",
    "tends to fall but ends near its start",
    "has no clear trend but ends lower",
    "has no clear trend and ends near its start",
    "has no clear trend but ends higher",
    "tends to rise but ends near its start",
    "tends to rise and ends higher",
    "rises steadily",
)
_TEXTURES = ("smooth", "uneven", "rough")
_SWINGS = ("few swings", "many swings")
_WAVES = ("no clear cycle", "one slow wave", "a few cycles", "many short cycles")
_PLACES = ("early", "midway", "late")

_LEVELS = tuple(map(len, (_TRENDS, _TEXTURES, _SWINGS, _WAVES, _PLACES, _PLACES)))


class Describer(Protocol):
    """Something that describes windows in words.

    Attributes
    ----------
    n_codes : int
        Size of the alphabet.
    is_reproducible : bool
        Whether a code has the same text everywhere and at any time.
    """

    n_codes: int
    is_reproducible: bool

    def codes(self, windows: Tensor) -> Tensor:
        """Return the code of each window: (b, c), int64 in [0, n_codes), from (b, L, c)."""
        ...

    def text(self, code: int) -> str:
        """Return what a code says."""
        ...

    def texts(self, codes: Sequence[int], progress: bool = False) -> list[str]:
        """Return what each code says, with a bar on stderr if ``progress`` and it takes long."""
        ...


def check_describer(kind: str, kwargs: Mapping[str, Any] | None) -> None:
    """Raise if no describer can be made of these arguments; loads nothing.

    Parameters are those of :func:`load_describer`.

    Raises
    ------
    TypeError, ValueError
        If one of them is not what was expected; the message names it.
    """
    load_describer(kind, kwargs)


def load_describer(kind: str, kwargs: Mapping[str, Any] | None) -> Describer:
    """Return a describer; a language model is loaded or called when a text is first needed.

    Parameters
    ----------
    kind : str
        One of ``DESCRIBERS``.
    kwargs : dict, optional
        Arguments of :class:`~tsllm_estimators.llm.huggingface.HuggingFaceDescriber` or
        :class:`~tsllm_estimators.llm.chat.ChatDescriber`; the statistical one takes none.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what was expected; the message names it.
    """
    check_choice("describer", kind, DESCRIBERS)
    if not isinstance(kwargs, Mapping | None):
        raise TypeError(
            f"describer_kwargs must be a dict or None, found an object of type "
            f"{type(kwargs).__name__}."  # without its value, which may be a secret
        )
    cls = _class_of(kind)
    known = inspect.signature(cls).parameters
    unknown = sorted(str(name) for name in kwargs or () if name not in known)
    if "api_key" in unknown:
        raise ValueError(
            "describer_kwargs must not hold an api_key, which would be stored with the model. Put "
            "the key into an environment variable and the variable's name into 'api_key_env'."
        )
    if unknown:
        raise ValueError(
            f"describer_kwargs of describer={kind!r} must be among {list(known)}, found {unknown}."
        )
    needed = [name for name, one in known.items() if one.default is inspect.Parameter.empty]
    missing = [name for name in needed if name not in (kwargs or ())]
    if missing:
        raise ValueError(
            f"describer_kwargs of describer={kind!r} must hold {needed}, found no {missing}."
        )
    describer: Describer = cls(**(kwargs or {}))
    return describer


def _class_of(kind: str) -> Any:
    # here, as they build upon the statistical one
    if kind == "huggingface":
        from tsllm_estimators.llm.huggingface import HuggingFaceDescriber

        return HuggingFaceDescriber
    if kind == "chat":
        from tsllm_estimators.llm.chat import ChatDescriber

        return ChatDescriber
    return StatisticalDescriber


class StatisticalDescriber:
    """Statistics of a window in a few levels each, and sentences that say them.

    The statistics are slope and level change, roughness, swings about the trend, dominant
    cycle, and where the extremes lie. Level and scale of a window do not matter.
    """

    n_codes = 1 + math.prod(_LEVELS)  # 0 is the flat one
    is_reproducible = True

    @torch.no_grad()
    def codes(self, windows: Tensor) -> Tensor:
        """Return the code of each window.

        1. Standardise; what hardly deviates (by less than 0.01) is flat, code 0.
        2. Take the linear trend out; from both, compute the statistics.
        3. Count levels of each; the code is the number of which these are the digits.

        Parameters
        ----------
        windows : Tensor
            Shape (b, L, c), floating, finite; each about of deviation 1.

        Returns
        -------
        Tensor
            Shape (b, c), int64 in [0, n_codes).
        """
        values = windows.transpose(1, 2)  # (b, c, L)
        if values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()
        values = values - values.mean(-1, keepdim=True)
        deviation = values.square().mean(-1).sqrt()  # (b, c)
        values = values / deviation.clamp_min(_FLAT).unsqueeze(-1)
        length = values.shape[-1]
        steps = torch.arange(length, dtype=torch.int32, device=values.device)
        time = steps.to(values.dtype) - (length - 1) / 2
        time = time / math.sqrt(max(length**2 - 1, 1) / 12)
        slope = (values * time).mean(-1)
        around = values - slope.unsqueeze(-1) * time  # the trend
        digits = (
            _trend(values, slope),
            _level(values.diff().square().sum(-1) / max(length - 1, 1), _ROUGHNESS),
            _swings(around, steps) > length / 12 + 1.5,
            _wave(around),
            _place(values, steps),
            _place(-values, steps),
        )
        code = torch.zeros_like(digits[0])
        for digit, n_levels in zip(digits, _LEVELS, strict=True):
            code = n_levels * code + digit
        return torch.where(deviation < _FLAT, 0, 1 + code)

    def text(self, code: int) -> str:
        """Return one or two sentences; those of two codes differ."""
        if not 0 <= code < self.n_codes:
            raise ValueError(f"code must be in [0, {self.n_codes}), found {code}.")
        if code == 0:
            return "The series stays flat."
        rest, digits = int(code) - 1, []
        for n_levels in reversed(_LEVELS):
            rest, digit = divmod(rest, n_levels)
            digits.append(digit)
        lowest, highest, wave, swings, texture, trend = digits
        return (
            f"The series {_TRENDS[trend]}. It is {_TEXTURES[texture]}, with {_SWINGS[swings]} and "
            f"{_WAVES[wave]}, highest {_PLACES[highest]} and lowest {_PLACES[lowest]}."
        )

    def texts(self, codes: Sequence[int], progress: bool = False) -> list[str]:
        """Return the sentences of each code; it takes no time that a bar could show."""
        return [self.text(code) for code in codes]


def _level(values: Tensor, bounds: tuple[float, ...]) -> Tensor:
    """Return how many bounds each value exceeds, int64."""
    level = torch.zeros_like(values, dtype=torch.long)
    for bound in bounds:
        level = level + (values > bound)
    return level


def _trend(values: Tensor, slope: Tensor) -> Tensor:
    """Return the place in ``_TRENDS`` of (b, c, L) with slopes (b, c)."""
    third = max(1, values.shape[-1] // 3)
    change = values[..., -third:].mean(-1) - values[..., :third].mean(-1)
    level = _level(slope, _SLOPE)
    change = _level(change, _CHANGE) - 1  # -1, 0, 1
    trend = 4 + change
    trend = torch.where(level == 1, 2 + change.clamp(max=0), trend)
    trend = torch.where(level == 3, 6 + change.clamp(min=0), trend)
    trend = torch.where(level == 4, len(_TRENDS) - 1, trend)
    return torch.where(level == 0, 0, trend)


def _swings(around: Tensor, steps: Tensor) -> Tensor:
    """Return how often (b, c, L) goes from above the trend to below it or back.

    Between both lies a band in which a step belongs to the side that was left last.
    """
    side = torch.where(around > _SWING, 2 * steps + 1, 2 * steps)  # odd is above
    side = torch.where(around.abs() > _SWING, side, -1)
    reach = 1
    while reach < around.shape[-1]:  # a running maximum, which ONNX has no operator for
        side = side.maximum(F.pad(side[..., :-reach], (reach, 0), value=-1))
        reach *= 2
    before, after = side[..., :-1], side[..., 1:]
    return ((before >= 0) & (before % 2 != after % 2)).sum(-1)


def _wave(around: Tensor) -> Tensor:
    """Return the place in ``_WAVES`` of (b, c, L)."""
    length = around.shape[-1]
    power = torch.fft.rfft(around).abs().square()[..., 1:] * (2 / length**2)
    if length % 2 == 0:
        power = torch.cat([power[..., :-1], power[..., -1:] / 2], -1)  # it has no mirror image
    share = power / around.square().mean(-1, keepdim=True).clamp_min(_LEAST_VARIANCE)
    first, last = _CYCLES
    found = torch.zeros_like(around[..., 0], dtype=torch.long)
    highest = torch.full_like(around[..., 0], _PEAK)
    for wave, band in enumerate((share[..., :first], share[..., first:last], share[..., last:]), 1):
        if band.shape[-1]:  # a short window has few frequencies
            peak = band.amax(-1)
            is_higher = peak > highest
            found = torch.where(is_higher, wave, found)
            highest = torch.where(is_higher, peak + _TIE, highest)
    return found


def _place(values: Tensor, steps: Tensor) -> Tensor:
    """Return the first third of (b, c, L) that reaches the highest value, 0 to 2."""
    third = (6 * steps + 3) // (2 * values.shape[-1])
    reached = values > values.amax(-1, keepdim=True) - _TIE
    return torch.where(reached, third, 2).amin(-1)

"""Checks of arguments: each message names the argument, what was expected and what was found."""

from collections.abc import Iterable
from typing import Any


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, found {value!r}.")


def check_integer(name: str, value: Any, minimum: int, *, optional: bool = False) -> None:
    """Raise unless ``value`` is an integer of at least ``minimum`` (or None where optional)."""
    if optional and value is None:
        return
    expected = f"{name} must be an integer >= {minimum}" + (" or None" if optional else "")
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{expected}, found {value!r} of type {type(value).__name__}.")
    if value < minimum:
        raise ValueError(f"{expected}, found {value}.")


def check_number(
    name: str,
    value: Any,
    minimum: float = 0.0,
    maximum: float = float("inf"),
    *,
    exclusive: str = "",
    optional: bool = False,
) -> None:
    """Raise unless ``value`` is a number in the interval (or None where optional).

    ``exclusive`` names the ends that do not belong to the interval: ``"("``, ``")"`` or ``"()"``.
    """
    if optional and value is None:
        return
    left, right = "(" if "(" in exclusive else "[", ")" if ")" in exclusive else "]"
    expected = f"{name} must be a number in {left}{minimum}, {maximum}{right}"
    expected += " or None" if optional else ""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{expected}, found {value!r} of type {type(value).__name__}.")
    too_low = value <= minimum if left == "(" else value < minimum
    too_high = value >= maximum if right == ")" else value > maximum
    if too_low or too_high or value != value:
        raise ValueError(f"{expected}, found {value}.")


def check_bool(name: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, found {value!r}.")

"""What must hold of series before they become windows."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def check_finite(name: str, series: Sequence[Any] | None) -> None:
    """Raise ``ValueError`` if any value is infinite; NaN is a missing value.

    Parameters
    ----------
    name : str
        The argument, for the message.
    series : sequence of TimeSeries, optional
    """
    for number, one in enumerate(series or []):
        infinite = np.isinf(one.all_values(copy=False)).any(axis=2)
        if infinite.any():
            step, component = (int(i) for i in np.argwhere(infinite)[0])
            raise ValueError(
                f"{name}: {_where(one, number, component)} is infinite at {one.time_index[step]}; "
                "replace the value, or mark it as missing (NaN)."
            )


def check_observed(name: str, series: Sequence[Any]) -> None:
    """Raise ``ValueError`` if any value is infinite or a component has none at all."""
    check_finite(name, series)
    for number, one in enumerate(series):
        missing = np.isnan(one.all_values(copy=False)).all(axis=(0, 2))
        if missing.any():
            raise ValueError(
                f"{name}: {_where(one, number, int(missing.argmax()))} has no observation at all, "
                f"{len(one)} of {len(one)} values are NaN; leave it out, or give it values."
            )


def _where(series: Any, number: int, component: int) -> str:
    return f"component {series.components[component]!r} of series {number}"

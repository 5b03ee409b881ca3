"""Distributions from quantiles."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd


class Kind(NamedTuple):
    """The levels that a distribution is made from, and how."""

    levels: tuple[float, ...]
    distribution: Callable[[pd.DataFrame, pd.Index], Any]


def _histogram(quantiles: pd.DataFrame, names: pd.Index) -> Any:
    """Return a distribution whose quantiles are linear between the levels."""
    from skpro.distributions import HistogramQPD, MeanScale

    by_level = _by_level(quantiles, names)
    # skpro rounds these quantiles to four decimals, so they are told in units of the spread; it
    # divides by their differences, so no two of them may be equal
    median, spread = by_level[0.5], by_level[0.84] - by_level[0.16]
    spread = spread.where(spread > 0, 1.0)
    rows = quantiles.index.to_flat_index()  # it knows rows of one level only
    units = {
        level: ((frame - median) / spread + 1e-6 * level).set_axis(rows)
        for level, frame in by_level.items()
    }
    unit = HistogramQPD(pd.concat(units), index=quantiles.index, columns=names)
    return MeanScale(unit, median.to_numpy(), spread.to_numpy(), quantiles.index, names)


def _shares(quantiles: pd.DataFrame, names: pd.Index) -> Any:
    """Return a distribution that gives every quantile the same probability."""
    from skpro.distributions import Empirical

    frame = pd.concat(_by_level(quantiles, names))
    return Empirical(frame, index=quantiles.index, columns=names)


def _by_level(quantiles: pd.DataFrame, names: pd.Index) -> dict[float, Any]:
    levels = quantiles.columns.get_level_values(1).unique()
    return {level: quantiles.xs(level, axis=1, level=1)[names] for level in levels}


_TAIL = (0.001, 0.0025, 0.005)
_UPPER_TAIL = tuple(1 - level for level in reversed(_TAIL))

CONTINUOUS = Kind((*_TAIL, *(round(k / 100, 2) for k in range(1, 100)), *_UPPER_TAIL), _histogram)
COUNTS = Kind(tuple((k + 0.5) / 1000 for k in range(1000)), _shares)

"""A series in the engine's terms: arrays without a calendar."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Series:
    """A target with what is known beside it; NaN is a missing value.

    Attributes
    ----------
    target : array
        Shape (t, c).
    past : array or None
        Past covariates, shape (t, p).
    future : array or None
        Future covariates, shape (t + known steps ahead, f).
    """

    target: np.ndarray
    past: np.ndarray | None = None
    future: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.target)

    def until(self, length: int) -> Self:
        """Return the first ``length`` points, with all that is known beside them."""
        past = None if self.past is None else self.past[:length]
        return replace(self, target=self.target[:length], past=past)

    def before(self, position: int) -> Self:
        """Return what comes before a point; where that is nothing, the first observation."""
        known = self.until(max(1, position))
        unseen = np.isnan(known.target).all(axis=0)
        if not unseen.any():
            return known
        first = np.isnan(self.target).argmin(axis=0)
        target = known.target.copy()
        target[-1, unseen] = self.target[first[unseen], np.flatnonzero(unseen)]
        return replace(known, target=target)

    def since(self, start: int) -> Self:
        """Return the points from position ``start`` on."""
        return replace(
            self,
            target=self.target[start:],
            past=None if self.past is None else self.past[start:],
            future=None if self.future is None else self.future[start:],
        )

    def told(self, texts: np.ndarray) -> Self:
        """Return the series with codes of texts (t + steps ahead, k) as future covariates."""
        if self.future is None:
            return replace(self, future=texts)
        return replace(self, future=np.hstack([_extended(self.future, len(texts)), texts]))

    def followed_by(self, target: np.ndarray) -> Self:
        """Return the series with more points, whose past covariates nobody knows."""
        past = None if self.past is None else _extended(self.past, len(self) + len(target))
        return replace(self, target=np.concatenate([self.target, target]), past=past)

    def padded(self, length: int) -> Self:
        """Return the series with ``length`` points at least: the first value, repeated before."""
        missing = length - len(self)
        if missing <= 0:
            return self
        before = [(missing, 0), (0, 0)]
        past, future = (
            None if known is None else np.pad(known, before, constant_values=np.nan)
            for known in (self.past, self.future)
        )
        return replace(self, target=np.pad(self.target, before, "edge"), past=past, future=future)

    def context(self, length: int, ahead: int, horizon: int) -> Self:
        """Return what a forecast of ``ahead`` steps, ``horizon`` at once, starts from."""
        end = self.padded(length)
        end = end.since(len(end) - length)
        past, future = end.past, end.future
        if past is not None:
            past = _extended(past, length + max(0, ahead - horizon))
        if future is not None:
            known = length + max(ahead, horizon)
            future = _extended(future, known)[:known]
        return replace(end, past=past, future=future)


def _extended(values: np.ndarray, length: int) -> np.ndarray:
    """Return values with rows of NaN after them, ``length`` rows at least."""
    missing = max(0, length - len(values))
    return np.pad(values, [(0, missing), (0, 0)], constant_values=np.nan)

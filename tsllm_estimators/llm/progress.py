"""How far the making or the encoding of texts is."""

import time
from typing import Any

_BAR_SECONDS = 3.0  # a progress bar is worth showing for
_TRIAL_SECONDS = 0.5  # before the rest is estimated: the first batches are slow


class ProgressBar:
    """A progress bar that appears once seconds of work are in sight, if it is wanted."""

    def __init__(self, wanted: bool, n_texts: int, doing: str = "Encoding texts") -> None:
        self._wanted = wanted
        self._n_texts = n_texts
        self._doing = doing
        self._begin = time.monotonic()
        self._bar: Any = None

    def show(self, n_done: int, share: float) -> None:
        """Show how many texts are done, which are a share of the work."""
        if self._bar is not None:
            self._bar.update(n_done - self._bar.n)
        elif self._wanted:
            spent = time.monotonic() - self._begin
            if spent >= _TRIAL_SECONDS and spent / share - spent > _BAR_SECONDS:
                from tqdm import tqdm  # type: ignore[import-untyped]

                shape = {"total": self._n_texts, "initial": n_done, "unit": " texts"}
                self._bar = tqdm(desc=self._doing, **shape)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

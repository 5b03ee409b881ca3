"""How long a training takes, and how it ends before its time."""

import contextlib
import itertools
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.trainer.states import RunningStage

from tsllm_estimators.darts._callbacks import EngineCallback

_WARM_UP = 2  # steps that are slower than the rest
_MEASURED = 8  # steps whose median is taken


def time_spent(trainer: Any) -> tuple[float, float]:
    """Return the seconds that the training has taken, and those that it may take in all."""
    spent, limit = 0.0, float("inf")
    for timer in trainer.callbacks:
        if isinstance(timer, Timer) and (left := timer.time_remaining()) is not None:
            elapsed = timer.time_elapsed(RunningStage.TRAINING)
            spent, limit = elapsed, min(limit, elapsed + left)
    return spent, limit


class TimeEstimate(EngineCallback):
    """Say after the first steps how long the training will take at most."""

    def __init__(self) -> None:
        self._moments: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Measure a step; say the estimate once."""
        n_steps = len(self._moments)
        if n_steps > _WARM_UP + _MEASURED:
            return
        self._moments.append(time.monotonic())
        if n_steps == _WARM_UP + _MEASURED and trainer.is_global_zero:
            print(self._message(trainer), file=sys.stderr)

    def _message(self, trainer: pl.Trainer) -> str:
        moments = self._moments[_WARM_UP:]
        steps = sorted(b - a for a, b in itertools.pairwise(moments))
        step = steps[len(steps) // 2]
        spent, limit = time_spent(trainer)
        total = trainer.estimated_stepping_batches
        rest = step * (total - trainer.global_step)
        if limit - spent < rest:
            return f"Training ends at its max_time, in {_duration(limit - spent)}."
        return (
            f"Training takes about {_duration(rest)} more: {total:.0f} steps of {step:.3g} s; it "
            "may end earlier where validation stops it."
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (seconds, "s")]
    shown = [f"{value} {unit}" for value, unit in parts if value]
    return " ".join(shown[:2]) or "1 s"


@contextlib.contextmanager
def interruptible(trainer: pl.Trainer, name: str = "Training") -> Iterator[None]:
    """Let Ctrl-C end the training after the current step, with a usable model.

    A second Ctrl-C interrupts the program as ever, and so does the first where several processes
    train: one that stops a step before the others leaves them waiting for it. Only the main thread
    can listen to signals.
    """
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    # None: a handler that was not installed from Python, and could not be put back
    if not is_main or before is None or trainer.world_size > 1:
        yield
        return
    interrupted, loop = False, trainer.fit_loop
    least = loop.min_epochs, loop.epoch_loop.min_steps

    def stop(number: int, frame: Any) -> None:
        nonlocal interrupted
        interrupted = True
        trainer.should_stop = True
        loop.min_epochs = loop.epoch_loop.min_steps = None
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        loop.min_epochs, loop.epoch_loop.min_steps = least
    if interrupted:
        warnings.warn(
            f"{name} was interrupted after {trainer.global_step} steps; the model keeps what it "
            "had learned. Press Ctrl-C twice to stop the program.",
            UserWarning,
            stacklevel=2,
        )

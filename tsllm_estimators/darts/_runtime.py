"""How a darts model's methods run: alone in the process, quietly, untouched by errors."""

import contextlib
import copy
import functools
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch

_Method = TypeVar("_Method", bound=Callable[..., Any])

# Torch's global generator feeds initialisation, shuffling, dropout and sampling. Two folds in two
# threads would draw from it in turn and neither would repeat, so only one of them runs at a time.
_RANDOM_LOCK = threading.RLock()
_is_silent = False  # of who holds the lock

_LOGGERS = (
    "darts",
    "lightning_fabric",
    "lightning.fabric",
    "lightning.pytorch",
    "pytorch_lightning",
    "pytorch_lightning.utilities.rank_zero",
    "lightning_fabric.utilities.rank_zero",
)
_WARNINGS = (
    r".*does not have many workers.*",
    r".*`pin_memory`.*|.*'pin_memory'.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*LeafSpec.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*you defined a `validation_step` but have no `val_dataloader`.*",
    r".*Total length of `\w+` across ranks is zero.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*You called `self.log\(.* but have no logger configured.*",
    r".*Grad strides do not match bucket view strides.*",
    r".*Trying to infer the `batch_size` from an ambiguous collection.*",
)


@contextlib.contextmanager
def exclusive(quiet: bool = True) -> Iterator[None]:
    """Run alone in this process, and where ``quiet`` without the chatter of the libraries."""
    with _RANDOM_LOCK, contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(_silenced())
        yield


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    global _is_silent
    if _is_silent:
        yield
        return
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        _set_levels({**dict.fromkeys(levels, logging.ERROR), "darts": logging.CRITICAL})
        _is_silent = True
        try:
            yield
        finally:
            _is_silent = False
            _set_levels(levels)


def _set_levels(levels: Mapping[str, int]) -> None:
    """Set the levels of loggers; caches, which are those of all loggers, are cleared once."""
    for name, level in levels.items():
        logging.getLogger(name).level = level
    logging.getLogger(name).setLevel(level)


def exclusively(method: _Method) -> _Method:
    """Run a method of a darts model alone; quietly, unless it was made with show_warnings."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with exclusive(quiet=not self.model_params.get("show_warnings", False)):
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]


def apart(load: _Method) -> _Method:
    """Run what loads a model alone and quietly, and leave torch's generator as it was.

    The weights of a new network are drawn before those of a file replace them, and a file is read
    with settings of the whole process: another thread may be training, or reading.
    """

    @functools.wraps(load)
    def run(*args: Any, **kwargs: Any) -> Any:
        with exclusive(), torch.random.fork_rng(devices=[]):
            return load(*args, **kwargs)

    return run  # type: ignore[return-value]


def unchanged_by_errors(method: _Method) -> _Method:
    """Run a method of a darts model; an error leaves attributes and weights as they were."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = {k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(self).items()}
        module = self.model
        parameters = [] if module is None else list(module.parameters())
        trained = [(p, p.detach().clone()) for p in parameters if p.requires_grad]
        try:
            return method(self, *args, **kwargs)
        except BaseException:  # a program that is interrupted twice may go on, too
            self.__dict__ = before
            for parameter, weight in trained:
                parameter.requires_grad_(True).data.copy_(weight)
            raise

    return run  # type: ignore[return-value]

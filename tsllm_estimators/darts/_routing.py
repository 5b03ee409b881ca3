"""What the routers of D-LoRA decide during training; apart, as it needs PEFT."""

import contextlib
import warnings
from typing import Any

import pytorch_lightning as pl

from tsllm_estimators.adapters.routing import (
    RouterCollapseWarning,
    RoutingRecord,
    record_routing,
)
from tsllm_estimators.darts._callbacks import EngineCallback

_STEPS_TO_ROUTE = 100  # a router that has hardly trained has not collapsed


class RoutingHistory(EngineCallback):
    """Record what the routers of D-LoRA decide, epoch by epoch, and warn if they collapse.

    Attributes
    ----------
    modules : dict of str to list of str
        Names of the modules, by layer.
    epochs : list of dict
        For each epoch, by layer: the share of each module, the entropy and the share of the
        commonest subset, see :class:`~tsllm_estimators.adapters.routing.Usage`.
    """

    def __init__(self) -> None:
        self.modules: dict[str, list[str]] = {}
        self.epochs: list[dict[str, list[float]]] = []
        self._epoch = RoutingRecord()
        self._step = contextlib.ExitStack()

    def on_train_batch_start(self, *_: Any) -> None:
        """Record a step."""
        self._record = self._step.enter_context(record_routing())

    def on_train_batch_end(self, *_: Any) -> None:
        """Keep what the step decided."""
        self._step.close()
        self._record.compact()
        self._epoch.decisions += self._record.decisions

    def on_train_epoch_end(self, *_: Any) -> None:
        """Sum up the epoch."""
        usage = self._epoch.usage()
        self.modules = {layer: list(used.shares) for layer, used in usage.items()}
        self.epochs.append(
            {
                layer: [round(n, 4) for n in (*used.shares.values(), used.entropy, used.commonest)]
                for layer, used in usage.items()
            }
        )
        self._collapsed = [layer for layer, used in usage.items() if used.collapsed]
        self._epoch = RoutingRecord()

    def on_exception(self, *_: Any) -> None:
        """Record no further."""
        self._step.close()

    def summary(self) -> dict[str, Any]:
        """Return modules and epochs."""
        return {"routing": {"modules": self.modules, "epochs": self.epochs}}

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Warn of routers that do not look at their input."""
        if self.epochs and self._collapsed and trainer.global_step >= _STEPS_TO_ROUTE:
            warnings.warn(
                f"the routers of {', '.join(self._collapsed)} chose nearly the same modules for "
                "every window of the last epoch, which is LoRA on these modules alone. Raise "
                "Time-LlaMA's load_balancing_weight, lower the learning rate, or set top_n=None; "
                "explain.routing_table shows what they chose.",
                RouterCollapseWarning,
                stacklevel=2,
            )

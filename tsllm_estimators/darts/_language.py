"""The stage before the training: a language model learns the language of the descriptions."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tsllm_estimators.darts._budget import interruptible, time_spent
from tsllm_estimators.llm.language_modelling import Batch, LanguageModelling

_NAME = "Fine-tuning of the language model"
_MAX_ENTRIES = 8  # tuned adapters that this process remembers
_MAX_BYTES = 16 * 2**20  # of each; a whole language model is not remembered
_WARM_UP = 0.1  # share of the steps in which the learning rate grows

_tuned: "OrderedDict[str, tuple[dict[str, Tensor], dict[str, Any]]]" = OrderedDict()
_lock = threading.Lock()


def fine_tune(stage: LanguageModelling, trainer: pl.Trainer, progress: bool) -> dict[str, Any]:
    """Train a language model on its corpus, or recall what it learned there; returns a summary.

    It runs in a trainer of its own, on one device, in the weights' own precision, and writes no
    file. Afterwards nothing in the backbone trains any more. The global generators of random
    numbers are left as they were. In the same process the same adapter, corpus and settings are
    trained once.

    Parameters
    ----------
    stage : LanguageModelling
        The language model and its objective.
    trainer : Trainer
        The trainer of the training to come: its device is used, and its ``max_time`` is the
        stage's as well.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict
        Plain values: ``steps`` that were made, ``seconds``, ``loss_before`` and ``loss_after`` (in
        nats, the mean over a fixed sample of the corpus), ``n_trainable`` and ``cached``.

    Raises
    ------
    ValueError
        If the loss is not finite.

    Warns
    -----
    UserWarning
        If Ctrl-C ended the stage early; what it learned stays.
    """
    started = time.monotonic()
    device = trainer.strategy.root_device
    key = f"{device.type} {stage.key()}"
    summary = _recall(key, stage)
    if summary is None:
        summary = _train(stage, trainer, progress and trainer.is_global_zero)
        if summary["steps"] == stage.steps:
            _remember(key, stage, summary)
        summary["cached"] = False
    stage.backbone.requires_grad_(False).eval()
    return {**summary, "seconds": time.monotonic() - started}


def clear_tuned() -> None:
    """Forget what language models of this process have learned; estimators keep theirs."""
    with _lock:
        _tuned.clear()


def _recall(key: str, stage: LanguageModelling) -> dict[str, Any] | None:
    with _lock:
        if key not in _tuned:
            return None
        _tuned.move_to_end(key)
        weights, summary = _tuned[key]
    with torch.no_grad():
        for name, parameter in stage.trainable().items():
            parameter.copy_(weights[name])
    return {**summary, "cached": True}


def _remember(key: str, stage: LanguageModelling, summary: dict[str, Any]) -> None:
    weights = {name: p.detach().cpu().clone() for name, p in stage.trainable().items()}
    if sum(weight.nbytes for weight in weights.values()) > _MAX_BYTES:
        return
    with _lock:
        _tuned[key] = weights, dict(summary)
        while len(_tuned) > _MAX_ENTRIES:
            _tuned.popitem(last=False)


def _train(stage: LanguageModelling, trainer: pl.Trainer, progress: bool) -> dict[str, Any]:
    device = trainer.strategy.root_device
    spent, limit = time_spent(trainer)
    own = pl.Trainer(
        accelerator=type(trainer.accelerator)(),
        devices=[device.index or 0] if device.type == "cuda" else 1,
        max_steps=stage.steps,
        max_epochs=1,
        max_time=None if limit == math.inf else timedelta(seconds=limit - spent),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        callbacks=[_Bar()] if progress else [],
    )
    module = _Module(stage)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):  # a dropout of the adapter draws from these
        torch.default_generator.manual_seed(stage.seed)
        for each in cuda:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(stage.seed)
        with interruptible(own, _NAME):
            own.fit(module, DataLoader(_Batches(stage), batch_size=None))
    return {
        "steps": own.global_step,
        "loss_before": module.loss_before,
        "loss_after": module.loss_after,
        "n_trainable": sum(p.numel() for p in stage.trainable().values()),
    }


class _Batches(IterableDataset):
    """The batches of a stage, drawn as they are needed: the time may be over before the steps."""

    def __init__(self, stage: LanguageModelling) -> None:
        self.stage = stage

    def __iter__(self) -> Iterator[Batch]:
        return self.stage.batches()


class _Module(pl.LightningModule):
    """What Lightning asks of a stage."""

    def __init__(self, stage: LanguageModelling) -> None:
        super().__init__()
        self.stage = stage
        self.loss_before = self.loss_after = math.nan

    def on_train_start(self) -> None:
        """Measure where the training starts."""
        self.stage.train()
        self.loss_before = self._finite(self.stage.mean_loss(), 0)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self.stage(batch)
        self._finite(loss.item(), index)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def on_train_end(self) -> None:
        """Measure what the training has come to."""
        self.loss_after = self._finite(self.stage.mean_loss(), self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        """Return Adam, whose learning rate grows at first and falls to nearly nothing."""
        optimizer = torch.optim.Adam(self.stage.trainable().values(), lr=self.stage.lr)
        steps = self.stage.steps
        warm_up = max(1, round(_WARM_UP * steps))

        def share(step: int) -> float:
            return min((step + 1) / warm_up, (1 + math.cos(math.pi * step / steps)) / 2)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _finite(self, loss: float, step: int) -> float:
        if math.isfinite(loss):
            return loss
        raise ValueError(
            f"lm_lr: the loss of the language model must stay finite, found {loss} at step {step} "
            f"with lm_lr={self.stage.lr}. "
            + (
                "Lower lm_lr."
                if step
                else "Nothing was trained yet: choose another backbone or dtype."
            )
        )


class _Bar(TQDMProgressBar):
    """A progress bar that says which of the two trainings it shows."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Name the training; there is but one epoch."""
        self.train_progress_bar.reset(total=trainer.max_steps)
        self.train_progress_bar.set_description(_NAME)

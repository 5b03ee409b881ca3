"""Options of the training engine, in the words of both faces."""

import math
import os
from dataclasses import dataclass
from typing import Any

from tsllm_estimators._validate import check_choice, check_integer, check_number

FIT_STRATEGIES = ("full", "adapter", "head", "zero-shot")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of the training engine that both faces have.

    Parameters
    ----------
    ema_decay : float or None
        Decay of an exponential moving average of the weights, which validation and the fitted
        model then use; None uses the weights themselves.
    lr_schedule : {"cosine", "constant"}
        Anneal the learning rate to 1e-8 along a half cosine over the training, or keep it.
    early_stopping_patience : int or None
        Where validation data is given: stop after this many validations without a better loss,
        and keep the weights of the best one. None trains to the end and keeps the last weights.
    few_shot : float or None
        Train on the first part of each series only, as a share of its length (0.1 is the
        papers' 10 % few-shot setting). Forecasts still start at the end of the series.
    checkpoint : str, path or None
        Directory that ``save_pretrained`` wrote: training starts from its weights.
    fit_strategy : {"full", "adapter", "head", "zero-shot"}
        What ``fit`` trains of pretrained weights: everything that the settings train, what is
        trainable in the language model and the forecast head, the head alone, or nothing.
    missing_marker : float or None
        Value that stands for a missing reading, in the units of the data that come in (0.0 in
        traffic data): the series to forecast are read with NaN in its place, in training, in
        validation and as contexts. Covariates and forecasts are not. None: only NaN is missing.
    """

    ema_decay: float | None = 0.99
    lr_schedule: str = "cosine"
    early_stopping_patience: int | None = 10
    few_shot: float | None = None
    checkpoint: Any = None
    fit_strategy: str = "full"
    missing_marker: float | None = None

    def __post_init__(self) -> None:
        check_number("ema_decay", self.ema_decay, maximum=1, exclusive=")", optional=True)
        check_choice("lr_schedule", self.lr_schedule, ("cosine", "constant"))
        check_integer("early_stopping_patience", self.early_stopping_patience, 1, optional=True)
        check_choice("fit_strategy", self.fit_strategy, FIT_STRATEGIES)
        if self.checkpoint is not None and not isinstance(self.checkpoint, str | os.PathLike):
            raise TypeError(
                "checkpoint must be a directory that save_pretrained wrote, or None, found "
                f"{self.checkpoint!r} of type {type(self.checkpoint).__name__}."
            )
        check_number("few_shot", self.few_shot, maximum=1, exclusive="(", optional=True)
        check_number(
            "missing_marker", self.missing_marker, -math.inf, exclusive="()", optional=True
        )

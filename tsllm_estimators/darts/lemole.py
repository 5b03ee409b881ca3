"""LeMoLE as a darts model."""

from collections.abc import Mapping
from typing import Any

from tsllm_estimators._docs import document
from tsllm_estimators._options import EngineOptions
from tsllm_estimators.darts._base import NetworkModel
from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE
from tsllm_estimators.networks.lemole import LeMoLEConfig


@document(NetworkModel, EngineOptions, LeMoLEConfig)
class LeMoLEModel(NetworkModel):
    """LeMoLE, linear experts that texts condition, as a darts model.

    {method}

    Values are forecast in the scale they come in; scale them as for any darts model. Without a
    likelihood (the default here; sktime's face defaults to quantiles) the model gives point
    forecasts trained with ``task_loss``.

    Parameters
    ----------
    {parameters}

    References
    ----------
    {references}

    Examples
    --------
    >>> import numpy as np
    >>> from darts import TimeSeries
    >>> from tsllm_estimators.darts import LeMoLEModel
    >>> series = TimeSeries.from_values(np.sin(np.arange(80, dtype="float32") / 4))
    >>> model = LeMoLEModel(24, 12, backbone="tiny", n_epochs=2, random_state=0)
    >>> model.fit(series).predict(12).shape
    (12, 1, 1)
    """

    method = "lemole"

    def __init__(
        self,
        input_chunk_length: int,
        output_chunk_length: int,
        output_chunk_shift: int = 0,
        backbone: str = DEFAULT_BACKBONE,
        backbone_layers: int | None = None,
        backbone_weights: str = "pretrained",
        backbone_kwargs: dict[str, Any] | None = None,
        causal: bool | None = None,
        normalization: str | None = "instance",
        lookbacks: list[int] | None = None,
        shared_experts: bool = True,
        cnn_layers: int = 2,
        kernel_size: int = 3,
        mix_variates: bool = False,
        fusion: str = "concat",
        text: str = "both",
        dynamic: str = "step",
        stamps: str = "recurring",
        description: str | Mapping[Any, str] | None = None,
        text_encoder: str = "backbone",
        d_hidden: int = 64,
        dropout: float = 0.5,
        task_loss: str = "l1",
        ema_decay: float | None = 0.99,
        lr_schedule: str = "cosine",
        early_stopping_patience: int | None = 10,
        few_shot: float | None = None,
        checkpoint: Any = None,
        fit_strategy: str = "full",
        missing_marker: float | None = None,
        n_epochs: int = 20,
        use_static_covariates: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()

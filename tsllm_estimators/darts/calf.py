"""CALF as a darts model."""

from typing import Any

from tsllm_estimators._docs import document
from tsllm_estimators._options import EngineOptions
from tsllm_estimators.darts._base import NetworkModel
from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE
from tsllm_estimators.networks.calf import CALFConfig


@document(NetworkModel, EngineOptions, CALFConfig)
class CALFModel(NetworkModel):
    """CALF, cross-modal fine-tuning of a language model, as a darts model.

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
    >>> from tsllm_estimators.darts import CALFModel
    >>> series = TimeSeries.from_values(np.sin(np.arange(80, dtype="float32") / 4))
    >>> model = CALFModel(24, 12, backbone="tiny", n_epochs=2, random_state=0)
    >>> model.fit(series).predict(12).shape
    (12, 1, 1)
    """

    method = "calf"

    def __init__(
        self,
        input_chunk_length: int,
        output_chunk_length: int,
        output_chunk_shift: int = 0,
        backbone: str = DEFAULT_BACKBONE,
        backbone_layers: int | None = None,
        backbone_weights: str = "pretrained",
        backbone_kwargs: dict[str, Any] | None = None,
        normalization: str | None = "window",
        causal: bool | None = None,
        adapter: Any = "lora",
        lora_rank: int = 8,
        lora_alpha: float = 32.0,
        lora_dropout: float = 0.1,
        train_layer_norms: bool = True,
        train_position_embeddings: bool = True,
        n_principal_words: int | None = None,
        n_heads: int | None = None,
        d_ff: int = 2048,
        dropout: float = 0.1,
        head_dropout: float = 0.3,
        task_loss: str = "l1",
        output_loss: str = "l1",
        feature_loss: str = "l1",
        output_weight: float = 0.3,
        feature_weight: float = 0.01,
        projection_lr: float = 1e-4,
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

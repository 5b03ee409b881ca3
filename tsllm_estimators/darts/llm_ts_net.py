"""LLM-TS Net as a darts model."""

from collections.abc import Mapping
from typing import Any

from tsllm_estimators._docs import document
from tsllm_estimators._options import EngineOptions
from tsllm_estimators.darts._base import NetworkModel
from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE
from tsllm_estimators.networks.llm_ts_net import LLMTSNetConfig


@document(NetworkModel, EngineOptions, LLMTSNetConfig)
class LLMTSNetModel(NetworkModel):
    """LLM-TS Net, series that meet their trends in words, as a darts model.

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
    >>> from tsllm_estimators.darts import LLMTSNetModel
    >>> series = TimeSeries.from_values(np.sin(np.arange(80, dtype="float32") / 4))
    >>> model = LLMTSNetModel(24, 12, backbone="tiny", n_epochs=2, random_state=0)
    >>> model.fit(series).predict(12).shape
    (12, 1, 1)
    """

    method = "llm_ts_net"

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
        normalization: str | None = "window",
        d_model: int = 32,
        n_layers: int = 1,
        n_heads: int = 4,
        n_groups: int = 2,
        d_ff: int = 128,
        patch_length: int | None = None,
        prompts: bool = True,
        n_prompts: int = 16,
        top_k: int = 4,
        pull_weight: float = 0.1,
        balance_weight: float = 0.01,
        intra: bool = True,
        inter: bool = True,
        level: bool = False,
        text: str = "series",
        describer: str = "statistical",
        describer_kwargs: Mapping[str, Any] | None = None,
        text_encoder: str = "backbone",
        adapter: Any = "lora_amr",
        lora_rank: int = 16,
        lora_alpha: float = 32.0,
        lora_dropout: float = 0.0,
        lm_steps: int = 20,
        lm_lr: float = 3e-2,
        lm_batch_size: int = 8,
        dropout: float = 0.1,
        head_dropout: float = 0.1,
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

"""Time-LlaMA as a darts model."""

from typing import Any

from tsllm_estimators._docs import document
from tsllm_estimators._options import EngineOptions
from tsllm_estimators.darts._base import NetworkModel
from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE
from tsllm_estimators.networks.time_llama import TimeLlamaConfig


@document(NetworkModel, EngineOptions, TimeLlamaConfig)
class TimeLlamaModel(NetworkModel):
    """Time-LlaMA, a routed and prompted language model, as a darts model.

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
    >>> from tsllm_estimators.darts import TimeLlamaModel
    >>> series = TimeSeries.from_values(np.sin(np.arange(80, dtype="float32") / 4))
    >>> model = TimeLlamaModel(24, 12, backbone="tiny", n_epochs=2, random_state=0)
    >>> model.fit(series).predict(12).shape
    (12, 1, 1)
    """

    method = "time_llama"

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
        positions: str = "shared",
        alignment: str = "cross_attention",
        description: str | None = None,
        variate_names: list[str] | None = None,
        prompt_statistics: bool = True,
        prompt: str | None = None,
        d_hidden: int | None = None,
        n_heads: int = 8,
        adapter: Any = "dynalora",
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        top_n: int | None = 4,
        pooling: str | None = None,
        gate: str = "hard",
        load_balancing_weight: float = 0.01,
        train_layer_norms: bool = False,
        residual: str | None = "gated",
        head_dropout: float = 0.3,
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

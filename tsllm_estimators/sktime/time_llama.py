"""Time-LlaMA as an sktime forecaster."""

from typing import Any

from tsllm_estimators._docs import document
from tsllm_estimators._options import EngineOptions
from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE
from tsllm_estimators.networks.time_llama import TimeLlamaConfig
from tsllm_estimators.sktime._adapter import NetworkForecaster
from tsllm_estimators.sktime._arguments import set_parameters


@document(NetworkForecaster, EngineOptions, TimeLlamaConfig)
class TimeLlamaForecaster(NetworkForecaster):
    """Time-LlaMA, a routed and prompted language model, as an sktime forecaster.

    {method}

    By default it learns quantiles (the darts face defaults to point forecasts, the paper's
    setting): ``predict`` gives the median, ``predict_interval`` works at once.

    Parameters
    ----------
    {parameters}

    References
    ----------
    {references}

    Examples
    --------
    >>> from sktime.datasets import load_airline
    >>> from tsllm_estimators.sktime import TimeLlamaForecaster
    >>> forecaster = TimeLlamaForecaster(backbone="tiny", max_steps=20, random_state=0)
    >>> forecaster.fit(load_airline(), fh=[1, 2, 3]).predict().shape
    (3,)
    """

    def __init__(
        self,
        context_length: int | None = None,
        horizon: int | None = None,
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
        likelihood: str | None = "quantile",
        past_covariates: list[Any] | None = None,
        scaling: str | None = "standard",
        num_epochs: int | None = None,
        max_steps: int | None = 300,
        max_time: float | None = None,
        num_update_epochs: int = 1,
        lr: float | None = None,
        batch_size: int = 32,
        validation_split: float | None = None,
        num_samples: int = 200,
        broadcasting: bool = False,
        device: str = "auto",
        trainer_kwargs: dict[str, Any] | None = None,
        random_state: int | None = None,
        verbose: bool = False,
    ) -> None:
        set_parameters(self, locals())
        super().__init__()

    @staticmethod
    def _model_class() -> type:
        from tsllm_estimators.darts import TimeLlamaModel

        return TimeLlamaModel

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return settings for sktime's checks: no download, a fit within milliseconds."""
        fast = {"max_steps": 2, "context_length": 6, "horizon": 3, "device": "cpu"}
        stand_in = {"hidden_size": 8, "num_attention_heads": 2}
        return [
            {**fast, "backbone": "tiny"},
            {
                **fast,
                "backbone": "none",
                "backbone_kwargs": stand_in,
                "likelihood": None,
                "residual": "plain",
            },
        ]

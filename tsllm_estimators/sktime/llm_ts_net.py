"""LLM-TS Net as an sktime forecaster."""

from collections.abc import Mapping
from typing import Any

from tsllm_estimators._docs import document
from tsllm_estimators._options import EngineOptions
from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE
from tsllm_estimators.networks.llm_ts_net import LLMTSNetConfig
from tsllm_estimators.sktime._adapter import NetworkForecaster
from tsllm_estimators.sktime._arguments import set_parameters


@document(NetworkForecaster, EngineOptions, LLMTSNetConfig)
class LLMTSNetForecaster(NetworkForecaster):
    """LLM-TS Net, series that meet their trends in words, as an sktime forecaster.

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
    >>> from tsllm_estimators.sktime import LLMTSNetForecaster
    >>> forecaster = LLMTSNetForecaster(backbone="tiny", max_steps=20, random_state=0)
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
        from tsllm_estimators.darts import LLMTSNetModel

        return LLMTSNetModel

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return settings for sktime's checks: no download, a fit within milliseconds."""
        fast = {"max_steps": 2, "context_length": 6, "horizon": 3, "device": "cpu"}
        return [
            {**fast, "backbone": "tiny", "lm_steps": 1},
            {**fast, "text": "none", "likelihood": None, "patch_length": 3},
        ]

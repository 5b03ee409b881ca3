"""LeMoLE as an sktime forecaster."""

from collections.abc import Mapping
from typing import Any

from tsllm_estimators._docs import document
from tsllm_estimators._options import EngineOptions
from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE
from tsllm_estimators.networks.lemole import LeMoLEConfig
from tsllm_estimators.sktime._adapter import NetworkForecaster
from tsllm_estimators.sktime._arguments import set_parameters


@document(NetworkForecaster, EngineOptions, LeMoLEConfig)
class LeMoLEForecaster(NetworkForecaster):
    """LeMoLE, linear experts that texts condition, as an sktime forecaster.

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
    >>> from tsllm_estimators.sktime import LeMoLEForecaster
    >>> forecaster = LeMoLEForecaster(backbone="tiny", max_steps=20, random_state=0)
    >>> forecaster.fit(load_airline(), fh=[1, 2, 3]).predict().shape
    (3,)
    """

    _tags = {"capability:categorical_in_X": True}
    _reads_text = True

    def __init__(
        self,
        context_length: int | None = None,
        horizon: int | None = None,
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
        from tsllm_estimators.darts import LeMoLEModel

        return LeMoLEModel

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return settings for sktime's checks: no download, a fit within milliseconds."""
        fast = {"max_steps": 2, "context_length": 6, "horizon": 3, "device": "cpu"}
        return [
            {**fast, "backbone": "tiny"},
            {**fast, "text": "none", "likelihood": None, "lookbacks": [4, 2]},
        ]

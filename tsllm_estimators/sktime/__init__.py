"""Floor 4: the methods as sktime forecasters, one adapter over the engine of the darts models."""

from tsllm_estimators.sktime.calf import CALFForecaster
from tsllm_estimators.sktime.lemole import LeMoLEForecaster
from tsllm_estimators.sktime.llm_ts_net import LLMTSNetForecaster
from tsllm_estimators.sktime.time_llama import TimeLlamaForecaster

__all__ = ["CALFForecaster", "LLMTSNetForecaster", "LeMoLEForecaster", "TimeLlamaForecaster"]

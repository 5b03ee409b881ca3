"""Floor 3: the methods as darts models, and the only training engine of the package."""

from darts.utils.serialization import add_safe_globals

from tsllm_estimators.darts._texts import covariate_texts, text_covariates
from tsllm_estimators.darts.calf import CALFModel
from tsllm_estimators.darts.lemole import LeMoLEModel
from tsllm_estimators.darts.llm_ts_net import LLMTSNetModel
from tsllm_estimators.darts.time_llama import TimeLlamaModel

__all__ = [
    "CALFModel",
    "LLMTSNetModel",
    "LeMoLEModel",
    "TimeLlamaModel",
    "covariate_texts",
    "text_covariates",
]

# darts loads saved models with a restricted unpickler: these classes are known to be safe
add_safe_globals([CALFModel, LLMTSNetModel, LeMoLEModel, TimeLlamaModel])

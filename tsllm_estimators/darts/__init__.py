"""Floor 3: the methods as darts models, and the only training engine of the package."""

from darts.utils.serialization import add_safe_globals

from tsllm_estimators.darts.calf import CALFModel
from tsllm_estimators.darts.time_llama import TimeLlamaModel

__all__ = ["CALFModel", "TimeLlamaModel"]

# darts loads saved models with a restricted unpickler: these classes are known to be safe
add_safe_globals([CALFModel, TimeLlamaModel])

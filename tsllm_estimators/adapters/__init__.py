"""Adapters as PEFT methods, for any Hugging Face model; they know nothing of time series.

Importing this package registers ``LORA_AMR`` and ``DYNALORA`` with PEFT. A saved adapter can be
loaded once it is imported.
"""

from tsllm_estimators.adapters._low_rank import LowRankConfig
from tsllm_estimators.adapters._registry import register
from tsllm_estimators.adapters.dynalora import DynaLoraConfig, DynaLoraModel
from tsllm_estimators.adapters.lora_amr import LoraAmrConfig, LoraAmrModel
from tsllm_estimators.adapters.routing import (
    RouterCollapseWarning,
    RoutingRecord,
    record_routing,
)

__all__ = [
    "DynaLoraConfig",
    "DynaLoraModel",
    "LoraAmrConfig",
    "LoraAmrModel",
    "LowRankConfig",
    "RouterCollapseWarning",
    "RoutingRecord",
    "record_routing",
]

register("lora_amr", LoraAmrConfig, LoraAmrModel)
register("dynalora", DynaLoraConfig, DynaLoraModel)

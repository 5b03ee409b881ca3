"""Floor 2: one torch network per method. Knows neither darts nor sktime nor pandas."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsllm_estimators.networks.base import Network

NETWORKS = {
    "calf": "tsllm_estimators.networks.calf:CALF",
    "lemole": "tsllm_estimators.networks.lemole:LeMoLE",
    "llm_ts_net": "tsllm_estimators.networks.llm_ts_net:LLMTSNet",
    "time_llama": "tsllm_estimators.networks.time_llama:TimeLlama",
}


def network_class(method: str) -> "type[Network]":
    """Return the network class of a method named in ``NETWORKS``."""
    module, name = NETWORKS[method].split(":")
    return getattr(import_module(module), name)

"""How a language model is fine-tuned: PEFT configs as plain values, and into a model."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

ADAPTER = "default"  # PEFT's name of the only adapter

# Query, key and value maps of the attention, under the names that text models give them.
_ATTENTION_PROJECTIONS = {
    *("query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin"),
    *("c_attn", "qkv_proj", "query_key_value", "Wqkv"),  # fused
}


def plain_adapter(adapter: Any) -> Any:
    """Return a PEFT config as a dict of what differs from its defaults; anything else as it is.

    Only plain values travel into checkpoints and saved models.
    """
    if adapter is None or isinstance(adapter, str | Mapping):
        return adapter
    from peft import PeftConfig

    if not isinstance(adapter, PeftConfig):
        raise TypeError(
            "adapter must be a PEFT config, its to_dict(), None or one of the method's words, "
            f"found {adapter!r}."
        )
    settings, defaults = adapter.to_dict(), type(adapter)().to_dict()
    changed = {k: v for k, v in settings.items() if v != defaults.get(k)}
    return {
        "peft_type": adapter.peft_type.value,
        **{k: sorted(v) if isinstance(v, set) else v for k, v in changed.items()},
    }


def inject_adapter(model: nn.Module, adapter: Any) -> None:
    """Put an adapter into a model: a PEFT config or its ``to_dict()``.

    Without target modules it goes where its method puts it, or else beside the attention
    projections.

    Raises
    ------
    ValueError
        If nothing in the model fits the adapter.
    """
    from peft import PeftConfig, inject_adapter_in_model

    from tsllm_estimators.adapters import LowRankConfig  # registers our methods

    adapter = PeftConfig.from_peft_type(**plain_adapter(adapter))
    chooses = isinstance(adapter, LowRankConfig)  # its targets itself
    if not chooses and hasattr(adapter, "target_modules") and adapter.target_modules is None:
        names = {name.split(".")[-1] for name, _ in model.named_modules()}
        adapter.target_modules = sorted(names & _ATTENTION_PROJECTIONS)
        if not adapter.target_modules:
            raise ValueError(
                f"adapter: no attention projection known in {type(model).__name__}; pass a PEFT "
                "config with target_modules, for instance LoraConfig(target_modules=[...])."
            )
    with warnings.catch_warnings():
        # PEFT sets fan_in_fan_out for GPT-2's Conv1D by itself and warns that it did.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        inject_adapter_in_model(adapter, model, adapter_name=ADAPTER)

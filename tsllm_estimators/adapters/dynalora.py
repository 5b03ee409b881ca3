"""D-LoRA: for each sample, a router per layer chooses which LoRA modules are on.

Source: Zhang, Zhu and Gao, "Adapting Large Language Models for Time Series Modeling via a Novel
Parameter-efficient Adaptation Method" (arXiv 2502.13725; DynaLoRA in ACL SRW 2025).

    hidden states (b, s, d) of a layer's input
          |
    pooled over the tokens --> p = softmax(W_r pooled)  --> the n of M modules with the largest p
                                                                      |
    every linear map m of the layer:   W_m x + b_m + gate_m * (alpha / r) * B_m A_m x

The gate is 0 for modules that are off and 1 ("hard", whose gradient is that of n p_m) or
n p_m / (sum of the p of those that are on) ("soft") for the others: 1 in the mean in both.

How it sits in a model: a router hangs on each layer and runs in a hook before the layer, because
only there is the layer's input known; it leaves the gates where the layer's adapted maps find them.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.utils import PeftType
from torch import Tensor, nn

from tsllm_estimators.adapters._low_rank import (
    Factors,
    LowRankConfig,
    LowRankLayer,
    LowRankModel,
    drawn_as_in_lora,
    features,
    layers_of,
    linear_maps,
)
from tsllm_estimators.adapters._router import POOLINGS, ROUTER, DynaLoraRouter, Gates
from tsllm_estimators.adapters.routing import PerThread

GATES = ("hard", "soft")


@dataclass
class DynaLoraConfig(LowRankConfig):
    """Settings of D-LoRA.

    Those of LoRA, and:

    Parameters
    ----------
    top_n : int or None
        Modules that are on in each layer, for each sample; None is plain LoRA: all of them, and
        no router.
    pooling : {"last", "mean", "max"} or None
        How the router sums up the tokens of a layer's input, padding left out. None is the last
        token under a causal mask, which alone has seen all others, and the mean else.
    gate : {"hard", "soft"}
        Whether active modules count alike, or by their probabilities.

    Notes
    -----
    The loss that balances the modules is the caller's to add: see
    :func:`~tsllm_estimators.adapters.routing.record_routing`. Under a key-value cache each
    generated token is routed anew.
    """

    top_n: int | None = 4
    pooling: str | None = None
    gate: str = "hard"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("DYNALORA")
        if self.top_n is not None and (not isinstance(self.top_n, int) or self.top_n < 1):
            raise ValueError(
                f"top_n must be an integer of 1 or more or None, found {self.top_n!r}."
            )
        if self.pooling not in (*POOLINGS, None):
            raise ValueError(f"pooling must be one of {POOLINGS} or None, found {self.pooling!r}.")
        if self.gate not in GATES:
            raise ValueError(f"gate must be one of {GATES}, found {self.gate!r}.")


class DynaLoraLayer(LowRankLayer):
    """A linear map with LoRA modules that a router turns on and off."""

    adapter_layer_names = ("dynalora_A", "dynalora_B")
    other_param_names = (*LowRankLayer.other_param_names, "columns")

    def __init__(self, base_layer: nn.Module, name: str) -> None:
        super().__init__(base_layer, name)
        self.dynalora_A = Factors()
        self.dynalora_B = Factors()
        self.gates = PerThread()  # of the router, once there is one
        self.columns: dict[str, int] = {}  # of this map's first part among the router's modules

    def factors(self, config: DynaLoraConfig) -> dict[str, Tensor]:
        """Return A (n, r, k) as LoRA draws it, and B (n, m / n, r) of zeros."""
        n = len(self.parts)
        down = drawn_as_in_lora(n, config.r, self.in_features)
        return {"dynalora_A": down, "dynalora_B": torch.zeros(n, self.out_features // n, config.r)}

    def reduce(self, adapter_name: str, x: Tensor) -> Tensor:
        """Return gate * A x of every sample, shape (..., n r)."""
        down = self.dynalora_A[adapter_name].flatten(0, 1)
        low = F.linear(self.dropouts[adapter_name](x), down)
        gates = self._gates(adapter_name)
        if gates is None:
            return low
        column = self.columns[adapter_name]
        values = gates.values[:, column : column + len(self.parts)].to(low.dtype)
        self._check_samples(x, gates)
        by_sample = low.reshape(len(values), -1, len(self.parts), len(down) // len(self.parts))
        return (by_sample * values[:, None, :, None]).reshape(low.shape)

    def add_update(self, adapter_name: str, result: Tensor, x: Tensor) -> Tensor:
        """Add the update to ``result``, leaving out modules that are off where that may be."""
        gates = self._gates(adapter_name)
        if gates is None or gates.rows is None:
            return super().add_update(adapter_name, result, x)
        self._check_samples(x, gates)
        down, up = self.dynalora_A[adapter_name], self.dynalora_B[adapter_name]
        n_samples, width = len(gates.values), self.out_features // len(self.parts)
        x = self.dropouts[adapter_name](self._cast_input_dtype(x, down.dtype))
        x = x.reshape(n_samples, -1, self.in_features)
        outputs = result.view(n_samples, -1, self.out_features)
        first = self.columns[adapter_name]
        for part, column in enumerate(range(first, first + len(self.parts))):
            rows = gates.rows[column]
            if not rows:
                continue
            values = gates.values[:, column].to(down.dtype).view(-1, 1, 1)
            output = outputs.narrow(-1, part * width, width)
            # Gathering and scattering samples costs more than computing some for nothing
            if 4 * len(rows) <= n_samples:
                index = torch.tensor(rows, device=x.device)
                low = F.linear(x.index_select(0, index), down[part]) * values.index_select(0, index)
                update = F.linear(self.scaling[adapter_name] * low, up[part])
                output.index_add_(0, index, update.to(result.dtype))
            else:
                low = F.linear(x, down[part]).mul_(values)
                factors = low.flatten(0, 1).to(result.dtype), up[part].T.to(result.dtype)
                output.flatten(0, 1).addmm_(*factors, alpha=self.scaling[adapter_name])
        return result

    def delta(self, adapter_name: str) -> Tensor:
        """Return B A, shape (m, k), of an adapter that no router turns off."""
        if adapter_name in self.columns:
            _refuse_to_merge(adapter_name)
        return (self.dynalora_B[adapter_name] @ self.dynalora_A[adapter_name]).flatten(0, 1)

    def _check_samples(self, x: Tensor, gates: Gates) -> None:
        """Refuse an input that is not the samples of the layer's input, one after another."""
        n_samples = len(gates.values)
        if x.shape[0] != n_samples and x.shape[:-1] != (n_samples * gates.n_tokens,):
            raise ValueError(
                f"target_modules: a map of {self.in_features} to {self.out_features} got an input "
                f"of shape {tuple(x.shape)}, expected {n_samples} samples of {gates.n_tokens} "
                "tokens to turn modules on and off for; leave it out with exclude_modules."
            )

    def _gates(self, adapter_name: str) -> Gates | None:
        if adapter_name not in self.columns:
            return None
        gates = self.gates.get()
        if gates is None:
            raise RuntimeError(
                "an adapted map of D-LoRA was called outside of its layer, where no router has "
                "seen the input; call the layer or the model."
            )
        return gates[adapter_name]


class DynaLoraModel(LowRankModel):
    """A model with D-LoRA; made by ``peft.get_peft_model(model, DynaLoraConfig())``."""

    prefix = "dynalora_"
    tuner_layer_cls = (DynaLoraLayer, DynaLoraRouter)
    layer_cls = DynaLoraLayer

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Put LoRA modules beside the linear maps and a router on each layer.

        Raises
        ------
        ValueError
            If a layer has fewer than ``top_n`` modules, or no layer has any; the model is then as
            it was.
        """
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        config = self.peft_config[adapter_name]
        if config.top_n is None:
            return
        try:
            layers = layers_of(model).items()
            if not sum(_attach_router(layer, name, adapter_name, config) for name, layer in layers):
                raise ValueError(
                    f"target_modules: a router needs linear maps inside of the layers, found none "
                    f"in {config.target_modules!r}; name some, or take top_n=None."
                )
        except ValueError:
            self.delete_adapter(adapter_name)
            if not self.peft_config:
                self.unload()
            raise
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        peft_config = super()._prepare_adapter_config(peft_config, model_config)
        targets = peft_config.target_modules
        if peft_config.top_n is not None and not isinstance(targets, str):
            layers = layers_of(self.model).items()
            inside = [f".{name}.{path}" for name, layer in layers for path, _ in linear_maps(layer)]
            outside = [t for t in sorted(targets) if not any(n.endswith(f".{t}") for n in inside)]
            if outside:
                raise ValueError(
                    f"target_modules: a router chooses within its layer, found {outside} outside; "
                    "leave them out (modules_to_save trains them whole), or take top_n=None."
                )
        return peft_config

    def merge_adapter(self, adapter_names: list[str] | None = None, *args: Any, **kw: Any) -> None:
        """Merge as PEFT does, and before anything is merged refuse what a router turns off."""
        self._refuse_to_merge_routed(adapter_names)
        super().merge_adapter(adapter_names, *args, **kw)

    def _refuse_to_merge_routed(self, adapter_names: list[str] | None) -> None:
        for name in adapter_names or self.active_adapters:
            if name in self.peft_config and self.peft_config[name].top_n is not None:
                _refuse_to_merge(name)

    def adapts(self, peft_config: DynaLoraConfig, name: str) -> bool:
        """Return whether a linear map is one to adapt: a router sees its own layer only."""
        layers = tuple(f"{layer}." for layer in layers_of(self.model))
        return peft_config.top_n is None or name.startswith(layers)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._refuse_to_merge_routed(adapter_names)
        model = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        for layer in layers_of(model).values():
            if hasattr(layer, ROUTER):
                getattr(layer, ROUTER).detach_from(layer)
        return model


def _refuse_to_merge(adapter_name: str) -> None:
    raise ValueError(
        f"adapter {adapter_name!r} cannot be merged: which of its modules are on depends on the "
        "input. Train with top_n=None where merging matters."
    )


def _attach_router(layer: nn.Module, name: str, adapter_name: str, config: DynaLoraConfig) -> bool:
    """Give an adapter's modules in a layer a router; returns whether there are any."""
    maps = [
        (path, module)
        for path, module in layer.named_modules()
        if isinstance(module, DynaLoraLayer) and adapter_name in module.scaling
    ]
    if not maps:
        return False
    if not hasattr(layer, ROUTER):
        setattr(layer, ROUTER, DynaLoraRouter(layer, name, maps[0][1]))
    router: DynaLoraRouter = getattr(layer, ROUTER)
    modules: list[str] = []
    for path, module in maps:
        module.gates = router.gates
        module.columns[adapter_name] = len(modules)
        modules += [f"{path}.{part}".rstrip(".") for part in module.parts]
    width, _ = features(next(linear_maps(layer))[1])  # the first map reads the layer's input
    router.update_layer(adapter_name, config, tuple(modules), width)
    return True

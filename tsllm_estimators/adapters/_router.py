"""The router of D-LoRA: which modules of a layer are on for which sample.

It hangs on its layer and runs in a hook before the layer, because only there is the layer's input
known; it leaves the gates where the layer's adapted maps find them.

Axes: b sample, s token, d width, m module.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tsllm_estimators.adapters.routing import Decision, PerThread, note

if TYPE_CHECKING:
    from tsllm_estimators.adapters.dynalora import DynaLoraConfig

POOLINGS = ("last", "mean", "max")
ROUTER = "dyna_router"  # attribute of a layer; PEFT renames what begins with the method's prefix
_CHECKPOINT = "_gradient_checkpointing_func"  # of transformers' layers


class Gates(NamedTuple):
    """Gates of a layer's modules for a batch.

    Attributes
    ----------
    values : Tensor
        Shape (b, m).
    rows : list of list of int, optional
        The samples for which each module is on, where the others may be skipped.
    n_tokens : int
        s, tokens of each sample.
    """

    values: Tensor
    rows: list[list[int]] | None
    n_tokens: int


class DynaLoraRouter(nn.Module, BaseTunerLayer):
    """Chooses, for each sample, which of a layer's modules are on.

    Parameters
    ----------
    layer : Module
        The layer whose input it looks at.
    name : str
        Name of the layer.
    beside : Module
        A linear map of the layer, on whose device the router is.
    """

    adapter_layer_names = ("dynalora_gate",)
    other_param_names = ("configs", "modules_of")
    if TYPE_CHECKING:  # as in LowRankLayer

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, layer: nn.Module, name: str, beside: nn.Module) -> None:
        super().__init__()
        self._beside = (beside,)  # in a tuple, not a module of this one
        self.dynalora_gate = nn.ModuleDict()
        self.configs: dict[str, DynaLoraConfig] = {}
        self.modules_of: dict[str, tuple[str, ...]] = {}
        self.layer_name = name
        self.gates = PerThread()
        self._is_causal = any(getattr(m, "is_causal", False) for m in layer.modules())
        names = list(inspect.signature(layer.forward).parameters)
        self._mask_index = names.index("attention_mask") if "attention_mask" in names else None
        layer.register_forward_pre_hook(self._before, with_kwargs=True)
        layer.register_forward_hook(self._after, always_call=True)

    def update_layer(
        self, adapter_name: str, config: "DynaLoraConfig", modules: tuple[str, ...], width: int
    ) -> None:
        """Add an adapter's router, for a layer with these modules and hidden states of a width."""
        assert config.top_n is not None
        if config.top_n > len(modules):
            raise ValueError(
                f"top_n must be at most {len(modules)}, the modules of {self.layer_name!r} "
                f"({', '.join(modules)}), found {config.top_n}; None turns the router off."
            )
        self.configs[adapter_name], self.modules_of[adapter_name] = config, modules
        self.dynalora_gate[adapter_name] = nn.Linear(width, len(modules), bias=False)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        for name, gate in self.dynalora_gate.items():
            weights = next(gate.parameters())
            if name == adapter_name and not weights.is_meta:  # as before low_cpu_mem_usage loads
                gate.to(device or next(self._beside[0].parameters()).device)

    @property
    def weight(self) -> Tensor:
        """No weight, nor a bias; PEFT would look for a base layer's and find none, endlessly."""
        raise AttributeError("a router has no base layer and so no weight of it.")

    bias = weight

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a router has no weight of the base model; nor has :meth:`unmerge`."""

    unmerge = merge

    def forward(self, hidden: Tensor, observed: Tensor | None, adapter_name: str) -> Gates:
        """Decide for a layer's input ``hidden`` (b, s, d), of which ``observed`` (b, s) counts."""
        config, gate = self.configs[adapter_name], self.dynalora_gate[adapter_name]
        pooling = config.pooling or ("last" if self._is_causal else "mean")
        pooled = pool(hidden, observed, pooling).to(next(gate.parameters()).dtype)
        probabilities = gate(pooled).softmax(-1, dtype=torch.float32)
        top_n: Any = config.top_n  # None has no router
        chosen = probabilities.topk(top_n, -1).indices
        active = torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, chosen, True)
        modules = self.modules_of[adapter_name]
        note(Decision(self.layer_name, adapter_name, modules, probabilities, active))
        if config.gate == "soft":
            values = torch.where(active, probabilities, 0.0)
            values = top_n * values / values.sum(-1, keepdim=True)
        elif torch.is_grad_enabled():  # 1 or 0, with the gradient of the shares
            shares = top_n * probabilities
            values = active + (shares - shares.detach())
        else:
            values = active.to(probabilities.dtype)
        return Gates(values, _rows(active) if _may_skip() else None, hidden.shape[1])

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = [name for name in self.active_adapters if name in self.dynalora_gate]
        if self.disable_adapters or not names:
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        index, mask = self._mask_index, kwargs.get("attention_mask")
        if mask is None and index is not None and index < len(args):
            mask = args[index]
        observed = None if mask is None else observed_tokens(mask, hidden)
        self.gates.set({name: self(hidden, observed, name) for name in names})
        if getattr(layer, "gradient_checkpointing", False) and layer.training:
            function = getattr(layer, _CHECKPOINT)
            if not isinstance(function, _WithGates):
                setattr(layer, _CHECKPOINT, _WithGates(function, self.gates))

    def _after(self, *_: Any) -> None:
        self.gates.set(None)

    def detach_from(self, layer: nn.Module) -> None:
        """Take the router and what it did to its layer away."""
        for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
            for key in [k for k, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]
                layer._forward_pre_hooks_with_kwargs.pop(key, None)
                layer._forward_hooks_always_called.pop(key, None)
        function = getattr(layer, _CHECKPOINT, None)
        if isinstance(function, _WithGates):
            setattr(layer, _CHECKPOINT, function.checkpoint)
        delattr(layer, ROUTER)


class _WithGates:
    """A checkpoint function that recomputes a layer with the gates of its own forward pass.

    transformers checkpoints a layer's ``forward``, and hooks run outside of it: in the backward
    pass the router does not run again, and its gates have gone or are another pass's. Here they are
    inputs of what is recomputed.
    """

    def __init__(self, checkpoint: Callable[..., Any], gates: PerThread) -> None:
        self.checkpoint = checkpoint
        self.gates = gates

    def __call__(self, forward: Callable[..., Any], *args: Any) -> Any:
        if torch.compiler.is_compiling():  # tracing makes inputs of all that is read
            return self.checkpoint(forward, *args)
        held = self.gates.get() or {}
        names = list(held)

        def with_gates(*inputs: Any) -> Any:
            before = self.gates.get()
            values = inputs[: len(names)]
            again = {n: held[n]._replace(values=v) for n, v in zip(names, values, strict=True)}
            self.gates.set(again)
            try:
                return forward(*inputs[len(names) :])
            finally:
                self.gates.set(before)

        return self.checkpoint(with_gates, *(held[name].values for name in names), *args)


def pool(hidden: Tensor, observed: Tensor | None, pooling: str) -> Tensor:
    """Sum up tokens (b, s, d) as (b, d); ``observed`` (b, s) tells tokens from padding."""
    if observed is None:
        if pooling == "last":
            return hidden[:, -1]
        return hidden.mean(1) if pooling == "mean" else hidden.amax(1)
    if pooling == "last":
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        last = (positions * observed).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    kept = observed.unsqueeze(-1)
    if pooling == "max":
        highest = hidden.masked_fill(~kept, torch.finfo(hidden.dtype).min).amax(1)
        return highest.masked_fill(~kept.any(1), 0)
    return (hidden * kept).sum(1) / kept.sum(1).clamp_min(1)


def observed_tokens(mask: Any, hidden: Tensor) -> Tensor:
    """Return which tokens (b, s) some token attends to, from a layer's attention mask.

    Raises
    ------
    ValueError
        If the mask is of a kind that does not tell (flex attention's).
    """
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise ValueError(
            "attention_mask: the routers of D-LoRA need a mask of 2 or 4 dimensions to leave "
            f"padding out, found {type(mask).__name__}; use attn_implementation='sdpa' or 'eager'."
        )
    is_added = mask.is_floating_point()  # to the scores
    seen = mask > (torch.finfo(mask.dtype).min / 2 if is_added else 0)
    if mask.ndim == 4:
        seen = seen.any(2).any(1)
    n_tokens = hidden.shape[1]
    if seen.shape[1] != n_tokens:  # a key-value cache: the new tokens are the last that are seen
        positions = torch.arange(seen.shape[1], device=seen.device)  # a static cache goes on
        end = (positions * seen.any(0)).amax() + 1
        new = torch.arange(n_tokens, device=seen.device) + end - n_tokens
        seen = seen[:, new.clamp_min(0)]
    return seen.expand(len(hidden), -1)


def _rows(active: Tensor) -> list[list[int]]:
    """Return for each module the samples for which it is on; one transfer from the device."""
    return [[i for i, on in enumerate(column) if on] for column in active.T.tolist()]


def _may_skip() -> bool:
    """Whether what to compute may depend on the data: not under gradients nor when traced.

    In training every module is computed, so that hard gates have a gradient and every parameter
    gets one, as distributed training expects.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return not (traced or torch.is_grad_enabled())

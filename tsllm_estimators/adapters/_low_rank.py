"""What adapters of linear maps have in common: where they sit, and W x + scaling * (delta W) x.

Axes: b sample, s token, k input and m output width, r rank, n parts of a fused map.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_FUSED = ("q", "k", "v")  # what GPT-2's c_attn holds, side by side


@dataclass
class LowRankConfig(PeftConfig):
    """Settings that adapters of linear maps have in common.

    Parameters
    ----------
    r : int
        Rank.
    lora_alpha : float
        The update is multiplied by ``lora_alpha / r``.
    lora_dropout : float
        Dropout inside of the adapter.
    target_modules : list of str or str, optional
        Names (ends of names) of the linear maps to adapt, ``"all-linear"`` or a regular
        expression; by default every linear map inside of the model's layers.
    exclude_modules, layers_to_transform, layers_pattern, modules_to_save
        As in PEFT's ``LoraConfig``.
    """

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list | tuple) else value)
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform, found None.")
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"r must be an integer of 1 or more, found {self.r!r}.")
        if not self.lora_alpha > 0:
            raise ValueError(f"lora_alpha must be above 0, found {self.lora_alpha!r}.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be in [0, 1), found {self.lora_dropout!r}.")


class Factors(nn.ParameterDict):
    """The factors of one kind, by adapter; one that is frozen stays so when it is cast.

    PEFT casts and moves adapters by assigning a tensor, of which a ``ParameterDict`` makes a
    trainable parameter: with a bfloat16 model, frozen factors and loaded adapters would train.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value, requires_grad=self[key].requires_grad)
        super().__setitem__(key, value)


class LowRankLayer(nn.Module, BaseTunerLayer):
    """A linear map with adapters beside it; the base of the methods' layers.

    A fused map (GPT-2's ``c_attn``) is adapted as the maps that it holds: its adapters have ``n``
    parts, each with its own factors and its own slice of the output.

    Attributes
    ----------
    adapter_layer_names : tuple of str
        Containers of the factors; the last one brings the rank's dimensions to the output's, shape
        (n, m / n, r).
    parts : tuple of str
        Names of the maps that the base layer holds: ``("q", "k", "v")``, or ``("",)``.
    scaling : dict of str to float
        ``lora_alpha / r`` of each adapter.
    """

    other_param_names: tuple[str, ...] = ("scaling", "dropouts")
    base_layer: nn.Module
    if TYPE_CHECKING:  # what PEFT's untyped half has, torch would call a tensor or a module

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, base_layer: nn.Module, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(base_layer)
        self.in_features, self.out_features = features(base_layer)
        self.parts = fused_parts(name, self.in_features, self.out_features)
        self.scaling: dict[str, float] = {}
        self.dropouts = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}

    def update_layer(self, adapter_name: str, config: Any, name: str) -> None:
        """Add an adapter; ``name`` is the base layer's, for errors."""
        part = self.out_features // len(self.parts)
        if config.r > min(self.in_features, part):
            raise ValueError(
                f"r must be at most {min(self.in_features, part)}, the smaller width of {name!r} "
                f"({self.in_features} -> {part}), found {config.r}."
            )
        self.scaling[adapter_name] = config.lora_alpha / config.r
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.dropouts[adapter_name] = dropout
        for kind, factor in self.factors(config).items():
            getattr(self, kind)[adapter_name] = nn.Parameter(factor)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def factors(self, config: Any) -> dict[str, Tensor]:
        """Return the initial factors of an adapter, by the name of their container."""
        raise NotImplementedError

    def reduce(self, adapter_name: str, x: Tensor) -> Tensor:
        """Return x (..., k) in the rank's few dimensions, those of every part, shape (..., n r)."""
        raise NotImplementedError

    def delta(self, adapter_name: str) -> Tensor:
        """Return delta W without the scaling, shape (m, k)."""
        raise NotImplementedError

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map x (..., k) to (..., m)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if name in self.scaling:
                result = self.add_update(name, result, x)
        return result

    def add_update(self, adapter_name: str, result: Tensor, x: Tensor) -> Tensor:
        """Add the scaled update of an adapter to what the base layer gives."""
        up = getattr(self, self.adapter_layer_names[-1])[adapter_name]
        low = self.scaling[adapter_name] * self.reduce(
            adapter_name, self._cast_input_dtype(x, up.dtype)
        )
        if len(self.parts) == 1:
            update = F.linear(low, up[0])
        else:
            low = low.unflatten(-1, (len(self.parts), -1))
            update = torch.einsum("...nr,nmr->...nm", low, up).flatten(-2)
        return result + update.to(result.dtype)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return the scaled delta W in the layout of the base layer's weight."""
        delta = self.scaling[adapter_name] * self.delta(adapter_name)
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add delta W to the base layer's weight, which is replaced: it may be shared."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.scaling:
                continue
            delta = self.get_delta_weight(name)
            if safe_merge and not torch.isfinite(delta).all():
                raise ValueError(f"adapter {name!r} has values that are not finite.")
            self._add_to_weight(delta)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take what was merged out of the base layer's weight."""
        while self.merged_adapters:
            self._add_to_weight(-self.get_delta_weight(self.merged_adapters.pop()))

    def _add_to_weight(self, delta: Tensor) -> None:
        weight = self.get_base_weight()
        weight = (weight + delta.to(weight.dtype)).detach()
        if self.quantization_backend is not None:
            self.set_base_weight(weight)
            return
        base = self.get_base_layer()  # not weight.data: another model may hold this parameter
        base.weight = nn.Parameter(weight, requires_grad=base.weight.requires_grad)


class LowRankModel(BaseTuner):
    """A model whose linear maps are adapted; the base of the methods' tuners."""

    target_module_mapping: dict[str, list[str]] = {}
    layer_cls: ClassVar[type[LowRankLayer]]

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        names = [name for name, _ in linear_maps(self.model)]
        targets = peft_config.target_modules
        if targets is None:
            peft_config.target_modules = _default_targets(self.model)
        elif targets != "all-linear":
            if isinstance(targets, str):
                unknown = [] if any(re.fullmatch(targets, name) for name in names) else [targets]
            else:
                unknown = [t for t in sorted(targets) if not any(_ends(name, t) for name in names)]
            if unknown:
                raise ValueError(
                    f"target_modules: expected names of linear maps, found {unknown}; this model "
                    f"has {sorted({_short(name) for name in names})}."
                )
        return peft_config

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return saved factors by their names in the model.

        PEFT ignores factors that the model has no place for, and warns of those that it lacks.

        Raises
        ------
        ValueError
            If the adapter was saved from a model with other maps.
        """
        loaded = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        own = {name for name in model.state_dict() if cls.prefix in name}
        wanted = {n for n in own if adapter_name in n.rpartition(cls.prefix)[2].split(".")[1:2]}
        missing = sorted(wanted - loaded.keys())
        surplus = sorted(name for name in loaded.keys() - own if cls.prefix in name)
        if missing or surplus:
            raise ValueError(
                f"adapter {adapter_name!r}: expected the {len(wanted)} factors of this model, "
                f"found {len(missing)} missing {missing[:2]} and {len(surplus)} surplus "
                f"{surplus[:2]}; load it into the architecture that it was trained in."
            )
        return loaded

    def adapts(self, peft_config: Any, name: str) -> bool:
        """Return whether a linear map that the targets name is one to adapt."""
        return True

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if not self.adapts(peft_config, current_key):
            return
        if isinstance(target, LowRankLayer):
            target.update_layer(adapter_name, peft_config, current_key)
            return
        if not is_linear(target):
            raise TypeError(
                f"target_modules: {current_key!r} is a {type(target).__name__}, expected a linear "
                "map (torch.nn.Linear or transformers' Conv1D); name another."
            )
        layer = self.layer_cls(target, target_name)
        layer.set_adapter(self.active_adapters)
        layer.update_layer(adapter_name, peft_config, current_key)
        self._replace_module(parent, target_name, layer, target)


def drawn_as_in_lora(n_parts: int, rank: int, width: int) -> Tensor:
    """Return first-applied factors as LoRA draws its A, shape (n_parts, rank, width)."""
    factors = torch.empty(n_parts, rank, width)
    for factor in factors:  # PyTorch would take the fan-in of the stack for rank * width
        nn.init.kaiming_uniform_(factor, a=5**0.5)
    return factors


def is_linear(module: nn.Module) -> bool:
    """Return whether an adapter of linear maps fits a module."""
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return isinstance(base, nn.Linear | Conv1D)


def features(layer: nn.Module) -> tuple[int, int]:
    """Return the input and the output width of a linear map."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    return layer.in_features, layer.out_features  # type: ignore[return-value]


def fused_parts(name: str, in_features: int, out_features: int) -> tuple[str, ...]:
    """Return the names of the maps that a map of this name holds side by side."""
    n_parts = out_features // in_features
    if name == "c_attn" and n_parts in (2, 3) and out_features == n_parts * in_features:
        return _FUSED[-n_parts:]
    return ("",)


def linear_maps(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of every linear map, adapted ones as a whole."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside) and inside:
            continue
        if isinstance(module, BaseTunerLayer):
            inside = (*inside, f"{name}.")
        if is_linear(module):
            yield name, module


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a model by name: the members of its outermost module lists."""
    lists: list[str] = []
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not name.startswith(tuple(lists) or "\0"):
            lists.append(f"{name}.")
            layers |= {f"{name}.{index}": layer for index, layer in enumerate(module)}
    return layers


def _default_targets(model: nn.Module) -> set[str]:
    """Return the names, within a layer, of every linear map that stands in one."""
    layers = layers_of(model)
    names = {name for layer in layers.values() for name, _ in linear_maps(layer) if name}
    if not names:
        raise ValueError(
            f"target_modules: {type(model).__name__} has no layers with linear maps to adapt by "
            "default; name some."
        )
    return names


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _short(name: str) -> str:
    """Return a name without what counts the layers: the words that target_modules takes."""
    words = name.split(".")
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    return ".".join(words[numbers[-1] + 1 :] if numbers else words)

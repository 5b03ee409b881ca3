"""The contract between a method's network and whoever trains it.

Axes in this package: b batch, t time, h horizon, c variate, p parameter, s token, d width.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tsllm_estimators._validate import check_choice, check_integer
from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What the data and the likelihood fix of a network.

    Parameters
    ----------
    context_length : int
        L, time steps that the network sees.
    horizon : int
        H, time steps that it forecasts at once.
    n_variates : int
        C, components of the target.
    parameters : tuple of {"location", "scale"}
        Kind of each number that the network gives per step and variate: a location (a point
        forecast, a mean, a quantile) moves and stretches with the data, a scale (the inverse
        softplus of a width) only stretches.
    location : int
        Index of the parameter that stands for the point forecast.
    """

    context_length: int
    horizon: int
    n_variates: int
    parameters: tuple[str, ...] = ("location",)
    location: int = 0

    def __post_init__(self) -> None:
        check_integer("context_length", self.context_length, 1)
        check_integer("horizon", self.horizon, 1)
        check_integer("n_variates", self.n_variates, 1)
        for kind in self.parameters:
            check_choice("parameters", kind, ("location", "scale"))
        check_choice("location", self.location, range(len(self.parameters)))


@dataclass
class Batch:
    """Input of a network.

    Attributes
    ----------
    past_target : Tensor
        The context, shape (b, L, c), in the units of the data.
    """

    past_target: Tensor


@dataclass
class Forecast:
    """Output of a network.

    Attributes
    ----------
    parameters : Tensor
        Shape (b, H, c, p), in the units of the data, see :class:`Shapes`.
    losses : dict of str to Tensor
        Auxiliary losses by name, in training only: free of the data's units, not yet weighted.
    """

    parameters: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Arguments that every method has.

    Parameters
    ----------
    backbone : str
        The language model: a Hugging Face id, a local directory with ``config.json`` and
        ``model.safetensors``, or ``"tiny"`` (two random layers of width 16, for smoke tests).
        The default is served offline by the extra ``[minilm]``. ``"none"``, ``"attention"`` and
        ``"transformer"`` put nothing, one multi-head attention or one Transformer layer in the
        place of the language model and leave everything else equal.
    backbone_layers : int or None
        How many of its first layers to keep; None is the method's own number, or as many as
        there are.
    backbone_weights : {"pretrained", "random"}
        Random weights show what the pretraining is worth.
    backbone_kwargs : dict or None
        Further arguments of ``AutoModel.from_pretrained`` (``revision``, ``dtype``,
        ``quantization_config``, ``attn_implementation``, ``trust_remote_code``,
        ``local_files_only``, settings of the model's config) and ``seed`` (0) of random weights;
        for the three stand-ins ``hidden_size`` (384) and ``num_attention_heads`` (12).
    """

    backbone: str = DEFAULT_BACKBONE
    backbone_layers: int | None = None
    backbone_weights: str = "pretrained"
    backbone_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_integer("backbone_layers", self.backbone_layers, 1, optional=True)
        check_choice("backbone_weights", self.backbone_weights, ("pretrained", "random"))
        if self.backbone_kwargs is not None and not isinstance(self.backbone_kwargs, dict):
            raise TypeError(
                f"backbone_kwargs must be a dict or None, found {self.backbone_kwargs!r}."
            )

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the default of every argument, by name."""
        return {f.name: f.default for f in dataclasses.fields(cls)}


class Network(nn.Module):
    """Base of the methods' networks.

    Attributes
    ----------
    unit : Tensor
        Standard deviation of the training target, a buffer that the engine sets once (1 before).
        Whatever would depend on the units of the data is expressed in it, so that y and
        1000 y + 7 train alike.
    """

    Config: ClassVar[type[NetworkConfig]]
    learning_rate: ClassVar[float] = 1e-3

    unit: Tensor

    def __init__(self, config: NetworkConfig, shapes: Shapes) -> None:
        super().__init__()
        self.config: Any = config
        self.shapes = shapes
        self.register_buffer("unit", torch.ones(()))

    def forward(self, batch: Batch) -> Forecast:
        """Forecast the ``H`` steps after the context."""
        raise NotImplementedError

    def loss_weights(self) -> dict[str, float]:
        """Return the weight of each auxiliary loss, by name."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what trains, in optimiser groups; a group may set its own ``lr``."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

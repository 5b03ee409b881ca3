"""The contract between a method's network and whoever trains it.

Axes in this package: b batch, t time, h horizon, c variate, p parameter, s token, d width.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tsllm_estimators._validate import check_bool, check_choice, check_integer
from tsllm_estimators.llm.backbone import DEFAULT_BACKBONE, Backbone, load_backbone
from tsllm_estimators.llm.language_modelling import LanguageModelling


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
    parameters : tuple of {"location", "scale", "free"}
        Kind of each number that the network gives per step and variate: a location (a point
        forecast, a mean, a quantile) moves and stretches with the data, a scale (the inverse
        softplus of a width) only stretches, any other parameter is free of the data's units.
    location : int
        Index of the parameter that stands for the point forecast.
    n_past_covariates, n_future_covariates, n_static_covariates : int
        Components of each kind of covariates.
    n_past_texts, n_future_texts : int
        Columns of text that is known of the context only, and of the horizon too.
    """

    context_length: int
    horizon: int
    n_variates: int
    parameters: tuple[str, ...] = ("location",)
    location: int = 0
    n_past_covariates: int = 0
    n_future_covariates: int = 0
    n_static_covariates: int = 0
    n_past_texts: int = 0
    n_future_texts: int = 0

    def __post_init__(self) -> None:
        check_integer("context_length", self.context_length, 1)
        check_integer("horizon", self.horizon, 1)
        check_integer("n_variates", self.n_variates, 1)
        for kind in self.parameters:
            check_choice("parameters", kind, ("location", "scale", "free"))
        check_choice("location", self.location, range(len(self.parameters)))
        for name, value in dataclasses.asdict(self).items():
            if name.endswith(("_covariates", "_texts")):
                check_integer(name, value, 0)


@dataclass
class Batch:
    """Input of a network, in the units of the data; NaN stands for a missing value.

    Attributes
    ----------
    past_target : Tensor
        The context, shape (b, L, c).
    past_covariates : Tensor, optional
        What is known of the context only, shape (b, L, n_past_covariates).
    future_covariates : Tensor, optional
        What is known of the context and the horizon, shape (b, L + H, n_future_covariates).
    static_covariates : Tensor, optional
        What is known of the series, shape (b, n_static_covariates).
    stamps : Tensor, optional
        Codes of the calendar's stamps of the context and the horizon, shape (b, L + H), integers;
        0 where there is no calendar. Codes are those of the network's vocabulary.
    static_texts : Tensor, optional
        Codes of the descriptions of the series, shape (b,), integers.
    past_texts, future_texts : Tensor, optional
        Codes of further texts, shapes (b, L, n_past_texts) and (b, L + H, n_future_texts),
        integers; 0 stands for no text.
    """

    past_target: Tensor
    past_covariates: Tensor | None = None
    future_covariates: Tensor | None = None
    static_covariates: Tensor | None = None
    stamps: Tensor | None = None
    static_texts: Tensor | None = None
    past_texts: Tensor | None = None
    future_texts: Tensor | None = None


@dataclass
class Forecast:
    """Output of a network.

    Attributes
    ----------
    parameters : Tensor
        Shape (b, H, c, p), in the units of the data, see :class:`Shapes`.
    losses : dict of str to Tensor or callable
        Auxiliary losses of each window by name, shape (b,), in training only: free of the data's
        units, not yet weighted. Where the windows of a batch meet in a loss, a function that
        returns it for the share (b,) that each window has in the training: what has none is not
        to be learned from.
    """

    parameters: Tensor
    losses: dict[str, Tensor | Callable[[Tensor], Tensor]] = field(default_factory=dict)


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
    causal : bool or None
        Direction of attention: None keeps the model's own. Encoders such as the default are
        bidirectional; in a decoder a variate sees only the variates before it, so that the order
        of the columns matters, unless this is False.
    normalization : "window" or None
        Give each window and variate mean 0 and deviation 1, and bring the forecast back. None
        only divides by the standard deviation of the training data: zeros stay zeros and signs
        stay signs, as likelihoods of positive values and of counts need it.
    """

    backbone: str = DEFAULT_BACKBONE
    backbone_layers: int | None = None
    backbone_weights: str = "pretrained"
    backbone_kwargs: dict[str, Any] | None = None
    causal: bool | None = None
    normalization: str | None = "window"

    normalizations: ClassVar[tuple[str | None, ...]] = ("window", None)

    def __post_init__(self) -> None:
        check_integer("backbone_layers", self.backbone_layers, 1, optional=True)
        check_choice("backbone_weights", self.backbone_weights, ("pretrained", "random"))
        if self.causal is not None:
            check_bool("causal", self.causal)
        check_choice("normalization", self.normalization, self.normalizations)
        if self.backbone_kwargs is not None and not isinstance(self.backbone_kwargs, dict):
            raise TypeError(
                f"backbone_kwargs must be a dict or None, found {self.backbone_kwargs!r}."
            )

    @property
    def texts_read(self) -> frozenset[str]:
        """What is read of ``"stamps"``, ``"static"`` texts and the user's ``"columns"``."""
        return frozenset()

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the default of every argument, by name."""
        return {f.name: f.default for f in dataclasses.fields(cls)}


class Network(nn.Module):
    """Base of the methods' networks.

    Attributes
    ----------
    unit : Tensor
        Standard deviation of the training target, a buffer that :meth:`measure` sets once (1
        before). Whatever would depend on the units of the data is expressed in it, so that y and
        1000 y + 7 train alike.
    """

    Config: ClassVar[type[NetworkConfig]]
    learning_rate: ClassVar[float] = 1e-3
    layers: ClassVar[int | None] = None  # of the language model, unless backbone_layers says
    reads_text: ClassVar[bool] = False
    covariates_used: ClassVar[frozenset[str]] = frozenset({"past", "future", "static"})
    # What may train alone, as prefixes of names: the forecast head, and with it what is trainable
    # in the language model.
    parts: ClassVar[dict[str, tuple[str, ...]]]

    unit: Tensor

    def __init__(self, config: NetworkConfig, shapes: Shapes) -> None:
        super().__init__()
        self.config: Any = config
        self.shapes = shapes
        self.register_buffer("unit", torch.ones(()))

    def load_backbone(self) -> Backbone:
        """Return the language model of this network as it was before training."""
        config = self.config
        return load_backbone(
            config.backbone,
            layers=config.backbone_layers,
            default_layers=self.layers,
            weights=config.backbone_weights,
            causal=config.causal,
            kwargs=config.backbone_kwargs,
        )

    def forward(self, batch: Batch) -> Forecast:
        """Forecast the ``H`` steps after the context."""
        raise NotImplementedError

    @torch.no_grad()
    def measure(self, windows: Batch) -> None:
        """Set the buffers that describe the training data.

        Parameters
        ----------
        windows : Batch
            Training windows, whose ``past_target`` goes on over the horizon, in float64.
        """
        values = windows.past_target.flatten(0, 1)
        centred = values - values.nanmean(0)
        deviation = centred.square().nanmean(0).nanmean().sqrt()
        if deviation > 0:  # neither constant nor wholly missing
            self.unit.copy_(deviation)

    def language_modelling(self, windows: Batch) -> LanguageModelling | None:
        """Return what of the language model is fine-tuned before the training, if anything."""
        return None

    def encode_texts(
        self, windows: Batch | None, progress: bool = False, device: torch.device | None = None
    ) -> None:
        """Encode the texts of the training beforehand on a device, if the method reads any.

        Where training windows are given, those of :meth:`measure`, their texts are measured, too.
        """

    def after_training(self) -> dict[str, Any]:
        """Return what the training's summary says of the network; warn of what went wrong."""
        return {}

    def loss_weights(self) -> dict[str, float]:
        """Return the weight of each auxiliary loss, by name."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what trains, in optimiser groups; a group may set its own ``lr``."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def prompts(self) -> list[str]:
        """Return the texts that the language model is shown, as it is shown them."""
        return []

    def train_part(self, part: str) -> None:
        """Freeze all of what trains but one of the ``parts``, ``"head"`` or ``"adapter"``."""
        for name, parameter in self.named_parameters():
            if not name.startswith(self.parts[part]):
                parameter.requires_grad_(False)

    @property
    def describes_windows(self) -> bool:
        """Whether windows are described, which takes more than tensors."""
        return False

    @property
    def has_router(self) -> bool:
        """Whether a router of D-LoRA chooses what of the language model is adapted."""
        return any(isinstance(m, Backbone) and m.has_router for m in self.modules())

    @property
    def has_dropout(self) -> bool:
        """Whether anything is dropped in training."""
        return any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.modules())

    def activate_dropout(self, active: bool) -> None:
        """Drop as in training while the network itself, and so its losses, stay as they are."""
        for child in self.children():
            child.train(active)

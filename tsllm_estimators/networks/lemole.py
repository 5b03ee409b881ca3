"""LeMoLE: linear experts of several lookbacks, conditioned by texts.

Source: Zhang et al., "LeMoLE: LLM-Enhanced Mixture of Linear Experts for Time Series Forecasting"
(arXiv 2412.00053).

    context (b, L, c) -- normalise -+- last w_1 steps -- W_1 -- (b, H, c) -+
                                    +- ...                                 +-- CNN --> Y (b, H, c)
                                    +- last w_M steps -- W_M -- (b, H, c) -+            |
                                                                                        |
    description --> vector --> MLP -----------------> gamma_S, beta_S (b, H, c) -- Y'_S +
    stamps of the horizon --> vector --> Linear(d -> c) --> Linear(H -> H)              |
    texts of each step --> vector --> Linear(d -> c) --> Linear(L + H -> H)             |
                                      |  summed                                         |
                                      +-------------> gamma_D, beta_D (b, H, c) -- Y'_D +
                                                                                        |
                                        forecast (b, H, c) <-- CNN([Y; Y'_S; Y'_D]) <---+

A frozen language model encodes each distinct text once, before the training; no step of the
training runs it. Without texts what is left is the mixture of linear experts itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tsllm_estimators._validate import check_bool, check_choice, check_integer, check_number
from tsllm_estimators.llm.prompts import compose_prompt
from tsllm_estimators.llm.stand_ins import STAND_INS
from tsllm_estimators.llm.vocabulary import POSITION
from tsllm_estimators.networks.base import Batch, Forecast, Network, NetworkConfig, Shapes
from tsllm_estimators.networks.blocks import (
    DISTANCES,
    CovariateTokens,
    normalize_window,
    restore_parameters,
)
from tsllm_estimators.networks.linear_experts import Experts, Fusion, Mixing
from tsllm_estimators.networks.texts import (
    TEXT_ENCODERS,
    DynamicModulation,
    StaticModulation,
    TextProjection,
    TextTable,
)

# Of each covariate: the product of two factors is learned slowly, the sum of several sooner.
_N_MAPS = 4

TEXTS = ("both", "static", "dynamic", "calendar", "none")


@dataclass(frozen=True, kw_only=True)
class LeMoLEConfig(NetworkConfig):
    """Arguments of LeMoLE.

    LeMoLE forecasts with linear maps of several lookbacks and mixes their forecasts by light
    convolutions over the horizon [1]_. Texts condition the mixture: a static one says what the
    series is, dynamic ones what time it is at each step and what you know of it in words. Each
    becomes a vector of a frozen language model once, and scales and moves the forecast of each
    step (feature-wise linear modulation). No step of the training runs the language model.

    Parameters
    ----------
    backbone : str
        The language model that encodes texts: a Hugging Face id, a local directory with
        ``config.json`` and ``model.safetensors``, or ``"tiny"`` (two random layers of width 16,
        for smoke tests). The default is served offline by the extra ``[minilm]``. It is loaded
        only where there is text to encode. ``text="none"``, ``text="calendar"`` and
        ``text_encoder`` show what it is worth.
    causal : bool or None
        Direction of its attention: None keeps the model's own. The vector of a text is the last
        token's in a causal model, and the mean over all tokens in a bidirectional one.
    normalization : {"instance", "last"} or None
        Give each window and variate mean 0 and deviation 1, or subtract its last value, and bring
        the forecast back. None only divides by the standard deviation of the training data: zeros
        stay zeros and signs stay signs, as likelihoods of positive values and of counts need it.
    lookbacks : list of int or None
        Steps that each expert sees; None is the whole context, its half, its quarter and its
        eighth.
    shared_experts : bool
        Whether the experts' weights are shared by all variates; their biases never are.
    cnn_layers : int
        Convolutions over the horizon that mix the experts.
    kernel_size : int
        Steps of the horizon that a convolution sees, an odd number.
    mix_variates : bool
        Whether the convolutions mix the variates, too.
    fusion : {"concat", "residual"}
        What the last convolution sees: the forecast and what the texts make of it; or only the
        latter, and the forecast is added to the result, as the authors' code does.
    text : {"both", "static", "dynamic", "calendar", "none"}
        Which texts condition the forecast. ``"calendar"`` puts numbers (hour, weekday, month...)
        in the place of texts: the control that tells whether language matters. What is not chosen
        is not read, be it columns of text that are passed along.
    dynamic : {"step", "window"}
        How the calendar is told: by a text for each step of the horizon, or by one text that names
        the first and the last step of the context. Your own texts are always read step by step.
    stamps : {"recurring", "dated"}
        What is said of a time step: what comes back (the hour and the weekday of hourly data, the
        day and the month of daily data...), or the whole date, which no forecast has seen before.
        Without a calendar it is the number of steps since the forecast started.
    description : str, dict or None
        What the series is, in your words: for all of them, or for each one by its name, which is
        the key of the instance (sktime) or the name of the first component (darts).
    text_encoder : {"backbone", "hash", "learned"}
        What makes a vector of a text: the language model, random vectors of its words, or an
        embedding of its words that is learned. The latter two are the controls of the first.
    d_hidden : int
        Hidden width of the static conditioner.
    dropout : float
        Share of the calendar's texts and of descriptions that is dropped in training. Your own
        texts are rare, and that there is none is something, too: they are not dropped.
    task_loss : {"l1", "mse", "smooth_l1", "smape"}
        Loss of the forecast where no likelihood and no ``loss_fn`` is given.

    References
    ----------
    .. [1] Zhang et al., "LeMoLE: LLM-Enhanced Mixture of Linear Experts for Time Series
       Forecasting", arXiv 2412.00053.
    """

    normalization: str | None = "instance"
    lookbacks: Sequence[int] | None = None
    shared_experts: bool = True
    cnn_layers: int = 2
    kernel_size: int = 3
    mix_variates: bool = False
    fusion: str = "concat"
    text: str = "both"
    dynamic: str = "step"
    stamps: str = "recurring"
    description: str | Mapping[Any, str] | None = None
    text_encoder: str = "backbone"
    d_hidden: int = 64
    dropout: float = 0.5
    task_loss: str = "l1"

    normalizations = ("instance", "last", None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone in STAND_INS:
            raise ValueError(
                f"backbone={self.backbone!r}: here the language model only encodes texts, nothing "
                "can stand in for it. Its controls are text='none', text='calendar', "
                "text_encoder='hash' and text_encoder='learned'."
            )
        own = self.lookbacks
        if own is not None and (isinstance(own, str) or not isinstance(own, Sequence) or not own):
            raise TypeError(f"lookbacks must be a list of lookbacks or None, found {own!r}.")
        for lookback in own or ():
            check_integer("lookbacks", lookback, 1)
        check_bool("shared_experts", self.shared_experts)
        check_integer("cnn_layers", self.cnn_layers, 1)
        check_integer("kernel_size", self.kernel_size, 1)
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, found {self.kernel_size}.")
        check_bool("mix_variates", self.mix_variates)
        check_choice("fusion", self.fusion, ("concat", "residual"))
        check_choice("text", self.text, TEXTS)
        check_choice("dynamic", self.dynamic, ("step", "window"))
        check_choice("stamps", self.stamps, ("recurring", "dated"))
        check_choice("text_encoder", self.text_encoder, TEXT_ENCODERS)
        check_integer("d_hidden", self.d_hidden, 1)
        check_number("dropout", self.dropout, maximum=1, exclusive=")")
        check_choice("task_loss", self.task_loss, DISTANCES)
        told = self.description
        each = told.items() if isinstance(told, Mapping) else [(None, told)]
        for name, text in each:
            if not isinstance(text, str | None):
                where = "" if name is None else f" for {name!r}"
                raise TypeError(
                    "description must be a text, a dict of texts by series, or None, found "
                    f"{text!r}{where}."
                )

    @property
    def texts_read(self) -> frozenset[str]:
        """What is read of ``"stamps"``, ``"static"`` and the user's own ``"columns"``."""
        read = {
            "both": {"stamps", "static", "columns"},
            "static": {"static"},
            "dynamic": {"stamps", "columns"},
            "calendar": {"stamps"},
            "none": set(),
        }
        return frozenset(read[self.text])


class LeMoLE(Network):
    """The network of LeMoLE."""

    Config = LeMoLEConfig
    learning_rate = 1e-3
    reads_text = True
    parts = {
        "head": ("mixing.", "fusion."),
        "adapter": ("mixing.", "fusion.", "static", "stamps.", "past_texts.", "future_texts."),
    }

    def __init__(self, config: LeMoLEConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        horizon, length = shapes.horizon, shapes.context_length
        read, hidden = config.texts_read, config.d_hidden
        # All locations (quantiles) are moved alike; a width or another parameter by itself.
        groups = [-1 if kind == "location" else i for i, kind in enumerate(shapes.parameters)]
        self.groups = [sorted(set(groups)).index(group) for group in groups]
        self.n_groups = len(set(groups))
        self.n_modulated = shapes.n_variates * self.n_groups

        self.experts = Experts(self.lookbacks, config.shared_experts, shapes)
        self.mixing = Mixing(
            len(self.lookbacks), config.cnn_layers, config.kernel_size, self._mixed_variates
        )
        known = replace(shapes, n_static_covariates=0)
        self.covariates = CovariateTokens(known, _N_MAPS * horizon)
        if self.covariates.n_tokens:
            n_told = _N_MAPS * self.covariates.n_tokens
            self.covariates_to_variates = nn.Linear(n_told, self.n_modulated)
        static = replace(shapes, n_past_covariates=0, n_future_covariates=0)
        self.static_covariates = CovariateTokens(static, hidden)
        self.describes = "static" in read
        self.has_static = self.describes or self.static_covariates.n_tokens > 0
        self.has_dynamic = "stamps" in read
        if read:
            self.texts = TextTable(config)
        if self.describes:
            self.static_text = TextProjection(self.texts, hidden, config.dropout)
        if self.has_static:
            self.static = StaticModulation(hidden, horizon, self.n_modulated)
        if self.has_dynamic:
            # those of the context follow from those of the horizon, and would only cost time
            steps = (0, horizon) if config.dynamic == "step" else (1, 0)
            self.stamps = self._dynamic(*steps, config.dropout)
        n_past, n_future = shapes.n_past_texts, shapes.n_future_texts
        own = "columns" in read
        self.past_texts = nn.ModuleList(self._dynamic(length, 0, 0.0) for _ in range(n_past * own))
        self.future_texts = nn.ModuleList(
            self._dynamic(length, horizon, 0.0) for _ in range(n_future * own)
        )
        n_branches = self.has_static + self.has_dynamic
        if n_branches:
            self.fusion = Fusion(
                n_branches, config.fusion, config.kernel_size, self._mixed_variates
            )

    @property
    def lookbacks(self) -> list[int]:
        """Steps that each expert sees, the longest first where they are the default."""
        length, own = self.shapes.context_length, self.config.lookbacks
        if own is None:
            return sorted({max(1, length // parts) for parts in (1, 2, 4, 8)}, reverse=True)
        longest = max(own)
        if longest > length:
            raise ValueError(
                f"lookbacks must be at most {length}, the length of the context, found {longest}."
            )
        return [int(lookback) for lookback in own]

    def _dynamic(self, n_past: int, n_ahead: int, dropout: float) -> DynamicModulation:
        sizes = n_past, n_ahead, self.shapes.horizon, self.n_modulated
        return DynamicModulation(self.texts, *sizes, dropout)

    @property
    def _mixed_variates(self) -> int:
        return self.shapes.n_variates if self.config.mix_variates else 1

    def forward(self, batch: Batch) -> Forecast:
        """Forecast the horizon from the context.

        1. Normalise each window and variate, remember how.
        2. Forecast with each expert from its last steps, mix the experts.
        3. Add the linear maps of the covariates.
        4. Modulate by the description and the static covariates, and by the texts of the steps.
        5. Fuse the forecast and its modulations; bring the result back to the data's units.
        """
        window, statistics = normalize_window(
            batch.past_target, self.unit, self.config.normalization
        )
        forecast = self.experts(window, self.mixing)
        if self.covariates.n_tokens:
            told = self.covariates(batch).unflatten(-1, (_N_MAPS, -1)).flatten(1, 2)  # (b, n, H)
            told = self.covariates_to_variates(told.transpose(1, 2))
            forecast = forecast + self._of_parameters(told.transpose(1, 2))
        branches = []
        if self.has_static:
            branches.append(self.modulate(forecast, self.static_modulation(batch)))
        if self.has_dynamic:
            branches.append(self.modulate(forecast, self.dynamic_modulation(batch)))
        if branches:
            forecast = self.fusion(forecast, branches)
        forecast = forecast.transpose(1, 2)
        return Forecast(restore_parameters(forecast, statistics, self.shapes.parameters))

    def modulate(self, forecast: Tensor, modulation: Tensor) -> Tensor:
        """Scale and move a forecast (b, c, H, p) by a modulation (2, b, c g, H)."""
        gamma, beta = (self._of_parameters(part) for part in modulation)
        return (1 + gamma) * forecast + beta

    def static_modulation(self, batch: Batch) -> Tensor:
        """Return gamma - 1 and beta from what is known of the series, (2, b, c g, H)."""
        hidden: Tensor | float = 0.0
        if self.describes:
            codes = self._static_codes(batch)
            if self.static_text.dropout.training and not self.training:  # samples differ
                codes = codes.expand(len(batch.past_target))
            hidden = self.static_text(codes, self.texts()).t()
        if self.static_covariates.n_tokens:
            hidden = hidden + self.static_covariates(batch).squeeze(1)
        return self.static(hidden)

    def dynamic_modulation(self, batch: Batch) -> Tensor:
        """Return gamma - 1 and beta from the texts of the steps, (2, b, c g, H)."""
        spoken = self._spoken(batch)
        rows = self.texts()
        return torch.stack([modulation(codes, rows) for modulation, codes in spoken]).sum(0)

    def measure(self, windows: Batch) -> None:
        """Set the unit of the target, and location and scale of covariates."""
        super().measure(windows)
        self.covariates.measure(windows)
        self.static_covariates.measure(windows)

    def encode_texts(
        self, windows: Batch | None, progress: bool = False, device: torch.device | None = None
    ) -> None:
        """Encode all that the vocabulary holds, rather than when it is first met."""
        if not self.config.texts_read:
            return
        self.texts(progress, device)
        if windows is None:
            return
        measured = [(self.static_text, self._static_codes(windows))] if self.describes else []
        if self.has_dynamic:
            measured += [(one.projection, codes) for one, codes in self._spoken(windows)]
        for projection, codes in measured:
            projection.measure(codes, self.texts().double())

    def prompt(self, description: str | None = None) -> str:
        """Return the static text of a series."""
        shapes = self.shapes
        return compose_prompt(
            context_length=shapes.context_length, horizon=shapes.horizon, description=description
        )

    def prompts(self) -> list[str]:
        """Return the static texts that were shown; those of the steps are in the vocabulary."""
        if not self.describes:
            return []
        own = self.config.description
        descriptions = own.values() if isinstance(own, Mapping) else [own]
        return [self.prompt(description) for description in descriptions]

    def _static_codes(self, batch: Batch) -> Tensor:
        """Return the codes of the descriptions (b,), or the one (1,) of all series."""
        if batch.static_texts is not None:
            return batch.static_texts
        own = self.config.description
        described = self.prompt(own if isinstance(own, str) else None)
        code = int(self.texts.vocabulary.codes([described])[0])
        return torch.tensor([code], device=batch.past_target.device)

    def _spoken(self, batch: Batch) -> list[tuple[DynamicModulation, Tensor]]:
        """Return the codes of the calendar and of each of the user's columns, by what reads it."""
        spoken = [(self.stamps, self._stamp_codes(batch))]
        for name in ("past_texts", "future_texts"):
            columns, codes = getattr(self, name), getattr(batch, name)
            if len(columns) and codes is None:
                raise ValueError(f"{name}: the network was made for some, found none.")
            spoken += [(column, codes[..., i]) for i, column in enumerate(columns)]
        return spoken

    def _stamp_codes(self, batch: Batch) -> Tensor:
        """Return the codes of the horizon's steps (b, H), or of the context (b, 1)."""
        length, horizon = self.shapes.context_length, self.shapes.horizon
        vocabulary = self.texts.vocabulary
        stamps = batch.stamps
        if stamps is None:
            (position,) = vocabulary.codes([POSITION]).tolist()
            shape = len(batch.past_target), length + horizon
            stamps = torch.full(shape, position, device=batch.past_target.device)
        is_step = self.config.dynamic == "step"
        stamps = stamps[:, length:] if is_step else stamps[:, length - 1 : length]
        if POSITION not in vocabulary or self.config.text == "calendar":
            return stamps
        (position,) = vocabulary.codes([POSITION]).tolist()
        places = [f"step {1 + step} ahead" for step in range(horizon)]
        if not is_step:
            places = [f"A time series of {length} steps."]
        codes = torch.from_numpy(vocabulary.codes(places)).to(stamps.device)
        return torch.where(stamps == position, codes, stamps)

    def _of_parameters(self, values: Tensor) -> Tensor:
        """Give values (b, c g, H) of each group to its parameters, (b, c, H, p)."""
        values = values.unflatten(1, (-1, self.n_groups)).transpose(2, 3)
        return values if self.n_groups == len(self.groups) else values[..., self.groups]

"""CALF: a language model fine-tuned on series while its own words watch.

Source: Liu et al., "CALF: Aligning LLMs for Time Series Forecasting via Cross-modal
Fine-Tuning" (arXiv 2403.07300).

    context (b, L, c) -- normalise --> Linear(L -> d) --> encoder layer over tokens
                                                |
                      time tokens (b, c, d) ----+---- cross attention to principal words
                                |                                |
                      temporal branch: layers          textual branch: the same layers,
                      with LoRA                        frozen           [training only]
                                |                                |
                     + residual, shared head          + residual, shared head
                                |                                |
                            forecast  <-- output consistency --> forecast
                   (the hidden states of the branches: <-- feature regularisation -->)

A variate is one token, and so is a covariate (s tokens in all). Attention among the tokens of a
univariate series without covariates is therefore the identity, and under a causal backbone a
variate sees only what stands before it: the covariates, which come first, and earlier variates.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tsllm_estimators._validate import check_bool, check_choice, check_integer, check_number
from tsllm_estimators.llm.backbone import Backbone
from tsllm_estimators.llm.words import principal_words
from tsllm_estimators.networks.base import Batch, Forecast, Network, NetworkConfig, Shapes
from tsllm_estimators.networks.blocks import (
    DISTANCES,
    CovariateTokens,
    ForecastHead,
    WindowStatistics,
    check_heads,
    normalize_window,
    restore_parameters,
)

_LEVEL_DECAY = 0.8  # weight of a level against the one after it


@dataclass(frozen=True, kw_only=True)
class CALFConfig(NetworkConfig):
    """Arguments of CALF.

    CALF fine-tunes a language model on series while its own words watch [1]_. Every variate's
    window is one token. A language model with LoRA reads the tokens and a linear head forecasts;
    in training, a frozen copy of the language model reads the same tokens said in principal
    components of its own word embeddings, and the two are pulled together in their hidden states
    and forecasts. A univariate series is a single token: attention among tokens is then the
    identity. A past or future covariate is one token too, all static ones together are one; they
    stand in front of the variates.

    Parameters
    ----------
    adapter : {"lora", "full"}, PEFT config, dict or None
        How the temporal branch is fine-tuned: LoRA on the attention projections, every weight,
        any PEFT config (or its ``to_dict()``), or not at all. A stand-in backbone trains whole.
    lora_rank : int
        Rank of ``adapter="lora"``.
    lora_alpha : float
        LoRA's scaling: the update is multiplied by ``lora_alpha / lora_rank``.
    lora_dropout : float
        Dropout in front of LoRA.
    train_layer_norms : bool
        Train the temporal branch's layer norms.
    train_position_embeddings : bool
        Train the position embeddings of both branches, where the backbone has any.
    n_principal_words : int or None
        K, principal components of the word embeddings that the match module attends to, at most
        the width of the backbone; None is 500 or as many as there are.
    n_heads : int or None
        Heads of the token encoder and of the match module; None is as many as the backbone has.
    d_ff : int
        Hidden width of the token encoder.
    dropout : float
        Dropout of the token encoder.
    head_dropout : float
        Dropout in front of the head.
    task_loss : {"l1", "mse", "smooth_l1", "smape"}
        Loss of the forecast where no likelihood and no ``loss_fn`` is given.
    output_loss : {"l1", "mse", "smooth_l1", "smape", "mase"}
        Distance between the forecasts of the two branches; ``"mase"`` is L1 in units of the
        window's mean absolute one-step change.
    feature_loss : {"l1", "mse", "smooth_l1", "smape"}
        Distance between the hidden states of the two branches.
    output_weight : float
        Weight of the output consistency; 1.0 in the paper.
    feature_weight : float
        Weight of the feature regularisation. With both weights 0 the textual branch is not
        computed at all and the method is a single adapted language model.
    projection_lr : float
        Learning rate of the level projections of the feature regularisation.

    References
    ----------
    .. [1] Liu et al., "CALF: Aligning LLMs for Time Series Forecasting via Cross-modal
       Fine-Tuning", arXiv 2403.07300.
    """

    adapter: Any = "lora"
    lora_rank: int = 8
    lora_alpha: float = 32.0
    lora_dropout: float = 0.1
    train_layer_norms: bool = True
    train_position_embeddings: bool = True
    n_principal_words: int | None = None
    n_heads: int | None = None
    d_ff: int = 2048
    dropout: float = 0.1
    head_dropout: float = 0.3
    task_loss: str = "l1"
    output_loss: str = "l1"
    feature_loss: str = "l1"
    output_weight: float = 0.3
    feature_weight: float = 0.01
    projection_lr: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.adapter, str):
            check_choice("adapter", self.adapter, ("lora", "full"))
        check_integer("lora_rank", self.lora_rank, 1)
        check_number("lora_alpha", self.lora_alpha, exclusive="(")
        check_number("lora_dropout", self.lora_dropout, maximum=1, exclusive=")")
        check_bool("train_layer_norms", self.train_layer_norms)
        check_bool("train_position_embeddings", self.train_position_embeddings)
        check_integer("n_principal_words", self.n_principal_words, 1, optional=True)
        check_integer("n_heads", self.n_heads, 1, optional=True)
        check_integer("d_ff", self.d_ff, 1)
        check_number("dropout", self.dropout, maximum=1, exclusive=")")
        check_number("head_dropout", self.head_dropout, maximum=1, exclusive=")")
        check_choice("task_loss", self.task_loss, DISTANCES)
        check_choice("output_loss", self.output_loss, [*DISTANCES, "mase"])
        check_choice("feature_loss", self.feature_loss, DISTANCES)
        check_number("output_weight", self.output_weight)
        check_number("feature_weight", self.feature_weight)
        check_number("projection_lr", self.projection_lr, exclusive="(")
        defaults = self.defaults()
        for name in ("lora_rank", "lora_alpha", "lora_dropout"):
            if self.adapter != "lora" and getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name} belongs to adapter='lora', found adapter={self.adapter!r}; "
                    "leave it out, or set it in the PEFT config."
                )

    def peft_adapter(self) -> Any:
        """Return the adapter in the words of the backbone: ``"full"``, PEFT config or None."""
        if self.adapter != "lora":
            return self.adapter
        return {
            "peft_type": "LORA",
            "r": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
        }


class CALF(Network):
    """The network of CALF."""

    Config = CALFConfig
    learning_rate = 2e-4  # 5e-4 in the paper, see docs/deviations.md
    layers = 6  # of the paper's GPT-2, section "Implementation details"
    parts = {"head": ("head.",), "adapter": ("head.", "time_branch.")}

    principal_words: Tensor

    def __init__(self, config: CALFConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        backbone = self.load_backbone()
        width = backbone.width
        self.covariates = CovariateTokens(shapes, width)
        self.time_branch = self._prepare(
            backbone, adapter=config.peft_adapter(), layer_norms=config.train_layer_norms
        )
        n_heads = config.n_heads or self.time_branch.n_heads
        check_heads(n_heads, width)
        self.embedding = nn.Linear(shapes.context_length, width)
        self.encoder = nn.TransformerEncoderLayer(
            width, n_heads, config.d_ff, config.dropout, batch_first=True
        )
        self.head = ForecastHead(width, shapes.horizon, shapes.parameters, config.head_dropout)
        if self._aligns:
            vocabulary = self.time_branch.word_embeddings
            assert vocabulary is not None
            words = principal_words(vocabulary, config.n_principal_words).vectors
            self.register_buffer("principal_words", words, persistent=False)
            self.match = nn.MultiheadAttention(width, n_heads, batch_first=True)
            self.text_branch = self._prepare(self.load_backbone(), stand_in=False)
            self.text_branch.release_word_embeddings()
        if config.feature_weight:
            levels = range(self.time_branch.n_levels)
            self.time_projections = nn.ModuleList(_projection(width) for _ in levels)
            self.text_projections = nn.ModuleList(_projection(width) for _ in levels)
        self.time_branch.release_word_embeddings()

    @property
    def _aligns(self) -> bool:
        """Whether a textual branch is there to align with."""
        return bool(self.config.output_weight or self.config.feature_weight)

    def _prepare(self, branch: Backbone, **choices: Any) -> Backbone:
        return branch.prepare(
            self.covariates.n_tokens + self.shapes.n_variates,
            position_embeddings=self.config.train_position_embeddings,
            **choices,
        )

    def measure(self, windows: Batch) -> None:
        """Set the unit of the target, and location and scale of the covariates."""
        super().measure(windows)
        self.covariates.measure(windows)

    def train(self, mode: bool = True) -> "CALF":
        """Set training mode; the textual branch stays frozen, so without dropout."""
        super().train(mode)
        if self._aligns:
            self.text_branch.eval()
        return self

    def forward(self, batch: Batch) -> Forecast:
        """Forecast the horizon from the context.

        1. Normalise each window and variate, remember how.
        2. Embed covariates and each variate's window as tokens and encode these.
        3. Temporal branch: adapted layers, residual; the head reads the variates' tokens.
        4. In training: match the tokens with the principal words, run them through the frozen
           layers, and compare the branches.
        """
        time_tokens, statistics = self.time_tokens(batch)
        aligns = self.training and self._aligns
        levels = aligns and bool(self.config.feature_weight)

        time_states = self._states(self.time_branch, time_tokens, levels)
        forecast = Forecast(self._forecast_parameters(time_states[-1] + time_tokens, statistics))
        if not aligns:
            return forecast

        text_tokens, _ = self.text_tokens(time_tokens)
        text_states = self._states(self.text_branch, text_tokens, levels)
        if self.config.output_weight:
            text_forecast = self._forecast_parameters(text_states[-1] + text_tokens, statistics)
            forecast.losses["output_consistency"] = self._output_distance(
                forecast.parameters, text_forecast, batch.past_target
            )
        if levels:
            forecast.losses |= self._feature_distances(time_states, text_states)
        return forecast

    def time_tokens(self, batch: Batch) -> tuple[Tensor, WindowStatistics]:
        """Return encoded tokens (b, s, d), the variates last, and how these were normalised."""
        window, statistics = normalize_window(
            batch.past_target, self.unit, self.config.normalization
        )
        variates = self.embedding(window.transpose(1, 2))
        return self.encoder(torch.cat([self.covariates(batch), variates], 1)), statistics

    def text_tokens(
        self, time_tokens: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Say time tokens in principal words: text tokens (b, s, d), attention (b, s, K) if asked.

        Every token attends to the same words, so these are projected once per batch.
        """
        b, s, d = time_tokens.shape
        words = self.principal_words.to(time_tokens.dtype).unsqueeze(0)
        text_tokens, attention = self.match(
            time_tokens.reshape(1, b * s, d), words, words, need_weights=need_weights
        )
        attention = None if attention is None else attention.reshape(b, s, -1)
        return text_tokens.reshape(b, s, d), attention

    def loss_weights(self) -> dict[str, float]:
        """Return the weight of each auxiliary loss: the last level counts most."""
        weights = {"output_consistency": self.config.output_weight}
        n_levels = self.time_branch.n_levels
        for level in range(n_levels):
            decay = _LEVEL_DECAY ** (n_levels - 1 - level)
            weights[f"feature_level_{level}"] = self.config.feature_weight * decay
        return weights

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return two groups: the level projections with their own learning rate, the rest."""
        projections = [
            parameter
            for name, parameter in self.named_parameters()
            if name.startswith(("time_projections.", "text_projections."))
            and parameter.requires_grad
        ]
        apart = set(map(id, projections))
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in apart]
        groups: list[dict[str, Any]] = [{"params": rest}]
        if projections:
            groups.append({"params": projections, "lr": self.config.projection_lr})
        return groups

    def _states(self, branch: Backbone, tokens: Tensor, levels: bool) -> tuple[Tensor, ...]:
        return branch(tokens, levels=True) if levels else (branch(tokens),)

    def _forecast_parameters(self, tokens: Tensor, statistics: WindowStatistics) -> Tensor:
        variates = tokens[:, self.covariates.n_tokens :]
        return restore_parameters(self.head(variates), statistics, self.shapes.parameters)

    def _output_distance(self, time: Tensor, text: Tensor, context: Tensor) -> Tensor:
        location, name, unit = self.shapes.location, self.config.output_loss, self.unit
        if name == "mase":
            change = context.diff(dim=1).abs().nanmean(1, keepdim=True).nan_to_num(nan=0.0)
            name, unit = "l1", change.clamp_min(1e-5 * self.unit)
        if self.shapes.parameters[location] == "free":
            unit = torch.ones_like(unit)
        distance = DISTANCES[name](time[..., location] / unit, text[..., location] / unit)
        return distance.flatten(1).mean(1)

    def _feature_distances(
        self, time_states: tuple[Tensor, ...], text_states: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        distance = DISTANCES[self.config.feature_loss]
        return {
            f"feature_level_{level}": distance(
                self.time_projections[level](time_states[level]),
                self.text_projections[level](text_states[level]),
            )
            .flatten(1)
            .mean(1)
            for level in range(len(time_states))
        }


def _projection(width: int) -> nn.Linear:
    return nn.Linear(width, width, bias=False)

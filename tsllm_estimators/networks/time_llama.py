"""Time-LlaMA: variates as tokens of a language model, which a prompt aligns and a router adapts.

Source: Zhang, Zhu and Gao, "Adapting Large Language Models for Time Series Modeling via a Novel
Parameter-efficient Adaptation Method" (arXiv 2502.13725; ACL SRW 2025).

    context (b, L, c) -- normalise --> MLP(L -> d) --> tokens (b, s, d), covariates first
                                                          |
    prompt --> word embeddings (P, d) -- keys, values --> + cross attention       [alignment]
                                                          |
                                   +----------------------+
                                   |                      |
                                   |         layers of the language model with D-LoRA
                                   |                      |
                                   +------------------> + gate *                  [residual]
                                                          |
                               forecast (b, H, c) <-- linear head of the variates' tokens

The prompt itself never runs through the language model, unless ``alignment="concat"`` puts its
words in front of the tokens. A variate is one token: a univariate series is a single token, where
attention among tokens is the identity. Under a causal mask a token sees only those before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tsllm_estimators._validate import check_bool, check_choice, check_integer, check_number
from tsllm_estimators.llm.backbone import Backbone
from tsllm_estimators.llm.prompts import compose_prompt, prompt_statistics
from tsllm_estimators.networks.base import Batch, Forecast, Network, NetworkConfig, Shapes
from tsllm_estimators.networks.blocks import (
    DISTANCES,
    CovariateTokens,
    ForecastHead,
    check_heads,
    normalize_window,
    restore_parameters,
)

_LORA = ["lora_rank", "lora_alpha", "lora_dropout"]
_ROUTER = ["pooling", "gate"]
_BALANCE = "load_balancing_weight"
_TEXT = ["alignment", "description", "variate_names", "prompt_statistics", "prompt"]


@dataclass(frozen=True, kw_only=True)
class TimeLlamaConfig(NetworkConfig):
    """Arguments of Time-LlaMA.

    Time-LlaMA reads a multivariate window as a sentence of one token per variate [1]_. The tokens
    attend to the word embeddings of a prompt that says what the data are and what is asked, run
    through the first layers of a frozen language model, and a linear head forecasts. D-LoRA adapts
    the language model: in each layer a router chooses, for each window, which LoRA modules are
    on. A past or future covariate is one token too, all static ones together are one; they stand
    in front of the variates.

    Parameters
    ----------
    positions : {"shared", "ordered"}
        Whether all variates stand at one place of the sentence, or one after another. Shared,
        the order of the columns says nothing (where attention is bidirectional) and their number
        is not limited; ordered, a position tells a variate from the others.
    alignment : {"cross_attention", "concat", "none"}
        How the tokens meet the prompt: they attend to its word embeddings; its words run through
        the language model in front of them; or not at all.
    description : str or None
        What the data are, in your words, as part of the prompt.
    variate_names : list of str or None
        Names of the variates, as part of the prompt.
    prompt_statistics : bool
        Whether the prompt says how the normalised training windows look: range, trend, lags.
    prompt : str or None
        Your own prompt in place of the composed one; an empty text is one.
    d_hidden : int or None
        Hidden width of the token embedding; None is a linear one.
    n_heads : int
        Heads of the attention to the prompt's words, and to covariates.
    adapter : {"dynalora", "full"}, PEFT config, dict or None
        How the language model is fine-tuned: D-LoRA on every linear map of its layers, every
        weight, any PEFT config (or its ``to_dict()``), or not at all. A stand-in backbone trains
        whole, and what concerns the adapter has no effect on it.
    lora_rank : int
        Rank of D-LoRA's modules.
    lora_alpha : float
        D-LoRA's scaling: an update is multiplied by ``lora_alpha / lora_rank``.
    lora_dropout : float
        Dropout in front of D-LoRA's modules.
    top_n : int or None
        Modules that are on in each layer, for each window; None turns the router off and leaves
        plain LoRA.
    pooling : {"last", "mean", "max"} or None
        What of a layer's input the router looks at: its last token, the mean or the maximum; None
        is the last token under a causal mask and the mean else.
    gate : {"hard", "soft"}
        Whether active modules count alike or by their probabilities.
    load_balancing_weight : float
        Weight of the loss that makes the routers use all modules.
    train_layer_norms : bool
        Train the language model's layer norms.
    residual : {"gated", "plain"} or None
        What leads around the language model: the tokens plus its output times a learned gate that
        starts at 0, so that the network starts as the one without a language model; the sum of
        both; or nothing.
    head_dropout : float
        Dropout in front of the head.
    task_loss : {"l1", "mse", "smooth_l1", "smape"}
        Loss of the forecast where no likelihood and no ``loss_fn`` is given.

    References
    ----------
    .. [1] Zhang, Zhu and Gao, "Adapting Large Language Models for Time Series Modeling via a Novel
       Parameter-efficient Adaptation Method", arXiv 2502.13725.
    """

    positions: str = "shared"
    alignment: str = "cross_attention"
    description: str | None = None
    variate_names: list[str] | None = None
    prompt_statistics: bool = True
    prompt: str | None = None
    d_hidden: int | None = None
    n_heads: int = 8
    adapter: Any = "dynalora"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    top_n: int | None = 4
    pooling: str | None = None
    gate: str = "hard"
    load_balancing_weight: float = 0.01
    train_layer_norms: bool = False
    residual: str | None = "gated"
    head_dropout: float = 0.3
    task_loss: str = "l1"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("positions", self.positions, ("shared", "ordered"))
        check_choice("alignment", self.alignment, ("cross_attention", "concat", "none"))
        check_bool("prompt_statistics", self.prompt_statistics)
        check_integer("d_hidden", self.d_hidden, 1, optional=True)
        check_integer("n_heads", self.n_heads, 1)
        if isinstance(self.adapter, str):
            check_choice("adapter", self.adapter, ("dynalora", "full"))
        check_integer("lora_rank", self.lora_rank, 1)
        check_number("lora_alpha", self.lora_alpha, exclusive="(")
        check_number("lora_dropout", self.lora_dropout, maximum=1, exclusive=")")
        check_integer("top_n", self.top_n, 1, optional=True)
        check_choice("pooling", self.pooling, ("last", "mean", "max", None))
        check_choice("gate", self.gate, ("hard", "soft"))
        check_number("load_balancing_weight", self.load_balancing_weight)
        check_bool("train_layer_norms", self.train_layer_norms)
        check_choice("residual", self.residual, ("gated", "plain", None))
        check_number("head_dropout", self.head_dropout, maximum=1, exclusive=")")
        check_choice("task_loss", self.task_loss, DISTANCES)
        self._check_texts()
        if self.top_n is None:
            self._refuse_changed([*_ROUTER, _BALANCE], "top_n=None")
        if self.adapter != "dynalora":
            # a PEFT config of D-LoRA has routers to balance
            balance = [_BALANCE] if self.adapter in (None, "full") else []
            self._refuse_changed([*_LORA, "top_n", *_ROUTER, *balance], f"adapter={self.adapter!r}")

    def _check_texts(self) -> None:
        for name in ("description", "prompt"):
            if not isinstance(getattr(self, name), str | None):
                raise TypeError(f"{name} must be a text or None, found {getattr(self, name)!r}.")
        names = self.variate_names
        if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
            raise TypeError(f"variate_names must be a list of names or None, found {names!r}.")
        if self.alignment == "none":
            self._refuse_changed(_TEXT[1:], "alignment='none'")
        elif self.prompt is not None:
            self._refuse_changed(_TEXT[1:-1], "a prompt of your own")

    def _refuse_changed(self, names: list[str], reason: str) -> None:
        changed = [name for name in names if getattr(self, name) != self.defaults()[name]]
        if changed:
            raise ValueError(
                f"{changed[0]}={getattr(self, changed[0])!r} has no effect with {reason}; leave "
                "one of them out."
            )

    def peft_adapter(self) -> Any:
        """Return the adapter in the words of the backbone: ``"full"``, PEFT config or None."""
        if self.adapter != "dynalora":
            return self.adapter
        return {
            "peft_type": "DYNALORA",
            "r": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "top_n": self.top_n,
            "pooling": self.pooling,
            "gate": self.gate,
        }


class TimeLlama(Network):
    """The network of Time-LlaMA."""

    Config = TimeLlamaConfig
    learning_rate = 1e-3
    layers = 3  # 8 in the paper, see docs/deviations.md
    parts = {"head": ("head.",), "adapter": ("head.", "backbone.", "gate")}

    prompt_words: Tensor

    def __init__(self, config: TimeLlamaConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        names = config.variate_names
        if names is not None and len(names) != shapes.n_variates:
            raise ValueError(
                f"variate_names must name the {shapes.n_variates} variates, found {len(names)}."
            )
        self.backbone = self.load_backbone()
        width = self.backbone.width
        self.covariates = CovariateTokens(shapes, width)
        self.n_tokens = self.covariates.n_tokens + shapes.n_variates
        self._set_words(self._compose_prompt(), self.backbone)
        self.backbone.check_positions(self._n_positions, chosen=config.positions == "shared")
        self.backbone.prepare(
            self._n_positions, adapter=config.peft_adapter(), layer_norms=config.train_layer_norms
        )
        self.backbone.release_word_embeddings()
        self.embedding = _embedding(shapes.context_length, config.d_hidden, width)
        check_heads(config.n_heads, width)
        if config.alignment == "cross_attention":
            self.attention = nn.MultiheadAttention(width, config.n_heads, batch_first=True)
        if self.covariates.n_tokens:
            self.inform = nn.MultiheadAttention(width, config.n_heads, batch_first=True)
        if config.residual == "gated":
            self.gate = nn.Parameter(torch.zeros(width))
        self.head = ForecastHead(width, shapes.horizon, shapes.parameters, config.head_dropout)

    def forward(self, batch: Batch) -> Forecast:
        """Forecast the horizon from the context.

        1. Normalise each window and variate, remember how.
        2. Embed covariates and each variate's window as tokens.
        3. Align the tokens with the prompt's words, by cross attention or in one sentence.
        4. Run them through the adapted layers of the language model, and around it.
        5. The head reads the variates' tokens; bring its forecast back to the data's units.
        """
        window, statistics = normalize_window(
            batch.past_target, self.unit, self.config.normalization
        )
        tokens = self.align(self.embed(batch, window))
        with self.backbone.record_routing() as routing:
            states = self.read(tokens)
        variates = self.bypass(tokens, states)[:, self.covariates.n_tokens :]
        parameters = restore_parameters(self.head(variates), statistics, self.shapes.parameters)
        forecast = Forecast(parameters)
        if self.training and routing.decisions and self.config.load_balancing_weight:
            forecast.losses["load_balancing"] = partial(
                routing.load_balancing_losses, all_processes=True
            )
        return forecast

    def embed(self, batch: Batch, window: Tensor) -> Tensor:
        """Embed covariates and normalised windows (b, L, c) as tokens (b, s, d), variates last.

        The variates attend to the covariates at once: around the language model, and where there
        is none, nothing else would tell them.
        """
        covariates, variates = self.covariates(batch), self.embedding(window.transpose(1, 2))
        if self.covariates.n_tokens:
            told, _ = self.inform(variates, covariates, covariates, need_weights=False)
            variates = variates + told
        return torch.cat([covariates, variates], 1)

    def align(self, tokens: Tensor) -> Tensor:
        """Let tokens (b, s, d) attend to the prompt's words, projected once for the whole batch."""
        if self.config.alignment != "cross_attention" or not len(self.prompt_words):
            return tokens
        b, s, d = tokens.shape
        words = self.prompt_words.to(tokens.dtype).unsqueeze(0)
        attended, _ = self.attention(tokens.reshape(1, b * s, d), words, words, need_weights=False)
        return tokens + attended.reshape(b, s, d)

    def read(self, tokens: Tensor) -> Tensor:
        """Run tokens (b, s, d) through the language model, after the prompt's words or alone."""
        n_words = len(self.prompt_words) if self.config.alignment == "concat" else 0
        if n_words:
            words = self.prompt_words.to(tokens.dtype).expand(len(tokens), -1, -1)
            tokens = torch.cat([words, tokens], 1)
        positions = None
        if self.config.positions == "shared":
            positions = torch.arange(tokens.shape[1], device=tokens.device).clamp_max(n_words)
        states = self.backbone(tokens, positions=positions)
        return states[:, n_words:]

    def bypass(self, tokens: Tensor, states: Tensor) -> Tensor:
        """Lead tokens (b, s, d) around the language model, whose ``states`` are of this shape."""
        if self.config.residual == "gated":
            return tokens + self.gate * states
        return tokens + states if self.config.residual == "plain" else states

    def measure(self, windows: Batch) -> None:
        """Set the unit of the target, location and scale of the covariates, and the prompt."""
        super().measure(windows)
        self.covariates.measure(windows)
        self.set_prompt(self._compose_prompt(windows))

    def set_prompt(self, prompt: str) -> None:
        """Align with another text from now on."""
        if prompt != self.prompt:
            self._set_words(prompt, self.load_backbone())
            self.backbone.check_positions(self._n_positions)

    def prompts(self) -> list[str]:
        """Return the prompt."""
        return [] if self.config.alignment == "none" else [self.prompt]

    def loss_weights(self) -> dict[str, float]:
        """Return the weight of the routers' load balancing."""
        return {"load_balancing": self.config.load_balancing_weight}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the prompt, which the training data have shaped, and what it was made from."""
        return {"prompt": self.prompt, "settings": self._text_settings}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Align with the prompt of the saved network; refuse one of other settings."""
        for name, found in self._text_settings.items():
            if found != state["settings"][name]:
                raise ValueError(
                    f"{name}: the saved weights were trained with {state['settings'][name]!r}, "
                    f"found {found!r}. Load them with the same {name}; set_prompt of the loaded "
                    "network shows it another text."
                )
        self.set_prompt(state["prompt"])

    @property
    def _text_settings(self) -> dict[str, Any]:
        settings = {name: getattr(self.config, name) for name in _TEXT}
        names = settings["variate_names"]
        return {**settings, "variate_names": names and [str(name) for name in names]}

    def _compose_prompt(self, windows: Batch | None = None) -> str:
        """Return the prompt, with the statistics of training windows where these are known."""
        config, length = self.config, self.shapes.context_length
        if config.alignment == "none":
            return ""
        if config.prompt is not None:
            return config.prompt
        statistics = None
        if config.prompt_statistics and windows is not None:
            statistics = prompt_statistics(windows.past_target[:, :length])
        return compose_prompt(
            context_length=length,
            horizon=self.shapes.horizon,
            description=config.description,
            variate_names=config.variate_names,
            statistics=statistics,
        )

    def _set_words(self, prompt: str, backbone: Backbone) -> None:
        self.prompt = prompt
        words = backbone.embed_text(prompt) if self.config.alignment != "none" else torch.empty(0)
        self.register_buffer("prompt_words", words.to(self.unit), persistent=False)

    @property
    def _n_positions(self) -> int:
        """Places of the sentence that the language model reads."""
        n_words = len(self.prompt_words) if self.config.alignment == "concat" else 0
        return n_words + (1 if self.config.positions == "shared" else self.n_tokens)


def _embedding(length: int, hidden: int | None, width: int) -> nn.Module:
    if hidden is None:
        return nn.Linear(length, width)
    return nn.Sequential(nn.Linear(length, hidden), nn.GELU(), nn.Linear(hidden, width))

"""LLM-TS Net: series that meet their own trends in words, and prompts that they retrieve.

Source: "LLM-TS Net" and its uncertainty variant (arXiv 2408.14387).

    context (b, L, c) -- normalise -+-- patches --> Linear --> tokens (b, c, P, d)
                                    |                 + variate, covariates       |
                                    |                     |                       |
                                    |                  summary --> prompt pool -- K prompts
                                    |                                             |
                                    |              [K prompts; P patches] (b, c, K + P, d)
                                    |                                             |
                                    |              n_layers x: attention within a series (intra)
                                    |                          attention among series (inter)
                                    |                          feed-forward
                                    |                                             |
                                    +-- trend code --> text --> tokens of a       |
                                        language model --> attention pooling      |
                                                              |                   |
                                                       (b, c, d) -- cross attention, gated
                                                                                  |
                                                    head (P d -> H) --> forecast (b, H, c)

The language model is fine-tuned once, on the descriptions, with its own objective; then it reads
each distinct description once. No step of the training of the network runs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tsllm_estimators._validate import check_bool, check_choice, check_integer, check_number
from tsllm_estimators.llm.describe import DESCRIBERS, check_describer
from tsllm_estimators.llm.language_modelling import LanguageModelling
from tsllm_estimators.llm.stand_ins import STAND_INS
from tsllm_estimators.networks.base import Batch, Forecast, Network, NetworkConfig, Shapes
from tsllm_estimators.networks.blocks import (
    DISTANCES,
    CovariateTokens,
    ForecastHead,
    normalize_window,
    restore_parameters,
)
from tsllm_estimators.networks.grouped_query import GroupedQueryAttention, GroupedQueryLayer
from tsllm_estimators.networks.retrieval import PromptPool, Retrieval
from tsllm_estimators.networks.texts import TEXT_ENCODERS
from tsllm_estimators.networks.trends import TrendTexts

TEXTS = ("series", "shared", "none")


@dataclass(frozen=True, kw_only=True)
class LLMTSNetConfig(NetworkConfig):
    """Arguments of LLM-TS Net.

    LLM-TS Net forecasts many series that influence each other, such as the sensors of a road
    network [1]_. A describer says in words how each window of each series runs. A small language
    model, fine-tuned on these descriptions, turns them into vectors. The windows themselves
    retrieve prompts from a learned pool; grouped-query attention lets the parts of a series see
    each other (intra), then the series (inter), then what is said of them. Every part is one
    switch. With ``GaussianLikelihood()`` (darts) or ``likelihood="gaussian"`` (sktime) it is the
    paper's variant with uncertainty. What a switch turns off is not read, whatever its own
    arguments say.

    Parameters
    ----------
    backbone : str
        The language model that reads descriptions: a Hugging Face id, a local directory, or
        ``"tiny"`` (two random layers of width 16, for smoke tests). The default is served offline
        by the extra ``[minilm]``.
    causal : bool or None
        Direction of its attention: None keeps the model's own.
    normalization : {"window", "last"} or None
        Give each window and variate mean 0 and deviation 1, or subtract its last value and divide
        by the standard deviation of the training data, and bring the forecast back. None only
        divides: zeros stay zeros and signs stay signs, as likelihoods of positive values and of
        counts need it.
    d_model : int
        Width of the network's tokens.
    n_layers : int
        Times that a series sees its own parts, and the series each other.
    n_heads : int
        Heads of the attention; a divisor of ``d_model``.
    n_groups : int
        Groups of heads that share keys and values; a divisor of ``n_heads``.
    d_ff : int
        Hidden width of the feed-forward layers.
    patch_length : int or None
        Steps of a patch; None makes the whole context one patch. The oldest steps that do not
        fill a patch are left out.
    prompts : bool
        Whether windows retrieve prompts.
    n_prompts : int
        W, entries of the pool.
    top_k : int
        K, prompts that a window retrieves.
    pull_weight : float
        Weight of the loss that pulls keys to the windows that chose them.
    balance_weight : float
        Weight of the loss that keeps the same few prompts from being retrieved by every window.
    intra : bool
        Whether the prompts and patches of a series attend to each other.
    inter : bool
        Whether the series attend to each other.
    level : bool
        Whether the network sees the level and the deviation of each window, too, in units of the
        training data. It helps where a level means the same at any time, as a speed does, and
        harms where series grow.
    text : {"series", "shared", "none"}
        Whether each series has a description of its own, all of them share that of their mean, or
        nothing is described.
    describer : {"statistical", "huggingface", "chat"}
        Who describes: fixed sentences, a causal language model, or an OpenAI-compatible endpoint.
        Each kind of window is described once, whatever the number of windows.
    describer_kwargs : dict or None
        Arguments of the latter two: of ``llm.huggingface.HuggingFaceDescriber`` (``model``,
        ``max_new_tokens``...), or of ``llm.chat.ChatDescriber`` (``base_url``, ``model``,
        ``api_key_env``, which names an environment variable...).
    text_encoder : {"backbone", "hash", "learned"}
        What makes vectors of words: the language model, random vectors, or ones that are learned.
        The latter two are the controls of the first.
    adapter : {"lora_amr", "full"}, PEFT config or dict
        How the language model is fine-tuned on the descriptions: LoRA-AMR on every linear map of
        its layers, every weight, or any PEFT config (or its ``to_dict()``).
    lora_rank : int
        Rank of LoRA-AMR, an even number.
    lora_alpha : float
        LoRA-AMR's scaling: the update is multiplied by ``lora_alpha / lora_rank``.
    lora_dropout : float
        Dropout inside of LoRA-AMR.
    lm_steps : int
        Steps of that fine-tuning; 0 reads with the language model as it is.
    lm_lr : float
        Its learning rate.
    lm_batch_size : int
        Descriptions in a step of it.
    dropout : float
        Dropout of the attention's and of the feed-forward layers' output.
    head_dropout : float
        Dropout in front of the head.
    task_loss : {"l1", "mse", "smooth_l1", "smape"}
        Loss of the forecast where no likelihood and no ``loss_fn`` is given.

    References
    ----------
    .. [1] "LLM-TS Net" (arXiv 2408.14387).
    """

    d_model: int = 32
    n_layers: int = 1
    n_heads: int = 4
    n_groups: int = 2
    d_ff: int = 128
    patch_length: int | None = None
    prompts: bool = True
    n_prompts: int = 16
    top_k: int = 4
    pull_weight: float = 0.1
    balance_weight: float = 0.01
    intra: bool = True
    inter: bool = True
    level: bool = False
    text: str = "series"
    describer: str = "statistical"
    describer_kwargs: Mapping[str, Any] | None = None
    text_encoder: str = "backbone"
    adapter: Any = "lora_amr"
    lora_rank: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    lm_steps: int = 20
    lm_lr: float = 3e-2
    lm_batch_size: int = 8
    dropout: float = 0.1
    head_dropout: float = 0.1
    task_loss: str = "l1"

    normalizations = ("window", "last", None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone in STAND_INS:
            raise ValueError(
                f"backbone={self.backbone!r}: here the language model only reads descriptions, "
                "nothing can stand in for it. Its controls are text='none', text_encoder='hash' "
                "and text_encoder='learned'."
            )
        for name in ("d_model", "n_layers", "n_heads", "n_groups", "d_ff", "n_prompts", "top_k"):
            check_integer(name, getattr(self, name), 1)
        for name, whole in (("n_heads", "d_model"), ("n_groups", "n_heads")):
            if getattr(self, whole) % getattr(self, name):
                raise ValueError(
                    f"{name} must divide {whole} ({getattr(self, whole)}), found "
                    f"{getattr(self, name)}."
                )
        if self.top_k > self.n_prompts:
            raise ValueError(
                f"top_k must be at most n_prompts ({self.n_prompts}), found {self.top_k}."
            )
        check_integer("patch_length", self.patch_length, 1, optional=True)
        for name in ("prompts", "intra", "inter", "level"):
            check_bool(name, getattr(self, name))
        check_number("pull_weight", self.pull_weight)
        check_number("balance_weight", self.balance_weight)
        check_choice("text", self.text, TEXTS)
        check_choice("describer", self.describer, DESCRIBERS)
        check_describer(self.describer, self.describer_kwargs)
        check_choice("text_encoder", self.text_encoder, TEXT_ENCODERS)
        if self.adapter is None:
            raise ValueError("adapter=None trains nothing; lm_steps=0 leaves the fine-tuning out.")
        if isinstance(self.adapter, str):
            check_choice("adapter", self.adapter, ("lora_amr", "full"))
        check_integer("lora_rank", self.lora_rank, 1)
        if self.lora_rank % 2:
            raise ValueError(f"lora_rank must be even, found {self.lora_rank}.")
        check_number("lora_alpha", self.lora_alpha, exclusive="(")
        check_number("lora_dropout", self.lora_dropout, maximum=1, exclusive=")")
        check_integer("lm_steps", self.lm_steps, 0)
        check_number("lm_lr", self.lm_lr, exclusive="(")
        check_integer("lm_batch_size", self.lm_batch_size, 1)
        check_number("dropout", self.dropout, maximum=1, exclusive=")")
        check_number("head_dropout", self.head_dropout, maximum=1, exclusive=")")
        check_choice("task_loss", self.task_loss, DISTANCES)

    @property
    def fine_tunes(self) -> bool:
        """Whether the language model is fine-tuned on the descriptions."""
        return self.text != "none" and self.text_encoder == "backbone" and self.lm_steps > 0

    def peft_adapter(self) -> Any:
        """Return the adapter in the words of the backbone: ``"full"`` or a PEFT config."""
        if self.adapter != "lora_amr":
            return self.adapter
        return {
            "peft_type": "LORA_AMR",
            "r": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
        }


class LLMTSNet(Network):
    """The network of LLM-TS Net."""

    Config = LLMTSNetConfig
    learning_rate = 2e-3
    parts = {"head": ("head.",), "adapter": ("head.", "fusion", "texts.")}

    centre: Tensor

    def __init__(self, config: LLMTSNetConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        width, length = config.d_model, shapes.context_length
        self.patch_length = min(config.patch_length or length, length)
        n_patches = length // self.patch_length
        self.register_buffer("centre", torch.zeros(shapes.n_variates))
        self.embedding = nn.Linear(self.patch_length + 2 * config.level, width)
        self.variates = nn.Parameter(torch.randn(shapes.n_variates, width))
        self.positions = nn.Parameter(0.02 * torch.randn(n_patches, width))
        self.covariates = CovariateTokens(shapes, width)
        if config.prompts:
            self.pool = PromptPool(config.n_prompts, config.top_k, width)
        heads = config.n_heads, config.n_groups
        switches = config.intra, config.inter
        self.blocks = nn.ModuleList(
            GroupedQueryLayer(width, *heads, config.d_ff, *switches, config.dropout)
            for _ in range(config.n_layers)
        )
        if config.text != "none":
            self.texts = TrendTexts(config, width, length, self.load_backbone)
            self.fusion = GroupedQueryAttention(width, *heads)
            self.fusion_norm = nn.LayerNorm(width)
            self.fusion_gate = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)
        self.head = ForecastHead(
            n_patches * width, shapes.horizon, shapes.parameters, config.head_dropout
        )

    def forward(self, batch: Batch) -> Forecast:
        """Forecast the horizon from the context.

        1. Normalise each window and variate, remember how; embed its patches.
        2. Retrieve prompts for each window and put them in front of it.
        3. Attend within each series, then among the series.
        4. Attend to what is said of the series.
        5. The head reads the patches; bring its forecast back to the data's units.
        """
        window, statistics = normalize_window(
            batch.past_target, self.unit, self.config.normalization
        )
        embedded = self.embed(batch, window)
        told = self.covariates(batch).sum(1)[:, None, None]  # to all series alike
        tokens = embedded + told + self.variates.unsqueeze(1)
        losses: dict[str, Any] = {}
        n_prompts = 0
        if self.config.prompts:
            query = embedded.mean(2)
            found = self.pool(query)
            if self.config.intra:
                tokens, n_prompts = torch.cat([found.prompts, tokens], 2), self.config.top_k
            else:  # nothing else would let a series see its prompts
                tokens = tokens + found.prompts.mean(2, keepdim=True)
            if self.training:
                self.pool.note(found)
                losses = {
                    "prompt_pull": self.pool.pull(query, found).mean(1),
                    "prompt_balance": partial(self.pool.balance, found),
                }
        for block in self.blocks[:-1]:
            tokens = block(tokens, n_prompts, keeps_prompts=True)
        patches = self.blocks[-1](tokens, n_prompts, keeps_prompts=False)
        if self.describes_windows:
            patches = self.fuse(patches, self.texts(batch.past_target, self.unit))
        read = self.norm(patches).flatten(2)
        parameters = restore_parameters(self.head(read), statistics, self.shapes.parameters)
        return Forecast(parameters, losses)

    def embed(self, batch: Batch, window: Tensor) -> Tensor:
        """Embed the patches of normalised windows (b, L, c) as tokens (b, c, P, d)."""
        n_steps = window.shape[1] // self.patch_length * self.patch_length
        patches = window[:, -n_steps:].transpose(1, 2).unflatten(-1, (-1, self.patch_length))
        if self.config.level:
            patches = torch.cat([patches, self._level(batch.past_target, patches)], -1)
        return self.embedding(patches) + self.positions

    def retrieve(self, batch: Batch) -> Retrieval:
        """Return what the windows of a batch retrieve, (b, c, ...)."""
        window, _ = normalize_window(batch.past_target, self.unit, self.config.normalization)
        return self.pool(self.embed(batch, window).mean(2))

    def fuse(self, patches: Tensor, described: Tensor) -> Tensor:
        """Let patches (b, c, P, d) attend to what is said of all series (b, c, d).

        A key tells whose description it is. The gate starts at 0: so does the network as the one
        without language.
        """
        keys = described + self.variates if described.shape[1] > 1 else described
        queries = self.fusion_norm(patches)
        attended = self.fusion(queries.flatten(1, 2), keys, described)
        return patches + self.fusion_gate * attended.view_as(patches)

    def measure(self, windows: Batch) -> None:
        """Set the unit and the centre of the target, and what covariates and windows are like."""
        super().measure(windows)
        self.covariates.measure(windows)
        centre = windows.past_target.flatten(0, 1).nanmean(0)
        self.centre.copy_(centre.nan_to_num(nan=0.0))

    def language_modelling(self, windows: Batch) -> LanguageModelling | None:
        """Return the fine-tuning of the language model on what is said of training windows."""
        if not self.config.fine_tunes:
            return None
        return self.texts.language_modelling(windows.past_target, self.unit)

    def encode_texts(
        self, windows: Batch | None, progress: bool = False, device: torch.device | None = None
    ) -> None:
        """Read what is said of the training windows, by the fine-tuned language model."""
        if self.describes_windows:
            shown = None if windows is None else windows.past_target
            self.texts.read(shown, self.unit, progress, device)

    def prompts(self) -> list[str]:
        """Return the commonest descriptions of the training windows."""
        return self.texts.commonest if self.describes_windows else []

    @property
    def describes_windows(self) -> bool:
        """Whether windows are described, which takes more than tensors."""
        return self.config.text != "none"

    @property
    def has_dropout(self) -> bool:
        """Whether anything is dropped in training; in the language model nothing is."""
        return self.config.dropout > 0 or self.config.head_dropout > 0

    @property
    def has_router(self) -> bool:
        """Whether a router chooses for each window: the language model sees none."""
        return False

    def loss_weights(self) -> dict[str, float]:
        """Return the weights of the losses of the prompt pool."""
        config = self.config
        return {"prompt_pull": config.pull_weight, "prompt_balance": config.balance_weight}

    def after_training(self) -> dict[str, Any]:
        """Return how the prompts were used in the last steps; warn if always alike."""
        return {"prompts_used": self.pool.report()} if self.config.prompts else {}

    def _level(self, context: Tensor, patches: Tensor) -> Tensor:
        """Return level and deviation of windows (b, L, c) for each of their patches."""
        _, (location, scale) = normalize_window(context, self.unit)
        observed = context.isnan().logical_not().any(1, keepdim=True)
        level = torch.where(observed, (location - self.centre) / self.unit, 0.0)
        told = torch.stack([level, scale / self.unit], -1).transpose(1, 2)  # (b, c, 1, 2)
        return told.expand(-1, -1, patches.shape[2], -1)

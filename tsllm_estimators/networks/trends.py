"""What a text says of each window: its trend's code, the text's tokens, one vector for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tsllm_estimators.llm.backbone import Backbone
from tsllm_estimators.llm.describe import load_describer
from tsllm_estimators.llm.language_modelling import LanguageModelling
from tsllm_estimators.llm.pristine import seeded
from tsllm_estimators.networks.blocks import normalize_window
from tsllm_estimators.networks.texts import (
    BUCKETS,
    HASHED,
    LEARNED,
    bucket_of,
    encoder_of,
    hashed_word,
    refuse_other_texts,
    words_of,
)

_DESCRIBED = 100_000  # windows of the training, about as many, are described beforehand
_COMMONEST = 10  # descriptions that a training's summary names


class TrendTexts(nn.Module):
    """Vectors of the descriptions of windows.

    A window's code is computed; its text is made once, and read once by a language model, which
    gives a vector for each of its tokens; attention pools these to one vector, which is all that
    is learned here. The table of tokens is in no ``state_dict``: another process makes it anew.

    Parameters
    ----------
    config : LLMTSNetConfig
        With the arguments of the backbone, ``text_encoder`` and ``describer``.
    width : int
        d, width of the vectors.
    length : int
        L, time steps of a window.
    load_backbone : callable
        Returns the language model, for an adapter that is to be fine-tuned.

    Attributes
    ----------
    texts : dict of int to str
        What was said of each code so far.
    commonest : list of str
        What was said most often of the training windows.
    language_model : Backbone or None
        The language model with its adapter; None where the frozen one reads.
    """

    tokens: Tensor
    mask: Tensor
    rows: Tensor
    location: Tensor
    scale: Tensor
    read_by_process = ("rows", "tokens", "mask")  # buffers that grow with what a process reads

    def __init__(
        self, config: Any, width: int, length: int, load_backbone: Callable[[], Backbone]
    ) -> None:
        super().__init__()
        self.config, self.length = config, length
        self.describer = load_describer(config.describer, config.describer_kwargs)
        self.texts: dict[int, str] = {}
        self.commonest: list[str] = []
        self.language_model: Backbone | None = None
        self.encoder: Any = None
        self.embedding: nn.Embedding | None = None
        n_inputs = {"hash": HASHED, "learned": LEARNED}.get(config.text_encoder)
        if n_inputs is None:
            self.encoder = encoder_of(config)
            n_inputs = self.encoder.width
        if config.fine_tunes:
            self.language_model = load_backbone()
            with seeded(0):  # what is learned of a language depends on no forecaster's seed
                self.language_model.prepare(1, adapter=config.peft_adapter())
            self.language_model.release_word_embeddings()
        if config.text_encoder == "learned":
            self.embedding = nn.Embedding(BUCKETS, LEARNED)
        self.attention = nn.Linear(n_inputs, 1, bias=False)
        nn.init.zeros_(self.attention.weight)  # the mean at first
        self.linear = nn.Linear(n_inputs, width)
        # sentences of one kind are nearly collinear: what sets them apart is small
        self.register_buffer("location", torch.zeros(n_inputs))
        self.register_buffer("scale", torch.ones(()))
        for name in self.read_by_process:
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.forget()

    def forward(self, windows: Tensor, unit: Tensor) -> Tensor:
        """Return the vectors of what is said of windows (b, L, c).

        Shape (b, c, d), or (b, 1, d) where all series share a description. ``unit`` is the
        standard deviation of the training data.
        """
        codes = self.codes(windows, unit)
        distinct, places = codes.unique(return_inverse=True)
        self.learn(distinct)
        return self.linear(self.pooled(distinct))[places]

    def codes(self, windows: Tensor, unit: Tensor) -> Tensor:
        """Return the codes (b, c) of windows, or (b, 1) of their mean."""
        # however the forecast is normalised: small series are no flat ones
        window, _ = normalize_window(windows, unit)
        if self.config.text == "shared":
            window = window.mean(2, keepdim=True)
        return self.describer.codes(window)

    def language_modelling(self, windows: Tensor, unit: Tensor) -> LanguageModelling:
        """Return the fine-tuning of the language model on what is said of training windows."""
        assert self.language_model is not None
        codes, counts = self._training_codes(windows, unit)
        told = zip(self.told(codes.tolist()), counts.tolist(), strict=True)
        return LanguageModelling(
            self.language_model,
            [text for text, n in told for _ in range(n)],
            steps=self.config.lm_steps,
            lr=self.config.lm_lr,
            batch_size=self.config.lm_batch_size,
        )

    def read(
        self,
        windows: Tensor | None,
        unit: Tensor,
        progress: bool,
        device: torch.device | None,
    ) -> None:
        """Freeze the language model; let it read what is said of windows, and measure that."""
        if self.language_model is not None:
            self.language_model.requires_grad_(False)
        if windows is None:
            return
        codes, counts = self._training_codes(windows, unit)
        self.forget()  # what was read before the fine-tuning
        self.learn(codes, progress, device)
        self._measure(codes)
        by_number = counts.argsort(descending=True, stable=True)
        self.commonest = self.told(codes[by_number[:_COMMONEST]].tolist())

    def pooled(self, codes: Tensor) -> Tensor:
        """Return the tokens of codes (n,), pooled by attention and standardised, (n, w)."""
        rows = self.rows[codes]
        tokens, mask = self.tokens[rows], self.mask[rows]
        if self.embedding is not None:
            tokens = self.embedding(tokens)
        tokens = tokens.to(self.location.dtype)
        scores = self.attention(tokens).squeeze(-1).masked_fill(~mask, -torch.inf)
        pooled = (scores.softmax(-1).unsqueeze(-2) @ tokens).squeeze(-2)
        return (pooled - self.location) / self.scale

    def train(self, mode: bool = True) -> "TrendTexts":
        """Set training mode; the language model reads without dropout."""
        super().train(mode)
        if self.language_model is not None:
            self.language_model.eval()
        return self

    def learn(
        self, codes: Tensor, progress: bool = False, device: torch.device | None = None
    ) -> None:
        """Read the texts of codes that are new, on a device, by default that of the table."""
        new = codes[self.rows[codes] < 0].tolist()
        if not new:
            return
        # a row that is made for a forecast may be trained on later; and autocast knows no float16
        exact = torch.autocast(self.rows.device.type, enabled=False)
        with torch.inference_mode(False), torch.no_grad(), exact:
            tokens, mask = self._read(self.told(new, progress), progress, device)
            longest = max(tokens.shape[1], self.tokens.shape[1])
            self.rows = self.rows.clone()
            self.rows[new] = torch.arange(len(new), device=self.rows.device) + len(self.tokens)
            self.tokens = torch.cat([_padded(t, longest) for t in (self.tokens, tokens)])
            self.mask = torch.cat([_padded(m, longest) for m in (self.mask, mask)])

    def told(self, codes: list[int], progress: bool = False) -> list[str]:
        """Return what is said of codes; each one is asked for once."""
        new = [code for code in codes if code not in self.texts]
        self.texts |= zip(new, self.describer.texts(new, progress), strict=True)
        return [self.texts[code] for code in codes]

    def forget(self) -> None:
        """Read every text anew, as by another language model."""
        device = self.location.device
        self.rows = torch.full((self.describer.n_codes,), -1, device=device)
        nothing = torch.zeros(0, 0, self.location.numel(), dtype=torch.float16, device=device)
        self.tokens = nothing if self.embedding is None else nothing[..., 0].long()
        self.mask = torch.zeros(0, 0, dtype=torch.bool, device=device)

    def _training_codes(self, windows: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distinct codes of windows that were observed, and their numbers.

        ``windows`` (b, L + H, c) go on over the horizon.
        """
        step = max(1, len(windows) * windows.shape[2] // _DESCRIBED)
        windows = windows[::step, : self.length]
        codes = self.codes(windows, unit)
        observed = windows.isnan().logical_not().any(1)
        if codes.shape[1] < observed.shape[1]:
            observed = observed.any(1, keepdim=True)
        if observed.any():
            codes = codes[observed]
        return codes.unique(return_counts=True)

    @torch.no_grad()
    def _measure(self, codes: Tensor) -> None:
        """Set location and scale from distinct descriptions."""
        if self.embedding is not None:
            return  # what is yet to be learned
        self.location.zero_()
        self.scale.fill_(1.0)
        pooled = self.pooled(codes)
        self.location.copy_(pooled.mean(0))
        scale = (pooled - self.location).square().mean().sqrt()
        self.scale.copy_(torch.where(scale > 0, scale, 1.0))

    def get_extra_state(self) -> dict[str, Any]:
        """Return what trained weights depend on and no tensor shows."""
        config, encoder = self.config, self.encoder
        # what another machine could not say again
        texts = {} if self.describer.is_reproducible else self.texts
        return {
            "text_encoder": config.text_encoder,
            "describer": config.describer,
            "backbone": config.backbone,
            "fingerprint": "" if encoder is None else encoder.identity,
            "texts": {str(code): text for code, text in texts.items()},
            "commonest": self.commonest,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what was said; refuse weights that were trained on other texts."""
        names = ("text_encoder", "describer", "fingerprint")
        refuse_other_texts(self.get_extra_state(), state, names)
        self.texts |= {int(code): text for code, text in state["texts"].items()}
        self.commonest = list(state["commonest"])
        self.forget()

    def _read(
        self, texts: list[str], progress: bool, device: torch.device | None
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens (n, t, w) of texts, or their places among learned words, and a mask."""
        here = self.rows.device
        if self.encoder is not None:
            tokens, mask = self.encoder.tokens(
                texts, device=device or here, progress=progress, model=self.language_model
            )
        else:
            word = hashed_word if self.embedding is None else _bucket
            read = [torch.stack([word(one) for one in words_of(text) or [""]]) for text in texts]
            tokens = nn.utils.rnn.pad_sequence(read, batch_first=True)
            lengths = torch.tensor([len(words) for words in read])
            mask = torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)
        return tokens.to(here, self.tokens.dtype), mask.to(here)


def _bucket(word: str) -> Tensor:
    return torch.tensor(bucket_of(word))


def _padded(rows: Tensor, length: int) -> Tensor:
    """Return rows (n, t, ...) of a length."""
    after = (0, 0) * (rows.dim() - 2) + (0, length - rows.shape[1])
    return nn.functional.pad(rows, after)

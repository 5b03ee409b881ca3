"""Texts in a network: codes become vectors of a frozen table, vectors become what trains."""

import re
import zlib
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsllm_estimators.llm.calendar import N_NUMBERS
from tsllm_estimators.llm.text import TextEncoder, load_text_encoder
from tsllm_estimators.llm.vocabulary import Vocabulary, numbers_of, text_of

#: How a text becomes a vector: by the language model, or by its words alone.
TEXT_ENCODERS = ("backbone", "hash", "learned")

HASHED = 128  # width of a hashed word
BUCKETS, LEARNED = 1024, 64  # of learned words, and the width of their embedding


class TextTable(nn.Module):
    """Vectors of what is in a vocabulary, one row for each code.

    Rows are made when they are first asked for. They are in no ``state_dict``: another process
    makes them anew, or finds them in the cache of texts.

    Parameters
    ----------
    config : NetworkConfig
        With the arguments of the backbone, ``text_encoder`` and ``text``: its ``"calendar"``
        takes calendar numbers in place of texts.

    Attributes
    ----------
    vocabulary : Vocabulary
        Codes and what they stand for.
    width : int
        d, width of a vector.
    fingerprint : str
        Tells whether vectors made elsewhere are the same ones; empty without a language model.
    """

    rows: Tensor
    read_by_process = ("rows",)  # buffers that grow with what a process reads

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = Vocabulary()
        self.fingerprint = ""
        self.kind = "calendar" if config.text == "calendar" else config.text_encoder
        if self.kind == "backbone":
            encoder = encoder_of(config)
            self.width, self.fingerprint = encoder.width, encoder.identity
        elif self.kind == "calendar":
            self.width = N_NUMBERS * (2 if config.dynamic == "window" else 1)
        else:
            self.width = HASHED if self.kind == "hash" else BUCKETS
        self.register_buffer("rows", torch.zeros(1, self.width), persistent=False)

    def forward(self, progress: bool = False, device: torch.device | None = None) -> Tensor:
        """Return the vectors of all codes, shape (n + 1, d); row 0 is zeros.

        A language model encodes new ones on ``device``, by default that of the table.
        """
        entries = self.vocabulary.entries[len(self.rows) - 1 :]
        if entries:
            # a row that is made for a forecast may be trained on later
            with torch.inference_mode(False), torch.no_grad():
                new = self._vectors(entries, progress, device or self.rows.device)
                self.rows = torch.cat([self.rows, new.to(self.rows)])
        return self.rows

    def get_extra_state(self) -> dict[str, Any]:
        """Return what trained weights depend on and no tensor shows."""
        told = {name: getattr(self.config, name) for name in ("dynamic", "stamps")}
        told["text_encoder"] = self.kind
        return {**told, "backbone": self.config.backbone, "fingerprint": self.fingerprint}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuse weights that were trained on other vectors of texts."""
        own = self.get_extra_state()
        refuse_other_texts(own, state, [name for name in own if name != "backbone"])

    def _vectors(self, entries: list[Any], progress: bool, device: torch.device) -> Tensor:
        if self.kind == "calendar":
            return torch.tensor([numbers_of(entry) for entry in entries])
        texts = [text_of(entry) for entry in entries]
        if self.kind == "backbone":
            return encoder_of(self.config).pooled(texts, device=device, progress=progress)
        return torch.stack([_word_vectors(text, self.kind) for text in texts])


def encoder_of(config: Any) -> TextEncoder:
    """Return the encoder that the arguments of a backbone name."""
    return load_text_encoder(
        config.backbone,
        layers=config.backbone_layers,
        weights=config.backbone_weights,
        causal=config.causal,
        kwargs=config.backbone_kwargs,
    )


def refuse_other_texts(own: dict[str, Any], saved: dict[str, Any], names: Iterable[str]) -> None:
    """Raise unless saved weights were trained on texts as those of their own, by ``names``."""
    for name in names:
        if own[name] != saved[name]:
            called = "backbone" if name == "fingerprint" else name
            raise ValueError(
                f"{called}: the saved weights were trained on {saved[called]!r} (fingerprint "
                f"{saved['fingerprint'][:12]!r}), found {own[called]!r} (fingerprint "
                f"{own['fingerprint'][:12]!r}). Load them with the same {called}, and the same "
                "backbone_layers, backbone_weights and backbone_kwargs."
            )


def _word_vectors(text: str, kind: str) -> Tensor:
    """Return a vector of the words of a text, whatever their order."""
    words = words_of(text)
    if kind == "hash":
        return torch.stack([torch.zeros(HASHED), *map(hashed_word, words)]).sum(0)
    places = torch.tensor([bucket_of(word) for word in words], dtype=torch.long)
    return torch.bincount(places, minlength=BUCKETS).float()


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return re.findall(r"\w+", text.lower())


@cache
def hashed_word(word: str) -> Tensor:
    """Return the random vector (HASHED,) of a word, the same in every process."""
    generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
    return torch.randn(HASHED, generator=generator)


def bucket_of(word: str) -> int:
    """Return the place of a learned word, below BUCKETS; two words may share one."""
    return zlib.crc32(word.encode()) % BUCKETS


class TextProjection(nn.Module):
    """A linear map of the vectors of texts, computed once for each distinct text.

    Vectors are centred and scaled by those of the training first, as sentences of one kind are
    nearly collinear. What all of them share is not lost: that there is a text is one more number.

    Parameters
    ----------
    table : TextTable
        Whose vectors are mapped; it belongs to the network.
    n_outputs : int
        Width of the result.
    dropout : float
        Share of the texts that are dropped in training.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, table: TextTable, n_outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)  # of a text, not of a part of what it says
        width = table.width
        self.register_buffer("location", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self.embedding = nn.Linear(width, LEARNED, bias=False) if table.kind == "learned" else None
        self.linear = nn.Linear(width if self.embedding is None else LEARNED, n_outputs, False)
        self.presence = nn.Parameter(torch.zeros(n_outputs))

    def forward(self, codes: Tensor, rows: Tensor) -> Tensor:
        """Map codes of any shape (...) to (n_outputs, ...); a code of 0 is mapped to 0."""
        if self.dropout.training and self.dropout.p:
            codes = codes * self.dropout(torch.ones_like(codes, dtype=rows.dtype)).bool()
        if len(rows) > codes.numel():
            distinct, codes = codes.unique(return_inverse=True)
            rows, present = rows[distinct], distinct > 0
        else:
            present = torch.arange(len(rows), device=rows.device) > 0
        weight = self.linear.weight / self.scale
        if self.embedding is not None:
            weight = weight @ self.embedding.weight
        # centred after the map: the table is larger than its image
        mapped = F.linear(rows, weight, self.presence - weight @ self.location)
        mapped = torch.where(present.unsqueeze(1), mapped, 0.0)
        if self.dropout.training:
            mapped = mapped / (1 - self.dropout.p)
        return mapped.t().index_select(1, codes.flatten()).unflatten(1, codes.shape)

    @torch.no_grad()
    def measure(self, codes: Tensor, rows: Tensor) -> None:
        """Set location and scale from the texts of the training."""
        distinct = codes.unique()
        vectors = rows[distinct[distinct > 0]]
        if len(vectors) > 1:
            self.location.copy_(vectors.mean(0))
        if len(vectors):
            scale = (vectors - self.location).square().mean().sqrt()
            self.scale.copy_(torch.where(scale > 0, scale, 1.0))


class StaticModulation(nn.Module):
    """gamma - 1 and beta of each step from one hidden vector; both start from 0."""

    def __init__(self, width: int, horizon: int, n_modulated: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.linear = nn.Linear(width, 2 * horizon * n_modulated)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (b, d_hidden) to (2, b, c g, H)."""
        found = self.linear(F.gelu(hidden))
        return found.unflatten(-1, (2, -1, self.horizon)).movedim(1, 0)


class DynamicModulation(nn.Module):
    """gamma - 1 and beta of each step of the horizon from the texts of a column; both start from 0.

    Which steps a text acts on is learned: at first a text of the horizon acts on its own step, and
    where none is known ahead the last one acts on all.

    Parameters
    ----------
    table : TextTable
        Of the network.
    n_past, n_ahead : int
        Steps before and after the forecast starts, of which texts are known.
    horizon : int
        H, steps of the forecast.
    n_modulated : int
        Numbers per step that are modulated.
    dropout : float
        Share of the texts that are dropped in training.
    """

    def __init__(
        self,
        table: TextTable,
        n_past: int,
        n_ahead: int,
        horizon: int,
        n_modulated: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.projection = TextProjection(table, 2 * n_modulated, dropout)
        nn.init.zeros_(self.projection.linear.weight)
        steps = torch.zeros(n_past + n_ahead, horizon)
        if n_ahead:
            steps[n_past:] = torch.eye(horizon)
        else:
            steps[-1] = 1.0
        self.steps = nn.Parameter(steps.repeat(2, 1, 1))

    def forward(self, codes: Tensor, rows: Tensor) -> Tensor:
        """Map codes (b, t) to (2, b, c g, H)."""
        told = self.projection(codes, rows).unflatten(0, (2, -1))  # (2, c g, b, t)
        return (told.flatten(1, 2) @ self.steps).unflatten(1, told.shape[1:3]).transpose(1, 2)

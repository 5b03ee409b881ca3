"""What may stand in the place of a language model, to see whether it earned its place.

Source: Tan et al., "Are Language Models Actually Useful for Time Series Forecasting?"
(arXiv 2406.16964).
"""

from dataclasses import dataclass

from torch import Tensor, nn

STAND_INS = ("none", "attention", "transformer")


@dataclass
class StandInConfig:
    """The settings that methods read from a model."""

    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int


@dataclass
class StandInOutput:
    """The outputs that a backbone reads from a model."""

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]


class StandIn(nn.Module):
    """No layers, one multi-head attention or one Transformer layer, with a model's interface.

    Parameters
    ----------
    kind : {"none", "attention", "transformer"}
        Which of them.
    layers : int or None
        Number of layers that was asked for, to refuse another one than the stand-in has.
    hidden_size : int
        Width d of the tokens.
    num_attention_heads : int
        Heads of its attention.
    """

    def __init__(
        self,
        kind: str,
        layers: int | None,
        hidden_size: int = 384,
        num_attention_heads: int = 12,
    ) -> None:
        super().__init__()
        n_layers = 0 if kind == "none" else 1
        if layers not in (None, n_layers):
            raise ValueError(
                f"backbone_layers: the stand-in {kind!r} has {n_layers} layers, found {layers}; "
                "leave it None."
            )
        self.config = StandInConfig(hidden_size, num_attention_heads, n_layers)
        # Words without meaning, so that a method finds the same parts in place.
        self.words = nn.Embedding(4 * hidden_size, hidden_size)
        nn.init.normal_(self.words.weight, std=0.02)
        if kind == "attention":
            self.layer: nn.Module = nn.MultiheadAttention(
                hidden_size, num_attention_heads, batch_first=True
            )
        elif kind == "transformer":
            self.layer = nn.TransformerEncoderLayer(
                hidden_size, num_attention_heads, 4 * hidden_size, batch_first=True
            )

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the words."""
        return self.words

    def set_input_embeddings(self, words: nn.Embedding) -> None:
        """Replace the words."""
        self.words = words

    def forward(self, inputs_embeds: Tensor, output_hidden_states: bool = False) -> StandInOutput:
        """Return the states of ``inputs_embeds`` (b, s, d): itself, and the layer's output."""
        states = [inputs_embeds]
        if self.config.num_hidden_layers:
            if isinstance(self.layer, nn.MultiheadAttention):
                states.append(self.layer(*3 * (inputs_embeds,), need_weights=False)[0])
            else:
                states.append(self.layer(inputs_embeds))
        return StandInOutput(states[-1], tuple(states))

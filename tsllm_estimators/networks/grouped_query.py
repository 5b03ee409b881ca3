"""Grouped-query attention, where heads of queries share keys and values, in and among series."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupedQueryAttention(nn.Module):
    """Multi-head attention with less heads of keys and values than of queries.

    Its weights are not dropped in training: with dropout PyTorch's attention would hold a matrix
    of all pairs of tokens, which for hundreds of series is most of the memory.

    Parameters
    ----------
    width : int
        d, width of a token.
    n_heads : int
        Heads of the queries.
    n_groups : int
        Heads of keys and values, each shared by ``n_heads / n_groups`` heads of the queries.
    """

    def __init__(self, width: int, n_heads: int, n_groups: int) -> None:
        super().__init__()
        self.n_heads, self.n_groups = n_heads, n_groups
        shared = width // n_heads * n_groups
        self.queries = nn.Linear(width, width)
        self.keys = nn.Linear(width, shared)
        self.values = nn.Linear(width, shared)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Let tokens (b, s, d) attend to (b, t, d); returns (b, s, d)."""
        attended = F.scaled_dot_product_attention(
            self._heads(self.queries(tokens), self.n_heads),
            self._heads(self.keys(keys), self.n_groups),
            self._heads(self.values(values), self.n_groups),
            enable_gqa=self.n_groups < self.n_heads,
        )
        return self.output(attended.transpose(1, 2).flatten(2))

    @staticmethod
    def _heads(tokens: Tensor, n_heads: int) -> Tensor:
        return tokens.unflatten(-1, (n_heads, -1)).transpose(1, 2)


class GroupedQueryLayer(nn.Module):
    """Attention within each series, attention among the series, and a feed-forward layer.

    Parameters
    ----------
    width, n_heads, n_groups : int
        As of :class:`GroupedQueryAttention`.
    d_ff : int
        Hidden width of the feed-forward layer.
    intra, inter : bool
        Whether there is either attention.
    dropout : float
        Share of each part's output that is dropped in training.
    """

    def __init__(
        self,
        width: int,
        n_heads: int,
        n_groups: int,
        d_ff: int,
        intra: bool,
        inter: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        heads = n_heads, n_groups
        self.intra, self.inter = intra, inter
        if self.intra:
            self.intra_norm = nn.LayerNorm(width)
            self.intra_attention = GroupedQueryAttention(width, *heads)
        if self.inter:
            self.inter_norm = nn.LayerNorm(width)
            self.inter_attention = GroupedQueryAttention(width, *heads)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, d_ff), nn.GELU(), nn.Linear(d_ff, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, n_prompts: int, keeps_prompts: bool) -> Tensor:
        """Map tokens (b, c, K + P, d), the prompts first; series meet in their patches.

        Without ``keeps_prompts`` only the patches (b, c, P, d) are returned, and computed.
        """
        read = tokens if keeps_prompts else tokens[:, :, n_prompts:]
        if self.intra:
            keys = self.intra_norm(tokens).flatten(0, 1)  # (b c, K + P, d)
            queries = keys if keeps_prompts else keys[:, n_prompts:]
            attended = self.intra_attention(queries, keys, keys)
            read = read + self.dropout(attended).view_as(read)
        if self.inter:
            n_prompts = n_prompts if keeps_prompts else 0
            prompts, patches = read[:, :, :n_prompts], read[:, :, n_prompts:]
            normed = self.inter_norm(patches).transpose(1, 2).flatten(0, 1)  # (b P, c, d)
            attended = self.dropout(self.inter_attention(normed, normed, normed))
            attended = attended.unflatten(0, (len(tokens), -1)).transpose(1, 2)
            read = torch.cat([prompts, patches + attended], 2)
        return read + self.dropout(self.feed_forward(self.norm(read)))

"""A pool of prompts, of which each window retrieves the ones that suit it."""

import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsllm_estimators._processes import summed_over_processes

_COLLAPSED = 0.9  # share of what is retrieved that the same K prompts make up
_STEP = 0.01  # of the moving average of what is retrieved
_NOTED = 1 - (1 - _STEP) ** 100  # a pool that has hardly trained has not collapsed


class PromptCollapseWarning(UserWarning):
    """The same prompts are retrieved, whatever the window."""


class Retrieval(NamedTuple):
    """What windows retrieved.

    Attributes
    ----------
    prompts : Tensor
        Weighted values, shape (..., K, d).
    indices : Tensor
        Their places in the pool, the best first, shape (..., K).
    weights : Tensor
        Their weights, shape (..., K); those of a window sum to 1.
    scores : Tensor
        Of every entry of the pool, shape (..., W).
    """

    prompts: Tensor
    indices: Tensor
    weights: Tensor
    scores: Tensor


class PromptPool(nn.Module):
    """Learned pairs of a key and a value; additive attention of a query to the keys chooses.

    A choice has no gradient: what is chosen is weighted by ``K`` times the softmax of the scores,
    so that the scores learn what helps the forecast.

    The score v^T tanh(W_q q + W_k k + b) of a random start has favourite keys, whatever the query.
    It starts as a similarity instead: pairs of hidden units tanh(x + 1) - tanh(x - 1) of what a
    query and a key differ by are largest where they are equal. Keys and queries are layer-normed.

    Parameters
    ----------
    n_prompts : int
        W, entries of the pool.
    top_k : int
        K, entries that a window retrieves.
    width : int
        d, width of queries, keys and values.
    """

    noted: Tensor

    def __init__(self, n_prompts: int, top_k: int, width: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.keys = nn.Parameter(torch.randn(n_prompts, width))
        self.values = nn.Parameter(0.02 * torch.randn(n_prompts, width))
        self.of_query = nn.Linear(width, 2 * width)
        self.of_key = nn.Linear(width, 2 * width, bias=False)
        sign = torch.cat([torch.ones(width), -torch.ones(width)])
        self.score = nn.Parameter(sign.clone())
        self.register_buffer("noted", torch.zeros(n_prompts), persistent=False)
        turned = nn.init.orthogonal_(torch.empty(width, width)).repeat(2, 1)
        with torch.no_grad():
            self.of_query.weight.copy_(turned)
            self.of_query.bias.copy_(sign)
            self.of_key.weight.copy_(-turned)

    def forward(self, query: Tensor) -> Retrieval:
        """Retrieve prompts for queries (..., d)."""
        queries, keys = self.of_query(_normed(query)), self.of_key(_normed(self.keys))
        scores = torch.tanh(queries.unsqueeze(-2) + keys) @ self.score  # (..., W)
        best, indices = scores.topk(self.top_k, dim=-1)
        weights = best.softmax(-1)
        prompts = self.top_k * weights.unsqueeze(-1) * self.values[indices]
        return Retrieval(prompts, indices, weights, scores)

    def pull(self, query: Tensor, found: Retrieval) -> Tensor:
        """Return the distance (...) of queries from the keys that they chose.

        Keys go to the queries; queries that went to keys would soon be all alike.
        """
        chosen = _normed(self.keys)[found.indices]
        distance = (_normed(query.detach()).unsqueeze(-2) - chosen).square().mean(-1)
        return (found.weights.detach() * distance).sum(-1)

    def balance(self, found: Retrieval, shares: Tensor) -> Tensor:
        """Return what keeps a few keys from winning every window, of windows (b, c, ...), (b,).

        Its mean is 1 where all entries are used alike, and more where the same are used often.
        ``shares`` (b,) says how much each window counts.
        """
        use = self.use(found.indices, shares, all_processes=True)
        return (len(self.keys) * found.scores.softmax(-1) @ use).flatten(1).mean(1)

    def use(
        self, indices: Tensor, shares: Tensor | None = None, all_processes: bool = False
    ) -> Tensor:
        """Return the share (W,) of each entry in what windows retrieved, (b, ..., K).

        The windows may be those of all processes of a distributed training, if each asks for it.
        """
        if shares is None:
            shares = self.values.new_ones(len(indices))
        weights = shares.to(self.values.dtype).view(-1, *(1,) * (indices.dim() - 1))
        # as a histogram, but deterministic on every device where that is asked for
        counts = self.values.new_zeros(len(self.keys))
        counts = counts.index_add(0, indices.flatten(), weights.expand_as(indices).flatten())
        counts = summed_over_processes(counts) if all_processes else counts
        return counts / counts.sum().clamp_min(torch.finfo(counts.dtype).tiny)

    @torch.no_grad()
    def note(self, found: Retrieval) -> None:
        """Remember how a step used the pool."""
        self.noted.lerp_(self.use(found.indices), _STEP)

    def report(self) -> dict[str, Any]:
        """Return how the last steps used the pool; warn if they always used the same entries.

        Warns
        -----
        PromptCollapseWarning
            If the same ``K`` entries are nearly all that is retrieved.
        """
        if not self.noted.any():
            return {}
        use = self.noted / self.noted.sum()
        if self.noted.sum() >= _NOTED:
            warn_of_collapse(use, self.top_k)
        return {"diversity": diversity(use), "shares": use.tolist()}


def _normed(vectors: Tensor) -> Tensor:
    return F.layer_norm(vectors, vectors.shape[-1:])


def diversity(use: Tensor) -> float:
    """Return how many entries are in use, as a share of the pool, given the share of each (W,).

    It is the exponential of their entropy over W: 1 if all are retrieved alike, 1 / W if only one.
    """
    return float(torch.special.entr(use).sum().exp() / len(use))


def warn_of_collapse(use: Tensor, top_k: int) -> None:
    """Warn if the same ``top_k`` entries are nearly all of the ``use`` (W,) of a pool."""
    most = float(use.topk(top_k).values.sum())
    if most > _COLLAPSED and len(use) > top_k:
        warnings.warn(
            f"nearly every window retrieves the same {top_k} of {len(use)} prompts ({most:.0%} of "
            "what is retrieved): they tell nothing about a window. Raise balance_weight, lower the "
            "learning rate, or set prompts=False; explain.prompt_retrievals shows what is "
            "retrieved.",
            PromptCollapseWarning,
            stacklevel=3,
        )

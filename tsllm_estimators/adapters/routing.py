"""What the routers of D-LoRA decided: recorded, balanced, summed up.

Axes: b sample, m module.
"""

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsllm_estimators._processes import summed_over_processes

MIN_ENTROPY = 0.5  # of the activations, in units of its largest value
MAX_COMMONEST = 0.8  # share of samples with one and the same subset


class RouterCollapseWarning(UserWarning):
    """The routers of D-LoRA choose the same modules whatever the input is."""


class PerThread:
    """A value that each thread has to itself.

    ``torch.compile`` cannot trace thread-local values: what it traces has one of its own.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._traced: Any = None

    def get(self) -> Any:
        """Return the value, None at first."""
        if torch.compiler.is_compiling():
            return self._traced
        return getattr(self._local, "value", None)

    def set(self, value: Any) -> None:
        """Set the value."""
        if torch.compiler.is_compiling():
            self._traced = value
        else:
            self._local.value = value

    def set_everywhere(self, value: Any) -> None:
        """Set the value for this thread and for compiled code, which is called from it."""
        self._traced = self._local.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> "PerThread":
        memo[id(self)] = duplicate = PerThread()
        return duplicate

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return PerThread, ()


class Decision(NamedTuple):
    """What a router decided for one batch.

    Attributes
    ----------
    layer : str
        Name of the layer.
    adapter : str
        Name of the adapter.
    modules : tuple of str
        Names of its modules.
    probabilities : Tensor
        Of each module, shape (b, m).
    active : Tensor
        Which modules are on, shape (b, m), bool.
    """

    layer: str
    adapter: str
    modules: tuple[str, ...]
    probabilities: Tensor
    active: Tensor


@dataclass
class RoutingRecord:
    """The decisions of every router that ran while :func:`record_routing` was open."""

    decisions: list[Decision] = field(default_factory=list)

    def load_balancing_loss(self) -> Tensor:
        """Return the load-balancing loss, a scalar; the mean of :meth:`load_balancing_losses`."""
        return torch.stack([losses.mean() for losses in self._losses()]).mean()

    def load_balancing_losses(
        self, weights: Tensor | None = None, all_processes: bool = False
    ) -> Tensor:
        """Return the load-balancing loss of each sample, shape (samples of all batches,).

        In the form of the Switch Transformer: m times the sum over the modules of the share of
        the samples' activations that a module got (a constant for the gradient) and the module's
        probability for the sample, averaged over the layers. 1 where routing is uniform; it may
        fall below.

        Parameters
        ----------
        weights : Tensor, optional
            What each sample counts among the activations, of the same shape.
        all_processes : bool
            Count the activations of every process of a distributed training, each of which must
            ask for it: their losses are then those of one process with all samples.

        Raises
        ------
        ValueError
            If nothing was recorded.
        """
        return torch.stack(self._losses(weights, all_processes)).mean(0)

    def active(self, adapter: str | None = None) -> dict[str, Tensor]:
        """Return which modules were on, by layer, shape (samples of all batches, m).

        Parameters
        ----------
        adapter : str, optional
            Which adapter's modules, if several were recorded.
        """
        return {
            layer: torch.cat([decision.active for decision in decisions])
            for layer, decisions in self._by_layer(adapter).items()
        }

    def modules(self, adapter: str | None = None) -> dict[str, tuple[str, ...]]:
        """Return the names of the modules, by layer; ``adapter`` as in :meth:`active`."""
        return {layer: made[0].modules for layer, made in self._by_layer(adapter).items()}

    def usage(self, adapter: str | None = None) -> "dict[str, Usage]":
        """Return how the modules were used, by layer; ``adapter`` as in :meth:`active`."""
        modules = self.modules(adapter)
        return {layer: Usage.of(modules[layer], on) for layer, on in self.active(adapter).items()}

    def compact(self) -> None:
        """Forget the probabilities, and with them the graph that a loss would need."""
        self.decisions = [
            decision._replace(probabilities=decision.probabilities.detach()[:0])
            for decision in self.decisions
        ]

    def _losses(self, weights: Tensor | None = None, all_processes: bool = False) -> list[Tensor]:
        adapters = dict.fromkeys(decision.adapter for decision in self.decisions)
        layers = [made for name in adapters for made in self._by_layer(name).values()]
        if not layers:
            raise ValueError("load balancing needs recorded decisions, found none: no router ran.")
        losses = []
        for decisions in layers:
            probabilities = torch.cat([decision.probabilities for decision in decisions])
            active = torch.cat([decision.active for decision in decisions]).to(probabilities.dtype)
            counts = (active if weights is None else active * weights.unsqueeze(-1)).sum(0)
            counts = summed_over_processes(counts) if all_processes else counts
            shares = counts / counts.sum().clamp_min(1e-30)
            losses.append(active.shape[1] * (probabilities * shares).sum(1))
        return losses

    def _by_layer(self, adapter: str | None) -> dict[str, list[Decision]]:
        adapters = sorted({decision.adapter for decision in self.decisions})
        if adapter is None and len(adapters) > 1:
            raise ValueError(f"adapter must be one of those recorded, {adapters}, found None.")
        found: dict[str, list[Decision]] = {}
        for decision in self.decisions:
            if adapter in (None, decision.adapter):
                found.setdefault(decision.layer, []).append(decision)
        return found


class Usage(NamedTuple):
    """How the modules of a layer were used.

    Attributes
    ----------
    shares : dict of str to float
        Share of the samples for which each module was on.
    entropy : float
        Entropy of the activations among the modules, in units of its largest value, log m.
    commonest : float
        Share of the samples that the commonest subset of modules was on for.
    """

    shares: dict[str, float]
    entropy: float
    commonest: float

    @classmethod
    def of(cls, modules: tuple[str, ...], active: Tensor) -> "Usage":
        """Sum up which modules were on, shape (n, m)."""
        on = active.cpu().double().mean(0)  # not every device has double precision
        activations = on / on.sum()
        entropy = -torch.xlogy(activations, activations).sum()
        counts = torch.unique(active, dim=0, return_counts=True)[1]
        return cls(
            shares=dict(zip(modules, on.tolist(), strict=True)),
            entropy=(entropy / math.log(max(len(modules), 2))).item(),
            commonest=(counts.max() / len(active)).item(),
        )

    @property
    def collapsed(self) -> bool:
        """Whether the router might as well not look at its input, though it has a choice."""
        has_choice = min(self.shares.values()) < 1
        return has_choice and (self.entropy < MIN_ENTROPY or self.commonest > MAX_COMMONEST)


_record = PerThread()


@contextlib.contextmanager
def record_routing() -> Iterator[RoutingRecord]:
    """Record what the routers decide in forward passes of this thread.

    Records nest: each sees what happens while it is open.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from tsllm_estimators.adapters import DynaLoraConfig, record_routing
    >>> config = GPT2Config(vocab_size=8, n_embd=16, n_layer=2, n_head=2, loss_type="ForCausalLM")
    >>> model = get_peft_model(GPT2LMHeadModel(config), DynaLoraConfig(r=2, top_n=2))
    >>> tokens = torch.arange(8).reshape(2, 4)
    >>> with record_routing() as routing:
    ...     output = model(tokens, labels=tokens)
    >>> loss = output.loss + 0.01 * routing.load_balancing_loss()
    >>> {layer: active.shape for layer, active in routing.active().items()}
    {'transformer.h.0': torch.Size([2, 6]), 'transformer.h.1': torch.Size([2, 6])}
    """
    outer = _record.get()
    record = RoutingRecord()
    _record.set_everywhere(record)
    try:
        yield record
    finally:
        _record.set_everywhere(outer)
        if outer is not None:
            outer.decisions += record.decisions


def note(decision: Decision) -> None:
    """Add a decision to the open record, if there is one."""
    record = _record.get()
    if record is not None:
        record.decisions.append(decision)

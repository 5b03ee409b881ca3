"""LoRA-AMR: low-rank adaptation whose backward pass keeps r / 2 numbers per token and linear map.

Source: LLM-TS Net (arXiv 2408.14387), "Activation Memory Reduction".

    x (k) --> W_0 x + b ---------------------------------------------------> + --> h (m)
      |                                                                      ^
      +--> D (r/2, k) --> D x (r/2) --> C (r, r/2) --> B (m, r) --> * alpha / r
           frozen                       trained        frozen

LoRA adds B A x and trains both factors, and so the backward pass needs x itself, k numbers per
token, for the gradient of A. Here A = C D, and only C is trained, from zero: its gradient needs
D x, and what passes through W_0, B and D needs no activation at all. B (normal, standard deviation
1 / sqrt(r)) and D (Kaiming, as LoRA draws A) stay as they were drawn, and are saved with C.

The paper says that the second adapter becomes a product of two smaller matrices; that the frozen
one comes first is our reading. In the other order, A = D C, the gradient of C would need x, and
nothing would be saved. The price: delta W has at most rank r / 2, within the ranges of the draws.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft.utils import PeftType
from torch import Tensor, nn

from tsllm_estimators.adapters._low_rank import (
    Factors,
    LowRankConfig,
    LowRankLayer,
    LowRankModel,
    drawn_as_in_lora,
)


@dataclass
class LoraAmrConfig(LowRankConfig):
    """Settings of LoRA-AMR: those of LoRA, with an even ``r``.

    Notes
    -----
    Each map trains r^2 / 2 numbers, whatever its width. Dropout acts on D x, because dropout on x
    would keep a copy of x.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("LORA_AMR")
        if self.r % 2:
            raise ValueError(
                f"r must be even, because C has r / 2 columns, found {self.r}; "
                f"try {self.r - 1 or 2} or {self.r + 1}."
            )


class LoraAmrLayer(LowRankLayer):
    """A linear map with adapters of which only the middle factor is trained."""

    adapter_layer_names = ("lora_amr_D", "lora_amr_C", "lora_amr_B")

    def __init__(self, base_layer: nn.Module, name: str) -> None:
        super().__init__(base_layer, name)
        self.lora_amr_B = Factors()
        self.lora_amr_C = Factors()
        self.lora_amr_D = Factors()

    def update_layer(self, adapter_name: str, config: LoraAmrConfig, name: str) -> None:
        """Add an adapter; ``name`` is the base layer's, for errors."""
        self.frozen_peft_weight_names[adapter_name] = ("lora_amr_B", "lora_amr_D")
        super().update_layer(adapter_name, config, name)

    def factors(self, config: LoraAmrConfig) -> dict[str, Tensor]:
        """Return B (n, m / n, r) and D (n, r / 2, k) as drawn, and C (n, r, r / 2) of zeros."""
        n, half = len(self.parts), config.r // 2
        up = torch.randn(n, self.out_features // n, config.r) / config.r**0.5
        down = drawn_as_in_lora(n, half, self.in_features)
        return {"lora_amr_B": up, "lora_amr_C": torch.zeros(n, config.r, half), "lora_amr_D": down}

    def reduce(self, adapter_name: str, x: Tensor) -> Tensor:
        """Return C D x, shape (..., n r); autograd keeps D x, and x only if D is trained."""
        down, middle = self.lora_amr_D[adapter_name], self.lora_amr_C[adapter_name]
        low = self.dropouts[adapter_name](F.linear(x, down.flatten(0, 1)))
        if len(self.parts) == 1:
            return F.linear(low, middle[0])
        low = low.unflatten(-1, (len(self.parts), -1))
        return torch.einsum("...nj,nrj->...nr", low, middle).flatten(-2)

    def delta(self, adapter_name: str) -> Tensor:
        """Return B C D, shape (m, k)."""
        down, middle, up = (getattr(self, kind)[adapter_name] for kind in self.adapter_layer_names)
        return (up @ middle @ down).flatten(0, 1)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: an adapter of n parts is a LoRA of rank n r / 2."""
        return True


class LoraAmrModel(LowRankModel):
    """PEFT's tuner for LoRA-AMR."""

    prefix = "lora_amr_"
    tuner_layer_cls = LoraAmrLayer
    layer_cls = LoraAmrLayer

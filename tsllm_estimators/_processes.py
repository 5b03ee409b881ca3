"""What the processes of a distributed training must agree on."""

import torch.distributed as dist
from torch import Tensor


def summed_over_processes(counts: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes of a training, without a gradient.

    All of them must call it. Where there is but one, it returns the tensor as it is.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return counts
    total = counts.detach().clone()
    dist.all_reduce(total)
    return total

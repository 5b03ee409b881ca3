"""What autograd keeps for a backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor


def kept_bytes(forward: Callable[[], Tensor], own: set[int]) -> int:
    """Return the bytes that autograd keeps of a forward pass, each storage once.

    ``own`` are the addresses of storages that do not count, such as those of parameters.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> None:  # an output that its own node keeps would never be freed
        storage = tensor.untyped_storage()  # held, so that no other one gets its address
        kept[storage.data_ptr()] = storage

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        assert forward().requires_grad
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)


def storages(*tensors: Tensor) -> set[int]:
    """Return the addresses of the storages of tensors."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}

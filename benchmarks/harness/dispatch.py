"""Counting operations: what is launched, and what makes the host wait. Nothing is timed."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Give memory or another name to a tensor; no kernel runs.
FREE = {
    "alias", "detach", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty",
    "new_empty_strided", "_unsafe_view", "_reshape_alias", "view", "set_", "resize_",
}  # fmt: skip
# Need a number on the host, or make a shape that depends on the data.
WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "is_nonzero",
}  # fmt: skip


class OperationCounter(TorchDispatchMode):
    """Counts the operations under autograd, those of the backward pass among them.

    A composite operation of PyTorch (a fused attention, a cross entropy) counts as what it hands to
    the device: one call, one launch. That is a lower bound of kernels, the same for both sides.

    Attributes:
        launches: operations that compute.
        syncs: operations that make a GPU's host wait. On a CPU ``.cpu()``, ``.numpy()`` and
            ``.tolist()`` do not show.
        names: how often each operation that waits was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.syncs = 0
        self.names: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if _waits(name, args, result):
            self.syncs += 1
            self.names[name] = self.names.get(name, 0) + 1
        elif not (name in FREE or func.is_view):
            self.launches += 1
        return result


def _waits(name: str, args: tuple[Any, ...], result: Any) -> bool:
    if name in ("_to_copy", "copy_"):
        sources = [each for each in args if torch.is_tensor(each)]
        return any(each.device != result.device for each in sources)
    if name in ("index", "index_put_", "index_put"):
        places = [each for each in args[1] if each is not None]
        return any(each.dtype in (torch.bool, torch.uint8) for each in places)
    if name == "repeat_interleave":
        return torch.is_tensor(args[0]) and len(args) == 1
    return name in WAITS

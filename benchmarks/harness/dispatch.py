"""Count operations: those that launch work, and those that make the host wait."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Allocate or rename memory; no kernel runs.
FREE = {
    "alias", "detach", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty",
    "new_empty_strided", "_unsafe_view", "_reshape_alias", "view", "set_", "resize_",
}  # fmt: skip
# Need a value on the host, or have a shape that depends on the data.
BLOCKING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "is_nonzero",
}  # fmt: skip


class OperationCounter(TorchDispatchMode):
    """Count operations below autograd, including those of the backward pass.

    A composite operation (fused attention, cross entropy) counts once: a lower bound of kernels,
    the same for both sides. ``launches`` compute; ``syncs`` make a GPU's host wait, but a CPU does
    not show ``.cpu()``, ``.numpy()`` and ``.tolist()``.
    """

    launches = syncs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if _blocks(name, args, result):
            self.syncs += 1
        elif not (name in FREE or func.is_view):
            self.launches += 1
        return result


def _blocks(name: str, args: tuple[Any, ...], result: Any) -> bool:
    if name in ("_to_copy", "copy_"):
        sources = [each for each in args if torch.is_tensor(each)]
        return any(each.device != result.device for each in sources)
    if name in ("index", "index_put_", "index_put"):
        indices = [each for each in args[1] if each is not None]
        return any(each.dtype in (torch.bool, torch.uint8) for each in indices)
    if name == "repeat_interleave":
        return torch.is_tensor(args[0]) and len(args) == 1
    return name in BLOCKING

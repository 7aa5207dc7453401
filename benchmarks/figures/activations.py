"""``activations``: what a training step keeps for its backward pass, per image.

Counted from PyTorch's own hooks, each piece of memory once, parameters and banks left out. What
does not grow with the batch (the projected bank) drops out of the difference of two batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comparison import Figure, figure
from fed_case import FEDCase, build_batch, build_fed
from fed_step import check_steps, our_step
from references import fed_in_loops
from torch import nn

NAMES = ("activations",)
# little of what does not depend on the batch; what an image keeps does not depend on it either
CASE = FEDCase(pairs=4, instances=1, identities=32)


def measure(case: FEDCase = CASE) -> dict[str, Figure]:
    """Compare bf16 autocast with float32 in loops."""
    check_steps()
    model = build_fed(case)
    reference = fed_in_loops.plain_copy(model)
    half = case.smaller(pairs=case.pairs // 2)
    values = []
    for step, of in (
        (lambda batch: our_step(model, batch, torch.bfloat16), model),
        (lambda batch: fed_in_loops.training_step(reference, batch), reference),
    ):
        large, small = (kept_bytes(step, of, build_batch(each)) for each in (case, half))
        values.append((large - small) / (2 * (case.pairs - half.pairs)) / 1e6)
    return {"activations": figure([[value] for value in values], "MB kept per image, FED")}


def kept_bytes(
    step: Callable[[dict[str, torch.Tensor]], Any], model: nn.Module, batch: dict[str, torch.Tensor]
) -> int:
    """Return the bytes of all storages that the step saves, but for the model's own."""
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    held: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address comes twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(batch)
    model.zero_grad(set_to_none=True)
    return sum(storage.nbytes() for storage in held.values())

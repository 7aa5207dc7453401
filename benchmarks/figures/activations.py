"""``activations``: memory that a training step keeps for its backward pass, per image.

PyTorch's hooks count each storage once, without parameters and banks. The difference of two batches
removes what does not grow with the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases.fed_case import FEDCase, build_batch, build_fed
from cases.fed_step import check_steps
from cases.training import Batch, our_step
from harness.comparison import Figure, make_figure
from references import fed_in_loops
from torch import nn

NAMES = ("activations",)
# small; the memory per image does not depend on these sizes
CASE = FEDCase(pairs=4, instances=1, identities=32)


def measure(case: FEDCase = CASE) -> dict[str, Figure]:
    """Compare bf16 autocast with float32 in loops."""
    check_steps()
    model = build_fed(case)
    reference = fed_in_loops.plain_copy(model)
    ours = kept_per_image(lambda batch: our_step(model, batch, torch.bfloat16), model, case)
    other = kept_per_image(
        lambda batch: fed_in_loops.training_step(reference, batch), reference, case
    )
    return {"activations": make_figure(([ours], [other]), "MB kept per image, FED")}


def kept_per_image(step: Callable[[Batch], Any], model: nn.Module, case: FEDCase) -> float:
    """Return the megabytes per image, from the case's batch and half of it."""
    half = case.smaller(pairs=case.pairs // 2)
    large, small = (kept_bytes(step, model, build_batch(each)) for each in (case, half))
    return (large - small) / (2 * (case.pairs - half.pairs)) / 1e6


def kept_bytes(step: Callable[[Batch], Any], model: nn.Module, batch: Batch) -> int:
    """Return the bytes of all storages that the step saves, except the model's."""
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    held: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is reused

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(batch)
    model.zero_grad(set_to_none=True)
    return sum(storage.nbytes() for storage in held.values())

"""FED's training step against the same in loops: operations, memory, time, and the optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cases.training import FED, SGD, THIN, Batch, FEDCase, our_step
from harness.comparison import (
    Figure,
    Work,
    make_figure,
    measure_seconds,
    require_equal,
    time_alternately,
)
from references import fed_in_loops
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from occluded_reid.config import load_config
from occluded_reid.engine.optimizer import build_optimizer

ONE_BLOCK = FED.smaller(blocks=1)
SMALL = FED.smaller(pairs=4, instances=1, identities=32)  # memory per image stays the same
# of the paper's batch and identities, so that backbone and head keep their shares
SIXTEENTH = FED.smaller(pairs=4, identities=44)

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


def count_operations(case: FEDCase = THIN) -> dict[str, Figure]:
    """Count operations and waits of forward and backward pass and bank update.

    They do not depend on channels or pixels, so the network has the paper's depth and batch, but
    thin layers.
    """
    fed_in_loops.check_steps()
    counters = []
    for work in build_works(case.build_model(), case.build_batch())[:2]:
        with OperationCounter() as counter:
            work()
        counters.append(counter)
    step = f"per FED step, {case.pairs} pairs"
    return {
        "launches": make_figure([[each.launches] for each in counters], f"operations {step}"),
        "syncs": make_figure([[each.syncs] for each in counters], f"waits {step}"),
    }


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


def measure_activations(case: FEDCase = SMALL) -> dict[str, Figure]:
    """Compare the memory per image that bf16 autocast and float32 in loops keep for backward."""
    fed_in_loops.check_steps()
    model = case.build_model()
    reference = fed_in_loops.plain_copy(model)
    kept = (
        measure_kept(lambda batch: our_step(model, batch, torch.bfloat16), model, case),
        measure_kept(lambda batch: fed_in_loops.training_step(reference, batch), reference, case),
    )
    return {"activations": make_figure([[each] for each in kept], "MB kept per image, FED")}


def measure_kept(step: Callable[[Batch], Any], model: nn.Module, case: FEDCase) -> float:
    """Return megabytes per image: the difference of the case's batch and half of it.

    PyTorch's hooks count each storage once, without parameters and banks.
    """
    own = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers())}
    held: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is reused

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage
        return tensor

    totals = []
    for pairs in (case.pairs, case.pairs // 2):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step(case.smaller(pairs=pairs).build_batch())
        model.zero_grad()
        totals.append(sum(storage.nbytes() for storage in held.values()))
        held.clear()
    return (totals[0] - totals[1]) / (2 * (case.pairs - case.pairs // 2)) / 1e6


def measure_head(case: FEDCase = ONE_BLOCK, rounds: int = 3) -> dict[str, Figure]:
    """Compare FED without its backbone in float32; both sides read the same tokens."""
    fed_in_loops.check_steps()
    batch = case.smaller(image=(32, 16)).build_batch()  # the images are not used
    ours, loops, _ = build_works(replace_backbone(case.build_model(), case), batch)
    times = time_alternately(ours, loops, rounds=rounds)
    return {"head": make_figure(times, f"s per FED step without backbone, {case.pairs} pairs")}


def measure_step(case: FEDCase = SIXTEENTH, rounds: int = 2) -> dict[str, Figure]:
    """Compare whole steps, ours in float32 and in bf16."""
    fed_in_loops.check_steps()
    works = build_works(case.build_model(), case.build_batch())
    times = [[measure_seconds(work) for work in works] for _ in range(rounds + 1)]
    exact, loops, half = zip(*times[1:], strict=True)  # the first round warms up
    unit = f"s per FED step, {case.pairs} pairs"
    return {
        "step": make_figure((exact, loops), unit),
        "step_bf16": make_figure((half, loops), f"{unit}, ours in bf16"),
    }


def build_works(model: Any, batch: Batch) -> list[Work]:
    """Return our step in float32, the step in loops, and ours in bf16."""
    reference = fed_in_loops.plain_copy(model)

    def ours(dtype: torch.dtype | None = None) -> None:
        our_step(model, batch, dtype)
        model.zero_grad()

    def loops() -> None:
        fed_in_loops.training_step(reference, batch)
        reference.zero_grad()

    return [ours, loops, partial(ours, torch.bfloat16)]


class GivenTokens(nn.Module):
    """Replace the backbone: return tokens (2 B, 1 + T, C) in turn, whatever the images."""

    def __init__(self, tokens: torch.Tensor, grid: tuple[int, int]):
        super().__init__()
        self.tokens = nn.Parameter(tokens)  # so that its gradient is computed like a backbone's
        self.grid, self._next = grid, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the next (len(images), 1 + T, C)."""
        first, self._next = self._next, (self._next + len(images)) % len(self.tokens)
        return self.tokens[first : first + len(images)]


def replace_backbone(model: Any, case: FEDCase) -> Any:
    """Return the model with random tokens instead of a backbone."""
    grid = model.backbone.grid
    rng = torch.Generator().manual_seed(2)
    tokens = torch.randn(2 * case.pairs, 1 + grid[0] * grid[1], case.channels, generator=rng)
    model.backbone = GivenTokens(tokens, grid)
    return model


def measure_optimizer(case: FEDCase = FED, rounds: int = 7) -> dict[str, Figure]:
    """Compare an SGD step over all parameters with one group per tensor, from equal gradients."""
    cfg, ours = load_config("", SGD), case.build_model()
    reference = copy.deepcopy(ours)
    torch.manual_seed(3)
    for pair in zip(ours.parameters(), reference.parameters(), strict=True):
        gradient = 0.01 * torch.randn_like(pair[0])
        for parameter in pair:
            if parameter.requires_grad:
                parameter.grad = gradient  # no step writes to it
    steps = build_optimizer(cfg, ours).step, fed_in_loops.build_sgd(reference, cfg).step
    for step in (*steps, *steps):
        step()
    others = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        require_equal(name, parameter, others[name], atol=1e-6)
    millions = sum(p.numel() for p in ours.parameters()) / 1e6
    unit = f"s per SGD step, {millions:.0f} M parameters"
    return {"optimizer": make_figure(time_alternately(*steps, rounds=rounds), unit)}

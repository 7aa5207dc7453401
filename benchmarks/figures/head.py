"""``head``: FED without its backbone (erasing, diffusion, banks, classifiers, losses), 64 + 64."""

from __future__ import annotations

from typing import Any

import torch
from cases.fed_case import FEDCase, GivenTokens, build_batch, build_fed
from cases.fed_step import check_steps
from cases.training import clear_gradients, our_step
from harness.comparison import Figure, make_figure, time_alternately
from references import fed_in_loops

NAMES = ("head",)
CASE = FEDCase(blocks=1)


def measure(case: FEDCase = CASE, rounds: int = 3) -> dict[str, Figure]:
    """Compare in float32; both read the same tokens."""
    check_steps()
    model = replace_backbone(build_fed(case), case)
    reference = fed_in_loops.plain_copy(model)
    batch = build_batch(case.smaller(image=(32, 16)))  # the images are not used

    def ours() -> None:
        clear_gradients(model)
        our_step(model, batch)

    def loops() -> None:
        clear_gradients(reference)
        fed_in_loops.training_step(reference, batch)

    times = time_alternately(ours, loops, rounds=rounds)
    return {"head": make_figure(times, f"s per FED step without backbone, {case.pairs} pairs")}


def replace_backbone(model: Any, case: FEDCase) -> Any:
    """Return the model with random tokens instead of a backbone."""
    grid = model.backbone.grid
    rng = torch.Generator().manual_seed(2)
    tokens = torch.randn(2 * case.pairs, 1 + grid[0] * grid[1], case.channels, generator=rng)
    model.backbone = GivenTokens(tokens, grid)
    return model

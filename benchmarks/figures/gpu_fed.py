"""``gpu_fed_*``: FED's training step on a GPU, both sides in bf16 autocast, optimizer included."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from cases.fed_case import FEDCase, build_batch, build_fed
from cases.fed_step import check_steps
from cases.training import compare_training, our_step, sgd_cfg, whole_step
from harness.comparison import Figure
from references import fed_in_loops
from references.group_per_tensor import build_sgd

from occluded_reid.engine.optimizer import build_optimizer

NAMES = ("gpu_fed_images", "gpu_fed_schedule", "gpu_fed_share", "gpu_fed_memory")


def measure(
    case: FEDCase = FEDCase(),  # noqa: B008
    device: str = "cuda",
    rounds: int = 10,
    in_a_row: int = 5,
    peak_side: int = 8192,
) -> Iterator[tuple[str, Figure]]:
    """Compare with the step in loops."""
    check_steps(device)
    batch, model = build_batch(case, device), build_fed(case, device)
    reference = fed_in_loops.plain_copy(model)
    dtype = torch.bfloat16
    ours = whole_step(lambda: our_step(model, batch, dtype), build_optimizer(sgd_cfg(), model))
    loops = whole_step(
        lambda: fed_in_loops.training_step(reference, batch, dtype), build_sgd(reference, sgd_cfg())
    )
    return compare_training(
        "fed", ours, loops, images=2 * case.pairs, device=device, rounds=rounds,
        in_a_row=in_a_row, peak_side=peak_side,
    )  # fmt: skip

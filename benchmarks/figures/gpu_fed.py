"""``gpu_fed_*``: FED's training step on a GPU, both sides in bf16 autocast, optimizer included."""

from __future__ import annotations

import torch
from comparison import Figure, figure
from fed_case import FEDCase, build_batch, build_fed
from fed_step import check_steps, our_step
from references import fed_in_loops
from references.group_per_tensor import build_sgd
from training import compare_training, sgd_cfg, whole_step

from occluded_reid.engine.optimizer import build_optimizer

NAMES = ("gpu_fed_images", "gpu_fed_share", "gpu_fed_memory", "gpu_fed_schedule")
STEPS = 15618 // 64 * 120  # Occluded-Duke, 120 epochs


def measure(
    case: FEDCase = FEDCase(),  # noqa: B008
    device: str = "cuda",
    rounds: int = 20,
    peak_side: int = 8192,
) -> dict[str, Figure]:
    """Compare with the step in loops; the schedule's time is that of its steps alone."""
    check_steps(device)
    batch, model = build_batch(case, device), build_fed(case, device)
    reference = fed_in_loops.plain_copy(model)
    dtype = torch.bfloat16
    ours = whole_step(lambda: our_step(model, batch, dtype), build_optimizer(sgd_cfg(), model))
    loops = whole_step(
        lambda: fed_in_loops.training_step(reference, batch, dtype), build_sgd(reference, sgd_cfg())
    )
    found, times = compare_training(
        "fed", ours, loops, images=2 * case.pairs, device=device, rounds=rounds, peak_side=peak_side
    )
    minutes = [[STEPS * spent / 60 for spent in each] for each in times]
    unit = f"minutes for {STEPS} steps of {case.pairs} pairs, without a loader"
    return found | {"gpu_fed_schedule": figure(minutes, unit)}

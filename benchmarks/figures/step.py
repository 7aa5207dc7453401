"""``step`` and ``step_bf16``: the time of FED's forward and backward pass and of its banks.

The default is a sixteenth of the batch and of the identities of the paper, so that backbone and
head have the shares that they have in the whole.
"""

from __future__ import annotations

import torch
from comparison import Figure, figure, seconds
from fed_case import FEDCase, build_batch, build_fed
from fed_step import check_steps, clear_gradients, our_step
from references import fed_in_loops

NAMES = ("step", "step_bf16")
CASE = FEDCase(pairs=4, identities=44)


def measure(case: FEDCase = CASE, rounds: int = 2) -> dict[str, Figure]:
    """Compare float32 and bf16 autocast with float32 in loops, in turn."""
    check_steps()
    batch, model = build_batch(case), build_fed(case)
    reference = fed_in_loops.plain_copy(model)
    works = (
        lambda: our_step(model, batch),
        lambda: fed_in_loops.training_step(reference, batch),
        lambda: our_step(model, batch, torch.bfloat16),
    )
    times: list[list[float]] = [[], [], []]
    for round_ in range(rounds + 1):
        for kept, work in zip(times, works, strict=True):
            spent = seconds(work)
            clear_gradients(model, reference)
            if round_:  # the first warms up
                kept.append(spent)
    unit = f"s per FED step, {case.pairs} pairs"
    return {
        "step": figure(times[:2], unit),
        "step_bf16": figure((times[2], times[1]), f"{unit}, ours in bf16"),
    }

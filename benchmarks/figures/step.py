"""``step`` and ``step_bf16``: the time of FED's forward and backward pass and of its banks.

``head_share`` and ``head_share_bf16``: the share of that time outside the backbone.

The default is a sixteenth of the paper's batch and identities, so that backbone and head keep their
shares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases.fed_case import FEDCase, build_batch, build_fed
from cases.fed_step import check_steps
from cases.training import Batch, clear_gradients, our_step
from harness.comparison import Figure, make_figure, measure_seconds
from references import fed_in_loops

from figures.head import replace_backbone

NAMES = ("step", "step_bf16", "head_share", "head_share_bf16")
CASE = FEDCase(pairs=4, identities=44)


def measure(case: FEDCase = CASE, rounds: int = 2) -> dict[str, Figure]:
    """Compare float32 and bf16 autocast with float32 in loops, in turn."""
    check_steps()
    batch = build_batch(case)
    works = [
        work
        for model in (build_fed(case), replace_backbone(build_fed(case), case))
        for work in build_works(model, batch)
    ]
    times: list[list[float]] = [
        [measure_seconds(work) for work in works] for _ in range(rounds + 1)
    ]
    exact, loops, half, *heads = zip(*times[1:], strict=True)  # the first round warms up
    unit = f"s per FED step, {case.pairs} pairs"
    shares = [
        [part / whole for part, whole in zip(head, step, strict=True)]
        for head, step in zip(heads, (exact, loops, half), strict=True)
    ]
    share = "of a FED step's time is not the backbone's"
    return {
        "step": make_figure((exact, loops), unit),
        "step_bf16": make_figure((half, loops), f"{unit}, ours in bf16"),
        "head_share": make_figure(shares[:2], share),
        "head_share_bf16": make_figure((shares[2], shares[1]), f"{share}, ours in bf16"),
    }


def build_works(model: Any, batch: Batch) -> list[Callable[[], None]]:
    """Return our step in float32, the step in loops, and ours in bf16."""
    reference = fed_in_loops.plain_copy(model)

    def ours(dtype: torch.dtype | None = None) -> None:
        our_step(model, batch, dtype)
        clear_gradients(model)

    def loops() -> None:
        fed_in_loops.training_step(reference, batch)
        clear_gradients(reference)

    return [ours, loops, lambda: ours(torch.bfloat16)]

"""``launches`` and ``syncs``: operations and waits of one FED training step, 64 + 64 images.

The number of operations does not depend on how many channels or pixels there are. So they are
counted in a network of the paper's depth and batch whose layers are thin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cases.fed_case import THIN, FEDCase, build_batch, build_fed
from cases.fed_step import check_steps
from cases.training import our_step
from harness.comparison import Figure, make_figure
from harness.dispatch import OperationCounter
from references import fed_in_loops

NAMES = ("launches", "syncs")


def measure(case: FEDCase = THIN) -> dict[str, Figure]:
    """Count forward and backward pass and bank update, without the optimizer."""
    check_steps()
    batch, model = build_batch(case), build_fed(case)
    reference = fed_in_loops.plain_copy(model)
    ours = count(lambda: our_step(model, batch))
    other = count(lambda: fed_in_loops.training_step(reference, batch))
    step = f"per FED step, {case.pairs} pairs"
    return {
        "launches": make_figure(([ours.launches], [other.launches]), f"operations {step}"),
        "syncs": make_figure(([ours.syncs], [other.syncs]), f"waits {step}"),
    }


def count(work: Callable[[], Any]) -> OperationCounter:
    """Return the operations of ``work``."""
    with OperationCounter() as counter:
        work()
    return counter

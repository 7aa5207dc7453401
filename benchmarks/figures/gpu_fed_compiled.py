"""``gpu_fed_compiled`` and ``gpu_fed_graphs``: FED's training step by torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cases.compiled import compare_modes
from cases.fed_case import FEDCase, build_batch, build_fed
from harness.comparison import Figure

NAMES = ("gpu_fed_compiled", "gpu_fed_graphs")


def measure(
    case: FEDCase = FEDCase(drop_path=0.0),  # noqa: B008
    device: str = "cuda",
    rounds: int = 10,
    in_a_row: int = 10,
) -> Iterator[tuple[str, Figure]]:
    """Compare with the same step without, in bf16, once both have been seen to train alike."""
    build = partial(build_fed, case, device)
    batch = build_batch(case, device)
    return compare_modes("fed", build, batch, device=device, rounds=rounds, in_a_row=in_a_row)

"""``gpu_aonet_compiled`` and ``gpu_aonet_graphs``: AONet's training step by torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cases.aonet_case import AONetCase, build_aonet, build_batch
from cases.compiled import compare_modes
from harness.comparison import Figure

NAMES = ("gpu_aonet_compiled", "gpu_aonet_graphs")


def measure(
    case: AONetCase = AONetCase(),  # noqa: B008
    device: str = "cuda",
    rounds: int = 10,
    in_a_row: int = 10,
) -> Iterator[tuple[str, Figure]]:
    """Compare with the same step without, in bf16, once both have been seen to train alike."""
    build = partial(build_aonet, case, device, channels_last=True)
    batch = build_batch(case, device)
    return compare_modes("aonet", build, batch, device=device, rounds=rounds, in_a_row=in_a_row)

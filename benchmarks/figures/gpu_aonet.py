"""``gpu_aonet_*``: AONet's training step on a GPU, both sides in bf16 autocast.

``gpu_aonet_tried``: with ``CUDNN_BENCHMARK``, against without.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from cases.aonet_case import AONetCase, build_aonet, build_batch
from cases.training import compare_training, our_step, sgd_cfg, time_steps, whole_step
from harness.comparison import Figure, Work, make_figure, require_equal
from references.group_per_tensor import build_sgd

from occluded_reid.engine.optimizer import build_optimizer

NAMES = (
    "gpu_aonet_images",
    "gpu_aonet_schedule",
    "gpu_aonet_share",
    "gpu_aonet_memory",
    "gpu_aonet_tried",
)


def measure(
    case: AONetCase = AONetCase(),  # noqa: B008
    device: str = "cuda",
    rounds: int = 10,
    in_a_row: int = 5,
    peak_side: int = 8192,
) -> Iterator[tuple[str, Figure]]:
    """Compare AONet's configuration with PyTorch's default layout and optimizer."""
    batch = build_batch(case, device)
    model, reference = build_aonet(case, device, channels_last=True), build_aonet(case, device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = [our_step(each, batch) for each in (model, reference)]
    for name, value in exact[1].items():
        require_equal(name, exact[0][name], value, atol=1e-3, rtol=1e-2)
    dtype = torch.bfloat16
    ours = whole_step(lambda: our_step(model, batch, dtype), build_optimizer(sgd_cfg(), model))
    plain = whole_step(lambda: our_step(reference, batch, dtype), build_sgd(reference, sgd_cfg()))
    yield from compare_training(
        "aonet", ours, plain, images=case.images, device=device, rounds=rounds,
        in_a_row=in_a_row, peak_side=peak_side,
    )  # fmt: skip
    times = time_steps(
        use_cudnn_benchmark(ours), ours, rounds=rounds, in_a_row=in_a_row, device=device
    )
    yield "gpu_aonet_tried", make_figure(times, f"s per step, {case.images} images")


def use_cudnn_benchmark(work: Work) -> Work:
    """Return ``work`` with ``CUDNN_BENCHMARK``."""

    def with_benchmark() -> None:
        torch.backends.cudnn.benchmark = True
        try:
            work()
        finally:
            torch.backends.cudnn.benchmark = False

    return with_benchmark

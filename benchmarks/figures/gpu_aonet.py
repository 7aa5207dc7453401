"""``gpu_aonet_*``: AONet's training step on a GPU in bf16 autocast, against float32."""

from __future__ import annotations

from typing import Any

import torch
from aonet_case import AONetCase, build_aonet, build_batch
from comparison import Figure, require_equal
from references.group_per_tensor import build_sgd
from training import compare_training, sgd_cfg, whole_step

from occluded_reid.engine.optimizer import build_optimizer

NAMES = ("gpu_aonet_images", "gpu_aonet_share", "gpu_aonet_memory")


def measure(
    case: AONetCase = AONetCase(),  # noqa: B008
    device: str = "cuda",
    rounds: int = 20,
    peak_side: int = 8192,
) -> dict[str, Figure]:
    """Compare what a run does by default with the same model as PyTorch computes it by itself."""
    batch = build_batch(case, device)
    model, reference = build_aonet(case, device), build_aonet(case, device)
    rounded, exact = step(model, batch, torch.bfloat16), step(reference, batch, None)
    for name, value in exact.items():
        require_equal(name, rounded[name], value, atol=0.05, rtol=0.05)
    ours = whole_step(lambda: step(model, batch, torch.bfloat16), build_optimizer(sgd_cfg(), model))
    plain = whole_step(lambda: step(reference, batch, None), build_sgd(reference, sgd_cfg()))
    found, _ = compare_training(
        "aonet", ours, plain, images=case.images, device=device, rounds=rounds, peak_side=peak_side
    )
    return found


def step(
    model: Any, batch: dict[str, torch.Tensor], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Return the loss terms; their gradients are in the parameters, the memory is moved."""
    with torch.autocast(batch["images"].device.type, dtype, enabled=dtype is not None):
        terms = model(batch)
    sum(terms.values()).backward()
    return terms

"""``gpu_augmentation``: what ``INPUT.AUGMENTATION device`` leaves to the GPU."""

from __future__ import annotations

import torch
from harness.comparison import Figure, figure, require_equal, time_alternately

from fed_plugin import add_fed_config
from figures.loading import OPTIONS
from occluded_reid.config import load_config
from occluded_reid.data.transforms.augmentation import build_augmentation
from occluded_reid.data.transforms.batch_augmentation import (
    BatchAugmentation,
    BatchChanges,
    stacked,
)
from occluded_reid.data.transforms.npo import build_npo

NAMES = ("gpu_augmentation",)


def measure(
    pairs: int = 64, size: tuple[int, int] = (256, 128), device: str = "cuda", rounds: int = 10
) -> dict[str, Figure]:
    """Compare with what a worker does for ``INPUT.AUGMENTATION workers``, image by image."""
    options = [*OPTIONS, "INPUT.SIZE_TRAIN", str(list(size)), "INPUT.CJ.ENABLED", "True"]
    options += ["INPUT.CJ.HUE", "0.0", "INPUT.REA.ENABLED", "True"]
    cfg = load_config("", options, add_keys=[add_fed_config])
    augmentation = build_augmentation(cfg, build_npo(cfg))
    on_device = BatchAugmentation(augmentation, torch.device(device))
    changes = [augmentation.draw(seed) for seed in range(pairs)]
    images = torch.randint(0, 256, (pairs, 3, *size), dtype=torch.uint8)
    sent = images.to(device), BatchChanges(*(each.to(device) for each in stacked(changes)))

    def ours() -> dict[str, torch.Tensor]:
        return on_device(*sent)

    def reference() -> dict[str, torch.Tensor]:
        return augmentation.finish(images.clone(), changes)

    found, wanted = ours(), reference()
    for name in ("images", "occluded_images"):  # a GPU may round a pixel the other way
        require_equal(name, found[name], wanted[name], atol=1)
    unit = f"s for {pairs} pairs of {size[0]} x {size[1]}, against one worker"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a worker has no more
    try:
        times = time_alternately(ours, reference, rounds=rounds, device=device)
    finally:
        torch.set_num_threads(threads)
    return {"gpu_augmentation": figure(times, unit)}

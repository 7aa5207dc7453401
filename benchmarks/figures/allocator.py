"""A training step on a CPU by what happens to freed memory, each in fresh interpreters."""

from __future__ import annotations

import json

from harness.comparison import Figure, make_figure

from figures.imports import run_interpreter

TRAIN = """
import itertools, json, resource, sys
import torch
from cases.training import build_step, run_steps
from occluded_reid.config import load_config
from occluded_reid.modeling.build import build_model
from occluded_reid.utils.memory import keep_freed_memory

images, steps, keep = map(int, sys.argv[1:])
if keep:
    keep_freed_memory()
words = "MODEL.DEVICE cpu MODEL.BACKBONE.PRETRAIN False MODEL.HEADS.NUM_CLASSES 702"
cfg = load_config("configs/Base-Lite0.yml", words.split())
batch = {"images": 255 * torch.rand(images, 3, 128, 64), "targets": torch.arange(images) // 4}
step = build_step(cfg, build_model(cfg), itertools.repeat(batch))
run_steps(step, 2)
before = resource.getrusage(resource.RUSAGE_SELF)
run_steps(step, steps)
after = resource.getrusage(resource.RUSAGE_SELF)
seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps([images * steps / seconds, (after.ru_minflt - before.ru_minflt) / steps]))
"""
WAYS: dict[str, tuple[bool, dict[str, str]]] = {
    "ours": (True, {}),
    "default": (False, {}),
    "variables": (False, {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}),
    "pages": (True, {"THP_MEM_ALLOC_ENABLE": "1"}),
}


def measure_allocators(images: int = 64, steps: int = 5, rounds: int = 3) -> dict[str, Figure]:
    """Compare ``keep_freed_memory``, as the trainer calls it, with other ways."""
    measured: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, (keep, variables) in WAYS.items():
            words = ("-c", TRAIN, str(images), str(steps), str(int(keep)))
            measured[way].append(json.loads(run_interpreter(words, **variables)))
    rates = {way: [rate for rate, _ in each] for way, each in measured.items()}
    faults = [[faults for _, faults in measured[way]] for way in ("ours", "default")]
    unit = f"images per processor s, Lite0 training step of {images} at 128 x 64, memory kept"
    return {
        "allocator_faults": make_figure(faults, f"page faults of such a step of {images} images"),
        **{
            name: make_figure((rates["ours"], rates[way]), f"{unit}, against {text}", rate=True)
            for name, way, text in (
                ("allocator", "default", "glibc's default"),
                ("allocator_variables", "variables", "MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_"),
                ("allocator_pages", "pages", "the same with THP_MEM_ALLOC_ENABLE"),
            )
        },
    }

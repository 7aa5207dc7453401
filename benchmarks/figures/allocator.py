"""Training and inference on a CPU by what happens to freed memory, each in fresh interpreters."""

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
model = build_model(cfg)
step = build_step(cfg, model, itertools.repeat(batch))

def measure(run):
    run(2)
    before = resource.getrusage(resource.RUSAGE_SELF)
    run(steps)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [images * steps / seconds, (after.ru_minflt - before.ru_minflt) / steps]

def infer(number):
    with torch.inference_mode():
        for _ in range(number):
            model.eval()(batch)

print(json.dumps([*measure(lambda number: run_steps(step, number)), *measure(infer)]))
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
    size = f"{images} images of 128 x 64, Lite0"
    work = f"images per processor s, training step of {size}"
    return {
        name: make_figure(
            [[each[column] for each in measured[way]] for way in ("ours", reference)],
            f"{unit}, against {text}", rate=column != 1,
        )
        for name, reference, column, unit, text in (
            ("allocator", "default", 0, work, "glibc's default"),
            ("allocator_faults", "default", 1, f"page faults per step of {size}", "the same"),
            ("allocator_inference", "default", 2, f"images per processor s, {size}", "the same"),
            ("allocator_variables", "variables", 0, work, "MALLOC_ variables to the same end"),
            ("allocator_pages", "pages", 0, work, "huge pages (THP_MEM_ALLOC_ENABLE) as well"),
        )
    }  # fmt: skip

"""What each suite measures: names of figures, and the function that measures them.

The function checks that both sides agree and returns :class:`harness.comparison.Figure` by name, or
yields (name, figure), so that a later failure does not lose earlier results. Its arguments are
sizes; the defaults are those of the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import occluded_reid.compat  # noqa: F401  # before fast-reid
from figures import (
    allocator,
    cpu_training,
    demo,
    evaluation,
    gpu_training,
    imports,
    latency,
    loading,
    search,
    step,
)

Suite = dict[tuple[str, ...], Callable[..., Any]]
LATENCY: Suite = {
    ("latency", "latency_int8", "latency_aonet", "latency_aonet_int8"): latency.measure_latency
}
WAYS = ("autocast", "compiled", "compiled_bf16", "openvino", "onnxruntime")
SUITES: dict[str, Suite] = {
    "cpu": {
        ("import", "import_embed", "import_help"): imports.measure_imports,
        (
            "allocator", "allocator_faults", "allocator_inference", "allocator_variables",
            "allocator_pages",
        ): allocator.measure_allocators,
        (
            "train_cpu", "train_cpu_workers", "train_cpu_r50", "train_cpu_r50_workers",
        ): cpu_training.measure_training,
        ("launches", "syncs"): step.count_operations,
        ("activations",): step.measure_activations,
        (
            "similarity", "similarity_bf16", "similarity_shared", "similarity_query",
        ): evaluation.measure_similarity,
        ("ranking", "ranking_memory"): evaluation.measure_ranking,
        ("rerank",): evaluation.measure_reranking,
        ("search", "search_one"): search.measure_search,
        ("optimizer",): step.measure_optimizer,
        ("loading", "loading_files"): loading.measure_loading,
        **LATENCY,
        ("head",): step.measure_head,
        ("step", "step_bf16"): step.measure_step,
    },
    "latency": {
        **LATENCY,
        (
            *(f"latency_{way}" for way in (*WAYS, "dynamic_int8", "onnxruntime_int8")),
            *(f"latency_aonet_{way}" for way in WAYS),
        ): latency.measure_runtimes,
    },
    "demo": {
        (
            "demo", "demo_drawing", "demo_training", "demo_evaluation", "demo_figures",
        ): demo.measure_demo,
    },
    "gpu": {  # the most important first: time may run out
        tuple(f"gpu_fed_{name}" for name in ("images", "schedule", "share", "memory")):
            gpu_training.measure_fed,
        ("gpu_schedule", "gpu_loading", "gpu_waiting"): loading.measure_schedule,
        tuple(f"gpu_aonet_{name}" for name in ("images", "schedule", "share", "memory", "tried")):
            gpu_training.measure_aonet,
        ("gpu_evaluation",): evaluation.measure_gpu_evaluation,
        ("gpu_search", "gpu_search_one"): search.measure_gpu_search,
        tuple(f"gpu_{method}_{mode}" for method in ("fed", "aonet") for mode in gpu_training.MODES):
            gpu_training.measure_compiled,
    },
}  # fmt: skip

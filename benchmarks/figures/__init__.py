"""One module per figure. Each has ``NAMES``, what it measures, and ``measure(...)``.

``measure`` checks that both sides agree and returns a :class:`comparison.Figure` by name. Its
arguments are sizes, whose defaults are those of the table.
"""

from __future__ import annotations

from types import ModuleType

from figures import (
    activations,
    counts,
    evaluation,
    gpu_aonet,
    gpu_evaluation,
    gpu_fed,
    head,
    latency,
    levers,
    loading,
    optimizer,
    ranking,
    rerank,
    runtimes,
    search,
    similarity,
    step,
)

SUITES: dict[str, tuple[ModuleType, ...]] = {
    "cpu": (
        counts,
        activations,
        similarity,
        ranking,
        evaluation,
        rerank,
        search,
        optimizer,
        loading,
        latency,
        head,
        step,
        levers,
    ),
    "latency": (latency, runtimes),
    "gpu": (gpu_evaluation, gpu_fed, gpu_aonet),
}

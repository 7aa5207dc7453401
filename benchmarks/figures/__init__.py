"""One module per figure, with ``NAMES`` and ``measure(...)``.

``measure`` checks that both sides agree and returns :class:`harness.comparison.Figure` by name, or
yields (name, figure), so that a later failure does not lose earlier results. Its arguments are
sizes; the defaults are those of the tables.
"""

from __future__ import annotations

from types import ModuleType

from figures import (
    activations,
    counts,
    evaluation,
    gpu_aonet,
    gpu_compiled,
    gpu_evaluation,
    gpu_fed,
    gpu_schedule,
    gpu_search,
    head,
    importing,
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
        importing, counts, activations, similarity, ranking, evaluation, rerank, search, optimizer,
        loading, latency, head, step, levers,
    ),
    "latency": (latency, runtimes),
    # the most important first: time may run out
    "gpu": (gpu_fed, gpu_schedule, gpu_aonet, gpu_evaluation, gpu_search, gpu_compiled),
}  # fmt: skip

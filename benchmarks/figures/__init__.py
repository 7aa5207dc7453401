"""One module per figure. Each has ``NAMES``, what it measures, and ``measure(...)``.

``measure`` checks that both sides agree and returns a :class:`comparison.Figure` by name, or yields
names and figures one by one, so that a later failure does not lose the earlier ones. Its arguments
are sizes, whose defaults are those of the table.
"""

from __future__ import annotations

from types import ModuleType

from figures import (
    activations,
    counts,
    evaluation,
    gpu_aonet,
    gpu_aonet_compiled,
    gpu_evaluation,
    gpu_fed,
    gpu_fed_compiled,
    gpu_schedule,
    gpu_search,
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
    # what matters most comes first: the time may be up before the last
    "gpu": (
        gpu_fed,
        gpu_schedule,
        gpu_aonet,
        gpu_evaluation,
        gpu_search,
        gpu_fed_compiled,
        gpu_aonet_compiled,
    ),
}

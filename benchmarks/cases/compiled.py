"""Training steps by torch.compile, beside the same steps as they are written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from harness.comparison import Figure, figure, require_equal, time_alternately
from torch import nn
from torch._dynamo.utils import counters

from cases.engine_steps import build_step, run_steps
from cases.training import SGD
from occluded_reid.config import load_config

OPTIONS = (*SGD, "SOLVER.BASE_LR", "0.0001", "SOLVER.AMP.ENABLED", "True")
MODES = {"compiled": "default", "graphs": "reduce-overhead"}
FIRST = 5  # steps: a CUDA graph is recorded at the second, and replayed from the third on


def compare_modes(
    method: str, build: Callable[[], nn.Module], batch: dict[str, Any], **options: Any
) -> Iterator[tuple[str, Figure]]:
    """Yield ``gpu_<method>_compiled``, and ``gpu_<method>_graphs``, which replays CUDA graphs.

    Args:
        method: fed or aonet.
        build: as for :func:`compare_compiled`, like the others.
    """
    for name, mode in MODES.items():
        yield f"gpu_{method}_{name}", compare_compiled(build, batch, mode, **options)


def compare_compiled(
    build: Callable[[], nn.Module], batch: dict[str, Any], mode: str, *, device: str, rounds: int,
    in_a_row: int,
) -> Figure:  # fmt: skip
    """Compare a training step in bf16 autocast that is compiled in a mode with one that is not.

    Args:
        build: returns the model, without dropout, which a compiler draws in its own way.
        batch: that every step trains on.
        mode: ``MODEL.COMPILE_MODE``.
        device: where.
        rounds: how many.
        in_a_row: steps of a round.

    Raises:
        Unequal: the losses differ, or the models' memories do.
        RuntimeError: CUDA graphs were asked for, and there are none.
    """
    torch._dynamo.reset()
    counters.clear()
    compiled = ("MODEL.COMPILE", "True", "MODEL.COMPILE_MODE", mode)
    steps = [
        build_step(load_config("", [*OPTIONS, "MODEL.DEVICE", device, *more]), build(), batches)
        for more, batches in ((compiled, itertools.repeat(batch)), ((), itertools.repeat(batch)))
    ]
    ours, reference = (run_steps(step, FIRST) for step in steps)
    graphs = device != "cpu" and mode == "reduce-overhead"
    extent = f", {extent_of_graphs()}" if graphs else ""
    require_equal("losses", ours["total_loss"], reference["total_loss"], atol=0, rtol=0.05)
    require_equal_buffers(*(step.model for step in steps))
    times = time_alternately(
        *(partial(run_steps, step, in_a_row) for step in steps), rounds=rounds, device=device
    )
    size = len(batch["targets"])
    unit = f"s per step, {size} in a batch, torch.compile {mode}{extent}, against none"
    return figure([[spent / in_a_row for spent in each] for each in times], unit)


def extent_of_graphs() -> str:
    """Return whether all of the step is in CUDA graphs, by the compiler's counts.

    Raises:
        RuntimeError: nothing is.
    """
    found = counters["inductor"]
    if not found["cudagraph_recorded_non_static_inputs"]:
        raise RuntimeError("nothing of the step was recorded in CUDA graphs")
    outside = {name: found[name] for name in ("cudagraph_skips", "cudagraph_partitions")}
    return f"not all in CUDA graphs {outside}" if any(outside.values()) else "all in CUDA graphs"


def require_equal_buffers(model: nn.Module, reference: nn.Module) -> None:
    """Check that memories and statistics have moved alike.

    bf16 is rounded at other places by a compiler. After some steps that was seen to be 0.001 of a
    loss, and 0.25 of AONet's memory, whose peaks lie at other pixels then; a memory that stays as
    it was is off by 1.

    Raises:
        Unequal: one is off by more than half of its length.
    """
    others = dict(reference.named_buffers())
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            off = (buffer - others[name]).norm() / others[name].norm().clamp(min=1e-6)
            require_equal(f"{name}, relative difference", off, 0.0, atol=0.5)

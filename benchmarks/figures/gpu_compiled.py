"""``gpu_*_compiled`` and ``gpu_*_graphs``: a bf16 training step with torch.compile, and without.

``*_graphs`` replays CUDA graphs (``MODEL.COMPILE_MODE reduce-overhead``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from cases import aonet_case, fed_case
from cases.aonet_case import AONetCase
from cases.engine_steps import build_step, run_steps
from cases.fed_case import FEDCase
from cases.training import SGD
from harness.comparison import Figure, make_figure, require_equal, time_alternately
from torch import nn
from torch._dynamo.utils import counters

from occluded_reid.config import load_config

NAMES = ("gpu_fed_compiled", "gpu_fed_graphs", "gpu_aonet_compiled", "gpu_aonet_graphs")
OPTIONS = (*SGD, "SOLVER.BASE_LR", "0.0001", "SOLVER.AMP.ENABLED", "True")
MODES = {"compiled": "default", "graphs": "reduce-overhead"}
FIRST = 5  # steps: a CUDA graph is recorded in the second and replayed from the third on


def measure(
    fed: FEDCase = FEDCase(drop_path=0.0),  # noqa: B008
    aonet: AONetCase = AONetCase(),  # noqa: B008
    device: str = "cuda",
    rounds: int = 10,
    in_a_row: int = 10,
) -> Iterator[tuple[str, Figure]]:
    """Compare each mode, after both sides trained alike.

    The models have no dropout, which a compiler samples in its own way.
    """
    builders: dict[str, tuple[Callable[[], nn.Module], dict[str, torch.Tensor]]] = {
        "fed": (partial(fed_case.build_fed, fed, device), fed_case.build_batch(fed, device)),
        "aonet": (
            partial(aonet_case.build_aonet, aonet, device, channels_last=True),
            aonet_case.build_batch(aonet, device),
        ),
    }
    for method, (build, batch) in builders.items():
        for name, mode in MODES.items():
            figure = compare_mode(
                build, batch, mode, device=device, rounds=rounds, in_a_row=in_a_row
            )
            yield f"gpu_{method}_{name}", figure


def compare_mode(
    build: Callable[[], nn.Module], batch: dict[str, Any], mode: str, *, device: str, rounds: int,
    in_a_row: int,
) -> Figure:  # fmt: skip
    """Compare ``in_a_row`` steps per round on the same batch.

    Raises:
        MismatchError: Losses or memories differ.
        RuntimeError: No CUDA graph was recorded where the mode asks for them.
    """
    torch._dynamo.reset()
    counters.clear()
    compiled = ("MODEL.COMPILE", "True", "MODEL.COMPILE_MODE", mode)
    steps = [
        build_step(
            load_config("", [*OPTIONS, "MODEL.DEVICE", device, *more]),
            build(),
            itertools.repeat(batch),
        )
        for more in (compiled, ())
    ]
    ours, reference = (run_steps(step, FIRST) for step in steps)
    graphs = device != "cpu" and mode == "reduce-overhead"
    extent = f", {describe_graphs()}" if graphs else ""
    require_equal("losses", ours["total_loss"], reference["total_loss"], atol=0, rtol=0.05)
    require_equal_buffers(*(step.model for step in steps))
    times = time_alternately(
        *(partial(run_steps, step, in_a_row) for step in steps), rounds=rounds, device=device
    )
    size = len(batch["targets"])
    unit = f"s per step, {size} in a batch, torch.compile {mode}{extent}, against none"
    return make_figure([[seconds / in_a_row for seconds in each] for each in times], unit)


def describe_graphs() -> str:
    """Return whether CUDA graphs cover the whole step, from the compiler's counts.

    Raises:
        RuntimeError: No graph was recorded.
    """
    found = counters["inductor"]
    if not found["cudagraph_recorded_non_static_inputs"]:
        raise RuntimeError("no part of the step was recorded in CUDA graphs")
    outside = {name: found[name] for name in ("cudagraph_skips", "cudagraph_partitions")}
    return f"not all in CUDA graphs {outside}" if any(outside.values()) else "all in CUDA graphs"


def require_equal_buffers(model: nn.Module, reference: nn.Module) -> None:
    """Raise MismatchError if memories or statistics moved differently.

    A compiler rounds bf16 at other points: after some steps a loss differs by 0.001, AONet's memory
    by 0.25, as its peaks move to other pixels. A memory that did not move differs by 1.
    """
    others = dict(reference.named_buffers())
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            off = (buffer - others[name]).norm() / others[name].norm().clamp(min=1e-6)
            require_equal(f"{name}, relative difference", off, 0.0, atol=0.5)

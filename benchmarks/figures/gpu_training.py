"""Training steps on a GPU in bf16 autocast, optimizer included: both methods, and compiled."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from cases.training import AONET, FED, SGD, AONetCase, FEDCase, build_step, our_step, run_steps
from harness.comparison import (
    Figure,
    Figures,
    Work,
    make_figure,
    measure_seconds,
    require_equal,
    time_alternately,
)
from references import fed_in_loops
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from occluded_reid.config import load_config
from occluded_reid.engine.optimizer import build_optimizer

TIMING = {"device": "cuda", "rounds": 10, "in_a_row": 5}
SCHEDULE = 120 * (15618 // 64)  # steps on Occluded-Duke
PLAIN = FED.smaller(drop_path=0.0)  # a compiler samples dropout in its own way
MODES = {"compiled": "default", "graphs": "reduce-overhead"}
FIRST = 5  # steps: a CUDA graph is recorded in the second and replayed from the third on


def measure_fed(
    case: FEDCase = FED, peak_side: int = 8192, timing: dict[str, Any] = TIMING
) -> Figures:
    """Compare FED with the step in loops."""
    device = timing["device"]
    fed_in_loops.check_steps(device)
    batch, model, cfg = case.build_batch(device), case.build_model(device), load_config("", SGD)
    reference = fed_in_loops.plain_copy(model)
    ours = partial(our_step, model, batch, torch.bfloat16)
    loops = partial(fed_in_loops.training_step, reference, batch, torch.bfloat16)
    optimizers = build_optimizer(cfg, model), fed_in_loops.build_sgd(reference, cfg)
    works = [add_optimizer(*each) for each in zip((ours, loops), optimizers, strict=True)]
    return compare_training("fed", works, timing, images=2 * case.pairs, peak_side=peak_side)


def measure_aonet(
    case: AONetCase = AONET, peak_side: int = 8192, timing: dict[str, Any] = TIMING
) -> Figures:
    """Compare AONet's configuration with PyTorch's default layout and optimizer.

    ``gpu_aonet_tried``: with ``CUDNN_BENCHMARK``, against without.
    """
    device, cfg = timing["device"], load_config("", SGD)
    batch = case.build_batch(device)
    models = case.build_model(device, channels_last=True), case.build_model(device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        ours, reference = (our_step(model, batch) for model in models)
    for name, value in reference.items():
        require_equal(name, ours[name], value, atol=1e-3, rtol=1e-2)
    optimizers = build_optimizer(cfg, models[0]), fed_in_loops.build_sgd(models[1], cfg)
    works = [
        add_optimizer(partial(our_step, model, batch, torch.bfloat16), optimizer)
        for model, optimizer in zip(models, optimizers, strict=True)
    ]
    yield from compare_training("aonet", works, timing, images=case.images, peak_side=peak_side)

    def with_benchmark() -> None:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            works[0]()

    times = time_alternately(with_benchmark, works[0], **timing)
    yield "gpu_aonet_tried", make_figure(times, f"s per step, {case.images} images")


def add_optimizer(step: Work, optimizer: torch.optim.Optimizer) -> Work:
    """Return ``step`` followed by the optimizer."""

    def work() -> None:
        step()
        optimizer.step()
        optimizer.zero_grad()

    return work


def compare_training(
    name: str, works: Sequence[Work], timing: dict[str, Any], *, images: int, peak_side: int
) -> Figures:
    """Compare two steps of ``images``; yield the figures ``gpu_<name>_*``.

    ``timing`` is for :func:`time_alternately`. Square matrices of side ``peak_side`` give the peak.
    """
    times = time_alternately(*works, **timing)
    rates = [[images / spent for spent in each] for each in times]
    yield f"gpu_{name}_images", make_figure(rates, f"images per s, {images} in a step", rate=True)
    minutes = [[SCHEDULE * spent / 60 for spent in each] for each in times]
    unit = f"minutes for {SCHEDULE} steps, 120 epochs, without a loader"
    yield f"gpu_{name}_schedule", make_figure(minutes, unit)
    flops, peak = count_flops(works[0]), measure_peak(timing["device"], peak_side)
    shares = [[flops / spent / peak for spent in each] for each in times]
    unit = f"of {peak / 1e12:.3g} TFLOP/s, what a bf16 matrix product reaches"
    yield f"gpu_{name}_share", make_figure(shares, unit, rate=True)
    if timing["device"] != "cpu":
        memory = [[measure_memory(work) / 1e9] for work in works]
        yield f"gpu_{name}_memory", make_figure(memory, f"GB beside the weights, {images} images")


def count_flops(work: Work) -> int:
    """Return the FLOPs of all matrix products; attention counts as its products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@functools.cache
def measure_peak(device: str, side: int) -> float:
    """Return the FLOP/s of a bf16 matrix product, best of ten."""
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / min(measure_seconds(lambda: one @ other, device) for _ in range(10))


def measure_memory(work: Work) -> int:
    """Return the peak GPU memory of ``work`` in bytes, beyond what was allocated before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def measure_compiled(
    fed: FEDCase = PLAIN, aonet: AONetCase = AONET, timing: dict[str, Any] = TIMING
) -> Figures:
    """Compare each mode of torch.compile with none, after both sides trained alike.

    ``*_graphs`` replays CUDA graphs (``MODEL.COMPILE_MODE reduce-overhead``).
    """
    device = timing["device"]
    for method, case, build in (
        ("fed", fed, partial(fed.build_model, device)),
        ("aonet", aonet, partial(aonet.build_model, device, channels_last=True)),
    ):
        batch = case.build_batch(device)
        for name, mode in MODES.items():
            yield f"gpu_{method}_{name}", compare_mode(build, batch, mode, **timing)


def compare_mode(
    build: Callable[[], nn.Module], batch: dict[str, Any], mode: str, *, device: str, rounds: int,
    in_a_row: int,
) -> Figure:  # fmt: skip
    """Compare ``in_a_row`` steps per round on the same batch, if losses and memories agree."""
    torch._dynamo.reset()
    counters.clear()
    options = (
        *SGD, "SOLVER.BASE_LR", "0.0001", "SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", device
    )  # fmt: skip
    compiled = ("MODEL.COMPILE", "True", "MODEL.COMPILE_MODE", mode)
    steps = [
        build_step(load_config("", [*options, *more]), build(), itertools.repeat(batch))
        for more in (compiled, ())
    ]
    ours, reference = (run_steps(step, FIRST) for step in steps)
    graphs = device != "cpu" and mode == "reduce-overhead"
    extent = f", {describe_graphs()}" if graphs else ""
    require_equal("losses", ours["total_loss"], reference["total_loss"], atol=0, rtol=0.05)
    require_equal_buffers(*(step.model for step in steps))
    works = (partial(run_steps, step, in_a_row) for step in steps)
    times = time_alternately(*works, rounds=rounds, device=device)
    size = len(batch["targets"])
    unit = f"s per step, {size} in a batch, torch.compile {mode}{extent}, against none"
    return make_figure([[seconds / in_a_row for seconds in each] for each in times], unit)


def describe_graphs() -> str:
    """Return whether CUDA graphs cover the whole step, from the compiler's counts."""
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

"""A training step on several ranks: its messages, and its time beside that of the same step alone.

Every rank runs these functions at the same time as the others.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from cases.training import SGD
from fastreid.config import CfgNode
from fastreid.utils import comm
from fastreid.utils.events import EventStorage
from harness.comparison import Work
from messages import by_purpose, count_messages, sizes
from scaling import AS_TRAINED, BF16, LARGE
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from occluded_reid.config import load_config
from occluded_reid.engine import trainer
from occluded_reid.engine.optimizer import build_optimizer
from occluded_reid.engine.train_step import TrainingStep

# What the trainer could ask of DistributedDataParallel.
VARIANTS: dict[str, dict[str, Any]] = {
    "gradients copied": {"gradient_as_bucket_view": False},
    LARGE: {"gradient_as_bucket_view": True, "bucket_cap_mb": 100},
    "static graph": {"gradient_as_bucket_view": True, "static_graph": True},
    BF16: {"gradient_as_bucket_view": True},
}
WARM = 3  # iterations before a measurement: in the second or third the buckets are laid out anew

Times = dict[str, dict[str, list[float]]]


def training_cfg(device: str) -> CfgNode:
    """Return a training that moves nothing; on a GPU in bf16, as it would be trained there."""
    words = ["SOLVER.BASE_LR", "0.0", "MODEL.DEVICE", device]
    return load_config("", [*SGD, *words, "SOLVER.AMP.ENABLED", str(device != "cpu")])


def measure_variant(
    name: str, model: nn.Module, batch: dict[str, torch.Tensor], *, rounds: int, device: str
) -> dict[str, Any]:
    """Return the messages and times of a step, the same on every rank.

    Args:
        name: ``AS_TRAINED``, or of ``VARIANTS``.
        model: in training mode.
        batch: this rank's.
        rounds: how often the step is timed.
        device: ``cpu`` or ``cuda``.
    """
    cfg = training_cfg(device)
    wrapped = wrapped_as(name, cfg, model)
    optimizer = build_optimizer(cfg, model)
    step = TrainingStep(cfg, wrapped, itertools.repeat(batch), optimizer, iters_per_epoch=1)
    with EventStorage(0):
        for _ in range(WARM):
            step.run_step()
        messages, held = count_messages(step, wrapped)

        def alone() -> None:
            with unsynchronised(wrapped):
                step.run_step()

        times = take_turns({"step": step.run_step, "step alone": alone}, rounds, device)
    return {
        "messages": by_purpose(messages),
        "gradient_messages": sizes(messages, "gradients"),
        "memory_messages": sizes(messages, "memories"),
        "gradient_bytes_held": held,
        "times": times,
    }


def wrapped_as(name: str, cfg: CfgNode, model: nn.Module) -> Any:
    """Return the model in DistributedDataParallel, asked for what the variant says."""
    if name == AS_TRAINED:
        return trainer.wrap(cfg, model)
    place = [comm.get_local_rank()]
    options = {"broadcast_buffers": False, **VARIANTS[name]}
    wrapped = trainer.defaults.DistributedDataParallel(model, device_ids=place, **options)
    if name == BF16:
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


@contextlib.contextmanager
def unsynchronised(model: DistributedDataParallel) -> Iterator[None]:
    """Let a rank work as if it were the only one: gradients, memories and losses stay its own."""
    with model.no_sync(), mock.patch.object(comm, "get_world_size", return_value=1):
        yield


def measure_collectives(
    variant: dict[str, Any], gathered: list[int], *, rounds: int, device: str
) -> Times:
    """Return the times of collectives by themselves, the same on every rank.

    Args:
        variant: of :func:`measure_variant`, whose messages are sent.
        gathered: bytes that a rank would hand out, were features gathered and not their sums.
        rounds: how often.
        device: ``cpu`` or ``cuda``.
    """
    gradients, memories = variant["gradient_messages"], variant["memory_messages"]
    works = {
        "gradients": all_reduces(gradients, torch.float32, device),
        "gradients in bf16": all_reduces([n // 2 for n in gradients], torch.bfloat16, device),
        "memories": all_reduces(memories, torch.float32, device),
        "memories in one message": all_reduces([sum(memories)], torch.float32, device),
        "memories, rows gathered": all_gathers(gathered, device),
    }
    for work in works.values():
        work()
    return take_turns(works, rounds, device)


def all_reduces(sizes: list[int], dtype: torch.dtype, device: str) -> Work:
    """Return a function that sums messages of so many bytes over the ranks, all under way."""
    tensors = [torch.zeros(size // dtype.itemsize, dtype=dtype, device=device) for size in sizes]

    def work() -> None:
        for handle in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            handle.wait()

    return work


def all_gathers(sizes: list[int], device: str) -> Work:
    """Return a function that gives messages of so many bytes of every rank to all."""
    tensors = [torch.zeros(size // 4, device=device) for size in sizes]
    places = [[torch.empty_like(t) for _ in range(comm.get_world_size())] for t in tensors]

    def work() -> None:
        for place, tensor in zip(places, tensors, strict=True):
            dist.all_gather(place, tensor)

    return work


def take_turns(works: dict[str, Work], rounds: int, device: str) -> Times:
    """Return the median, the least and the largest seconds of each work, done in turn.

    ``wall`` is the time of the slowest rank, from a common start; ``processor`` the mean of the
    ranks' processor time, which other programs and waiting disturb less; it says nothing of a GPU.
    """
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for name, work in [*works.items()] * rounds:
        dist.barrier()
        rows[name].append(_seconds(work, device))
    ranks = comm.all_gather(rows)
    times: Times = {}
    for name in works:
        by_round = list(zip(*(rank[name] for rank in ranks), strict=True))
        times[name] = {
            "wall": _spread([max(wall for wall, _ in each) for each in by_round]),
            "processor": _spread([statistics.mean(cpu for _, cpu in each) for each in by_round]),
        }
    return times


def _seconds(work: Work, device: str) -> tuple[float, float]:
    """Return how long ``work`` takes: on the wall, of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def _spread(values: list[float]) -> list[float]:
    return [statistics.median(values), min(values), max(values)]

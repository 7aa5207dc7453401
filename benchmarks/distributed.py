#!/usr/bin/env python
"""Measure what synchronization costs a training step: messages, bytes, and time with and without.

Without torchrun, start --ranks processes on this machine, on gloo, or on NCCL with --device cuda.
Under torchrun, measure the job that torchrun started, on all of its machines. --images counts those
of a rank, an even number for FED.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import os
import sys
import time
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from cases.training import SGD, AONetCase, FEDCase, build_step
from fastreid.utils import comm
from fastreid.utils.events import EventStorage
from harness.comparison import Work
from harness.machine import build_parser, check_writable, write_results
from tabulate import tabulate
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from occluded_reid.config import load_config
from occluded_reid.engine.interruption import StopRequest
from occluded_reid.engine.launch import launch
from occluded_reid.engine.train_step import TrainingStep
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.distributed import copy_buffers_from_first_rank
from occluded_reid.utils.errors import UserError

# How often a training run sends what. On a GPU the losses are read every SOLVER.LOG_PERIOD steps.
FREQUENCY = {
    "memories": "iteration",
    "gradients": "optimizer step",
    "losses": "reading",
    "stop signal": "reading",
    "buffers": "epoch",
    "other": "iteration",
}
SENT_ARGUMENT = {"allreduce_": 0, "broadcast_": 0, "allgather_": 1}
Messages = list[tuple[str, str, int]]
WARM_UP = 3  # iterations; DDP lays its buckets out anew in the second or third


class MessageCounter(TorchDispatchMode):
    """Record collectives, including those that DDP starts in the backward pass.

    ``messages`` holds purpose (a key of ``FREQUENCY``), kind, and the bytes that one rank sends;
    ``storages`` the bytes of gradients and DDP's buckets by address.
    """

    def __init__(self) -> None:
        super().__init__()
        self.purpose = "other"
        self.messages: Messages = []
        self.storages: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            for tensor in args[SENT_ARGUMENT[name]]:
                self.messages.append((self.purpose, name.rstrip("_"), tensor.nbytes))
                if self.purpose == "gradients":
                    self.record_storage(tensor)
        return func(*args, **(kwargs or {}))

    def record_storage(self, tensor: torch.Tensor) -> None:
        """Count the memory behind ``tensor`` once, however many tensors share it."""
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()


def build_case(method: str, images: int) -> FEDCase | AONetCase:
    """Return the sizes of the paper, with another number of images per rank."""
    if method == "AONet":
        return AONetCase(images=images)
    if images % 2:
        raise UserError(f"--images {images}: FED needs pairs; give an even number")
    return FEDCase(pairs=images // 2)


def start(args: argparse.Namespace) -> None:
    """Check the options and start the ranks, unless torchrun did."""
    build_case(args.method, args.images)
    gpus, under_torchrun = torch.cuda.device_count(), "TORCHELASTIC_RUN_ID" in os.environ
    if args.device == "cuda" and not under_torchrun and gpus < args.ranks:
        raise UserError(f"--ranks {args.ranks} on --device cuda: this machine has {gpus} GPUs")
    check_writable(args.json)
    launch(run, args, device=args.device, processes=args.ranks)


def run(args: argparse.Namespace) -> None:
    """Measure on one rank; the first rank prints and writes the results."""
    if comm.get_world_size() < 2:
        raise UserError("one process sends no messages: use --ranks 2, or torchrun with two")
    if args.device == "cpu":
        torch.set_num_threads(1)
    results = measure(build_case(args.method, args.images), args.rounds, args.device)
    if not comm.is_main_process():
        return
    print(format_tables(results))
    job = {"method": args.method, "ranks": comm.get_world_size(), "backend": dist.get_backend()}
    write_results(args.json, {**job, **results})


def measure(case: FEDCase | AONetCase, rounds: int, device: str) -> dict[str, Any]:
    """Return the messages and the times of a training step, the same on every rank.

    ``case`` holds the batch of one rank. On a GPU the step runs in bf16 autocast.
    """
    model, batch = case.build_model(device), case.build_batch(device)
    options = [*SGD, "SOLVER.BASE_LR", "0.0", "MODEL.DEVICE", device]
    cfg = load_config("", [*options, "SOLVER.AMP.ENABLED", str(device != "cpu")])
    step = build_step(cfg, model, itertools.repeat(batch))
    wrapped: Any = step.model

    def run_alone() -> None:
        """Run a rank as the only one: it keeps gradients, memories and losses to itself."""
        with wrapped.no_sync(), mock.patch.object(comm, "get_world_size", return_value=1):
            step.run_step()

    with EventStorage(0):
        for _ in range(WARM_UP):
            step.run_step()
        messages, held = count_messages(step, wrapped)
        times = time_in_turn({"step": step.run_step, "step alone": run_alone}, rounds, device)
    return {
        "case": dataclasses.asdict(case),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "messages": summarize_messages(messages),
        "gradient_messages": [size for purpose, _, size in messages if purpose == "gradients"],
        "memory_messages": [size for purpose, _, size in messages if purpose == "memories"],
        "gradient_bytes_held": held,
        "times": times,
    }


def count_messages(step: TrainingStep, model: DistributedDataParallel) -> tuple[Messages, int]:
    """Run an iteration, and everything that a training run does less often.

    Returns:
        All messages, and the bytes that gradients and DDP's buckets hold before the update.
    """
    step.read_losses()
    counter = MessageCounter()

    set_purpose = functools.partial(setattr, counter, "purpose")

    def record_gradients(*_: Any) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                counter.record_storage(parameter.grad)

    hooks = (
        step.optimizer.register_step_pre_hook(record_gradients),
        model.module.register_forward_pre_hook(lambda *_: set_purpose("memories")),
        model.module.register_forward_hook(lambda *_: set_purpose("gradients")),
    )
    with counter:
        with mock.patch.object(step, "read_losses"):
            step.run_step()
        set_purpose("losses")
        step.read_losses()
        set_purpose("stop signal")
        StopRequest().is_agreed(exchange=True)
        set_purpose("buffers")
        copy_buffers_from_first_rank(model.module)
    for hook in hooks:
        hook.remove()
    return counter.messages, sum(counter.storages.values())


def summarize_messages(messages: Messages) -> list[dict[str, Any]]:
    """Return a row per purpose and kind: number of messages, total bytes, frequency."""
    sizes: dict[tuple[str, str], list[int]] = {}
    for purpose, kind, size in messages:
        sizes.setdefault((purpose, kind), []).append(size)
    return [
        {"purpose": purpose, "kind": kind, "number": len(each), "bytes": sum(each),
         "every": FREQUENCY[purpose]}
        for (purpose, kind), each in sizes.items()
    ]  # fmt: skip


def time_in_turn(
    works: dict[str, Work], rounds: int, device: str
) -> dict[str, dict[str, list[float]]]:
    """Return median, minimum and maximum seconds of each work, timed in turn on all ranks.

    ``wall`` is the time of the slowest rank from a common start. ``processor`` is the ranks' mean
    processor time, which other programs disturb less; it does not include the GPU.
    """
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for name, work in [*works.items()] * rounds:
        dist.barrier()
        wall, processor = time.perf_counter(), time.process_time()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        rows[name].append((time.perf_counter() - wall, time.process_time() - processor))
    ranks = comm.all_gather(rows)
    times: dict[str, dict[str, list[float]]] = {}
    for name in works:
        # each (ranks, rounds)
        walls, processors = np.array([rank[name] for rank in ranks]).transpose(2, 0, 1)
        times[name] = {
            clock: [float(summary(values)) for summary in (np.median, np.min, np.max)]
            for clock, values in (("wall", walls.max(0)), ("processor", processors.mean(0)))
        }
    return times


def format_tables(results: dict[str, Any]) -> str:
    """Return the results as Markdown tables."""
    spread = "{:.3g} ({:.3g} - {:.3g})"
    times = [
        {"work": work, **{f"{clock} s": spread.format(*each) for clock, each in clocks.items()}}
        for work, clocks in results["times"].items()
    ]
    held = f"{results['gradient_bytes_held'] / 1e6:.3g} MB in gradients and buckets"
    title = f"{results['parameters']:,} parameters, {held}"
    tables = [tabulate(rows, "keys", "pipe") for rows in (results["messages"], times)]
    return "\n\n".join([title, *tables])


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = build_parser(__doc__, ("--ranks", 2), ("--images", 4), ("--rounds", 5))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--method", choices=("FED", "AONet"), default="FED")
    args = parser.parse_args(words)
    return run_command(lambda: start(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

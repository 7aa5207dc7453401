"""Counting messages: what a rank hands to the others, and what for. Nothing is timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any
from unittest import mock

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from occluded_reid.engine.interruption import StopRequest
from occluded_reid.engine.train_step import TrainingStep
from occluded_reid.utils.distributed import copy_buffers_from_first_rank

# How often a training sends what: on a GPU the losses are read every SOLVER.LOG_PERIOD iterations.
EVERY = {
    "memories": "iteration",
    "gradients": "optimizer step",
    "losses": "reading",
    "stop signal": "reading",
    "buffers": "epoch",
    "other": "iteration",
}
# The argument of a collective that holds what this rank sends.
SENT = {"allreduce_": 0, "broadcast_": 0, "allgather_": 1}


@dataclasses.dataclass(frozen=True)
class Message:
    """One collective, as every rank makes it.

    Attributes:
        purpose: what it is for, one of ``EVERY``.
        kind: of the collective: ``allreduce``, ``allgather``, ``broadcast``.
        bytes: of what one rank puts in.
    """

    purpose: str
    kind: str
    bytes: int


class MessageCounter(TorchDispatchMode):
    """Notes collectives, those that DistributedDataParallel sends from the backward pass too.

    Attributes:
        purpose: of the messages from now on.
        found: the messages in their order.
        storages: bytes, by address, of the memory of gradients and DDP's buckets.
    """

    def __init__(self) -> None:
        super().__init__()
        self.purpose = "other"
        self.found: list[Message] = []
        self.storages: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            for tensor in args[SENT[name]]:
                size = tensor.numel() * tensor.element_size()
                self.found.append(Message(self.purpose, name.rstrip("_"), size))
                if self.purpose == "gradients" and tensor.dtype == torch.float32:
                    self.look(tensor)  # what is compressed comes and goes
        return func(*args, **(kwargs or {}))

    def look(self, tensor: torch.Tensor) -> None:
        """Note the memory of a tensor; what shares it counts once."""
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()


def count_messages(step: TrainingStep, model: DistributedDataParallel) -> tuple[list[Message], int]:
    """Run an iteration, and what a training does now and then.

    Args:
        step: of a training whose buckets are laid out: DDP does that in the second iteration.
        model: that it trains.

    Returns:
        All messages; the bytes of gradients and DDP's buckets together when the optimizer begins.
    """
    step.read_losses()
    counter = MessageCounter()

    def now(purpose: str) -> None:
        counter.purpose = purpose

    def look(*_: Any) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                counter.look(parameter.grad)

    hooks = (
        step.optimizer.register_step_pre_hook(look),
        model.module.register_forward_pre_hook(lambda *_: now("memories")),
        model.module.register_forward_hook(lambda *_: now("gradients")),
    )
    with counter:
        with mock.patch.object(step, "read_losses"):
            step.run_step()
        now("losses")
        step.read_losses()
        now("stop signal")
        StopRequest().agreed(now=True)
        now("buffers")
        copy_buffers_from_first_rank(model.module)
    for hook in hooks:
        hook.remove()
    return counter.found, sum(counter.storages.values())


def sizes(messages: Iterable[Message], purpose: str) -> list[int]:
    """Return the bytes of each message of one purpose, in their order."""
    return [each.bytes for each in messages if each.purpose == purpose]


def by_purpose(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return a row for each purpose and kind: how many messages, how many bytes in all."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for each in messages:
        empty = {"purpose": each.purpose, "kind": each.kind, "number": 0, "bytes": 0}
        row = rows.setdefault((each.purpose, each.kind), empty)
        row["number"] += 1
        row["bytes"] += each.bytes
    return [{**row, "every": EVERY[row["purpose"]]} for row in rows.values()]

"""What several processes have to agree on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

import occluded_reid.compat  # noqa: F401  (here, for utils itself does without PyTorch)

# isort: split
from fastreid.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from occluded_reid.utils.errors import UserError

T = TypeVar("T")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a DistributedDataParallel wrapper, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@torch.no_grad()
def copy_buffers_from_first_rank(model: nn.Module) -> None:
    """Give every rank rank 0's buffers, such as batch statistics, which DDP lets drift apart.

    Called after construction, and at the end of each epoch, so that what is evaluated is what is
    saved, and a resumed run is the one that was interrupted.
    """
    if comm.get_world_size() == 1:
        return
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def run_on_first_rank(work: Callable[[], T]) -> T:
    """Return what ``work`` returns on rank 0, on every rank; its UserError is raised on all.

    What it returns is pickled.
    """
    if comm.get_world_size() == 1:
        return work()
    answer: list[Any] = [None, ""]
    if comm.is_main_process():
        try:
            answer[0] = work()
        except UserError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0, group=comm._get_global_gloo_group())
    if answer[1]:
        raise UserError(answer[1])
    return cast(T, answer[0])


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Raise a UserError on every rank if the ranks' ``facts`` differ: what, and on which rank.

    >>> check_agreement({"SEED": 7})  # one process agrees with itself
    """
    if differences := find_differences(facts):
        raise UserError(
            f"the processes of this job differ: {'; '.join(differences)}. Give all machines the "
            "same configuration and the same data"
        )


def find_differences(facts: Mapping[str, Any]) -> list[str]:
    """Say in what the ranks' ``facts`` differ. Of lists the first difference is named.

    Ranks exchange a digest, and the facts only if those differ.
    """
    if len(set(comm.all_gather(sha256(repr(sorted(facts.items())).encode()).digest()))) == 1:
        return []
    differences = []
    everywhere: list[Mapping[str, Any]] = comm.all_gather(dict(facts))
    for key in sorted({key for each in everywhere for key in each}):
        values = [each.get(key) for each in everywhere]
        rank = next((rank for rank, value in enumerate(values) if value != values[0]), 0)
        if rank:
            here, there = _describe(values[0], values[rank]), _describe(values[rank], values[0])
            differences.append(f"{key} is {here} on rank 0, {there} on rank {rank}")
    return differences


def _describe(value: Any, other: Any) -> str:
    if not isinstance(value, list):
        return repr(value)
    pairs = enumerate(itertools.zip_longest(value, other or []))
    position = next((position for position, (one, two) in pairs if one != two), 0)
    return f"a list of {len(value)} with {value[position : position + 1]} at position {position}"


@torch.no_grad()
def sum_across_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of all ranks' ``tensor``, the same on every rank."""
    if comm.get_world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total

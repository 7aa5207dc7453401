"""What several processes have to agree on."""

from __future__ import annotations

import torch
import torch.distributed as dist

import occluded_reid.compat  # noqa: F401  (here, for utils itself does without PyTorch)

# isort: split
from fastreid.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel


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


def same_on_all_ranks(value: int) -> int:
    """Return rank 0's ``value`` on every rank."""
    return comm.all_gather(value)[0]


@torch.no_grad()
def sum_across_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of all ranks' ``tensor``, the same on every rank."""
    if comm.get_world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total

"""Stop on SIGTERM between two optimizer steps, and resume exactly there."""

from __future__ import annotations

import signal
import threading
from typing import Any

import torch
from fastreid.utils import comm
from torch import nn

from occluded_reid.checkpoint.states import require_form
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.random import (
    check_random_states,
    random_states,
    restore_random_states,
)

EXIT_CODE = 128 + signal.SIGTERM
"""The exit code that a shell reports for a process ended by SIGTERM."""


class StopRequest:
    """Records SIGTERM, with which Slurm, Kubernetes and torchrun announce that they will kill.

    Inside ``with StopRequest() as stop:`` the signal only sets ``stop.requested``. Only the main
    thread may handle signals; elsewhere nothing is recorded.
    """

    def __init__(self) -> None:
        self.requested = False
        self._is_agreed = False

    def __enter__(self) -> StopRequest:
        self._handles = threading.current_thread() is threading.main_thread()
        if self._handles:
            self._previous_handler = signal.signal(signal.SIGTERM, self._record)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def is_agreed(self, *, exchange: bool) -> bool:
        """Return whether all ranks know that one of them was asked to stop.

        With ``exchange`` the ranks exchange their requests, which all of them must do at the same
        iteration. Otherwise the last exchange counts.
        """
        if exchange and not self._is_agreed:
            self._is_agreed = any(comm.all_gather(self.requested))
        return self._is_agreed

    def _record(self, number: int, frame: Any) -> None:
        self.requested = True


def capture_rank_state(model: nn.Module) -> dict[str, Any]:
    """Return what differs between ranks in the middle of an epoch: random states and buffers."""
    buffers = [buffer.detach().cpu() for buffer in model.buffers()]
    return {"random": random_states(), "buffers": buffers}


@torch.no_grad()
def restore_rank_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Restore the random states and buffers that :func:`capture_rank_state` returned."""
    restore_random_states(state["random"])
    for buffer, value in zip(model.buffers(), state["buffers"], strict=True):
        buffer.copy_(value)


def read_partial_epoch(
    checkpoint: dict[str, Any], folder: str, model: nn.Module, length: int
) -> dict[str, Any] | None:
    """Return what a run's last checkpoint holds of an epoch that SIGTERM cut in two.

    Without it the run goes on with the next epoch. A UserError is raised unless it is of this model
    and as many processes, and within the ``length`` iterations of an epoch.
    """
    begun = checkpoint.get("begun")
    if begun is None:
        return None
    try:
        ranks = begun["ranks"]
        require_form(begun["steps"], 0, "begun/steps")
        for rank, state in enumerate(ranks):
            require_form(state["buffers"], list(model.buffers()), f"begun/ranks/{rank}/buffers")
            check_random_states(state["random"])
        if not 0 <= begun["steps"] <= length:
            raise ValueError(f"begun/steps is not from 0 to {length}")
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"the checkpoint of the run in {folder} holds no epoch to go on with ({error}); write "
            "the name of an earlier checkpoint into last_checkpoint"
        ) from error
    if len(ranks) != comm.get_world_size():
        raise UserError(
            f"the run in {folder} was stopped in the middle of an epoch with "
            f"{len(ranks)} processes and cannot be resumed with {comm.get_world_size()}; "
            "start as many, or write the name of an earlier checkpoint into last_checkpoint"
        )
    return begun

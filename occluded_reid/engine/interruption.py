"""SIGTERM ends a run between two optimizer steps, saved so that --resume goes on right there."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any

import torch
from fastreid.utils import comm
from torch import nn

from occluded_reid.utils.random import random_states, restore_random_states

EXIT_CODE = 128 + signal.SIGTERM
"""What a shell reports of a process that SIGTERM has ended."""


class StopRequest:
    """Notes SIGTERM, by which Slurm, Kubernetes and torchrun announce that they will kill.

    Inside ``with StopRequest() as stop:`` the signal only sets ``stop.asked``. Outside of the main
    thread, which alone may handle signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.asked = False
        self._agreed = False

    def __enter__(self) -> StopRequest:
        self._handles = threading.current_thread() is threading.main_thread()
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._before)

    def agreed(self, *, now: bool) -> bool:
        """Whether the ranks know that one of them was asked.

        Args:
            now: the ranks tell each other, at the same iteration; else only what they told counts.
        """
        if now and not self._agreed:
            self._agreed = any(comm.all_gather(self.asked))
        return self._agreed

    def _note(self, number: int, frame: Any) -> None:
        self.asked = True


def rank_state(model: nn.Module) -> dict[str, Any]:
    """Return what is this rank's own in the middle of an epoch: random states and buffers."""
    return {
        "random": random_states(),
        "buffers": [buffer.detach().cpu() for buffer in model.buffers()],
    }


@torch.no_grad()
def restore_rank_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Undo what happened to random states and buffers since :func:`rank_state`."""
    restore_random_states(state["random"])
    for buffer, value in zip(model.buffers(), state["buffers"], strict=True):
        buffer.copy_(value)

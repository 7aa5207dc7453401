"""Run work in several processes with the environment that torchrun sets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from runs import forked, status_of

from occluded_reid.engine.launch import launch


def fork_ranks(number: int, work: Callable[[int], object]) -> list[int]:
    """Start ``work(rank)`` in ``number`` forked processes; return their process ids."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def run(rank: int) -> None:
        os.environ.update(
            TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
            RANK=str(rank), LOCAL_RANK=str(rank),
            WORLD_SIZE=str(number), LOCAL_WORLD_SIZE=str(number),
        )  # fmt: skip
        work(rank)

    return [forked(lambda n=n: run(n)) for n in range(number)]


def run_ranks(number: int, work: Callable[[int], object]) -> list[int]:
    """Run ``work(rank)`` in ``number`` forked processes; return their exit codes."""
    return [status_of(pid) for pid in fork_ranks(number, work)]


def on_ranks(number: int, work: Callable[[int], object]) -> None:
    """Run ``work(rank)`` in ``number`` forked processes of one group; all must succeed."""
    statuses = run_ranks(number, lambda rank: launch(work, rank, device="cpu"))
    assert statuses == [0] * number


def has_ended(pid: int, within: float) -> bool:
    """Whether a process, not necessarily a child of this one, ends within ``within`` seconds."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False

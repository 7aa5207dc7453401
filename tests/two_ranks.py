"""Work in two processes that find what torchrun puts into the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from runs import forked, status_of

from occluded_reid.engine.launch import launch


def on_two_ranks(work: Callable[[int], object]) -> None:
    """Run ``work(rank)`` in two forked processes of one group; both must end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def run(rank: int) -> None:
        os.environ.update(
            TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        )  # fmt: skip
        launch(work, rank, device="cpu")

    assert [status_of(pid) for pid in [forked(lambda n=n: run(n)) for n in range(2)]] == [0, 0]

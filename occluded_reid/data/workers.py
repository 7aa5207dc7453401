"""The processes that read images for a data loader, and the wait for what they read.

They are forks of a process that may have threads, hold garbage and be told to stop; none of this is
theirs.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from occluded_reid.utils.errors import UserError

SECONDS_FOR_A_BATCH = 600.0
"""After so long the disk, or the workers, count as dead."""

OF_THE_PARENT = (signal.SIGINT, signal.SIGTERM)
STDERR = 2


def worker_options(workers: int) -> dict[str, Any]:
    """Return what every DataLoader is given; 0 workers: the process reads the images itself."""
    if not workers:
        return {"num_workers": 0}
    return {
        "num_workers": workers,
        "worker_init_fn": begin_worker,
        "timeout": SECONDS_FOR_A_BATCH,
    }


def begin_worker(number: int) -> None:
    """Make this process a worker that its parent alone can stop.

    * What the parent has left for the garbage collector is not collected here: to close a loader or
      a writer whose threads were not forked along can take for ever.
    * Slurm, Kubernetes and the terminal signal whole groups of processes. The parent still needs
      the worker then: it ends the step, saves, and stops its workers itself. A worker whose parent
      has died notices that (PyTorch looks every five seconds).
    * SIGUSR1 shows where the worker is.

    Args:
        number: of the worker.
    """
    gc.freeze()
    faulthandler.register(signal.SIGUSR1, file=STDERR)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_end_at_the_parents_sigterm, daemon=True).start()
    else:  # macOS
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def read_batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches of a loader that has :func:`worker_options`.

    Raises:
        UserError: none came for :data:`SECONDS_FOR_A_BATCH`; the workers' stacks are on stderr.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_THE_PARENT)
    try:
        batches: Any = iter(loader)  # starts the workers, which inherit what is blocked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
            _kill(batches._workers)
            raise UserError(
                f"{loader.num_workers} workers have read no batch in {loader.timeout:.0f} seconds; "
                "look whether the disk answers. If it does, the lines above tell where the workers "
                "were waiting, and DATALOADER.NUM_WORKERS 0 (--workers 0) does without them"
            ) from error
        yield batch


def _kill(workers: list[Any]) -> None:
    """End workers that may not hear anything else, once they have shown where they are."""
    for worker in workers:
        os.kill(worker.pid, signal.SIGUSR1)
    time.sleep(1)
    for worker in workers:
        worker.kill()


def _end_at_the_parents_sigterm() -> None:
    """PyTorch sends it to a worker that does not end otherwise."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)

"""Worker processes of a data loader, and a bounded wait for their batches.

Workers are forked from a process that may run threads, hold garbage and receive signals. None of
that may affect them.
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

BATCH_TIMEOUT = 600.0
"""Seconds without a batch after which the disk or the workers count as dead."""
_STDERR = 2


def build_worker_options(workers: int) -> dict[str, Any]:
    """Return the DataLoader's arguments for ``workers`` processes; 0 reads in this process."""
    if not workers:
        return {"num_workers": 0}
    return {"num_workers": workers, "worker_init_fn": init_worker, "timeout": BATCH_TIMEOUT}


def init_worker(_: int) -> None:
    """Make this process a worker that only its parent can stop.

    * The parent's garbage is not collected here: closing a loader or a writer whose threads were
      not forked along can hang.
    * Slurm, Kubernetes and the terminal signal whole process groups. The parent still needs its
      workers then: it ends the step, saves, and stops them itself. A worker whose parent has died
      notices within five seconds (PyTorch checks).
    * SIGUSR1 prints the worker's stack.
    """
    gc.freeze()
    faulthandler.register(signal.SIGUSR1, file=_STDERR)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_wait_for_parents_sigterm, daemon=True).start()
    else:  # macOS
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def read_batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches of a loader built with :func:`build_worker_options`.

    Raises:
        UserError: no batch within :data:`BATCH_TIMEOUT`; the workers' stacks are on stderr.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        # starts the workers, which inherit the mask; not iter(), whose result may be a wrapper
        batches: Any = DataLoader.__iter__(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
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
                "check that the disk responds. If it does, the stacks above show where the workers "
                "hang, and DATALOADER.NUM_WORKERS 0 (--workers 0) does without them"
            ) from error
        yield batch


def _kill(workers: list[Any]) -> None:
    """Kill workers that may not respond to anything else, after they have printed their stacks."""
    for worker in workers:
        os.kill(worker.pid, signal.SIGUSR1)
    time.sleep(1)
    for worker in workers:
        worker.kill()


def _wait_for_parents_sigterm() -> None:
    """Exit on a SIGTERM from the parent, which PyTorch sends to a worker that does not end."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)

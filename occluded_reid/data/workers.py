"""Worker processes of a data loader, and a bounded wait for their batches.

Workers are forked from a process that may run threads, hold garbage and receive signals. None of
that may affect them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.queues import Queue
from typing import Any

from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from occluded_reid.utils.errors import UserError

BATCH_TIMEOUT = 600.0
"""Seconds without a batch after which the disk or the workers count as dead."""
CHECK_INTERVAL = 5.0
"""Seconds between two looks at whether the thread that pins batches still lives."""
_STDERR = 2
_WORKER_ENDED = "DataLoader worker or thread exited unexpectedly"  # in PyTorch's words


def build_worker_options(workers: int) -> dict[str, Any]:
    """Return the DataLoader's arguments for ``workers`` processes; 0 reads in this process."""
    if not workers:
        return {"num_workers": 0}
    return {"num_workers": workers, "worker_init_fn": init_worker, "timeout": CHECK_INTERVAL}


def init_worker(_: int) -> None:
    """Make this process a worker that only its parent can stop.

    * The parent's garbage is not collected here: closing a loader or a writer whose threads were
      not forked along can hang.
    * Slurm, Kubernetes and the terminal signal whole process groups. The parent still needs its
      workers then: it ends the step, saves, and stops them itself. A worker whose parent has died
      notices within five seconds (PyTorch checks).
    * SIGUSR1 prints the worker's stack.
    * A batch that cannot be sent, for want of shared memory or of file descriptors, is an error in
      the parent, which would wait for it. So is a thread's failure to hand over a descriptor.
    """
    gc.freeze()
    setattr(Queue, "_on_queue_feeder_error", _send_error)  # noqa: B010  (mypy refuses to assign)
    sys.excepthook = _exit_after_traceback
    faulthandler.register(signal.SIGUSR1, file=_STDERR)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_wait_for_parents_sigterm, daemon=True).start()
    else:  # macOS
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def read_batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches of a loader built with :func:`build_worker_options`.

    Raises:
        UserError: no batch within :data:`BATCH_TIMEOUT`; the workers' stacks are on stderr.
        RuntimeError: a worker was killed, or could not send its batch.
        OSError: there is no shared memory, or no file descriptor, to start workers with.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        # starts the workers, which inherit the mask; not iter(), whose result may be a wrapper
        batches: Any = DataLoader.__iter__(loader)
    except OSError as error:  # PyTorch's half-made iterator fails once more when it is deleted
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        traceback.clear_frames(error.__traceback__)
        sys.unraisablehook = hook
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    waited = 0.0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (EOFError, ConnectionError) as error:  # killed while it sent a batch
            time.sleep(1)  # PyTorch's handler of SIGCHLD raises here, and names the worker
            raise RuntimeError(f"{_WORKER_ENDED} ({error!r})") from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
            waited += loader.timeout
            if batches._pin_memory and not batches._pin_memory_thread.is_alive():
                raise RuntimeError(_WORKER_ENDED) from error
            if waited < BATCH_TIMEOUT:
                continue
            _kill(batches._workers)
            raise UserError(
                f"{loader.num_workers} workers have read no batch in {waited:.0f} seconds; "
                "check that the disk responds. If it does, the stacks above show where the workers "
                "hang, and DATALOADER.NUM_WORKERS 0 (--workers 0) does without them"
            ) from error
        waited = 0.0
        yield batch


def _send_error(queue: Queue[Any], error: Exception, batch: tuple[int, Any]) -> None:
    """Send a worker's ``error`` in place of the ``batch`` (its number, its content)."""
    queue.put((batch[0], ExceptionWrapper(sys.exc_info(), where="while a batch was sent")))


def _exit_after_traceback(*error: Any) -> None:
    sys.__excepthook__(*error)
    os._exit(1)


def _kill(workers: list[Any]) -> None:
    """Kill workers that may not respond to anything else, after they have printed their stacks."""
    for worker in workers:
        os.kill(worker.pid, signal.SIGUSR1)
    time.sleep(1)
    for worker in workers:
        with contextlib.suppress(RuntimeError):  # of PyTorch's handler of SIGCHLD
            worker.kill()
            worker.join()


def _wait_for_parents_sigterm() -> None:
    """Exit on a SIGTERM from the parent, which PyTorch sends to a worker that does not end."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)

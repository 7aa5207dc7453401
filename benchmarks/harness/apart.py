"""What a piece of work takes in a process of its own, its memory above all."""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import torch

from harness.comparison import clock


class Taken(NamedTuple):
    """What the work gave, and what it took.

    Attributes:
        result: as it returned it.
        seconds: by :func:`comparison.clock`.
        peak_bytes: the most memory that was resident, beyond what was when it began.
    """

    result: np.ndarray
    seconds: float
    peak_bytes: int


def run_apart(work: Callable[[], np.ndarray], threads: int = 1) -> Taken:
    """Do the work in a fork of this process, with so many threads; on Linux.

    This process must have had one thread only: those that PyTorch started are not in the fork.

    Raises:
        EOFError: the process ended before the work did; its message is on stderr.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)  # else work that takes what this process has freed would seem to take nothing
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, threads, sender))
    process.start()
    sender.close()
    try:
        return Taken(*receiver.recv())
    finally:
        process.join()


def _work(work: Callable[[], np.ndarray], threads: int, sender: Connection) -> None:
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    now = clock()
    before, start = pages * resource.getpagesize(), now()
    result = work()
    seconds = now() - start
    sender.send(
        (result, seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    )

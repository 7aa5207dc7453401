"""What a piece of work takes in a process of its own, its memory above all."""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import torch


class Taken(NamedTuple):
    """What the work gave, and what it took.

    Attributes:
        result: as it returned it.
        seconds: of processor time, one thread.
        peak_bytes: the most memory that was resident, beyond what was when it began.
    """

    result: np.ndarray
    seconds: float
    peak_bytes: int


def run_apart(work: Callable[[], np.ndarray]) -> Taken:
    """Do the work in a fork of this process, with one thread; on Linux.

    Raises:
        EOFError: the process ended before the work did; its message is on stderr.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)  # else work that takes what this process has freed would seem to take nothing
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, sender))
    process.start()
    sender.close()
    try:
        return Taken(*receiver.recv())
    finally:
        process.join()


def _work(work: Callable[[], np.ndarray], sender: Connection) -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    before, start = pages * resource.getpagesize(), time.process_time()
    result = work()
    seconds = time.process_time() - start
    sender.send(
        (result, seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    )

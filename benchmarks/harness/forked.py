"""Run work in a process of its own, to measure its memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import torch

from harness.comparison import Work, choose_clock


class Cost(NamedTuple):
    """The result of some work, its time, and its peak memory beyond what the process held."""

    result: np.ndarray
    seconds: float
    peak_bytes: int


def run_forked(work: Work, threads: int = 1) -> Cost:
    """Run the work in a fork of this process (Linux), with so many threads.

    This process must have used one thread only: a fork does not copy PyTorch's threads.

    Raises:
        EOFError: The process died; its message is on stderr.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)  # otherwise work that reuses freed memory would seem to need none
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(work, threads, sender))
    process.start()
    sender.close()
    try:
        return Cost(*receiver.recv())
    finally:
        process.join()


def _run(work: Work, threads: int, sender: Connection) -> None:
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    before = pages * resource.getpagesize()
    clock = choose_clock()
    start = clock()
    result = work()
    seconds = clock() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender.send((result, seconds, peak - before))

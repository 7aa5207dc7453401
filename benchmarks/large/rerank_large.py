#!/usr/bin/env python
"""k-reciprocal re-ranking at the size of a data set: time and memory of ours and fast-reid's.

The default is the size of Occluded-Duke. Each runs once, in its own process. Seconds are processor
time with one thread, wall time with more (--threads). The reference holds several dense N x N
matrices: 10 GB.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import resource
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import faiss
import numpy as np
import torch
from figures.evaluation import build_reranking
from harness.comparison import MismatchError, Work, measure_seconds
from harness.machine import build_parser, check_writable, write_results

from occluded_reid.utils.cli import run_command

K1, K2 = 20, 6
TOLERANCE = 1e-5
TIES = 1e-6  # fraction of results that may differ: ties between neighbors are broken arbitrarily


def run(args: argparse.Namespace) -> None:
    """Measure both, compare the results, print, and write the numbers to ``--json``."""
    check_writable(args.json)
    torch.set_num_threads(1)  # until both have run
    works = build_reranking(args.queries, args.gallery, args.channels, K1, K2)
    ours, reference = (run_forked(work, args.threads) for work in works)
    torch.set_num_threads(args.threads)
    sizes = {"queries": args.queries, "gallery": args.gallery, "channels": args.channels}
    content = {
        "size": {**sizes, "k1": K1, "k2": K2},
        "ours": {"seconds": ours.seconds, "peak_mb": ours.peak_bytes / 1e6},
        "reference": {"seconds": reference.seconds, "peak_mb": reference.peak_bytes / 1e6},
        "times_faster": reference.seconds / ours.seconds,
        "times_less_memory": reference.peak_bytes / ours.peak_bytes,
        "agreement": check_agreement(ours.result, reference.result),
    }
    print(json.dumps(content, indent=2))
    write_results(args.json, content)


class Cost(NamedTuple):
    """The result of some work, its time, and its peak memory beyond what the process held."""

    result: np.ndarray
    seconds: float
    peak_bytes: int


def run_forked(work: Work, threads: int = 1) -> Cost:
    """Run the work in a fork of this process (Linux), which must have used one thread only.

    Raises:
        EOFError: The process died; its message is on stderr.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim:
        trim(0)  # otherwise work that reuses freed memory would seem to need none
    context = multiprocessing.get_context("fork")  # does not copy PyTorch's threads
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
    results: list[np.ndarray] = []
    seconds = measure_seconds(lambda: results.append(work()))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender.send((results[0], seconds, peak - before))


def check_agreement(ours: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Return how many of two results differ, and by how much, if ties explain that."""
    off = np.abs(ours - reference)
    differing = int(np.count_nonzero(~(off <= TOLERANCE)))
    if differing > TIES * off.size:
        raise MismatchError(
            f"re-ranked distances: {differing} of {off.size} differ by more than {TOLERANCE}"
        )
    return {"results": off.size, "off_by_more_than_1e-5": differing, "largest": float(off.max())}


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    sizes = (("--queries", 2210), ("--gallery", 17661), ("--channels", 3072))
    args = build_parser(__doc__, *sizes, ("--threads", 1)).parse_args(words)
    return run_command(lambda: run(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

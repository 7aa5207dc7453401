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

from occluded_reid.utils.cli import positive_int, run_command

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
    content = {
        "size": {**{key: vars(args)[key] for key in ("queries", "gallery", "channels")},
                 "k1": K1, "k2": K2},
        "ours": {"seconds": ours.seconds, "peak_mb": ours.peak_bytes / 1e6},
        "reference": {"seconds": reference.seconds, "peak_mb": reference.peak_bytes / 1e6},
        "times_faster": reference.seconds / ours.seconds,
        "times_less_memory": reference.peak_bytes / ours.peak_bytes,
        "agreement": check_agreement(ours.result, reference.result),
    }  # fmt: skip
    print(json.dumps(content, indent=2))
    write_results(args.json, content)


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
    if trim:
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
    results: list[np.ndarray] = []
    seconds = measure_seconds(lambda: results.append(work()))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender.send((results[0], seconds, peak - before))


def check_agreement(ours: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Return how many of two results differ, and by how much.

    Raises:
        MismatchError: more differ than ties between neighbors explain.
    """
    off = np.abs(ours - reference)
    differing = int(np.count_nonzero(~(off <= TOLERANCE)))
    if differing > TIES * off.size:
        raise MismatchError(
            f"re-ranked distances: {differing} of {off.size} differ by more than {TOLERANCE}"
        )
    largest = float(off.max())
    return {"results": off.size, "off_by_more_than_1e-5": differing, "largest": largest}


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = build_parser(__doc__)
    parser.add_argument("--queries", type=positive_int, default=2210)
    parser.add_argument("--gallery", type=positive_int, default=17661)
    parser.add_argument("--channels", type=positive_int, default=3072)
    parser.add_argument("--threads", type=positive_int, default=1)
    args = parser.parse_args(words)
    return run_command(lambda: run(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

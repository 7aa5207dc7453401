#!/usr/bin/env python
"""k-reciprocal re-ranking at the size of a data set: time and memory of ours and fast-reid's.

The default is the size of Occluded-Duke. Each runs once, in its own process. Seconds are processor
time with one thread, wall time with more (--threads). The reference holds several dense N x N
matrices: 10 GB.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from figures import rerank
from harness.comparison import MismatchError
from harness.forked import Cost, run_forked
from harness.machine import build_parser, check_writable, write_results

from occluded_reid.utils.cli import positive_int, run_command

K1, K2 = 20, 6
TOLERANCE = 1e-5
TIES = 1e-6  # fraction of results that may differ: ties between neighbors are broken arbitrarily


def run(args: argparse.Namespace) -> None:
    """Measure both, compare the results, print, and write the numbers to ``--json``."""
    if args.json:
        check_writable(Path(args.json))
    torch.set_num_threads(1)  # until both have run
    works = rerank.build_pair(args.queries, args.gallery, args.channels, K1, K2)
    ours, reference = (run_forked(work, args.threads) for work in works)
    torch.set_num_threads(args.threads)
    content = {
        "size": {**{key: vars(args)[key] for key in ("queries", "gallery", "channels")},
                 "k1": K1, "k2": K2},
        "ours": summarize(ours),
        "reference": summarize(reference),
        "times_faster": reference.seconds / ours.seconds,
        "times_less_memory": reference.peak_bytes / ours.peak_bytes,
        "agreement": check_agreement(ours.result, reference.result),
    }  # fmt: skip
    print(json.dumps(content, indent=2))
    if args.json:
        write_results(Path(args.json), content)


def summarize(taken: Cost) -> dict[str, float]:
    """Return seconds and megabytes."""
    return {"seconds": taken.seconds, "peak_mb": taken.peak_bytes / 1e6}


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

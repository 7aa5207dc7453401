#!/usr/bin/env python
"""Measure the figures of a suite, each as a ratio against its reference in the same process.

Every result is written at once: a figure that fails, or SIGTERM, loses no other. The exit code is
then 1. --threads is for the suites cpu and latency; more than one measures wall time.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import faiss
import torch
from figures import SUITES
from harness.comparison import Figure
from harness.machine import build_parser, check_writable, write_results
from tabulate import tabulate

from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError

OPTIONAL = "an extra, a C++ compiler or a GPU is missing"


class Terminated(BaseException):
    """SIGTERM arrived; ``except Exception`` does not catch it."""


@dataclasses.dataclass
class Results:
    """Results of the wanted figures by name, rewritten to ``path`` (if any) with each change.

    ``left_out`` names the figures for which an extra, a compiler or a GPU is missing.
    """

    wanted: list[str]
    path: str
    figures: dict[str, Figure] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, figure: Figure) -> None:
        """Keep a figure if it was asked for."""
        if name in self.wanted:
            self.figures[name] = figure
            self.write()

    def record_missing(self, names: Iterable[str], reason: str = "") -> None:
        """Record why those of the figures without a result failed; without a reason, left out."""
        for name in names:
            if name in self.wanted and name not in {*self.figures, *self.failed, *self.left_out}:
                print(f"not measured: {name}: {reason or OPTIONAL}", file=sys.stderr)
                if reason:
                    self.failed[name] = reason
                else:
                    self.left_out.append(name)
        self.write()

    def write(self) -> None:
        """Write everything as JSON, if asked for."""
        figures = {name: dataclasses.asdict(each) for name, each in self.figures.items()}
        reasons = {"failed": self.failed, "left_out": self.left_out}
        write_results(self.path, {"figures": figures, **reasons})


def run(args: argparse.Namespace) -> bool:
    """Measure, write and print the figures; return whether none failed."""
    owners = {name: names for names in SUITES[args.suite] for name in names}
    if args.only:
        for name in args.only:
            check_name(args.suite, name)
        owners = {name: owners[name] for name in args.only}
    if args.suite != "gpu":
        torch.set_num_threads(args.threads)
        faiss.omp_set_num_threads(args.threads)
    elif not torch.cuda.is_available():
        raise UserError("the suite gpu needs a GPU, and PyTorch finds none; --suite cpu needs none")
    check_writable(args.json)
    results = Results([*owners], args.json)
    try:
        for names in dict.fromkeys(owners.values()):
            measure(names, SUITES[args.suite][names], results)
    except Terminated:
        results.record_missing(owners, "the time was up")
    if args.only and results.left_out:
        raise UserError(f"--only {' '.join(results.left_out)}: {OPTIONAL}")
    print(format_table(results.figures))
    return not results.failed


def measure(names: tuple[str, ...], function: Callable[[], Any], results: Results) -> None:
    """Measure the figures of one function."""
    print(f"{', '.join(names)} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        figures = function()
        for name, figure in figures.items() if isinstance(figures, dict) else figures:
            results.add(name, figure)
        results.record_missing(names)
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        results.record_missing(names, f"{type(error).__name__}: {error}")
    print(f"    {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def terminate(number: int, frame: Any) -> None:
    """Handle SIGTERM, once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def check_name(suite: str, only: str) -> None:
    """Raise UserError if the suite has no such figure."""
    suites = {name: other for other in SUITES for names in SUITES[other] for name in names}
    own = sorted(name for names in SUITES[suite] for name in names)
    if only not in own:
        if only in suites:
            raise UserError(f"--only {only}: not in the suite {suite}; use --suite {suites[only]}")
        names = difflib.get_close_matches(only, own, cutoff=0.4) or own
        raise UserError(f"--only {only}: no such figure; did you mean {', '.join(names)}?")


def format_table(figures: dict[str, Figure]) -> str:
    """Return the figures as a Markdown table."""
    rows = [
        {
            "Figure": name,
            "Ours": f"{each.ours:.4g}",
            "Reference": f"{each.reference:.4g}",
            "Times better": "-" if each.ratio is None else f"{each.ratio:.2f}",
            "Spread": " - ".join(f"{ratio:.2f}" for ratio in each.spread),
            "Unit": each.unit,
        }
        for name, each in figures.items()
    ]
    return tabulate(rows, "keys", "pipe", disable_numparse=True)


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = build_parser(__doc__, ("--threads", 1))
    parser.add_argument("--suite", choices=sorted(SUITES), default="cpu")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="measure these figures"
    )
    args = parser.parse_args(words)
    complete: list[bool] = []
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        code = run_command(lambda: complete.append(run(args)), debug=args.debug)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return code or int(complete != [True])


if __name__ == "__main__":
    sys.exit(command())

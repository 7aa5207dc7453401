#!/usr/bin/env python
"""Measure the figures of a suite, each as a ratio against its reference in the same process.

What is measured is written at once: a figure that fails, or SIGTERM, loses none of the others. The
exit code is then 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import faiss
import torch
from figures import SUITES
from harness.comparison import Figure
from harness.machine import require_place, write_results
from harness.options import argument_parser, whole
from tabulate import tabulate

from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError

OPTIONAL = "for want of an extra, a C++ compiler or a GPU"


class TimeIsUp(BaseException):
    """SIGTERM has come. No ``except Exception`` on the way shall keep it."""


@dataclasses.dataclass
class Results:
    """What was measured, and why the rest was not; written with each change.

    Attributes:
        wanted: names of figures; others are not kept.
        path: of the JSON file, or None.
        found: figures by name.
        failed: reasons by name.
        left_out: names for which an extra, a compiler or a GPU is not there.
    """

    wanted: list[str]
    path: Path | None
    found: dict[str, Figure] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, each: Figure) -> None:
        """Keep a figure."""
        if name in self.wanted:
            self.found[name] = each
            self.write()

    def fail(self, names: Iterable[str], reason: str) -> None:
        """Name those of the figures that were not measured."""
        for name in self._missing(names):
            print(f"not measured: {name}: {reason}", file=sys.stderr)
            self.failed[name] = reason
        self.write()

    def leave_out(self, names: Iterable[str]) -> None:
        """Name those of the figures that a module has done without."""
        if without := self._missing(names):
            print(f"left out, {OPTIONAL}: {', '.join(without)}", file=sys.stderr)
            self.left_out += without
            self.write()

    def _missing(self, names: Iterable[str]) -> list[str]:
        known = {*self.found, *self.failed, *self.left_out}
        return [name for name in names if name in self.wanted and name not in known]

    def write(self) -> None:
        """Write machine, figures, and why others are missing, as JSON, where it was asked for.

        Raises:
            UserError: the file cannot be written.
        """
        if self.path is None:
            return
        figures = {name: dataclasses.asdict(each) for name, each in self.found.items()}
        reasons = {"failed": self.failed, "left_out": self.left_out}
        write_results(self.path, {"figures": figures, **reasons})


def run(args: argparse.Namespace) -> bool:
    """Measure, write the numbers where asked for, print a table; return whether all is there.

    Raises:
        UserError: there is no such figure, or it cannot be measured here; no GPU for the suite
            gpu; or the file cannot be written.
    """
    modules = chosen(args.suite, args.only)
    if args.suite != "gpu":
        torch.set_num_threads(args.threads)
        faiss.omp_set_num_threads(args.threads)
    elif not torch.cuda.is_available():
        raise UserError("the suite gpu needs a GPU, and PyTorch finds none; --suite cpu needs none")
    if args.json:
        require_place(Path(args.json))
    names = [name for module in modules for name in module.NAMES]
    results = Results([args.only] if args.only else names, Path(args.json) if args.json else None)
    try:
        for module in modules:
            measure(module, results)
    except TimeIsUp:
        results.fail(names, "the time was up")
    if args.only in results.left_out:
        raise UserError(f"--only {args.only}: left out, {OPTIONAL}")
    print(table(results.found))
    return not results.failed


def measure(module: ModuleType, results: Results) -> None:
    """Measure a module's figures; one that fails is named."""
    print(f"{', '.join(module.NAMES)} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        found = module.measure()
        for name, each in found.items() if isinstance(found, dict) else found:
            results.add(name, each)
        results.leave_out(module.NAMES)
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        results.fail(module.NAMES, f"{type(error).__name__}: {error}")
    print(f"    {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def raise_time_is_up(number: int, frame: Any) -> None:
    """Handle SIGTERM, once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise TimeIsUp


def chosen(suite: str, only: str) -> tuple[ModuleType, ...]:
    """Return the suite's modules, or the one that measures ``only``.

    Raises:
        UserError: the suite has no such figure.
    """
    modules = SUITES[suite]
    if not only:
        return modules
    names = {name: module for module in modules for name in module.NAMES}
    if only not in names:
        others = [other for other in SUITES if only in figure_names(other)]
        nearest = difflib.get_close_matches(only, names, cutoff=0.4) or sorted(names)
        raise UserError(
            f"--only {only}: the suite {suite} has no such figure; "
            + (f"take --suite {others[0]}" if others else f"perhaps {', '.join(nearest)}")
        )
    return (names[only],)


def figure_names(suite: str) -> list[str]:
    """Return the names of a suite's figures."""
    return [name for module in SUITES[suite] for name in module.NAMES]


def table(found: dict[str, Figure]) -> str:
    """Return the figures as a table in Markdown."""
    rows = [
        [
            name,
            f"{each.ours:.4g}",
            f"{each.reference:.4g}",
            "-" if each.ratio is None else f"{each.ratio:.2f}",
            " - ".join(f"{ratio:.2f}" for ratio in each.spread),
            each.unit,
        ]
        for name, each in found.items()
    ]
    headers = ["Figure", "Ours", "Reference", "Times better", "Spread", "Unit"]
    return tabulate(rows, headers, "pipe", disable_numparse=True)


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--suite", choices=sorted(SUITES), default="cpu")
    parser.add_argument("--only", default="", metavar="NAME", help="measure one figure")
    parser.add_argument(
        "--threads", type=whole, default=1, metavar="N",
        help="of the suites cpu and latency; with more than one, time is that on the wall",
    )  # fmt: skip
    args = parser.parse_args(words)
    complete: list[bool] = []
    before = signal.signal(signal.SIGTERM, raise_time_is_up)
    try:
        code = run_command(lambda: complete.append(run(args)), debug=args.debug)
    finally:
        signal.signal(signal.SIGTERM, before)
    return code or int(complete != [True])


if __name__ == "__main__":
    sys.exit(command())

#!/usr/bin/env python
"""Measure the figures of a suite, each as a ratio against its reference in the same process."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import torch
from comparison import Figure
from figures import SUITES
from machine import describe
from tabulate import tabulate

from occluded_reid.errors import UserError, run_command
from occluded_reid.files import make_folder, whole_file


def run(args: argparse.Namespace) -> None:
    """Measure, print a table, and write the numbers where asked for."""
    modules = chosen(args.suite, args.only)
    if args.suite != "gpu":
        torch.set_num_threads(1)
    found: dict[str, Figure] = {}
    for module in modules:
        print(f"{', '.join(module.NAMES)} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        found |= module.measure()
        print(f"    {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    if args.only:
        found = {args.only: found[args.only]}
    print(table(found))
    if args.json:
        write(Path(args.json), found)


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
        nearest = difflib.get_close_matches(only, names, cutoff=0.4) or sorted(names)
        raise UserError(
            f"--only {only}: the suite {suite} has no such figure; it has {', '.join(nearest)}"
        )
    return (names[only],)


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


def write(path: Path, found: dict[str, Figure]) -> None:
    """Write machine and figures as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    content = {
        "machine": describe(),
        "figures": {name: dataclasses.asdict(each) for name, each in found.items()},
    }
    make_folder(path.parent)
    with whole_file(path, "w") as stream:
        json.dump(content, stream, indent=2, allow_nan=False)
        stream.write("\n")


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=sorted(SUITES), default="cpu")
    parser.add_argument("--only", default="", metavar="NAME", help="measure one figure")
    parser.add_argument("--json", default="", metavar="F", help="write the numbers to a file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    args = parser.parse_args(words)
    return run_command(lambda: run(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

#!/usr/bin/env python
"""Compare two runs query by query, or summarise runs that differ by their seed (--seeds)."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tabulate import tabulate

from occluded_reid.evaluation.comparison import (
    Run,
    compare_pair,
    compare_seeds,
    left_out,
    read_run,
)
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import write_json


def compare(args: argparse.Namespace) -> None:
    """Print a table for each data set and write the numbers where asked for."""
    runs = [read_run(path) for path in args.runs]
    if not args.seeds and len(runs) != 2:
        raise UserError(f"expected two runs, got {len(runs)}; for several seeds add --seeds")
    found = compare_seeds(runs) if args.seeds else compare_pair(*runs)
    print(_seeds_table(runs, found) if args.seeds else _pair_table(runs, found))
    if names := left_out(runs):
        print(f"\nNot in all runs, left out: {', '.join(names)}")
    if args.json:
        content = {
            "runs": [str(run.path) for run in runs],
            "seeds": [run.content.get("seed") for run in runs],
            "data_sets": found,
        }
        write_json(args.json, content)


def _pair_table(runs: list[Run], found: dict[str, Any]) -> str:
    lines = [f"{letter}: {run.path}" for letter, run in zip("AB", runs, strict=True)]
    for name, metrics in found.items():
        rows = [
            [
                metric,
                f"{each['a']:.1f}",
                f"{each['b']:.1f}",
                f"{each['difference']:+.1f} [{each['low']:+.1f}, {each['high']:+.1f}]",
                "B" if each["low"] > 0 else "A" if each["high"] < 0 else "-",
            ]
            for metric, each in metrics.items()
        ]
        headers = ["Metric", "A", "B", "B - A [95 %]", "Better"]
        queries = runs[0].reports[name]["counts"]["queries"]
        lines += ["", f"{name}, {queries} queries, per cent", ""]
        lines.append(tabulate(rows, headers, "pipe", disable_numparse=True))
    lines += ["", "The interval is the paired bootstrap's over queries: it says nothing of seeds."]
    return "\n".join(lines)


def _seeds_table(runs: list[Run], found: dict[str, Any]) -> str:
    seeds = ", ".join(str(run.content.get("seed")) for run in runs)
    lines = [f"{len(runs)} runs, seeds {seeds}: mean, standard deviation, and each run"]
    for name, metrics in found.items():
        rows = [
            [metric, f"{each['mean']:.1f} +- {each['std']:.1f}"]
            + [f"{value:.1f}" for value in each["values"]]
            for metric, each in metrics.items()
        ]
        headers = ["Metric", "Mean +- std", *(run.path.parent.name for run in runs)]
        lines += ["", f"{name}, per cent", ""]
        lines.append(tabulate(rows, headers, "pipe", disable_numparse=True))
    return "\n".join(lines)


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder or results.json of a run")
    parser.add_argument("--seeds", action="store_true", help="mean and deviation of all runs")
    parser.add_argument("--json", default="", metavar="F", help="write the numbers to a file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    args = parser.parse_args(words)
    return run_command(lambda: compare(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

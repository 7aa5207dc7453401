"""Compare two runs query by query, or summarize runs that differ by their seed (--seeds)."""

from __future__ import annotations

import argparse

from occluded_reid.utils.cli import run_command


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder or results.json of a run")
    parser.add_argument("--seeds", action="store_true", help="mean and deviation of all runs")
    parser.add_argument("--json", default="", metavar="F", help="write the numbers to a file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    args = parser.parse_args(words)
    return run_command(lambda: compare(args), debug=args.debug)


def compare(args: argparse.Namespace) -> None:
    """Print the table of the runs."""
    from occluded_reid.evaluation.comparison import compare_runs

    print(compare_runs(args.runs, seeds=args.seeds, json_path=args.json))

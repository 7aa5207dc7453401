"""Compare two runs query by query, or summarize runs.

--seeds  mean and standard deviation of runs that differ by their seed
--table  methods, each with the runs of its name but for a seed at its end (npo_s1, npo_s2): mean
         and spread over seeds, and the difference to the first with its interval over queries and
         seeds
"""

from __future__ import annotations

import argparse

from occluded_reid.utils.cli import build_parser, run_command

FORMATS = ("markdown", "latex", "csv")


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = build_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder or results.json of a run")
    parser.add_argument("--seeds", action="store_true", help="mean and deviation of all runs")
    parser.add_argument("--table", action="store_true", help="a table of methods")
    parser.add_argument("--format", choices=list(FORMATS), default="markdown", help="of the table")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="[HEADER=][SET/]PATH",
        help="of the table, such as mAP or 'hidden=OccludedDuke/vertical/mAP'",
    )  # fmt: skip
    parser.add_argument("--names", nargs="+", default=[], help="of the methods, in their order")
    parser.add_argument("--json", default="", metavar="F", help="write the numbers to a file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    args = parser.parse_args(words)
    return run_command(lambda: compare(args), debug=args.debug)


def compare(args: argparse.Namespace) -> None:
    """Print the table of the runs."""
    if args.table:
        from occluded_reid.evaluation.run_tables import tabulate_runs

        print(
            tabulate_runs(
                args.runs, columns=args.columns, names=args.names, form=args.format,
                json_path=args.json,
            )
        )  # fmt: skip
        return
    from occluded_reid.evaluation.comparison import compare_runs

    print(compare_runs(args.runs, seeds=args.seeds, json_path=args.json))

"""Train a model, or evaluate one (--eval-only)."""

from __future__ import annotations

import argparse

from occluded_reid.utils.cli import add_run_options, build_parser, run_command


def start(args: argparse.Namespace) -> None:
    """Train or evaluate; PyTorch is imported only now."""
    from occluded_reid.engine.run import run

    run(args)


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = build_parser(__doc__)
    add_run_options(parser)
    args = parser.parse_args(words)
    return run_command(lambda: start(args), debug=args.debug)

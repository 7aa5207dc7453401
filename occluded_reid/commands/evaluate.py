"""Evaluate a model on the data sets of DATASETS.TESTS."""

from __future__ import annotations

from occluded_reid.utils.cli import add_run_options, build_parser, run_command


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = build_parser(__doc__)
    add_run_options(parser)
    parser.set_defaults(eval_only=True)
    args = parser.parse_args(words)

    def start() -> None:
        from occluded_reid.engine.run import run

        run(args)

    return run_command(start, debug=args.debug)

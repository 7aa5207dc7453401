"""Train, evaluate, search and export models for occluded person re-identification."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from occluded_reid.utils.cli import build_parser, run_command
from occluded_reid.utils.errors import UserError, suggest

_HERE = "occluded_reid.commands"
COMMANDS = {
    "train": f"{_HERE}.train_net",
    "evaluate": f"{_HERE}.evaluate",
    "extract": f"{_HERE}.extract_features",
    "search": "gallery_search.command",
    "export": f"{_HERE}.export_model",
    "import": f"{_HERE}.import_checkpoint",
    "publish": f"{_HERE}.publish_model",
    "zoo": f"{_HERE}.zoo",
    "compare": f"{_HERE}.compare",
    "visualize": f"{_HERE}.visualize",
    "analyze-model": f"{_HERE}.analyze_model",
    "analyze-landmarks": f"{_HERE}.analyze_landmarks",
    "doctor": f"{_HERE}.check_dataset",
    "build-occluded-duke": f"{_HERE}.build_occluded_duke",
    "make-occluders": f"{_HERE}.make_occluders",
    "demo": f"{_HERE}.demo",
}
"""The module behind each command: its docstring describes it, ``command`` runs it."""


def main(words: list[str] | None = None) -> int:
    """Run ``occluded-reid`` with ``words`` (default: the process's); return the exit code.

    >>> main(["train", "--config-file", "configs/synthetic_baseline.yml"])  # doctest: +SKIP
    0
    """
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {_describe(module)}" for name, module in COMMANDS.items()]
    parser = build_parser("\n".join([__doc__ or "", "commands:", *lines]))
    parser.prog, parser.epilog = "occluded-reid", "occluded-reid COMMAND --help says more."
    parser.add_argument("command", metavar="COMMAND")
    parser.add_argument("words", metavar="...", nargs=argparse.REMAINDER, help="its options")
    args = parser.parse_args((sys.argv[1:] if words is None else words) or ["--help"])
    if args.command not in COMMANDS:
        return run_command(lambda: _refuse(args.command))
    sys.argv[0] = f"occluded-reid {args.command}"  # argparse shows it in the usage
    return import_module(COMMANDS[args.command]).command(args.words)


def _describe(module: str) -> str:
    """Return the first line of a command's docstring."""
    return (import_module(module).__doc__ or "").splitlines()[0]


def _refuse(name: str) -> None:
    hint = suggest(name, COMMANDS) or f"; there is {', '.join(COMMANDS)}"
    raise UserError(f"there is no command {name}{hint}")


if __name__ == "__main__":
    sys.exit(main())

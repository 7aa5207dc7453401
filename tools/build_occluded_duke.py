#!/usr/bin/env python
"""Build Occluded-Duke from DukeMTMC-reID (folder or zip) and the public name lists."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from occluded_reid.data.datasets.registry import build_dataset, dataset_root
from occluded_reid.data.prepare.occluded_duke import build_occluded_duke
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.logs import setup_logging


def build(args: argparse.Namespace) -> None:
    """Build the set and read it once, which checks its counts."""
    setup_logging()
    root = Path(args.root or dataset_root())
    target = build_occluded_duke(
        args.source, args.lists, root / "Occluded_Duke", allow_partial=args.allow_partial
    )
    build_dataset("OccludedDuke", root=str(root), allow_partial=args.allow_partial)
    print(f"Written to {target}")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("source", type=Path, help="DukeMTMC-reID: its folder or DukeMTMC-reID.zip")
    options.add_argument(
        "lists", type=Path, help="the folder of train.list, query.list and gallery.list"
    )
    options.add_argument(
        "--root", help="the folder of all data sets; default $FASTREID_DATASETS or datasets"
    )
    options.add_argument(
        "--allow-partial", action="store_true", help="take lists of other lengths than published"
    )
    options.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return options


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_args(words)
    return run_command(lambda: build(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

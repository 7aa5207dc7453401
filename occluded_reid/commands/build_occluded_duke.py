"""Build Occluded-Duke from DukeMTMC-reID (folder or zip) and the public name lists."""

from __future__ import annotations

import argparse
from pathlib import Path

from occluded_reid.utils.cli import build_parser, run_command


def build(args: argparse.Namespace) -> None:
    """Build the set, then read it, which checks its counts."""
    from occluded_reid.data.datasets.registry import build_dataset, get_dataset_root
    from occluded_reid.data.prepare.occluded_duke import build_occluded_duke
    from occluded_reid.utils.logs import setup_logging

    setup_logging()
    root = Path(args.root or get_dataset_root())
    target = build_occluded_duke(
        args.source, args.lists, root / "Occluded_Duke", allow_partial=args.allow_partial
    )
    build_dataset("OccludedDuke", root=str(root), allow_partial=args.allow_partial)
    print(f"Written to {target}")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    options = build_parser(__doc__)
    add = options.add_argument
    add("source", type=Path, help="DukeMTMC-reID: its folder or DukeMTMC-reID.zip")
    add("lists", type=Path, help="the folder of train.list, query.list and gallery.list")
    add("--root", help="the folder of all data sets; default $FASTREID_DATASETS or datasets")
    add("--allow-partial", action="store_true", help="accept lists of other lengths than published")
    add("--debug", action="store_true", help="show the traceback of an error")
    return options


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_args(words)
    return run_command(lambda: build(args), debug=args.debug)

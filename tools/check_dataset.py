#!/usr/bin/env python
"""The data-set doctor: what was found, what was expected, what to do. It only looks.

Exit code 0: sound; 1: faults, or not on the disk; 2: no such data set or option.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from occluded_reid.config import load_config
from occluded_reid.data.build import open_dataset
from occluded_reid.data.datasets.registry import FolderDataset, chosen_protocol, dataset_root
from occluded_reid.data.prepare.doctor import diagnose
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError

_LOOK = {"allow_partial": True, "combineall": False, "paste": False, "verbose": False}


def check(args: argparse.Namespace) -> bool:
    """Print the diagnosis; return whether the set is sound."""
    cfg = load_config("", ["MODEL.DEVICE", "cpu", *args.opts])
    protocol = chosen_protocol(args.name, cfg.DATASETS.PROTOCOL)
    root = args.root or dataset_root()
    print(f"{args.name}{f' (protocol {protocol})' if protocol else ''} below {root}\n")
    try:
        dataset = open_dataset(cfg, args.name, root=root, **_LOOK)
        diagnosis = diagnose(dataset, decode=args.decode)
    except UserError as error:
        print(f"FAULT: {error}")
        return False
    print(diagnosis)
    if diagnosis.faults:
        print(f"\nWhat to do: {_advice(dataset)}")
    return not diagnosis.faults


def _advice(dataset: Any) -> str:
    if not isinstance(dataset, FolderDataset):
        return "fetch the complete data set."
    places = "\n".join(f"  {place}" for place in dataset.candidates())
    return (
        f"{dataset.advice}.\nIt was found in {dataset.home}. The places that are tried, in this "
        f"order:\n{places}"
    )


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("name", help="a data set, Name or Name:protocol, such as OccludedDuke")
    options.add_argument(
        "--root",
        help="folder of all data sets, or the set's own; default $FASTREID_DATASETS or datasets",
    )
    options.add_argument(
        "--decode", action="store_true", help="decode the pixels of every image as well"
    )
    options.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="as for training, such as DATASETS.OCCLUDED.OCCLUDERS FOLDER",
    )
    return options


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_intermixed_args(words)
    sound: list[bool] = []
    mistake = run_command(lambda: sound.append(check(args)), debug=args.debug)
    return mistake or int(not all(sound))


if __name__ == "__main__":
    sys.exit(command())

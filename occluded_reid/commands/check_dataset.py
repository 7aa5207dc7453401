"""Check a data set: what it has, what it should have, what to do. It changes nothing.

Exit code 0: sound; 1: faults, or not on the disk; 2: no such data set or option.
"""

from __future__ import annotations

import argparse

from occluded_reid.utils.cli import build_parser, run_command
from occluded_reid.utils.errors import UserError


def check(args: argparse.Namespace) -> bool:
    """Print the diagnosis; return whether the set is sound."""
    from occluded_reid.config import load_config
    from occluded_reid.data.build import open_dataset
    from occluded_reid.data.datasets.base import OWN_DATA, FolderDataset
    from occluded_reid.data.datasets.registry import get_dataset_root, resolve_protocol
    from occluded_reid.data.prepare.doctor import diagnose

    cfg = load_config("", ["MODEL.DEVICE", "cpu", *args.opts])
    protocol = resolve_protocol(args.name, cfg.DATASETS.PROTOCOL)
    root = args.root or get_dataset_root()
    print(f"{args.name}{f' (protocol {protocol})' if protocol else ''} below {root}\n")
    try:
        options = {"allow_partial": True, "combineall": False, "paste": False, "verbose": False}
        dataset = open_dataset(cfg, args.name, root=root, **options)
        diagnosis = diagnose(dataset, decode=args.decode)
    except UserError as error:
        print(f"FAULT: {error}")
        return False
    print(diagnosis)
    if diagnosis.faults:
        advice = "get the complete data set."
        if isinstance(dataset, FolderDataset):
            own = f" {OWN_DATA}." if dataset.expected else ""
            advice = (
                f"{dataset.advice}.{own}\nIt is in {dataset.home}. These folders are tried, in "
                f"this order:\n{dataset.format_candidates()}"
            )
        print(f"\nWhat to do: {advice}")
    return not diagnosis.faults


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    options = build_parser(__doc__)
    add = options.add_argument
    add("name", help="a data set, Name or Name:protocol, such as OccludedDuke")
    root = "folder of all data sets, or of this set; default $FASTREID_DATASETS or datasets"
    add("--root", help=root)
    add("--decode", action="store_true", help="decode the training images, too")
    add("--debug", action="store_true", help="show the traceback of an error")
    overrides = "configuration overrides, such as DATASETS.OCCLUDED.OCCLUDERS FOLDER"
    add("opts", nargs="*", metavar="KEY VALUE", help=overrides)
    return options


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_intermixed_args(words)
    sound: list[bool] = []
    exit_code = run_command(lambda: sound.append(check(args)), debug=args.debug)
    return exit_code or int(not all(sound))

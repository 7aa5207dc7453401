#!/usr/bin/env python
"""The data-set doctor: what was found, what was expected, what to do.

Exit code 0: sound; 1: faults, or not on the disk; 2: no such data set or option.
"""

from __future__ import annotations

import argparse
import sys

from occluded_reid.datasets import build_dataset, chosen_protocol, dataset_root
from occluded_reid.datasets.doctor import diagnose
from occluded_reid.errors import UserError, run_command


def check(args: argparse.Namespace) -> bool:
    """Print the diagnosis; return whether the set is sound."""
    protocol = chosen_protocol(args.name)
    root = args.root or dataset_root()
    print(f"{args.name}{f' (protocol {protocol})' if protocol else ''} below {root}\n")
    try:
        dataset = build_dataset(args.name, root=root, allow_partial=True, verbose=False)
    except UserError as error:
        print(f"FAULT: {error}")
        return False
    diagnosis = diagnose(dataset, decode=args.decode)
    print(diagnosis)
    if diagnosis.faults:
        print(f"\nWhat to do: {getattr(dataset, 'advice', 'fetch the complete data set')}.")
    return not diagnosis.faults


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
    return options


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_args(words)
    sound: list[bool] = []
    mistake = run_command(lambda: sound.append(check(args)), debug=args.debug)
    return mistake or int(not all(sound))


if __name__ == "__main__":
    sys.exit(command())

"""Build an occluder set: from label masks, from boxes, by clicking in a window, or synthetic.

masks   cut-outs with a transparent background, train and test from different sequences, for
        DATASETS.OCCLUDED.OCCLUDERS; the opaque boxes of the training cut-outs (no persons) are in
        train_patches/, for INPUT.NPO.OCCLUDERS
boxes   opaque patches from a CSV file with the columns image, x0, y0, x1, y1
window  opaque patches from boxes drawn with the mouse
draw    the built-in synthetic patches
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from occluded_reid.utils.cli import build_parser, run_command
from occluded_reid.utils.errors import UserError


def make(args: argparse.Namespace) -> None:
    """Write the set and print how many occluders of each class it has."""
    from tabulate import tabulate

    from occluded_reid.data.prepare import occluder_sets as sets

    modes: dict[str, Callable[[Path], list[Any]]] = {
        "masks": lambda folder: _cut_masks(args, folder),
        "boxes": lambda folder: sets.cut_boxes(sets.read_boxes(Path(args.csv)), folder),
        "window": lambda folder: sets.cut_boxes(list(sets.select_boxes(Path(args.images))), folder),
        "draw": sets.write_synthetic_patches,
    }
    rows = sets.write_occluder_set(Path(args.output), modes[args.mode])
    counts = Counter((row[2], row[7]) for row in rows)
    kinds = sorted({row[2] for row in rows})
    table = [(kind, counts[kind, "train"], counts[kind, "test"]) for kind in kinds]
    print(tabulate(table, headers=("class", "train", "test"), tablefmt="pipe"))
    print(args.output)


def _cut_masks(args: argparse.Namespace, folder: Path) -> list[Any]:
    from occluded_reid.data.prepare import occluder_sets as sets

    for option in ("min-area", "min-thickness", "per-class"):
        if not 0 <= (value := getattr(args, option.replace("-", "_"))) < math.inf:
            raise UserError(f"--{option} is {value}; it must be a number from 0 on")
    limits = {"min_area": args.min_area, "min_thickness": args.min_thickness}
    classes = _parse_classes(args.classes)
    found = sets.find_occluders(args.frames, args.labels, classes, args.sequence, **limits)
    rows = []
    for split, members in sets.split_occluders(found, args.test).items():
        print(f"{split}: sequences {', '.join(sorted({each.sequence for each in members}))}")
        rows += sets.cut_occluders(folder, split, members, args.per_class)
    return rows


def _parse_classes(words: Sequence[str]) -> dict[int, str]:
    """Parse ``NAME=INDEX`` or ``INDEX``."""
    classes = {}
    for word in words:
        name, _, index = word.rpartition("=")
        if not index.isdigit() or int(index) > 255 or re.search(r"[^\w-]", name):
            raise UserError(f"--classes has {word!r}; it takes NAME=INDEX or INDEX, such as car=8")
        classes[int(index)] = name or f"class{int(index)}"
    return classes


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = build_parser(__doc__)
    modes = top.add_subparsers(dest="mode", required=True)
    masks = modes.add_parser("masks", help="cut-outs by label masks")
    add = masks.add_argument
    add("--frames", nargs="+", required=True, metavar="DIR", help="folders of images")
    add("--labels", nargs="+", required=True, metavar="DIR", help="their label images, same stems")
    persons = "what to cut out; pedestrian and bicyclist are pasted beside persons as persons"
    add("--classes", nargs="+", required=True, metavar="NAME=INDEX", help=persons)
    add("--min-area", type=int, default=1000, help="in pixels (1000)")
    thickness = "2 area / perimeter, in pixels; excludes slivers and bare branches (6)"
    add("--min-thickness", type=float, default=6.0, help=thickness)
    add("--per-class", type=int, default=100, help="maximum number per class; 0: all (100)")
    group = "its first group, matched at the start of a name, is the sequence (all before last _)"
    add("--sequence", default=r"(.*)_", metavar="REGEX", help=group)
    add("--test", nargs="*", default=[], metavar="SEQ", help="held-out sequences (every second)")
    boxes = modes.add_parser("boxes", help="patches from boxes in a CSV file")
    boxes.add_argument("--csv", required=True, metavar="F", help="image, x0, y0, x1, y1")
    window = modes.add_parser("window", help="patches from boxes drawn with the mouse")
    window.add_argument("--images", required=True, metavar="DIR", help="images to cut from")
    draw = modes.add_parser("draw", help="the built-in synthetic patches")
    for mode in (masks, boxes, window, draw):
        mode.add_argument("--output", required=True, metavar="DIR", help="a new folder")
        mode.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_args(words)
    return run_command(lambda: make(args), debug=args.debug)

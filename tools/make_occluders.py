#!/usr/bin/env python
"""Build an occluder set: from label masks, from boxes, by clicking in a window, or drawn.

masks   cut-outs with a transparent surrounding, train and test from different sequences, for
        DATASETS.OCCLUDED.OCCLUDERS; the opaque boxes of the training ones (no persons) stand in
        train_patches/, for INPUT.NPO.OCCLUDERS
boxes   opaque patches from a CSV file with the columns image, x0, y0, x1, y1
window  opaque patches from boxes that are drawn with the mouse
draw    the built-in drawn patches
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from tabulate import tabulate

from occluded_reid.data.images import OCCLUDER_SUFFIXES as SUFFIXES
from occluded_reid.data.images import name_read_errors
from occluded_reid.data.transforms.occluder_cutouts import (
    COLUMNS,
    LIST,
    PERSON_KINDS,
    Component,
    cut_out,
    find_components,
)
from occluded_reid.data.transforms.occluder_patches import render_patches
from occluded_reid.synthetic.truth import Box
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import whole_file, whole_folder, write_errors_named
from occluded_reid.utils.progress import progress

logger = logging.getLogger("make_occluders")

BOX_COLUMNS = ("image", "x0", "y0", "x1", "y1")
Row = tuple[str, str, str, int, int, int, int, str]


class Found(NamedTuple):
    """A component worth cutting out of a frame."""

    frame: Path
    component: Component


def read_picture(path: Path) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB."""
    return _read(path, "RGB")


def read_labels(path: Path) -> np.ndarray:
    """Return (H, W) uint8 classes; palette images give their indices."""
    labels = _read(path, "")
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise UserError(
            f"{path} is no label image: one channel of 8 bits is expected, the class of each pixel"
        )
    return labels


def _read(path: Path, mode: str) -> np.ndarray:
    with name_read_errors(str(path), "replace or remove it"), Image.open(path) as file:
        return np.asarray(file.convert(mode) if mode else file)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that lie directly in a folder, by name."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder} ({error.strerror})") from error
    if not found:
        raise UserError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    return [path for path in found if not path.name.startswith(".")]


def labelled_frames(frames: Sequence[str], labels: Sequence[str]) -> list[tuple[Path, Path]]:
    """Pair each frame with the label image of the same stem."""
    if len(frames) != len(labels):
        raise UserError(
            f"{len(frames)} folders of frames, but {len(labels)} of labels; name them in pairs"
        )
    pairs = []
    for frame_folder, label_folder in zip(frames, labels, strict=True):
        by_stem = {path.stem: path for path in pictures_in(Path(label_folder))}
        found = pictures_in(Path(frame_folder))
        missing = [path for path in found if path.stem not in by_stem]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(found)} frames have no label image of the same name in "
                f"{label_folder}, such as {missing[0].name}"
            )
        pairs += [(path, by_stem[path.stem]) for path in found]
    return pairs


def parse_classes(words: Sequence[str]) -> dict[int, str]:
    """Read ``NAME=INDEX`` or ``INDEX``."""
    classes = {}
    for word in words:
        name, _, index = word.rpartition("=")
        if not index.isdigit() or int(index) > 255 or re.search(r"[^\w-]", name):
            raise UserError(f"--classes has {word!r}; it takes NAME=INDEX or INDEX, such as car=8")
        classes[int(index)] = name or f"class{int(index)}"
    return classes


def sequence_of(frame: Path, pattern: str) -> str:
    """The sequence a frame is of, from its name."""
    try:
        match = re.match(pattern, frame.stem)
    except re.error as error:
        raise UserError(f"--sequence {pattern!r} is no regular expression ({error})") from error
    sequence = match and (match[1] if match.re.groups else match[0])
    if not sequence:
        raise UserError(f"--sequence {pattern!r} does not match the frame {frame.name}")
    return sequence


def choose_test(sequences: Sequence[str], asked: Sequence[str]) -> set[str]:
    """The sequences that are held out: those asked for, or each second one by name."""
    known = sorted(set(sequences))
    test = set(asked) or set(known[1::2])
    if len(known) < 2:
        raise UserError(
            f"all occluders are of one sequence, {known[0]}, so none can be held out; give more "
            "frames, or tell sequences apart by --sequence"
        )
    if unknown := sorted(test.difference(known)):
        raise UserError(
            f"--test names {', '.join(unknown)}, but occluders are in {', '.join(known)} only"
        )
    if len(test) == len(known):
        raise UserError(f"--test names all sequences ({', '.join(known)}); leave some for training")
    return test


def find_all(args: argparse.Namespace) -> list[Found]:
    """Look for components in all label images."""
    classes = parse_classes(args.classes)
    pairs = labelled_frames(args.frames, args.labels)
    found = []
    for frame, label in progress(
        pairs, total=len(pairs), description="looking for occluders", logger=logger
    ):
        for component in find_components(
            read_labels(label), classes, args.min_area, args.min_thickness
        ):
            found.append(Found(frame, component))
    if not found:
        raise UserError(
            f"no occluder of {', '.join(classes.values())} in {len(pairs)} frames has "
            f"{args.min_area} pixels and is {args.min_thickness:g} thick; lower --min-area or "
            "--min-thickness, or look at the classes of the label images"
        )
    return found


def thin_out(found: Sequence[Found], most: int) -> list[Found]:
    """At most so many of each class, evenly spread over the frames; 0 keeps all."""
    by_kind = defaultdict(list)
    for one in found:
        by_kind[one.component.kind].append(one)
    chosen = []
    for same in by_kind.values():
        number = min(most or len(same), len(same))
        chosen += [same[round(place)] for place in np.linspace(0, len(same) - 1, number)]
    return sorted(chosen, key=lambda one: (one.frame.name, one.component.kind, one.component.box))


def cut_masks(args: argparse.Namespace, folder: Path) -> list[Row]:
    """Write cut-outs of both splits and the training patches."""
    for option in ("min_area", "min_thickness", "per_class"):
        if not 0 <= (value := getattr(args, option)) < float("inf"):
            name = option.replace("_", "-")
            raise UserError(f"--{name} is {value}; it must be a number from 0 on")
    found = find_all(args)
    sequences = {one.frame: sequence_of(one.frame, args.sequence) for one in found}
    test = choose_test(list(sequences.values()), args.test)
    rows: list[Row] = []
    for split in ("train", "test"):
        ours = [one for one in found if (sequences[one.frame] in test) == (split == "test")]
        names = sorted({sequences[one.frame] for one in ours})
        print(f"{split}: sequences {', '.join(names)}")
        rows += write_split(folder, split, thin_out(ours, args.per_class))
    return rows


def write_split(folder: Path, split: str, chosen: Sequence[Found]) -> list[Row]:
    """Write the cut-outs of one split, for training also their opaque boxes."""
    patches = "train_patches" if split == "train" else None
    for name in filter(None, (split, patches)):
        (folder / name).mkdir()
    rows: list[Row] = []
    for number, (frame, component) in enumerate(
        progress(chosen, total=len(chosen), description=f"cutting out for {split}", logger=logger)
    ):
        picture = read_picture(frame)
        x0, y0, x1, y1 = component.box
        if y1 > picture.shape[0] or x1 > picture.shape[1]:
            raise UserError(f"{frame} is smaller than its label image")
        name = f"{frame.stem}_{component.kind}_{number:04d}.png"
        save(folder / split / name, cut_out(picture, component))
        if patches and component.kind not in PERSON_KINDS:  # the N of NPO: non-pedestrian
            save(folder / patches / name, picture[y0:y1, x0:x1])
        rows.append((f"{split}/{name}", frame.name, component.kind, x0, y0, x1, y1, split))
    return rows


def save(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG file."""
    with write_errors_named(path):
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)


def read_boxes(path: Path) -> list[tuple[Path, Box]]:
    """Read the boxes of a CSV file; images are named relative to it."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the boxes {path} ({error})") from error
    boxes: list[tuple[Path, Box]] = []
    for number, row in enumerate(rows, start=2):
        try:
            x0, y0, x1, y1 = (int(row[key]) for key in BOX_COLUMNS[1:])
            image = row["image"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}, line {number}: columns {', '.join(BOX_COLUMNS)} with whole numbers are "
                "expected"
            ) from error
        boxes.append((path.parent / image, (x0, y0, x1, y1)))
    if not boxes:
        raise UserError(f"{path} names no box; it takes lines of {', '.join(BOX_COLUMNS)}")
    return boxes


def boxes_by_mouse(images: Path) -> Iterator[tuple[Path, Box]]:
    """Show each picture and let the user draw boxes."""
    advice = "use `make_occluders.py boxes` with a CSV file instead"
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise UserError(f"there is no display for a window; {advice}")
    print("Draw a box with the mouse and press Enter, for as many as you like; Esc: next picture")
    for path in pictures_in(images):
        picture = read_picture(path)
        try:
            drawn = cv2.selectROIs("occluders", picture[..., ::-1])
            cv2.destroyAllWindows()
        except cv2.error as error:
            raise UserError(
                "this OpenCV has no windows (opencv-python-headless); install opencv-python in its "
                f"place, or {advice}"
            ) from error
        for x, y, width, height in np.reshape(drawn, (-1, 4)).tolist():
            yield path, (x, y, x + width, y + height)


def cut_boxes(boxes: Sequence[tuple[Path, Box]], folder: Path) -> list[Row]:
    """Write an opaque patch for each box."""
    if not boxes:
        raise UserError("no box was drawn; nothing is written")
    rows: list[Row] = []
    for number, (path, box) in enumerate(
        progress(boxes, total=len(boxes), description="cutting patches", logger=logger)
    ):
        picture = read_picture(path)
        height, width = picture.shape[:2]
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise UserError(
                f"the box {x0}, {y0}, {x1}, {y1} is empty or reaches out of {path}, "
                f"{width} x {height} pixels"
            )
        name = f"{path.stem}_{number:04d}.png"
        save(folder / name, picture[y0:y1, x0:x1])
        rows.append((name, path.name, "patch", *box, "train"))
    return rows


def write_drawn(folder: Path) -> list[Row]:
    """Write the built-in patches, training styles only."""
    rows: list[Row] = []
    for number, patch in enumerate(render_patches()):
        height, width = patch.pixels.shape[:2]
        name = f"drawn_{number:04d}.png"
        save(folder / name, patch.pixels)
        rows.append((name, "drawn", "patch", 0, 0, width, height, "train"))
    return rows


def make(args: argparse.Namespace) -> None:
    """Make the set and write it whole."""
    output = Path(args.output)
    with whole_folder(output) as folder:
        if args.mode == "masks":
            rows = cut_masks(args, folder)
        elif args.mode == "boxes":
            rows = cut_boxes(read_boxes(Path(args.csv)), folder)
        elif args.mode == "window":
            rows = cut_boxes(list(boxes_by_mouse(Path(args.images))), folder)
        else:
            rows = write_drawn(folder)
        with whole_file(folder / LIST, "w") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)
    counts = Counter((row[2], row[7]) for row in rows)
    kinds = sorted({row[2] for row in rows})
    table = [(kind, counts[kind, "train"], counts[kind, "test"]) for kind in kinds]
    print(tabulate(table, headers=("class", "train", "test"), tablefmt="pipe"))
    print(output)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = top.add_subparsers(dest="mode", required=True)
    masks = modes.add_parser("masks", help="cut-outs by label masks")
    add = masks.add_argument
    add("--frames", nargs="+", required=True, metavar="DIR", help="folders of pictures")
    add("--labels", nargs="+", required=True, metavar="DIR", help="their label images, same stems")
    add(
        "--classes",
        nargs="+",
        required=True,
        metavar="NAME=INDEX",
        help="what to cut out; pedestrian and bicyclist are pasted beside persons as persons",
    )
    add("--min-area", type=int, default=1000, help="in pixels (default 1000)")
    add(
        "--min-thickness",
        type=float,
        default=6.0,
        help="2 area / perimeter, in pixels; keeps slivers and bare branches out (default 6)",
    )
    add("--per-class", type=int, default=100, help="at most so many of a class; 0: all (100)")
    add(
        "--sequence",
        default=r"(.*)_",
        metavar="REGEX",
        help="the first group, matched at a name's begin, is the sequence (default: before last _)",
    )
    add("--test", nargs="*", default=[], metavar="SEQ", help="held-out sequences (each second)")
    boxes = modes.add_parser("boxes", help="patches from boxes in a CSV file")
    boxes.add_argument("--csv", required=True, metavar="F", help=", ".join(BOX_COLUMNS))
    window = modes.add_parser("window", help="patches from boxes drawn with the mouse")
    window.add_argument("--images", required=True, metavar="DIR", help="pictures to cut from")
    draw = modes.add_parser("draw", help="the built-in drawn patches")
    for mode in (masks, boxes, window, draw):
        mode.add_argument("--output", required=True, metavar="DIR", help="a new folder")
        mode.add_argument("--debug", action="store_true", help="show tracebacks")
    return top


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_args(words)
    return run_command(lambda: make(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

"""Builds occluder sets: cut-outs by label masks, and opaque patches from boxes or synthetic."""

from __future__ import annotations

import csv
import logging
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from occluded_reid.data.images import find_images, read_image
from occluded_reid.data.transforms.occluder_cutouts import (
    COLUMNS,
    LIST,
    PERSON_KINDS,
    find_components,
)
from occluded_reid.data.transforms.occluder_patches import render_patches
from occluded_reid.synthetic.truth import Box
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_folder, atomic_write, explain_write_errors
from occluded_reid.utils.progress import progress
from occluded_reid.utils.tables import check_inside, read_csv
from occluded_reid.utils.terminal import show

logger = logging.getLogger(__name__)

BOX_COLUMNS = ("image", "x0", "y0", "x1", "y1")
Row = tuple[str, str, str, int, int, int, int, str]
"""A row of ``occluders.csv``."""


class Occluder(NamedTuple):
    """A region of a frame that is worth cutting out; ``mask`` is (h, w) bool in its box."""

    frame: Path
    sequence: str
    kind: str
    box: Box
    mask: np.ndarray


def write_occluder_set(output: Path, cut: Callable[[Path], list[Row]]) -> list[Row]:
    """Write an occluder set to a new folder, completely or not at all; return the rows of its list.

    ``cut`` writes the images into a folder and returns their rows.
    """
    with atomic_folder(output) as folder:
        rows = cut(folder)
        with atomic_write(folder / LIST, "w") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)
    return rows


def find_occluders(
    frames: Sequence[str], labels: Sequence[str], classes: Mapping[int, str], sequence: str, *,
    min_area: int, min_thickness: float,
) -> list[Occluder]:  # fmt: skip
    """Find the regions of some classes in all label images, see ``find_components``.

    ``frames`` and ``labels`` are pairs of folders with the same stems. ``sequence`` is a regular
    expression matched at the start of a stem; its first group, or all of it, names the sequence.
    """
    pairs = _pair_frames(frames, labels)
    occluders = []
    for frame, label in progress(pairs, description="Looking for occluders", logger=logger):
        components = find_components(_read_labels(label), classes, min_area, min_thickness)
        occluders += [
            Occluder(frame, _parse_sequence(frame, sequence), *each) for each in components
        ]
    if not occluders:
        raise UserError(
            f"no occluder of {', '.join(classes.values())} in {len(pairs)} frames has "
            f"{min_area} pixels and is {min_thickness:g} thick; lower --min-area or "
            "--min-thickness, or check the classes of the label images"
        )
    return occluders


def _pair_frames(frames: Sequence[str], labels: Sequence[str]) -> list[tuple[Path, Path]]:
    """Pair each frame with the label image of the same stem."""
    if len(frames) != len(labels):
        raise UserError(
            f"{len(frames)} folders of frames, but {len(labels)} of labels; name them in pairs"
        )
    pairs = []
    for frame_folder, label_folder in zip(frames, labels, strict=True):
        advice = "expected images"
        by_stem = {path.stem: path for path in find_images(Path(label_folder), advice)}
        paths = find_images(Path(frame_folder), advice)
        missing = [path for path in paths if path.stem not in by_stem]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(paths)} frames have no label image of the same name in "
                f"{label_folder}, such as {show(missing[0].name)}"
            )
        pairs += [(path, by_stem[path.stem]) for path in paths]
    return pairs


def _parse_sequence(frame: Path, pattern: str) -> str:
    try:
        match = re.match(pattern, frame.stem)
    except re.error as error:
        raise UserError(f"--sequence {pattern!r} is no regular expression ({error})") from error
    sequence = match and (match[1] if match.re.groups else match[0])
    if not sequence:
        raise UserError(f"--sequence {pattern!r} does not match the frame {show(frame.name)}")
    return sequence


def _read_labels(path: Path) -> np.ndarray:
    """Return (H, W) uint8 classes; palette images give their indices."""
    labels = np.asarray(read_image(path, None, upright=False))
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise UserError(
            f"{show(path)} is no label image: one channel of 8 bits is expected, the class of each "
            "pixel"
        )
    return labels


def _read_image(path: Path) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB, not rotated by EXIF data: boxes and labels refer to it."""
    return np.asarray(read_image(path, "RGB", upright=False))


def split_occluders(
    occluders: Sequence[Occluder], test_sequences: Sequence[str]
) -> dict[str, list[Occluder]]:
    """Split by sequence into ``train`` and ``test``; by default every second one is held out."""
    sequences = sorted({occluder.sequence for occluder in occluders})
    test = set(test_sequences) or set(sequences[1::2])
    if len(sequences) < 2:
        raise UserError(
            f"all occluders are of one sequence, {sequences[0]}, so none can be held out; give "
            "more frames, or tell sequences apart by --sequence"
        )
    if unknown := sorted(test.difference(sequences)):
        raise UserError(
            f"--test names {', '.join(unknown)}, but occluders are in {', '.join(sequences)} only"
        )
    if len(test) == len(sequences):
        raise UserError(
            f"--test names all sequences ({', '.join(sequences)}); leave some for training"
        )
    return {
        "train": [occluder for occluder in occluders if occluder.sequence not in test],
        "test": [occluder for occluder in occluders if occluder.sequence in test],
    }


def cut_occluders(
    folder: Path, split: str, occluders: Sequence[Occluder], per_class: int
) -> list[Row]:
    """Write the cut-outs of one split; for training also their opaque boxes.

    At most ``per_class`` of each class are chosen, evenly spaced; 0 keeps all.
    """
    chosen = _thin_out(occluders, per_class)
    patches = "train_patches" if split == "train" else None
    for name in filter(None, (split, patches)):
        (folder / name).mkdir()
    rows: list[Row] = []
    tracked = progress(chosen, description=f"Cutting out for {split}", logger=logger)
    for number, (frame, _, kind, box, mask) in enumerate(tracked):
        image = _read_image(frame)
        x0, y0, x1, y1 = box
        if y1 > image.shape[0] or x1 > image.shape[1]:
            raise UserError(f"{show(frame)} is smaller than its label image")
        name = f"{frame.stem}_{kind}_{number:04d}.png"
        patch = image[y0:y1, x0:x1]
        _save(folder / split / name, np.dstack([patch, mask * np.uint8(255)]))
        if patches and kind not in PERSON_KINDS:  # NPO is non-pedestrian occlusion
            _save(folder / patches / name, patch)
        rows.append((f"{split}/{name}", frame.name, kind, *box, split))
    return rows


def _thin_out(occluders: Sequence[Occluder], per_class: int) -> list[Occluder]:
    by_kind = defaultdict(list)
    for occluder in occluders:
        by_kind[occluder.kind].append(occluder)
    chosen = []
    for same in by_kind.values():
        count = min(per_class or len(same), len(same))
        chosen += [same[round(index)] for index in np.linspace(0, len(same) - 1, count)]
    return sorted(chosen, key=lambda each: (each.frame.name, each.kind, each.box))


def _save(path: Path, pixels: np.ndarray) -> None:
    with explain_write_errors(path):
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)


def read_boxes(path: Path) -> list[tuple[Path, Box]]:
    """Read the boxes of a CSV file; its image paths are relative to it."""
    table = read_csv(path, f"the boxes {path}", f"expected a CSV file of {', '.join(BOX_COLUMNS)}")
    table.require(*BOX_COLUMNS)
    boxes: list[tuple[Path, Box]] = []
    for row in table.rows:
        try:
            x0, y0, x1, y1 = (int(row.cells[column]) for column in BOX_COLUMNS[1:])
        except ValueError as error:
            raise UserError(
                f"{path}, line {row.line}: expected whole numbers in {', '.join(BOX_COLUMNS[1:])}"
            ) from error
        boxes.append((path.parent / check_inside(row.cells["image"], path), (x0, y0, x1, y1)))
    return boxes


def cut_boxes(boxes: Sequence[tuple[Path, Box]], folder: Path) -> list[Row]:
    """Write an opaque patch for each box."""
    if not boxes:
        raise UserError("no box was drawn; nothing is written")
    rows: list[Row] = []
    tracked = progress(boxes, description="Cutting patches", logger=logger)
    for number, (path, box) in enumerate(tracked):
        image = _read_image(path)
        height, width = image.shape[:2]
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise UserError(
                f"the box {x0}, {y0}, {x1}, {y1} is empty or reaches out of {show(path)}, "
                f"{width} x {height} pixels"
            )
        name = f"{path.stem}_{number:04d}.png"
        _save(folder / name, image[y0:y1, x0:x1])
        rows.append((name, path.name, "patch", *box, "train"))
    return rows


def write_synthetic_patches(folder: Path) -> list[Row]:
    """Write the built-in synthetic patches, which have the training styles only."""
    rows: list[Row] = []
    for number, (pixels, _) in enumerate(render_patches()):
        name = f"drawn_{number:04d}.png"
        _save(folder / name, pixels)
        rows.append((name, "drawn", "patch", 0, 0, pixels.shape[1], pixels.shape[0], "train"))
    return rows


def select_boxes(folder: Path) -> Iterator[tuple[Path, Box]]:
    """Show each image of a folder in a window; yield its path and a box for each one drawn."""
    import cv2

    advice = "use `make_occluders.py boxes` with a CSV file instead"
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not has_display:
        raise UserError(f"there is no display for a window; {advice}")
    print("Draw boxes with the mouse, Enter after each one; Esc: next image")
    for path in find_images(folder, "expected images to cut patches from"):
        image = _read_image(path)
        try:
            boxes = cv2.selectROIs("occluders", image[..., ::-1])
            cv2.destroyAllWindows()
        except cv2.error as error:
            raise UserError(
                "this OpenCV has no windows (opencv-python-headless); install opencv-python "
                f"instead, or {advice}"
            ) from error
        for x, y, width, height in np.reshape(boxes, (-1, 4)).tolist():
            yield path, (x, y, x + width, y + height)

"""Occluders with a transparent surrounding: cut out by label masks, drawn, written and read.

An occluder set is a folder that ``tools/make_occluders.py masks`` makes: ``train/`` and ``test/``
hold RGBA pictures of occluders from different sequences, ``train_patches/`` the opaque boxes of
the training ones (no persons) for NPO augmentation, and ``occluders.csv`` says what each file
shows.

Shapes: frames are (H, W, 3), labels and masks (H, W), cut-outs (h, w, 4).
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from occluded_reid.data.images import read_errors_named
from occluded_reid.synthetic.occluders.styles import OCCLUDER_KINDS, ORIENTATION, draw_occluder
from occluded_reid.synthetic.truth import Box, bound_mask
from occluded_reid.utils.errors import UserError

LIST = "occluders.csv"
COLUMNS = ("file", "source", "class", "x0", "y0", "x1", "y1", "split")
UPRIGHT = 1.5
"""A cut-out higher than so many times its width stands upright: a vertical occluder."""
PERSONS = ("pedestrian", "person", "bicyclist", "cyclist")
"""Kinds that show a person: pasted beside the person asked for, as in a crowd."""

_DRAWN_PER_KIND = 8


class Cutout(NamedTuple):
    """One occluder.

    Attributes:
        pixels: (h, w, 4) uint8 RGBA, colours not premultiplied.
        kind: what it shows, such as ``"car"``.
    """

    pixels: np.ndarray
    kind: str

    @property
    def orientation(self) -> str:
        """``"horizontal"`` or ``"vertical"``, by its shape."""
        height, width = self.pixels.shape[:2]
        return "vertical" if height >= UPRIGHT * width else "horizontal"

    @property
    def occlusion(self) -> str:
        """``"pedestrian"`` where a person is shown, else the orientation."""
        return "pedestrian" if self.kind in PERSONS else self.orientation


class Component(NamedTuple):
    """A connected region of one class in a label image.

    Attributes:
        kind: name of the class.
        box: x0, y0, x1, y1 in pixels; x1 and y1 excluded.
        mask: (h, w) bool in the box.
    """

    kind: str
    box: Box
    mask: np.ndarray


def find_components(
    labels: np.ndarray, classes: Mapping[int, str], least_area: int, least_thickness: float
) -> Iterator[Component]:
    """Find the connected regions (8 neighbours) that are large enough to be pasted.

    Args:
        labels: (H, W) uint8, the class of each pixel.
        classes: name of each class that is looked for.
        least_area: in pixels.
        least_thickness: see :func:`thickness`; keeps slivers and bare branches out.
    """
    for index, kind in classes.items():
        ours = (labels == index).astype(np.uint8)
        number, regions, found, _ = cv2.connectedComponentsWithStats(ours, connectivity=8)
        for region in range(1, number):
            x, y, width, height, area = (int(value) for value in found[region])
            if area < least_area:
                continue
            mask = regions[y : y + height, x : x + width] == region
            if thickness(mask) >= least_thickness:
                yield Component(kind, (x, y, x + width, y + height), mask)


def thickness(mask: np.ndarray) -> float:
    """Return ``2 area / perimeter`` of a mask (h, w), holes included: the width of a long bar."""
    padded = np.pad(mask.astype(np.uint8), 1)
    edges, _ = cv2.findContours(padded, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return 2 * float(mask.sum()) / max(sum(cv2.arcLength(edge, True) for edge in edges), 1.0)


def cut_out(frame: np.ndarray, component: Component) -> np.ndarray:
    """Return a component of a frame (H, W, 3) as (h, w, 4) RGBA; alpha is its mask."""
    x0, y0, x1, y1 = component.box
    alpha = np.where(component.mask, np.uint8(255), np.uint8(0))
    return np.dstack([frame[y0:y1, x0:x1], alpha])


def read_cutouts(folder: Path, split: str) -> list[Cutout]:
    """Read the cut-outs of one split of an occluder set.

    Args:
        folder: holds ``occluders.csv`` with the columns ``file``, ``class`` and ``split`` at least.
        split: ``"train"`` or ``"test"``.

    Raises:
        UserError: no such set, nothing of this split in it, a file that is missing, cannot be read
            or is nowhere transparent or nowhere opaque.
    """
    path = folder / LIST
    try:
        with open(path, encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"cannot read the occluder set {folder} ({error}); {LIST} is expected in it, as "
            "tools/make_occluders.py masks writes it"
        ) from error
    missing = {"file", "class", "split"}.difference(rows[0] if rows else ())
    if missing:
        raise UserError(f"{path} has no rows, or no column {' and '.join(sorted(missing))}")
    chosen = [row for row in rows if row["split"] == split]
    if not chosen:
        raise UserError(
            f"{path} lists no occluder of the split {split!r}; tools/make_occluders.py masks makes "
            "sets with both splits"
        )
    return [Cutout(_decode(folder / row["file"]), row["class"]) for row in chosen]


def _decode(path: Path) -> np.ndarray:
    """Read RGBA and trim what is transparent all round."""
    advice = f"replace it, or take it out of {LIST}"
    with read_errors_named(f"the cut-out {path}", advice), Image.open(path) as file:
        pixels = np.asarray(file.convert("RGBA"))
    x0, y0, x1, y1 = bound_mask(pixels[..., 3] > 127)
    if x0 == x1:
        raise UserError(f"the cut-out {path} is transparent; take it out of {LIST}")
    return pixels[y0:y1, x0:x1].copy()


@functools.lru_cache(maxsize=1)
def drawn_cutouts() -> list[Cutout]:
    """Return drawn occluders of the styles held out for testing, always the same.

    The other styles are for training,
    :func:`occluded_reid.data.transforms.occluder_patches.drawn_patches`. Umbrellas are
    left out: nothing here stands above a person.
    """
    rng = np.random.default_rng(1)
    kinds = [kind for kind in OCCLUDER_KINDS if kind != "umbrella"]
    return [Cutout(_draw(kind, rng), kind) for kind in kinds for _ in range(_DRAWN_PER_KIND)]


def _draw(kind: str, rng: np.random.Generator) -> np.ndarray:
    if ORIENTATION[kind] == "vertical":
        height, width = int(rng.integers(280, 360)), int(rng.integers(50, 80))
    else:
        height, width = int(rng.integers(80, 140)), int(rng.integers(160, 240))
    return draw_occluder(kind, rng, height, width, "test")

"""Occluders with a transparent background: cut out by label masks, or synthetic.

An occluder set is a folder made by ``tools/make_occluders.py masks``. ``train/`` and ``test/`` hold
RGBA images of occluders from different sequences; ``occluders.csv`` lists what each file shows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from occluded_reid.data.images import read_image
from occluded_reid.synthetic.occluders.styles import OCCLUDER_KINDS, ORIENTATION, draw_occluder
from occluded_reid.synthetic.truth import Box, bound_mask
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.tables import check_inside, read_csv
from occluded_reid.utils.terminal import show

LIST = "occluders.csv"
COLUMNS = ("file", "source", "class", "x0", "y0", "x1", "y1", "split")
MIN_VERTICAL_ASPECT = 1.5
"""Height over width from which a cut-out is a vertical occluder."""
PERSON_KINDS = ("pedestrian", "person", "bicyclist", "cyclist")
"""Kinds that show a person. They are pasted beside the person of the query, as in a crowd."""
_CUTOUTS_PER_KIND = 8


class Cutout(NamedTuple):
    """An occluder such as a ``"car"``: (h, w, 4) uint8 RGBA, colors not premultiplied."""

    pixels: np.ndarray
    kind: str

    @property
    def orientation(self) -> str:
        """``"horizontal"`` or ``"vertical"``, by its aspect ratio."""
        height, width = self.pixels.shape[:2]
        return "vertical" if height >= MIN_VERTICAL_ASPECT * width else "horizontal"

    @property
    def occlusion(self) -> str:
        """``"pedestrian"`` for a person, else the orientation."""
        return "pedestrian" if self.kind in PERSON_KINDS else self.orientation


def find_components(
    labels: np.ndarray, classes: Mapping[int, str], min_area: int, min_thickness: float
) -> Iterator[tuple[str, Box, np.ndarray]]:
    """Find the connected regions (8 neighbors) of some classes that are large enough to be pasted.

    ``labels`` (H, W) uint8 is the class of each pixel. ``min_thickness`` (see
    :func:`measure_thickness`) excludes slivers and bare branches. Yields the name of the class, the
    box, and the mask (h, w) bool in this box.
    """
    for index, kind in classes.items():
        of_class = (labels == index).astype(np.uint8)
        count, regions, stats, _ = cv2.connectedComponentsWithStats(of_class, connectivity=8)
        for region in range(1, count):
            x, y, width, height, area = (int(value) for value in stats[region])
            if area < min_area:
                continue
            mask = regions[y : y + height, x : x + width] == region
            if measure_thickness(mask) >= min_thickness:
                yield kind, (x, y, x + width, y + height), mask


def measure_thickness(mask: np.ndarray) -> float:
    """Return ``2 area / perimeter`` of a mask (h, w), holes included: the width of a long bar."""
    padded = np.pad(mask.astype(np.uint8), 1)
    edges, _ = cv2.findContours(padded, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return 2 * float(mask.sum()) / max(sum(cv2.arcLength(edge, True) for edge in edges), 1.0)


def read_cutouts(folder: Path, split: str) -> list[Cutout]:
    """Read the cut-outs of one split, ``"train"`` or ``"test"``, of the occluder set ``folder``.

    Its ``occluders.csv`` has at least the columns ``file``, ``class`` and ``split``.
    """
    path = folder / LIST
    advice = f"it needs {LIST}, as tools/make_occluders.py masks writes it"
    table = read_csv(path, f"the occluder set {folder}", advice)
    table.require("file", "class", "split")
    chosen = [row.cells for row in table.rows if row.cells["split"] == split]
    if not chosen:
        raise UserError(
            f"{path} lists no occluder of the split {split!r}; tools/make_occluders.py masks makes "
            "sets with both splits"
        )
    return [
        Cutout(_decode_cutout(folder / check_inside(row["file"], path)), row["class"])
        for row in chosen
    ]


def _decode_cutout(path: Path) -> np.ndarray:
    """Read RGBA pixels and trim their transparent border."""
    pixels = np.asarray(read_image(path, "RGBA"))
    x0, y0, x1, y1 = bound_mask(pixels[..., 3] > 127)
    if x0 == x1:
        raise UserError(f"the cut-out {show(path)} is fully transparent; remove it from {LIST}")
    return pixels[y0:y1, x0:x1].copy()


@functools.lru_cache(maxsize=1)
def render_cutouts() -> list[Cutout]:
    """Render synthetic occluders in the styles held out for testing, always the same.

    The other styles are those of
    :func:`occluded_reid.data.transforms.occluder_patches.render_patches`. Umbrellas are excluded:
    no cut-out is pasted above a person.
    """
    rng = np.random.default_rng(1)
    kinds = [kind for kind in OCCLUDER_KINDS if kind != "umbrella"]
    return [Cutout(_render(kind, rng), kind) for kind in kinds for _ in range(_CUTOUTS_PER_KIND)]


def _render(kind: str, rng: np.random.Generator) -> np.ndarray:
    upright = ORIENTATION[kind] == "vertical"
    heights, widths = ((280, 360), (50, 80)) if upright else ((80, 140), (160, 240))
    return draw_occluder(kind, rng, int(rng.integers(*heights)), int(rng.integers(*widths)), "test")

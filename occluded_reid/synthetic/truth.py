"""The exact truth about each image: who, where, and what hides how much of the person."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from occluded_reid.utils.errors import UserError

STRIPES = 16
COVERAGE_STRIPES = 4
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Occluder:
    """An object in front of the person."""

    kind: str  # one of occluders.styles.OCCLUDER_KINDS, or "pedestrian"
    orientation: str  # "horizontal" or "vertical"
    box: Box  # x0, y0, x1, y1 in pixels of the stored image, clipped to it; x1 and y1 excluded


@dataclass(frozen=True)
class Truth:
    """One line of ``truth.jsonl``; its keys are these names."""

    path: str  # path of the image relative to the data set's folder
    identity: int
    camera: int  # number of the camera from 1
    split: str  # the image's folder
    size: tuple[int, int]  # width and height in pixels
    person_box: Box  # box of the person's whole silhouette inside the image, as in Occluder.box
    visible_fraction: float  # visible share of the silhouette's pixels inside the image
    stripe_person_pixels: tuple[int, ...]  # the silhouette in 16 stripes from top to bottom
    stripe_visible_pixels: tuple[int, ...]  # the visible ones among them
    stripe_coverage: tuple[float, ...]  # covered share of the area of each of 4 stripes
    occluders: tuple[Occluder, ...]
    occlusion: str  # "none", "horizontal", "vertical" or "pedestrian"

    def to_json(self) -> str:
        """Return one line of JSON with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Truth:
        """Invert :meth:`to_json`."""
        fields = json.loads(line)
        occluders = tuple(
            Occluder(one["kind"], one["orientation"], tuple(one["box"]))
            for one in fields.pop("occluders")
        )
        lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
        return cls(**{**fields, **lists}, occluders=occluders)


def count_stripe_pixels(mask: np.ndarray, stripes: int) -> tuple[int, ...]:
    """Count the pixels of an (h, w) bool mask in stripes of equal height; their number divides 16.

    A row belongs to the stripe that holds its middle, so 4 stripes are sums over 4 of 16 each.

    >>> count_stripe_pixels(np.tri(4, dtype=bool), 2)
    (3, 7)
    """
    height = mask.shape[0]
    stripe_of_row = (2 * np.arange(height) + 1) * STRIPES // (2 * height) * stripes // STRIPES
    sums = np.bincount(stripe_of_row, weights=mask.sum(axis=1), minlength=stripes)
    return tuple(int(value) for value in sums)


def bound_mask(mask: np.ndarray) -> Box:
    """Return the smallest box around a mask; all zeros if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def measure_visible_fraction(person: np.ndarray, covered: np.ndarray) -> float:
    """Return the visible share of the (h, w) bool silhouette of a person, to 4 decimals."""
    return round(float((person & ~covered).sum() / max(int(person.sum()), 1)), 4)


def measure_masks(person: np.ndarray, covered: np.ndarray) -> dict[str, Any]:
    """Return the fields of :class:`Truth` that follow from the masks of person and occluders."""
    areas = count_stripe_pixels(np.ones_like(covered), COVERAGE_STRIPES)
    sums = count_stripe_pixels(covered, COVERAGE_STRIPES)
    return {
        "person_box": bound_mask(person),
        "visible_fraction": measure_visible_fraction(person, covered),
        "stripe_person_pixels": count_stripe_pixels(person, STRIPES),
        "stripe_visible_pixels": count_stripe_pixels(person & ~covered, STRIPES),
        "stripe_coverage": tuple(round(s / area, 4) for s, area in zip(sums, areas, strict=True)),
    }


def read_truth(folder: str | Path) -> dict[str, Truth]:
    """Read the truth of a generated data set, by the path relative to its folder."""
    file = Path(folder) / "truth.jsonl"
    if not file.is_file():
        raise UserError(f"{folder} holds no truth.jsonl; generate the set again")
    truths = map(Truth.from_json, file.read_text(encoding="utf-8").splitlines())
    return {truth.path: truth for truth in truths}

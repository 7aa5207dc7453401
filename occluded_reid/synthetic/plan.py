"""Which pictures the data set holds: identity, camera, split and kind of occlusion of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from occluded_reid.synthetic.scene.camera import NUM_CAMERAS
from occluded_reid.synthetic.sizes import SPLITS, Size
from occluded_reid.synthetic.streams import Stream, stream

Occlusion = Literal["none", "horizontal", "vertical", "pedestrian"]
OCCLUSIONS: tuple[Occlusion, ...] = ("none", "horizontal", "vertical", "pedestrian")
# Shares of OCCLUSIONS in each split. As in Occluded-DukeMTMC all queries and a tenth of the gallery
# are occluded (its README), and about a tenth of the training images.
_SHARES = {
    "bounding_box_train": (0.90, 0.05, 0.025, 0.025),
    "query": (0.0, 0.46, 0.28, 0.26),
    "query_holistic": (1.0, 0.0, 0.0, 0.0),
    "bounding_box_test": (0.90, 0.04, 0.03, 0.03),
}
_MIN_GALLERY = 3
_MIN_TRAIN = 4


@dataclass(frozen=True)
class Picture:
    """One picture to draw.

    Attributes:
        split: its folder, one of :data:`occluded_reid.synthetic.sizes.SPLITS`.
        identity: the person shown.
        camera: its number from 1.
        index: number among the pictures of this identity in this split.
        occlusion: what stands in front.
        number: running number in the whole data set.
    """

    split: str
    identity: int
    camera: int
    index: int
    occlusion: Occlusion
    number: int

    @property
    def path(self) -> str:
        """Path relative to the data set's folder."""
        return f"{self.split}/{self.identity:04d}_c{self.camera}_{self.number:06d}.jpg"


def plan_pictures(size: Size, seed: int) -> list[Picture]:
    """All pictures of the data set in the order of their running numbers.

    Each tested identity is seen by at least three cameras, its gallery pictures by at least two of
    them; so each query has a true match in another camera.
    """
    pictures: list[Picture] = []
    for split, identities, total, minimum in _divisions(size):
        rng = stream(seed, Stream.PLAN, SPLITS.index(split), size.num_images)
        counts = _counts(rng, total, len(identities), minimum)
        for identity, count in zip(identities, counts, strict=True):
            for camera, index, occlusion in _of_identity(split, identity, int(count), seed):
                pictures.append(Picture(split, identity, camera, index, occlusion, len(pictures)))
    return pictures


def _divisions(size: Size) -> list[tuple[str, range, int, int]]:
    """For each split its identities, its images, and the fewest images of one identity."""
    first = size.train_ids + 1
    train, queries = range(1, first), range(first, first + size.query_ids)
    gallery = range(first, first + size.gallery_ids)
    return [
        ("bounding_box_train", train, size.train_images, _MIN_TRAIN),
        ("query", queries, size.query_images, 1),
        ("query_holistic", queries, size.holistic_images, 1),
        ("bounding_box_test", gallery, size.gallery_images, _MIN_GALLERY),
    ]


def _counts(rng: np.random.Generator, total: int, parts: int, minimum: int) -> np.ndarray:
    """Numbers, each at least ``minimum``, that add up to ``total``."""
    return minimum + rng.multinomial(total - minimum * parts, np.full(parts, 1 / parts))


def _of_identity(
    split: str, identity: int, count: int, seed: int
) -> Iterator[tuple[int, int, Occlusion]]:
    """Camera, index and occlusion of each picture of one identity in one split."""
    rng = stream(seed, Stream.PLAN, 100 + SPLITS.index(split), identity)
    cameras = cameras_of(identity, seed)
    offset = SPLITS.index(split)
    for index in range(count):
        camera = cameras[(index + offset) % len(cameras)]
        yield camera, index, OCCLUSIONS[int(rng.choice(4, p=_SHARES[split]))]


def cameras_of(identity: int, seed: int) -> list[int]:
    """The three to six cameras that see an identity, in random order."""
    rng = stream(seed, Stream.PLAN, 200, identity)
    order = rng.permutation(NUM_CAMERAS) + 1
    return [int(camera) for camera in order[: int(rng.integers(3, 7))]]

"""The sizes of the data set, and the images that each holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from occluded_reid.synthetic.scene.camera import ALIKE, CITY
from occluded_reid.synthetic.streams import Stream, make_rng
from occluded_reid.utils.errors import UserError

Occlusion = Literal["none", "horizontal", "vertical", "pedestrian"]
OCCLUSIONS: tuple[Occlusion, ...] = ("none", "horizontal", "vertical", "pedestrian")
SPLITS = ("bounding_box_train", "query", "query_holistic", "bounding_box_test")
# Shares of OCCLUSIONS in each split. As in Occluded-DukeMTMC, all queries, a tenth of the gallery
# (its README) and about a tenth of the training images are occluded.
_OCCLUSION_SHARES = {
    "bounding_box_train": (0.90, 0.05, 0.025, 0.025),
    "query": (0.0, 0.46, 0.28, 0.26),
    "query_holistic": (1.0, 0.0, 0.0, 0.0),
    "bounding_box_test": (0.90, 0.04, 0.03, 0.03),
}
_MIN_IMAGES = {"bounding_box_train": 4, "query": 1, "query_holistic": 1, "bounding_box_test": 3}


@dataclass(frozen=True)
class Size:
    """Numbers of identities, images and cameras."""

    train_ids: int  # training identities; none of them is tested
    train_images: int
    query_ids: int  # identities with queries
    query_images: int  # occluded queries
    holistic_images: int  # unoccluded queries of the same identities
    gallery_ids: int  # identities in the gallery: those of the queries, and distractors
    gallery_images: int
    cameras: range = ALIKE

    def count_images(self) -> dict[str, int]:
        """Return the number of images in each of :data:`SPLITS`."""
        counts = self.train_images, self.query_images, self.holistic_images, self.gallery_images
        return dict(zip(SPLITS, counts, strict=True))

    @property
    def num_images(self) -> int:
        """Number of images in all splits."""
        return sum(self.count_images().values())


SIZES: dict[str, Size] = {
    "tiny": Size(8, 64, 6, 12, 6, 8, 40),
    "small": Size(100, 1600, 64, 192, 128, 72, 720),
    # The counts of Occluded-DukeMTMC, which has no holistic queries: their number is our choice.
    "paper": Size(702, 15618, 519, 2210, 1038, 1110, 17661, cameras=CITY),
    # For training a model that is used on photographs.
    "large": Size(1000, 16000, 64, 192, 128, 72, 720, cameras=CITY),
}


def get_size(name: str) -> Size:
    """Look up a size by its name; raise a UserError if there is none."""
    if name not in SIZES:
        raise UserError(f"no synthetic set has the size {name!r}; choose one of {', '.join(SIZES)}")
    return SIZES[name]


@dataclass(frozen=True)
class PlannedImage:
    """One image to draw."""

    split: str  # its folder, one of SPLITS
    identity: int
    camera: int  # number from 1
    index: int  # number among the images of this identity in this split
    occlusion: Occlusion
    number: int  # number in the whole data set

    @property
    def path(self) -> str:
        """Path relative to the data set's folder."""
        return f"{self.split}/{self.identity:04d}_c{self.camera}_{self.number:06d}.jpg"


def plan_images(size: Size, seed: int) -> list[PlannedImage]:
    """List all images of the data set in the order of their numbers.

    Each tested identity is seen by at least three cameras, and at least two of them contribute to
    the gallery: each query has a true match from another camera.

    >>> [image.path for image in plan_images(get_size("tiny"), seed=0)][:2]
    ['bounding_box_train/0001_c4_000000.jpg', 'bounding_box_train/0001_c6_000001.jpg']
    """
    first = size.train_ids + 1
    queries = range(first, first + size.query_ids)
    gallery = range(first, first + size.gallery_ids)
    identities_of_splits = (range(1, first), queries, queries, gallery)
    images: list[PlannedImage] = []
    for (split, total), identities in zip(
        size.count_images().items(), identities_of_splits, strict=True
    ):
        rng = make_rng(seed, Stream.PLAN, SPLITS.index(split), size.num_images)
        spare = total - _MIN_IMAGES[split] * len(identities)
        extra = rng.multinomial(spare, np.full(len(identities), 1 / len(identities)))
        for identity, count in zip(identities, extra + _MIN_IMAGES[split], strict=True):
            for index, (camera, occlusion) in enumerate(
                _plan_identity(split, identity, int(count), size.cameras, seed)
            ):
                images.append(PlannedImage(split, identity, camera, index, occlusion, len(images)))
    return images


def _plan_identity(
    split: str, identity: int, count: int, cameras: range, seed: int
) -> Iterator[tuple[int, Occlusion]]:
    """Yield camera and occlusion of each image of an identity in a split."""
    offset = SPLITS.index(split)
    rng = make_rng(seed, Stream.PLAN, 200, identity)  # of the identity's three to six cameras
    order = rng.permutation(len(cameras))
    own = [cameras[index] for index in order[: int(rng.integers(3, 7))]]
    rng = make_rng(seed, Stream.PLAN, 100 + offset, identity)
    for index in range(count):
        occlusion = OCCLUSIONS[int(rng.choice(4, p=_OCCLUSION_SHARES[split]))]
        yield own[(index + offset) % len(own)], occlusion

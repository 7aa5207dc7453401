"""How large the data set may be."""

from __future__ import annotations

from dataclasses import dataclass

from occluded_reid.utils.errors import UserError

SPLITS = ("bounding_box_train", "query", "query_holistic", "bounding_box_test")


@dataclass(frozen=True)
class Size:
    """Counts of identities and images.

    Attributes:
        train_ids: identities in training; none of them is tested.
        train_images: images in training.
        query_ids: identities that are searched for.
        query_images: occluded queries.
        holistic_images: unoccluded queries of the same identities.
        gallery_ids: identities in the gallery: those of the queries and distractors.
        gallery_images: images in the gallery.
    """

    train_ids: int
    train_images: int
    query_ids: int
    query_images: int
    holistic_images: int
    gallery_ids: int
    gallery_images: int

    def counts(self) -> dict[str, int]:
        """Number of images for each folder of :data:`SPLITS`."""
        numbers = self.train_images, self.query_images, self.holistic_images, self.gallery_images
        return dict(zip(SPLITS, numbers, strict=True))

    @property
    def num_images(self) -> int:
        """Images in all folders together."""
        return sum(self.counts().values())


SIZES: dict[str, Size] = {
    "tiny": Size(8, 64, 6, 12, 6, 8, 40),
    "small": Size(100, 1600, 64, 192, 128, 72, 720),
    "paper": Size(702, 15618, 519, 2210, 1038, 1110, 17661),
}
"""``paper`` has the counts of Occluded-DukeMTMC; it has no holistic queries, so theirs is ours."""


def size_named(name: str) -> Size:
    """The size of a name.

    Raises:
        UserError: there is none; the message lists them.
    """
    if name not in SIZES:
        raise UserError(f"no synthetic set has the size {name!r}; choose one of {', '.join(SIZES)}")
    return SIZES[name]

"""Sets of two sides: occluded or partial queries, and a gallery of whole bodies.

File names hold no camera, so the sides serve as cameras: queries have camera 0, the gallery
camera 1, and no match is dropped. The number after the identity counts images. A loader that reads
it as a camera drops true matches, which changes Rank-1 by several points.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from fastreid.data.datasets import DATASET_REGISTRY

from occluded_reid.data.datasets.base import Counts, FolderDataset, Subsets, read_images

QUERY_CAMERA, GALLERY_CAMERA = 0, 1


class TwoSided(FolderDataset):
    """Base of the sets of two sides, which are for testing only."""

    #: Folders (query, gallery) of each protocol, tried in order.
    sides: ClassVar[Mapping[str, Sequence[tuple[str, str]]]] = {}
    pattern = re.compile(r"(\d+)[_.]")
    example = "001_01.tif"
    num_cameras = 2

    def read_subsets(self) -> Subsets:
        """Read the first pair of folders that exists."""
        query, gallery = (
            read_images(folder, self.pattern, num_cameras=2, camid=camid, nested=True)
            for camid, folder in enumerate(self.find_folders(self.sides[self.protocol]))
        )
        return Subsets([], query, gallery)


@DATASET_REGISTRY.register()
class OccludedREID(TwoSided):
    """Occluded-REID: five occluded and five whole-body images of each person.

    File names are ``NNN_MM.tif``, identity and image number. Versions renamed in the style of
    Market-1501 have made-up camera numbers, which are ignored.

    Reference: Zhuo et al., Occluded Person Re-identification. ICME 2018.
    """

    dataset_name = "occludedreid"
    layouts = (
        "Occluded_REID", "OccludedREID", "Occluded-REID",
        "ICME2018_Occluded-Person-Reidentification_datasets/Occluded_REID",
    )  # fmt: skip
    sides = {
        "": (
            ("occluded_body_images", "whole_body_images"), ("query", "bounding_box_test"),
            ("query", "gallery"),
        )
    }  # fmt: skip
    expected = {"query": Counts(1000, 200), "gallery": Counts(1000, 200)}
    advice = (
        "Get Occluded_REID.zip from its authors (github.com/tinajia2012/"
        "ICME2018_Occluded-Person-Reidentification_datasets; for academic use) and unpack it in "
        "the first of these folders"
    )


@DATASET_REGISTRY.register()
class PartialREID(TwoSided):
    """Partial-REID: five occluded, five partial and five whole-body images of each person.

    Protocol ``occluded`` asks with the original images, ``partial`` with the same images cropped by
    hand to the visible part.

    Reference: Zheng et al., Partial Person Re-identification. ICCV 2015.
    """

    dataset_name = "partialreid"
    protocols = ("occluded", "partial")
    layouts = ("Partial-REID_Dataset", "Partial_REID", "PartialREID")
    sides = {
        "occluded": (("occluded_body_images", "whole_body_images"),),
        "partial": (("partial_body_images", "whole_body_images"),),
    }
    expected = {"query": Counts(300, 60), "gallery": Counts(300, 60)}
    advice = (
        "Get Partial-REID_Dataset.rar of its authors (Sun Yat-sen University) and unpack it in the "
        "first of these folders"
    )

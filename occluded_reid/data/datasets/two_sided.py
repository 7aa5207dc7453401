"""Sets of two sides: occluded or partial queries, and a gallery of whole bodies.

File names hold no camera, so the sides serve as cameras: queries have camera 0, the gallery
camera 1, and no match is dropped. The number after the identity counts images. A loader that reads
it as a camera drops true matches, which changes Rank-1 by several points.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from fastreid.data.datasets import DATASET_REGISTRY

from occluded_reid.data.datasets.base import (
    Counts,
    FolderDataset,
    LabeledImage,
    Subsets,
    is_image_name,
)
from occluded_reid.data.datasets.layout import list_folders, list_names, resolve_case

QUERY_CAMERA, GALLERY_CAMERA = 0, 1


def read_side(folder: Path, pattern: re.Pattern[str], camid: int) -> list[LabeledImage]:
    """Read one side, sorted by path: images in ``folder`` and in the folders directly below it.

    ``pattern`` is matched at the start of the file name; group 1 is the identity. Folder names are
    never parsed. All images get the camera ``camid``, counted from 0.
    """
    return [
        LabeledImage(str(home / name), int(match[1]), camid)
        for home in (folder, *list_folders(folder))
        for name in list_names(home)
        if is_image_name(name) and (match := pattern.match(name))
    ]


class TwoSided(FolderDataset):
    """Base of the sets of two sides, which are for testing only."""

    #: Folders (query, gallery) of each protocol, tried in order.
    sides: ClassVar[Mapping[str, Sequence[tuple[str, str]]]] = {}
    pattern = re.compile(r"(\d+)[_.]")
    example = "001_01.tif"
    num_cameras = 2

    def read_subsets(self) -> Subsets:
        """Read the first pair of folders that exists."""
        for home in self.list_candidates():
            for names in self.sides[self.protocol]:
                query, gallery = (resolve_case(home, name) for name in names)
                if query.is_dir() and gallery.is_dir():
                    self.home, self.image_folders = str(home), [query, gallery]
                    return Subsets(
                        train=[],
                        query=read_side(query, self.pattern, QUERY_CAMERA),
                        gallery=read_side(gallery, self.pattern, GALLERY_CAMERA),
                    )
        wanted = " or ".join(" and ".join(names) for names in self.sides[self.protocol])
        raise self.missing_error(f"folders {wanted}")


@DATASET_REGISTRY.register()
class OccludedREID(TwoSided):
    """Occluded-REID: five occluded and five whole-body images of each person.

    File names are ``NNN_MM.tif``, identity and image number. Versions renamed in the style of
    Market-1501 have made-up camera numbers, which are ignored.

    Reference: Zhuo et al., Occluded Person Re-identification. ICME 2018.
    """

    dataset_name = "occludedreid"
    layouts = (
        "Occluded_REID",
        "OccludedREID",
        "Occluded-REID",
        "ICME2018_Occluded-Person-Reidentification_datasets/Occluded_REID",
    )
    sides = {
        "": (
            ("occluded_body_images", "whole_body_images"),
            ("query", "bounding_box_test"),
            ("query", "gallery"),
        )
    }
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

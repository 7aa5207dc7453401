"""Partial-iLIDS, of which copies of many forms are about."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from fastreid.data.datasets import DATASET_REGISTRY

from occluded_reid.data.datasets.base import Counts, DatasetNotFound, LabelledImage, Subsets
from occluded_reid.data.datasets.layout import as_spelled
from occluded_reid.data.datasets.lists import inside, read_list
from occluded_reid.data.datasets.two_sided import GALLERY_CAMERA, QUERY_CAMERA, TwoSided

logger = logging.getLogger(__name__)

_NOCROP, _CROP = "partial_iLIDS_Probe_nocrop", "Probe"
_TOLD = {_NOCROP.lower(): "whole", _CROP.lower(): "crop"}  # protocol by the queries' folder
# fast-reid's names, and those of Partial-REID; they do not tell whether the queries are cropped
_EITHER = (("query", "gallery"), ("partial_body_images", "whole_body_images"))


@DATASET_REGISTRY.register()
class PartialiLIDS(TwoSided):
    """Partial-iLIDS: one partial and one whole-body image of each of 119 persons.

    Protocol ``whole`` asks with the images as they were taken (``partial_iLIDS_Probe_nocrop``),
    ``crop`` with the same images cropped to what is visible (``Probe``). One query is 0.84 points.
    Where the folders are named otherwise, or the lists ``Probe.txt`` and ``Gallery.txt`` say what
    belongs to the set, the disk does not tell which of the two the queries are: they are taken as
    the protocol says, with a warning.

    Reference: He et al., Deep Spatial Feature Reconstruction for Partial Person
    Re-identification. CVPR 2018.
    """

    dataset_name = "partialilids"
    protocols = ("whole", "crop")
    example = "001.jpg"
    layouts: ClassVar[Sequence[str]] = ("Partial_iLIDS", "PartialiLIDS", "Partial-iLIDS")
    sides = {
        "whole": ((_NOCROP, "Gallery"), *_EITHER),
        "crop": ((_CROP, "Gallery"), *_EITHER),
    }
    expected = {"query": Counts(119, 119), "gallery": Counts(119, 119)}
    advice = (
        "Get Partial_iLIDS as github.com/lingxiao-he/Partial-Person-ReID provides it and unpack it "
        "in the first of these places; partial_iLIDS_Probe_nocrop is for the protocol whole, Probe "
        "for crop (PartialiLIDS:crop)"
    )

    def read_subsets(self) -> Subsets:
        """Read the folders, or else what the lists name."""
        try:
            subsets = super().read_subsets()
        except DatasetNotFound:
            listed = self._read_lists()
            if listed is None:
                raise
            subsets = listed
        if self._told_protocols(subsets) != {self.protocol}:
            logger.warning(
                f"PartialiLIDS in {self.home}: the folders do not tell whether the queries are "
                f"cropped; taken as protocol {self.protocol}"
            )
        return subsets

    def _read_lists(self) -> Subsets | None:
        """Read ``Probe.txt`` and ``Gallery.txt``; None without them or with the other queries."""
        for home in self.candidates():
            lists = [as_spelled(home, name) for name in ("Probe.txt", "Gallery.txt")]
            if not all(path.is_file() for path in lists):
                continue
            query, gallery = (
                self._listed(home, path, camera)
                for path, camera in zip(lists, (QUERY_CAMERA, GALLERY_CAMERA), strict=True)
            )
            subsets = Subsets([], query, gallery)
            if self._told_protocols(subsets) <= {self.protocol}:
                self.home = str(home)
                return subsets
        return None

    def _listed(self, home: Path, source: Path, camid: int) -> list[LabelledImage]:
        paths = (as_spelled(home, inside(line, source)) for line in read_list(source))
        return [
            LabelledImage(str(path), int(match[1]), camid)
            for path in paths
            if path.is_file() and (match := self.pattern.match(path.name))
        ]

    def _told_protocols(self, subsets: Subsets) -> set[str]:
        """The protocols that the names of the queries' folders tell."""
        folders = {Path(image.path).parent.name.lower() for image in subsets.query}
        return {_TOLD[folder] for folder in folders if folder in _TOLD}

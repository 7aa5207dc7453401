"""Partial-iLIDS, which is distributed in several layouts."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from fastreid.data.datasets import DATASET_REGISTRY

from occluded_reid.data.datasets.base import (
    Counts,
    DatasetNotFound,
    LabeledImage,
    Subsets,
    parse_identity,
)
from occluded_reid.data.datasets.layout import resolve_case
from occluded_reid.data.datasets.two_sided import GALLERY_CAMERA, QUERY_CAMERA, TwoSided
from occluded_reid.utils.tables import check_inside, read_list

logger = logging.getLogger(__name__)

_NOCROP, _CROP = "partial_iLIDS_Probe_nocrop", "Probe"
_PROTOCOLS = {_NOCROP.lower(): "whole", _CROP.lower(): "crop"}  # by the queries' folder
# names of fast-reid and Partial-REID, which do not show whether the queries are cropped
_AMBIGUOUS = (("query", "gallery"), ("partial_body_images", "whole_body_images"))


@DATASET_REGISTRY.register()
class PartialiLIDS(TwoSided):
    """Partial-iLIDS: one partial and one whole-body image of each of 119 persons.

    Protocol ``whole`` asks with the original images (``partial_iLIDS_Probe_nocrop``), ``crop`` with
    the same images cropped to the visible part (``Probe``). One query is worth 0.84 points. Other
    folder names, and sets defined by the lists ``Probe.txt`` and ``Gallery.txt``, do not show which
    kind the queries are; the protocol decides then, with a warning.

    Reference: He et al., Deep Spatial Feature Reconstruction for Partial Person
    Re-identification. CVPR 2018.
    """

    dataset_name = "partialilids"
    protocols = ("whole", "crop")
    example = "001.jpg"
    layouts = ("Partial_iLIDS", "PartialiLIDS", "Partial-iLIDS")
    sides = {
        "whole": ((_NOCROP, "Gallery"), *_AMBIGUOUS),
        "crop": ((_CROP, "Gallery"), *_AMBIGUOUS),
    }
    expected = {"query": Counts(119, 119), "gallery": Counts(119, 119)}
    advice = (
        "Get Partial_iLIDS as github.com/lingxiao-he/Partial-Person-ReID provides it and unpack it "
        "in the first of these folders; partial_iLIDS_Probe_nocrop is for the protocol whole, "
        "Probe for crop (PartialiLIDS:crop)"
    )

    def read_subsets(self) -> Subsets:
        """Read the folders, or the images in the lists if there are no folders."""
        try:
            subsets = super().read_subsets()
        except DatasetNotFound:
            listed = self._read_lists()
            if listed is None:
                raise
            subsets = listed
        if self._detect_protocols(subsets) != {self.protocol}:
            logger.warning(
                f"PartialiLIDS in {self.home}: the folders do not show whether the queries are "
                f"cropped; assuming protocol {self.protocol}"
            )
        return subsets

    def _read_lists(self) -> Subsets | None:
        """Read ``Probe.txt`` and ``Gallery.txt``; None if missing or of the other protocol."""
        for home in self.list_candidates():
            lists = [resolve_case(home, name) for name in ("Probe.txt", "Gallery.txt")]
            if not all(path.is_file() for path in lists):
                continue
            sides = zip(lists, (QUERY_CAMERA, GALLERY_CAMERA), strict=True)
            query, gallery = (self._read_listed(home, path, camera) for path, camera in sides)
            subsets = Subsets([], query, gallery)
            if self._detect_protocols(subsets) <= {self.protocol}:
                self.home = str(home)
                return subsets
        return None

    def _read_listed(self, home: Path, source: Path, camid: int) -> list[LabeledImage]:
        paths = (resolve_case(home, check_inside(line, source)) for line in read_list(source))
        return [
            LabeledImage(str(path), parse_identity(match[1], path), camid)
            for path in paths
            if os.path.isfile(path) and (match := self.pattern.match(path.name))
        ]

    def _detect_protocols(self, subsets: Subsets) -> set[str]:
        """Return the protocols implied by the names of the queries' folders."""
        folders = {Path(image.path).parent.name.lower() for image in subsets.query}
        return {_PROTOCOLS[folder] for folder in folders if folder in _PROTOCOLS}

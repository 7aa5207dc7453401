"""Market-1501, and a validation split made of its training images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from fastreid.data.datasets import DATASET_REGISTRY

from occluded_reid.data.datasets.base import Counts, FolderDataset, LabeledImage, Subsets
from occluded_reid.data.datasets.layout import resolve_case


class Market1501(FolderDataset):
    """Market-1501 as published; ``build_dataset`` prefers it to fast-reid's class of this name.

    fast-reid's own class parses the whole path, so that a folder such as ``2024_c9_x`` above the
    images gives every image identity 2024, and it checks no counts. The gallery keeps its 2,798
    distractors (identity 0), as in the published protocol.

    Reference: Zheng et al., Scalable Person Re-identification: A Benchmark. ICCV 2015.
    """

    dataset_name = "market1501"
    layouts: ClassVar[Sequence[str]] = ("Market-1501-v15.09.15", "Market-1501", "market1501", "")
    pattern = re.compile(r"(-?\d+)_c(\d+)s\d+_")
    example = "0002_c1s1_000451_03.jpg"
    num_cameras = 6
    expected = {
        "train": Counts(12936, 751), "query": Counts(3368, 750), "gallery": Counts(15913, 750),
    }  # fmt: skip
    advice = (
        "Get Market-1501 from its authors (for research only, not to be redistributed) and unpack "
        "it in the first of these folders"
    )
    _junk_pids = [0, -1]


@DATASET_REGISTRY.register()
class MarketSplit(Market1501):
    """A validation split of Market-1501's *training* images; the test set is never touched.

    Use it to choose epochs and hyperparameters. The first 500 of the 751 identities, by number, are
    for training. Of the other 251, the first image of each identity in each camera, by file name,
    is a query; all others are the gallery. If identities are missing (``allow_partial``), they are
    split in the same proportion.

    Protocol ``all`` asks with every query, ``choose`` with those of every other identity, from the
    first, and ``report`` with the others', so that what was chosen on one half is reported on the
    other. All of them search the whole gallery.
    """

    protocols: ClassVar[Sequence[str]] = ("all", "choose", "report")

    layouts = ("Market-1501-v15.09.15", "Market-1501", "market1501", "MarketSplit", "")
    expected = {
        "train": Counts(9173, 500),
        "query": Counts(1122, 251),
        "gallery": Counts(2641, 249),  # two identities have one image per camera
    }
    query_halves: ClassVar[Mapping[str, Counts]] = {
        "choose": Counts(560, 126), "report": Counts(562, 125),
    }  # fmt: skip

    def list_candidates(self) -> list[Path]:
        """Return Market's own folders, folders named ``train``, and flat folders."""
        names = ("bounding_box_train", "train", "")
        return [resolve_case(home, name) for home in super().list_candidates() for name in names]

    def read_subsets(self) -> Subsets:
        """Split the images of the first folder that has any."""
        for folder in self.list_candidates():
            images = self.remove_junk(self.read_folder(folder)) if folder.is_dir() else []
            if images:
                self.home, self.image_folders = str(folder), [folder]
                break
        else:
            raise self.missing_error(f"images of bounding_box_train (names such as {self.example})")
        pids = sorted({image.pid for image in images})
        training = set(pids[: round(len(pids) * 500 / 751)])
        queries: dict[tuple[int, int], LabeledImage] = {}
        for image in images:  # sorted by file name
            if image.pid not in training:
                queries.setdefault((image.pid, image.camid), image)
        query_paths = {image.path for image in queries.values()}
        return Subsets(
            train=[image for image in images if image.pid in training],
            query=self._keep_half([image for image in images if image.path in query_paths]),
            gallery=[i for i in images if i.pid not in training and i.path not in query_paths],
        )

    def _keep_half(self, queries: list[LabeledImage]) -> list[LabeledImage]:
        """Return the protocol's queries, and expect their number."""
        if self.protocol not in self.query_halves:
            return queries
        self.expected = {**self.expected, "query": self.query_halves[self.protocol]}
        first = list(self.query_halves).index(self.protocol)
        pids = set(sorted({query.pid for query in queries})[first::2])
        return [query for query in queries if query.pid in pids]

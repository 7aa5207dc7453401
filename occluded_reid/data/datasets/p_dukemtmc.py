"""P-DukeMTMC-reID: the identities of DukeMTMC that have occluded and whole-body images."""

from __future__ import annotations

import re

from fastreid.data.datasets import DATASET_REGISTRY

from occluded_reid.data.datasets.base import Counts, FolderDataset, Subsets, read_images
from occluded_reid.data.datasets.two_sided import GALLERY_CAMERA, QUERY_CAMERA


@DATASET_REGISTRY.register()
class PDukeMTMC(FolderDataset):
    """P-DukeMTMC-reID: occluded queries, whole-body gallery.

    Protocol ``binary``, the usual one, treats the two sides as cameras: no match is dropped.
    Protocol ``cameras`` parses the real cameras, and images of the query's camera are dropped as in
    DukeMTMC-reID; its results are not comparable with those of ``binary``.

    Its authors state 24,143 images of 1,299 identities in total
    (github.com/tinajia2012/ICME2018_Occluded-Person-Reidentification_datasets), which is the sum of
    the counts below. All hit rates published by github.com/xiaolai-sqlai/SCM-ReID and MSViT-ReID
    are multiples of 1 / 2,163. No public list confirms how training and gallery share the other
    21,980 images.

    Reference: Zhuo et al., Occluded Person Re-identification. ICME 2018.
    """

    dataset_name = "pdukemtmc"
    protocols = ("binary", "cameras")
    layouts = (
        "P-DukeMTMC-reID", "P_DukeMTMC", "PDukeMTMC",
        "ICME2018_Occluded-Person-Reidentification_datasets/P-DukeMTMC-reID",
    )  # fmt: skip
    folders = {
        "occluded_train": "train/occluded_body_images", "train": "train/whole_body_images",
        "query": "test/occluded_body_images", "gallery": "test/whole_body_images",
    }  # fmt: skip
    pattern = re.compile(r"(\d+)_c(\d+)")
    example = "0019_c1_f0051230.jpg"
    num_cameras = 8
    expected = {
        "train": Counts(12927, 665), "query": Counts(2163, 634), "gallery": Counts(9053, 634),
    }  # fmt: skip
    advice = (
        "It is made of DukeMTMC, which its authors have withdrawn. If you have "
        "P-DukeMTMC-reid.zip, unpack it in the first of these folders"
    )

    def read_subsets(self) -> Subsets:
        """Read both sides for training, and one side each for queries and gallery."""
        used = self.list_used_folders()
        sides = {"occluded_train": QUERY_CAMERA, "query": QUERY_CAMERA}
        images = {}
        for key, folder in zip(used, self.find_folders([tuple(used.values())]), strict=True):
            camid = sides.get(key, GALLERY_CAMERA) if self.protocol == "binary" else None
            images[key] = read_images(folder, self.pattern, num_cameras=8, camid=camid, nested=True)
        train = images.get("occluded_train", []) + images.get("train", [])
        return Subsets(train, images["query"], images["gallery"])

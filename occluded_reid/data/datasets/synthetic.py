"""The synthetic data set: no download, and the exact truth about each occlusion."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from fastreid.data.datasets import DATASET_REGISTRY

from occluded_reid.data.datasets.base import FolderDataset, Subsets
from occluded_reid.synthetic import generate, read_truth


@DATASET_REGISTRY.register()
class SyntheticOccluded(FolderDataset):
    """Rendered pedestrians in several cameras, generated on first use.

    Protocol ``occluded`` asks with occluded images, ``holistic`` with unoccluded ones; both search
    the same gallery. The images depend on size, seed and version of the generator only.

    Args:
        synthetic_size: a name in :data:`occluded_reid.synthetic.SIZES`.
        synthetic_seed: of all random choices.
        synthetic_root: where the images are kept; ``""`` is ``root``.
    """

    protocols = ("occluded", "holistic")
    pattern = re.compile(r"(\d+)_c(\d+)_")
    example = "0012_c3_000451.jpg"
    num_cameras = 99
    options = ("synthetic_size", "synthetic_seed", "synthetic_root")

    def __init__(
        self, root: str = "datasets", protocol: str = "", *, synthetic_size: str = "small",
        synthetic_seed: int = 0, synthetic_root: str = "", **kwargs: Any,
    ) -> None:  # fmt: skip
        self.size, self.seed = synthetic_size, synthetic_seed
        super().__init__(synthetic_root or root, protocol, **kwargs)

    def read_subsets(self) -> Subsets:
        """Generate the images unless they exist, then read them."""
        # every process calls it; the generator's lock lets one of them work
        home = Path(generate(self.root, self.size, self.seed)).absolute()
        self.home = str(home)
        self.dataset_name = f"synthetic-{home.name}"  # another seed has other people
        query = "query_holistic" if self.protocol == "holistic" else "query"
        names = ("bounding_box_train", query, "bounding_box_test")
        self.image_folders = [home / name for name in names]
        return Subsets(*map(self.read_folder, self.image_folders))

    @cached_property
    def truth(self) -> dict[str, Any]:
        """The occlusion of each image by its absolute path; read on first access."""
        records = read_truth(self.home)
        return {str(Path(self.home, path)): truth for path, truth in records.items()}

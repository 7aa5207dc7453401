"""MSMT17, whose lists assign images to subsets."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path

from occluded_reid.data.datasets.base import (
    Counts,
    FolderDataset,
    LabeledImage,
    Subsets,
    label_training_items,
    parse_identity,
)
from occluded_reid.data.datasets.layout import list_names, resolve_case
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.tables import check_inside, read_list

_LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
_VERSIONS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))  # V1 and V2


class MSMT17(FolderDataset):
    """MSMT17 as published; ``build_dataset`` prefers it to fast-reid's class of this name.

    The 2,373 validation images of the same 1,041 training identities are excluded from training, as
    in published results, unless ``combineall``. The lists number test identities from 0 again; here
    they follow the training identities, as in fast-reid. Unlike in fast-reid, a listed image that
    is not on the disk does not count.

    Reference: Wei et al., Person Transfer GAN to Bridge Domain Gap for Person Re-Identification.
    CVPR 2018.
    """

    dataset_name = "msmt17"
    layouts = ("MSMT17_V1", "MSMT17_V2", "MSMT17/MSMT17_V1", "MSMT17/MSMT17_V2", "MSMT17")
    pattern = re.compile(r"\d+_\d+_(\d+)_")  # the camera; identities are in the lists
    example = "0000_000_01_0303morning_0008_0.jpg"
    num_cameras = 15
    expected = {
        "train": Counts(30248, 1041), "query": Counts(11659, 3060), "gallery": Counts(82161, 3060),
    }  # fmt: skip
    advice = "Get MSMT17 from its authors and unpack it in the first of these folders"

    def read_subsets(self) -> Subsets:
        """Read the images in the lists."""
        train_folder, test_folder = self.find_folders(_VERSIONS, _LISTS)
        folders = (train_folder, train_folder, test_folder, test_folder)
        list_once = functools.cache(lambda home: set(list_names(home)) if home.is_dir() else set())
        train, validation, query, gallery = (
            self._read_listed(resolve_case(Path(self.home), name), folder, list_once)
            for name, folder in zip(_LISTS, folders, strict=True)
        )
        self._validation = label_training_items(validation, self.dataset_name)
        first = len({image.pid for image in train})
        query, gallery = (
            [image._replace(pid=first + image.pid) for image in side] for side in (query, gallery)
        )
        return Subsets(train, query, gallery)

    def combine_all(self) -> None:
        """Train on the validation images, queries and gallery too."""
        self._train = self.train + self._validation
        super().combine_all()

    def _read_listed(
        self, source: Path, folder: Path, list_once: Callable[[Path], set[str]]
    ) -> list[LabeledImage]:
        images = []
        for number, line in enumerate(read_list(source), start=1):
            name, _, pid = line.rpartition(" ")
            camera = self.pattern.match(os.path.basename(name))
            if not pid.isdecimal() or camera is None:
                raise UserError(
                    f"{source}, line {number}: {line!r} is not of the form "
                    f"'0000/{self.example} 0'; unpack the list again"
                )
            if not 1 <= parse_identity(camera[1], source) <= self.num_cameras:
                raise UserError(f"{source}, line {number}: there is no camera {camera[1]}")
            path = folder / check_inside(name.strip(), source)
            if path.name in list_once(path.parent):
                person = parse_identity(pid, source)
                images.append(LabeledImage(str(path), person, int(camera[1]) - 1))
        return images

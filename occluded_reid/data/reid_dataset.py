"""From lists of images to samples and batches on the CPU.

A batch is a dict: ``images`` (B, 3, H, W) in 0-255, ``targets`` (B,), ``camids`` (B,),
``img_paths`` (a list) and ``index`` (B,), the position in the data set. Training with ``INPUT.NPO``
adds ``part_visibility`` (B, P) and, in pairs, ``occluded_images`` (B, 3, H, W). Testing adds
``digest`` (B,), which images of equal pixels share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from fastreid.data.common import CommDataset
from torch.utils.data import default_collate

from occluded_reid.data.cache import Images
from occluded_reid.data.digest import digest_pixels
from occluded_reid.data.images import BrokenImage, read_rgb
from occluded_reid.data.transforms.augmentation import Augmentation
from occluded_reid.data.transforms.npo import NpoAugmentation
from occluded_reid.utils.random import PrivateRandomness

Item = tuple[str, Any, Any]
"""Path, identity and camera of an image."""


class SampleIndex(NamedTuple):
    """What a sampler asks for: the position of an image, and the seed of its augmentation."""

    position: int
    seed: int


class Unreadable(NamedTuple):
    """What a data set returns in place of an image that cannot be decoded."""

    path: str
    reason: str


class ReidDataset(CommDataset):
    """fast-reid's data set with seeded augmentation; it reports unreadable images.

    ``transform`` maps a PIL image to a (3, H, W) tensor; ``npo`` occludes it wherever the index
    brings a seed. ``relabel`` renumbers identities and cameras from 0.
    """

    def __init__(
        self, items: list[Item], transform: Callable[[Any], torch.Tensor], relabel: bool = True,
        npo: NpoAugmentation | None = None,
    ):  # fmt: skip
        super().__init__(items, transform, relabel)
        self._npo = npo

    def __getitem__(self, index: SampleIndex | int) -> dict[str, Any] | Unreadable:
        if not isinstance(index, SampleIndex):
            return self.read_sample(index)
        with PrivateRandomness(index.seed):
            sample = self.read_sample(index.position)
        if self._npo is None or isinstance(sample, Unreadable):
            return sample
        return self._npo(sample, index.seed)

    def read_sample(self, position: int) -> dict[str, Any] | Unreadable:
        """Return the sample at ``position``, one row of the batch described above."""
        path = self.img_items[position][0]
        try:
            image = read_rgb(path)
        except BrokenImage as error:
            return Unreadable(path, error.reason)
        digest = {} if self.relabel else {"digest": digest_pixels(image)}
        return {"images": self.transform(image), **self.describe(position), **digest}

    def describe(self, position: int) -> dict[str, Any]:
        """Return everything in the sample at ``position`` but its image."""
        path, pid, camid = self.img_items[position][:3]
        return {
            "targets": self.pid_dict[pid] if self.relabel else pid,
            "camids": self.cam_dict[camid] if self.relabel else camid,
            "img_paths": path,
            "index": position,
        }


class BatchDataset(ReidDataset):
    """Reads and augments a whole batch at once, with the same pixels as sample by sample.

    ``images`` are in the order of the items (path, identity, camera).
    """

    def __init__(self, items: list[Item], images: Images, augmentation: Augmentation):
        super().__init__(items, augmentation.resize)
        self._images = images
        self._augmentation = augmentation

    def __getitems__(self, indices: Sequence[SampleIndex]) -> dict[str, Any]:
        """Return a batch as :func:`collate` does; PyTorch's loader calls this."""
        readable: list[tuple[SampleIndex, np.ndarray]] = []
        unreadable = []
        for index in indices:
            image = self._images[index.position]
            if isinstance(image, str):
                unreadable.append(Unreadable(self.img_items[index.position][0], image))
            else:
                readable.append((index, image))
        if not readable:
            return {"unreadable": unreadable}
        batch = collate([self.describe(index.position) for index, _ in readable])
        params = []
        crops = np.zeros((len(readable), 3, *self._augmentation.size), np.uint8)
        with PrivateRandomness(readable[0][0].seed):
            for (index, image), crop in zip(readable, crops, strict=True):
                params.append(self._augmentation.sample_params(index.seed))
                self._augmentation.crop(image, params[-1], crop)
        augmented = self._augmentation.finish(torch.from_numpy(crops), params)
        return batch | augmented | {"unreadable": unreadable}


def collate(samples: Sequence[dict[str, Any] | Unreadable] | dict[str, Any]) -> dict[str, Any]:
    """Merge samples into a batch; ``unreadable`` lists those without an image.

    Tensors and numbers are stacked, strings become a list. A batch is returned as it is.
    """
    if isinstance(samples, dict):
        return samples
    readable = [sample for sample in samples if isinstance(sample, dict)]
    unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
    return {**(default_collate(readable) if readable else {}), "unreadable": unreadable}

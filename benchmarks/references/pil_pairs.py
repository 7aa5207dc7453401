"""Both views of a sample made with PIL; the patch is read from its file each time.

Random numbers follow the order of :class:`occluded_reid.data.transforms.npo.NpoAugmentation`, so
equal seeds give equal views; labels come from the difference of the views.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.data.data_utils import read_image
from fastreid.data.transforms import ToTensor
from PIL import Image, ImageEnhance

from occluded_reid.data.reid_dataset import SampleIndex
from occluded_reid.data.transforms.npo import NpoAugmentation, Rectangle, sample_rectangle
from occluded_reid.utils.random import PrivateRandomness


class PairsInPIL:
    """A data set of pairs; ``transform`` makes the holistic view (3, H, W) of a PIL image.

    The patches of ``npo`` are written to ``folder``.
    """

    def __init__(self, items: list[Any], transform: Any, npo: NpoAugmentation, folder: Path):
        self._items, self._transform, self._npo = items, transform, npo
        self._patches = [folder / f"patch_{number}.png" for number in range(len(npo.patches))]
        for path, patch in zip(self._patches, npo.patches, strict=True):
            Image.fromarray(patch.pixels).save(path)

    def __getitem__(self, index: SampleIndex) -> dict[str, Any]:
        path, identity, camera = self._items[index.position]
        with PrivateRandomness(index.seed):
            whole = self._transform(read_image(path))
        image = Image.fromarray(whole.permute(1, 2, 0).numpy().astype(np.uint8))
        occluded = ToTensor()(self._occluded(image, np.random.default_rng(index.seed)))
        return {
            "images": whole,
            "occluded_images": occluded,
            "part_visibility": self._labels(whole, occluded),
            "targets": identity,
            "camids": camera,
            "img_paths": path,
            "index": index.position,
        }

    def _occluded(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        npo = self._npo
        patch = Image.open(self._patches[int(rng.integers(len(self._patches)))]).convert("RGB")
        vertical = patch.height / patch.width > npo.vertical_ratio
        size = (image.height, image.width)
        rectangle = sample_rectangle(vertical, size, npo.extent, rng)
        patch = self._vary(patch, rectangle, rng)
        occluded = image.copy()
        occluded.paste(patch, (rectangle.left, rectangle.top))
        return occluded

    def _vary(
        self, patch: Image.Image, rectangle: Rectangle, rng: np.random.Generator
    ) -> Image.Image:
        npo = self._npo
        rows, columns = (
            max(1, round(rng.uniform(npo.crop, 1.0) * side)) for side in (patch.height, patch.width)
        )
        top = int(rng.integers(patch.height - rows + 1))
        left = int(rng.integers(patch.width - columns + 1))
        patch = patch.crop((left, top, left + columns, top + rows))
        mirrored = rng.random() < npo.flip
        factors = [rng.uniform(max(0.0, 1 - s), 1 + s) for s in npo.jitter]
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhancer, factor in zip(enhancers, factors, strict=True):
            patch = enhancer(patch).enhance(factor)
        if mirrored:
            patch = patch.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return patch.resize((rectangle.width, rectangle.height), Image.Resampling.BILINEAR)

    def _labels(self, whole: torch.Tensor, occluded: torch.Tensor) -> torch.Tensor:
        """Return 0 for each stripe that differs in more than ``covered`` of its area."""
        differs = (whole != occluded).any(dim=0)
        columns = torch.nonzero(differs.any(dim=0)).flatten()
        if len(columns) < whole.shape[2]:  # a vertical occluder
            return torch.ones(self._npo.num_stripes)
        fractions = differs.float().unflatten(0, (self._npo.num_stripes, -1)).mean(dim=(1, 2))
        return (fractions <= self._npo.covered).float()

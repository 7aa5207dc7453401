"""``loading``: from cached training images to both views of a sample at 256 x 128, on one core.

``loading_files``: the same as ``loading``, without a cache: from JPEG files of 128 x 64.
"""

from __future__ import annotations

import io
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.data.transforms import build_transforms
from harness.comparison import Figure, MismatchError, make_figure, time_alternately
from PIL import Image
from references.pil_pairs import PairsInPIL

from fed_plugin import add_fed_config
from occluded_reid.config import load_config
from occluded_reid.data.cache import DecodedImages, open_cache
from occluded_reid.data.reid_dataset import BatchDataset, SampleIndex, collate
from occluded_reid.data.transforms.augmentation import build_augmentation
from occluded_reid.data.transforms.npo import build_npo

NAMES = ("loading", "loading_files")
OPTIONS = (
    "MODEL.DEVICE", "cpu", "INPUT.FLIP.ENABLED", "True", "INPUT.PADDING.ENABLED", "True",
    "INPUT.NPO.ENABLED", "True", "INPUT.NPO.MODE", "pair",
)  # fmt: skip
Batch = dict[str, Any]


def measure(
    images: int = 64, size: tuple[int, int] = (256, 128), rounds: int = 7
) -> dict[str, Figure]:
    """Compare samples per second; all sides use the same seeds."""
    options = [*OPTIONS, "INPUT.SIZE_TRAIN", str(list(size))]
    cfg = load_config("", options, add_keys=[add_fed_config])
    npo = build_npo(cfg)
    assert npo is not None
    augmentation = build_augmentation(cfg, npo)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        items = write_images(Path(folder), images)
        reference = PairsInPIL(items, build_transforms(cfg, is_train=True), npo, Path(folder))
        decoded = DecodedImages([item[0] for item in items], augmentation.resize)
        cache = open_cache(decoded, size, folder)
        indices = [SampleIndex(number, 1000 + number) for number in range(images)]
        expected = collate([reference[index] for index in indices])
        for name, source in (("loading", cache), ("loading_files", decoded)):
            ours = BatchDataset(items, source, augmentation)
            check(ours.__getitems__(indices), expected)
            times = time_alternately(
                partial(ours.__getitems__, indices),
                lambda: collate([reference[index] for index in indices]),
                rounds=rounds,
            )
            rate, reference_rate = ([images / spent for spent in each] for each in times)
            unit = f"pairs of {size[0]} x {size[1]} per s and core"
            figures[name] = make_figure((rate, reference_rate), unit, rate=True)
    return figures


def check(ours: Batch, reference: Batch) -> None:
    """Raise MismatchError if a view or a label differs.

    The pasted patch may differ by a few gray levels: PIL clips after each color change, ours after
    the last. Another patch or position differs by more.
    """
    if not torch.equal(ours["images"].float(), reference["images"]):
        raise MismatchError("loading: the whole views differ")
    if not torch.equal(ours["part_visibility"], reference["part_visibility"]):
        raise MismatchError("loading: the labels of the stripes differ")
    off = (ours["occluded_images"].float() - reference["occluded_images"]).abs()
    worst = float(off.mean(dim=(1, 2, 3)).max())
    if worst > 8:
        raise MismatchError(f"loading: the occluded views differ by {worst:.1f} of 255")


def write_images(
    folder: Path, images: int, *, identities: int = 0, distinct: int = 0
) -> list[tuple[str, int, int]]:
    """Write smooth random JPEG images of 128 x 64; return path, identity and camera of each.

    Args:
        folder: Where to write them.
        images: Number of files.
        identities: Number of identities; 0 for four images each.
        distinct: Number of different images, which repeat; 0 for all.
    """
    rng = np.random.default_rng(0)
    identities, distinct = identities or -(-images // 4), distinct or images
    contents, items = [], []
    for _ in range(min(distinct, images)):
        stream = io.BytesIO()
        pixels = rng.integers(0, 256, (16, 8, 3), np.uint8)
        image = Image.fromarray(pixels).resize((64, 128), Image.Resampling.BICUBIC)
        image.save(stream, "JPEG", quality=90)
        contents.append(stream.getvalue())
    for number in range(images):
        path = folder / f"{number:05d}.jpg"
        path.write_bytes(contents[number % distinct])
        items.append((str(path), number * identities // images, number % 3))
    return items

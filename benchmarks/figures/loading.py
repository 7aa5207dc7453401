"""From training images to both views of a sample, on one core."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fastreid.data.transforms import build_transforms
from harness.comparison import Figure, make_figure, require_equal, time_alternately
from PIL import Image
from references.pil_pairs import PairsInPIL

from fed_plugin import add_fed_config
from occluded_reid.config import load_config
from occluded_reid.data.cache import DecodedImages, open_cache
from occluded_reid.data.reid_dataset import BatchDataset, SampleIndex, collate
from occluded_reid.data.transforms.augmentation import build_augmentation
from occluded_reid.data.transforms.npo import build_npo

OPTIONS = (
    "MODEL.DEVICE", "cpu", "INPUT.FLIP.ENABLED", "True", "INPUT.PADDING.ENABLED", "True",
    "INPUT.NPO.ENABLED", "True", "INPUT.NPO.MODE", "pair",
)  # fmt: skip


def measure_loading(
    images: int = 64, size: tuple[int, int] = (256, 128), rounds: int = 7
) -> dict[str, Figure]:
    """Compare samples per second with PIL, from a cache and from JPEG files of 128 x 64.

    All sides use the same seeds.
    """
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

        def others() -> dict[str, Any]:
            return collate([reference[index] for index in indices])

        for name, source in (("loading", cache), ("loading_files", decoded)):
            ours = BatchDataset(items, source, augmentation)
            check(ours.__getitems__(indices), others())
            times = time_alternately(partial(ours.__getitems__, indices), others, rounds=rounds)
            rate, reference_rate = ([images / spent for spent in each] for each in times)
            unit = f"pairs of {size[0]} x {size[1]} per s and core"
            figures[name] = make_figure((rate, reference_rate), unit, rate=True)
    return figures


def check(ours: dict[str, Any], reference: dict[str, Any]) -> None:
    """Raise MismatchError if a view or a label differs.

    The pasted patch may differ by a few gray levels: PIL clips after each color change, ours after
    the last. Another patch or position differs by more.
    """
    for name in ("images", "part_visibility"):
        require_equal(f"loading: {name}", ours[name].float(), reference[name], atol=0)
    off = (ours["occluded_images"].float() - reference["occluded_images"]).abs()
    worst = off.mean(dim=(1, 2, 3)).max()
    require_equal("loading: mean difference of an occluded view", worst, 0.0, atol=8)


def write_images(
    folder: Path, images: int, *, identities: int = 0, distinct: int = 0
) -> list[tuple[str, int, int]]:
    """Write smooth random JPEG images of 128 x 64; return path, identity and camera of each.

    ``identities`` 0 means four images each; ``distinct`` images repeat, 0 means that none does.
    """
    rng = np.random.default_rng(0)
    identities, distinct = identities or -(-images // 4), distinct or images
    paths = [folder / f"{number:05d}.jpg" for number in range(images)]
    for number, path in enumerate(paths):
        if number < distinct:
            pixels = rng.integers(0, 256, (16, 8, 3), np.uint8)
            image = Image.fromarray(pixels).resize((64, 128), Image.Resampling.BICUBIC)
            image.save(path, quality=90)
        else:
            path.write_bytes(paths[number % distinct].read_bytes())
    return [(str(path), i * identities // images, i % 3) for i, path in enumerate(paths)]

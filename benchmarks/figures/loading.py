"""``loading``: from JPEG files of 128 x 64 to both views of a sample at 256 x 128, on one core."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import Figure, Unequal, figure, time_alternately
from fastreid.data.transforms import build_transforms
from PIL import Image
from references.pil_pairs import PairsInPIL

from fed_plugin import add_fed_config
from occluded_reid.config import load_config
from occluded_reid.engine.loading import Draw, ReidDataset, collate
from occluded_reid.occlusion import build_npo

NAMES = ("loading",)
OPTIONS = (
    "MODEL.DEVICE", "cpu", "INPUT.FLIP.ENABLED", "True", "INPUT.PADDING.ENABLED", "True",
    "INPUT.NPO.ENABLED", "True", "INPUT.NPO.MODE", "pair",
)  # fmt: skip


def measure(
    images: int = 64, size: tuple[int, int] = (256, 128), rounds: int = 7
) -> dict[str, Figure]:
    """Compare samples per second of processor time; both draw from the same seeds."""
    options = [*OPTIONS, "INPUT.SIZE_TRAIN", str(list(size))]
    cfg = load_config("", options, add_keys=[add_fed_config])
    transforms, npo = build_transforms(cfg, is_train=True), build_npo(cfg)
    assert npo is not None
    with tempfile.TemporaryDirectory() as folder:
        items = write_pictures(Path(folder), images)
        ours = ReidDataset(items, transforms, npo=npo)
        reference = PairsInPIL(items, transforms, npo, Path(folder))
        draws = [Draw(number, 1000 + number) for number in range(images)]
        check([(ours[draw], reference[draw]) for draw in draws])
        times = time_alternately(
            lambda: collate([ours[draw] for draw in draws]),
            lambda: collate([reference[draw] for draw in draws]),
            rounds=rounds,
        )
    rates = [[images / spent for spent in each] for each in times]
    unit = f"pairs of {size[0]} x {size[1]} per s and core"
    return {"loading": figure(*rates, unit, rate=True)}


def check(pairs: list[tuple[Any, Any]]) -> None:
    """Check the views pixel by pixel.

    The pasted patch may be some grey levels off: PIL clips after each change of colour, ours after
    the last one. Another patch, or another place, is off by more.

    Raises:
        Unequal: a view or a label differs.
    """
    for ours, reference in pairs:
        if not torch.equal(ours["images"], reference["images"]):
            raise Unequal("loading: the whole views differ")
        if not torch.equal(ours["part_visibility"], reference["part_visibility"]):
            raise Unequal("loading: the labels of the stripes differ")
        off = (ours["occluded_images"] - reference["occluded_images"]).abs()
        if float(off.mean()) > 8:
            raise Unequal(f"loading: the occluded views differ by {float(off.mean()):.1f} of 255")


def write_pictures(folder: Path, images: int) -> list[tuple[str, int, int]]:
    """Write smooth pictures of 128 x 64 as JPEG; return path, identity and camera of each."""
    random = np.random.default_rng(0)
    items = []
    for number in range(images):
        path = folder / f"{number:04d}.jpg"
        pixels = random.integers(0, 256, (16, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((64, 128), Image.Resampling.BICUBIC).save(path, quality=90)
        items.append((str(path), number // 4, number % 3))
    return items

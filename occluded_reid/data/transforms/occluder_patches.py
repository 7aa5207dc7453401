"""Occlusion sets: the patches that NPO augmentation pastes over images (FED Sec. 3.1, 4.2).

A set is a folder of small opaque pictures of occluders and backgrounds, cropped by hand from
training images. Where there is none, a drawn set stands in.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from occluded_reid.data.images import read_errors_named
from occluded_reid.synthetic.occluders.styles import OCCLUDER_KINDS, ORIENTATION, draw_occluder
from occluded_reid.synthetic.scene import scenery
from occluded_reid.synthetic.scene.camera import NUM_CAMERAS, build_camera, develop
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
LONGEST_SIDE = 384
"""Larger patches are kept at this size: no paste needs more pixels, and resizing costs by size."""

_DRAWN_PER_KIND = 4
_PLACE_SEED = 7919  # a seed of its own: neither places nor cameras of the drawn data set


class Patch(NamedTuple):
    """One picture of an occlusion set.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        aspect: alpha = p_h / p_w of the picture as it was found.
    """

    pixels: np.ndarray
    aspect: float


def occlusion_set(folders: Sequence[str]) -> list[Patch]:
    """Return the patches of all ``folders``, or the drawn set where there are no folders.

    Raises:
        UserError: a folder is missing, cannot be read or holds no pictures, or a picture is broken
            or not opaque.
    """
    if not folders:
        patches = drawn_patches()
        logger.info(
            f"INPUT.NPO.OCCLUDERS names no folder: pasting {len(patches)} drawn occluders "
            "(the training styles of occluded_reid.synthetic)"
        )
        return patches
    patches = []
    for folder in folders:
        found = load_patches(Path(folder))
        logger.info(f"Occlusion set {folder}: {len(found)} patches")
        patches += found
    return patches


def load_patches(folder: Path) -> list[Patch]:
    """Decode the pictures that lie directly in ``folder``, in the order of their names.

    Raises:
        UserError: as for :func:`occlusion_set`.
    """
    expected = f"INPUT.NPO.OCCLUDERS expects a folder with pictures ({', '.join(SUFFIXES)})"
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise UserError(
            f"cannot read the occlusion set {folder} ({error.strerror}); {expected}"
        ) from error
    if not paths:
        raise UserError(f"the occlusion set {folder} is empty; {expected} directly in it")
    return [_decode(path) for path in paths]


def _decode(path: Path) -> Patch:
    advice = "replace it by a picture or take it out of the set"
    with read_errors_named(f"the occluder {path}", advice), Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGBA")
    if np.asarray(image)[..., 3].min() < 255:
        raise UserError(
            f"the occluder {path} has transparent pixels; a patch is an opaque rectangle, cropped "
            "from a picture together with what surrounds it"
        )
    aspect = image.height / image.width
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return Patch(np.array(image)[..., :3].copy(), aspect)


@functools.lru_cache(maxsize=1)
def drawn_patches() -> list[Patch]:
    """Return the built-in set: drawn occluders of every kind as cameras see them, always the same.

    Only the styles for training are drawn, so that none of them is in the query and gallery images
    of the drawn data set. Each patch has gone through a camera: sharp edges and flat colours that
    no picture has would tell a patch from a picture, whatever it shows.
    """
    rng = np.random.default_rng(0)
    return [_draw(kind, rng) for kind in OCCLUDER_KINDS for _ in range(_DRAWN_PER_KIND)]


def _draw(kind: str, rng: np.random.Generator) -> Patch:
    if ORIENTATION[kind] == "vertical":
        height, width = int(rng.integers(140, 220)), int(rng.integers(25, 45))
    else:
        height, width = int(rng.integers(45, 90)), int(rng.integers(70, 120))
    number = int(rng.integers(NUM_CAMERAS)) + 1
    scene = scenery.render_background(_PLACE_SEED, number)
    top = int(rng.integers(scene.shape[0] - height + 1))
    left = int(rng.integers(scene.shape[1] - width + 1))
    behind = scene[top : top + height, left : left + width]
    picture = draw_occluder(kind, rng, height, width, "training")
    alpha = picture[..., 3:] / np.float32(255)
    light = picture[..., :3] * alpha + behind * (1 - alpha)
    camera = build_camera(_PLACE_SEED, number)
    seen = develop(light.astype(np.float32), camera, rng.uniform(0.92, 1.08), rng)
    return Patch(_compressed(seen, camera.quality), height / width)


def _compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Return RGB pixels as JPEG leaves them."""
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1])

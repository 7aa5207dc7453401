"""Occlusion sets: the patches that NPO augmentation pastes over images (FED Sec. 3.1, 4.2).

A set is a folder of small opaque images of occluders and backgrounds, cropped by hand from training
images. Without a folder, a synthetic set takes its place.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from occluded_reid.data.images import find_images, read_image
from occluded_reid.synthetic.occluders.styles import OCCLUDER_KINDS, ORIENTATION, draw_occluder
from occluded_reid.synthetic.scene import scenery
from occluded_reid.synthetic.scene.camera import build_camera, develop
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.terminal import show

logger = logging.getLogger(__name__)

MAX_SIDE = 384
"""Larger patches are shrunk to this: no paste needs more pixels, and large ones resize slowly."""
_PATCHES_PER_KIND = 4
_PLACE_SEED = 7919  # its own seed: other scenes and cameras than the synthetic data set
_NUM_CAMERAS = 8


class Patch(NamedTuple):
    """An image of an occlusion set, (h, w, 3), and its alpha = p_h / p_w before shrinking."""

    pixels: np.ndarray
    aspect: float


def load_occlusion_sets(folders: Sequence[str]) -> list[Patch]:
    """Load the patches of all ``folders``, or the synthetic set where there are none."""
    if not folders:
        patches = render_patches()
        logger.info(
            f"INPUT.NPO.OCCLUDERS names no folder: pasting {len(patches)} synthetic occluders "
            "(the training styles of occluded_reid.synthetic)"
        )
        return patches
    patches = []
    for folder in folders:
        loaded = load_patches(Path(folder))
        logger.info(f"Occlusion set {folder}: {len(loaded)} patches")
        patches += loaded
    return patches


def load_patches(folder: Path) -> list[Patch]:
    """Decode the opaque images directly in ``folder``, in the order of their names."""
    advice = (
        "INPUT.NPO.OCCLUDERS expects folders with images directly in them: cut patches from "
        f"training images with tools/make_occluders.py window --images IMAGES --output {folder}"
    )
    return [_decode_patch(path) for path in find_images(folder, advice)]


def _decode_patch(path: Path) -> Patch:
    image = read_image(path, "RGBA")
    if np.asarray(image)[..., 3].min() < 255:
        raise UserError(
            f"the occluder {show(path)} has transparent pixels; a patch is an opaque rectangle, "
            "cropped from an image together with its surroundings"
        )
    aspect = image.height / image.width
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return Patch(np.array(image)[..., :3].copy(), aspect)


@functools.lru_cache(maxsize=1)
def render_patches() -> list[Patch]:
    """Render the synthetic set: occluders of every kind as cameras see them, always the same.

    Only the training styles are used, so none of them is in the query and gallery images of the
    synthetic data set. Each patch goes through a camera model: sharp edges and flat colors, which
    no photograph has, would give a patch away.
    """
    rng = np.random.default_rng(0)
    return [_render_patch(kind, rng) for kind in OCCLUDER_KINDS for _ in range(_PATCHES_PER_KIND)]


def _render_patch(kind: str, rng: np.random.Generator) -> Patch:
    upright = ORIENTATION[kind] == "vertical"
    heights, widths = ((140, 220), (25, 45)) if upright else ((45, 90), (70, 120))
    height, width = int(rng.integers(*heights)), int(rng.integers(*widths))
    number = int(rng.integers(_NUM_CAMERAS)) + 1
    scene = scenery.render_background(_PLACE_SEED, number)
    top = int(rng.integers(scene.shape[0] - height + 1))
    left = int(rng.integers(scene.shape[1] - width + 1))
    background = scene[top : top + height, left : left + width]
    occluder = draw_occluder(kind, rng, height, width, "training")
    alpha = occluder[..., 3:] / np.float32(255)
    light = occluder[..., :3] * alpha + background * (1 - alpha)
    camera = build_camera(_PLACE_SEED, number)
    pixels = develop(light.astype(np.float32), camera, rng.uniform(0.92, 1.08), rng)
    _, jpeg = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, camera.quality])
    decoded = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))
    return Patch(decoded[..., ::-1].copy(), height / width)

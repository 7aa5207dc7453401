"""The images that a model is asked to embed: arrays, PIL images, files, or boxes in frames.

Shapes: N boxes, H, W height and width in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from PIL import Image

from occluded_reid.data.images import convert_image, read_rgb
from occluded_reid.utils.errors import UserError

COLOURS = ("bgr", "rgb")
LEFT_OVER = 0.25  # share of a crop's pixels
_BOXES = "expected (N, 4) of x0, y0, x1, y1 in pixels, or an object whose .xyxy is that"
_MISSING = object()


def iterate_crops(
    images: Any, boxes: Any = None, *, colour: str = "bgr", paint: Sequence[float] = ()
) -> Iterator[tuple[str, Image.Image]]:
    """Yield the name of each crop, for an error, and the crop in RGB.

    ``paint`` is the RGB color that :func:`hide_others` paints with; without one nothing is painted.
    See :meth:`~occluded_reid.deploy.embedder.Embedder.embed` for the other arguments and errors.
    """
    if colour not in COLOURS:
        raise UserError(f"the colour order is {colour!r}; it can be {' or '.join(COLOURS)}")
    is_one = isinstance(images, str) or not isinstance(images, Iterable)
    if is_one or (isinstance(images, np.ndarray) and images.ndim in (2, 3)):
        images, boxes = [images], None if boxes is None else [boxes]
    if boxes is None:
        for index, image in enumerate(images):
            name = f"image {index}"
            yield name, Image.fromarray(np.ascontiguousarray(_open(image, name, colour)))
        return
    for index, (frame, own) in enumerate(zip_longest(images, boxes, fillvalue=_MISSING)):
        if frame is _MISSING or own is _MISSING:
            more, fewer = ("boxes", "frames") if frame is _MISSING else ("frames", "sets of boxes")
            raise UserError(f"there are {index} {fewer}, but more {more}; each frame has its own")
        name = f"frame {index}"
        pixels = _open(frame, name, colour)
        corners = _clip(own, name, pixels)
        masks = _read_masks(own, name, (len(corners), *pixels.shape[:2])) if paint else None
        for number, (left, top, right, bottom) in enumerate(corners):
            crop = np.ascontiguousarray(pixels[top:bottom, left:right])
            if paint:
                crop = hide_others(crop, number, corners, paint, masks)
            yield f"box {number} of {name}", Image.fromarray(crop)


def hide_others(
    crop: np.ndarray, number: int, boxes: Sequence[Sequence[int]], color: Sequence[float],
    masks: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Paint over a crop (H, W, 3) of box ``number`` what others cover of it.

    With masks that is what they show of others. Without, it is the boxes of those who are nearer:
    of people on one ground, the nearer one's box ends lower in the frame. A crop of which less than
    ``LEFT_OVER`` would remain is returned as it is: two boxes of one person, perhaps.

    >>> crop, boxes = np.zeros((4, 2, 3), np.uint8), [(0, 0, 2, 4), (1, 2, 4, 6)]
    >>> hide_others(crop, 0, boxes, color=(9, 9, 9))[..., 0]
    array([[0, 0],
           [0, 0],
           [0, 9],
           [0, 9]], dtype=uint8)

    Args:
        boxes: x0, y0, x1, y1 in whole pixels, of everybody in the frame.
        color: in the order of the crop's channels, 0-255.
        masks: of everybody, (N, height, width) bool, of the frame.
    """
    left, top, right, bottom = boxes[number]
    if masks is not None:
        shown = masks[:, top:bottom, left:right]
        hidden = shown.any(axis=0) & ~shown[number]
    else:
        hidden = np.zeros(crop.shape[:2], bool)
        for x0, y0, x1, y1 in boxes:
            if y1 > bottom:
                rows = slice(max(0, y0 - top), max(0, y1 - top))
                hidden[rows, max(0, x0 - left) : max(0, x1 - left)] = True
    if hidden.mean() > 1 - LEFT_OVER:
        return crop
    return np.where(hidden[..., None], np.round(color).astype(np.uint8), crop)


def _read_masks(boxes: Any, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return ``boxes.mask``, as supervision's detections have it, or None without one."""
    masks = getattr(boxes, "mask", None)
    if masks is None:
        return None
    masks = np.asarray(_to_cpu(masks)).astype(bool)
    if masks.shape != shape:
        raise UserError(f"the masks of {name} have shape {masks.shape}; expected {shape}")
    return masks


def _open(image: Any, name: str, colour: str) -> np.ndarray:
    """Return an image as (H, W, 3) uint8 in RGB order."""
    if isinstance(image, (str, os.PathLike)):
        image = read_rgb(image)
    expected = f"expected a {colour.upper()} array (H, W, 3) of uint8, a PIL image or a path"
    if isinstance(image, Image.Image):
        image, colour = np.asarray(convert_image(image, name)), "rgb"
    if not isinstance(image, np.ndarray):
        raise UserError(f"{name} is a {type(image).__name__}; {expected}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"{name} has shape {image.shape} of {image.dtype}; {expected}")
    if not image.size:
        raise UserError(f"{name} is empty, {image.shape}; is its box outside the frame?")
    return image if colour == "rgb" else image[:, :, ::-1]


def _clip(boxes: Any, name: str, pixels: np.ndarray) -> list[list[int]]:
    """Return boxes in whole pixels, clipped to the frame: N times x0, y0, x1, y1."""
    boxes = _to_cpu(getattr(boxes, "xyxy", boxes))
    try:
        given = np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"the boxes of {name} are no numbers ({error}); {_BOXES}") from error
    if not given.size:
        return []
    if given.ndim != 2 or given.shape[1] != 4:
        raise UserError(f"the boxes of {name} have shape {given.shape}; {_BOXES}")
    height, width = pixels.shape[:2]
    corners, is_empty = clip_boxes(given, (height, width))
    if is_empty.any():
        numbers = np.flatnonzero(is_empty).tolist()
        raise UserError(
            f"{name} has {width} x {height} pixels, and no part of them is in box "
            f"{str(numbers)[1:-1]}, {given[numbers[0]].tolist()}; {_BOXES}, with x0 < x1, y0 < y1"
        )
    return corners.tolist()


def _to_cpu(values: Any) -> Any:
    return values.cpu() if hasattr(values, "cpu") else values  # a tensor, on a GPU perhaps


def clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes (N, 4) of x0, y0, x1, y1 to a frame of ``size`` (height, width).

    Returns:
        The boxes in whole pixels, which hold all of what they showed, and which of them (N,) show
        nothing: those outside, without an area, or with NaN. These become zeros.
    """
    clipped = np.clip(boxes, 0, (size[1], size[0], size[1], size[0]))
    is_empty = ~(clipped[:, :2] < clipped[:, 2:]).all(1)  # also where a number is NaN
    corners = np.hstack([np.floor(clipped[:, :2]), np.ceil(clipped[:, 2:])])
    corners[is_empty] = 0
    return corners.astype(int), is_empty

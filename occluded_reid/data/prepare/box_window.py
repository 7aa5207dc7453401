"""An OpenCV window in which boxes are drawn with the mouse."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from occluded_reid.data.images import find_images
from occluded_reid.data.prepare.occluder_sets import read_image
from occluded_reid.synthetic.truth import Box
from occluded_reid.utils.errors import UserError

_ADVICE = "use `make_occluders.py boxes` with a CSV file instead"


def select_boxes(folder: Path) -> Iterator[tuple[Path, Box]]:
    """Show each image of a folder; yield its path and a box for each one drawn."""
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not has_display:
        raise UserError(f"there is no display for a window; {_ADVICE}")
    print("Draw boxes with the mouse, Enter after each one; Esc: next image")
    for path in find_images(folder, "expected images to cut patches from"):
        image = read_image(path)
        try:
            boxes = cv2.selectROIs("occluders", image[..., ::-1])
            cv2.destroyAllWindows()
        except cv2.error as error:
            raise UserError(
                "this OpenCV has no windows (opencv-python-headless); install opencv-python "
                f"instead, or {_ADVICE}"
            ) from error
        for x, y, width, height in np.reshape(boxes, (-1, 4)).tolist():
            yield path, (x, y, x + width, y + height)

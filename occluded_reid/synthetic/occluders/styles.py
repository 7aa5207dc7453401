"""Objects in front of people: cars, fences, bushes, poles and the like.

Each kind has several styles, and each style is a drawing of its own. The last style of each kind
is held out: the training set and occlusion augmentation use the other styles, query and gallery
images only the last one. So no method is tested on an occluder that it was trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from occluded_reid.synthetic.occluders import barriers, greenery, street_furniture, vehicles
from occluded_reid.synthetic.paint.canvas import Layer
from occluded_reid.synthetic.streams import Rng, choose
from occluded_reid.utils.errors import UserError

DrawFunction = Callable[[Layer, Rng], None]
Orientation = Literal["horizontal", "vertical"]
Use = Literal["training", "test"]

_HORIZONTAL: dict[str, tuple[DrawFunction, ...]] = {
    "car": (vehicles.draw_van, vehicles.draw_hatchback, vehicles.draw_sedan),
    "bicycle": (vehicles.draw_bicycle, vehicles.draw_scooter),
    "fence": (barriers.draw_picket_fence, barriers.draw_crowd_barrier, barriers.draw_railing),
    "wall": (barriers.draw_brick_wall, barriers.draw_concrete_wall),
    "board": (barriers.draw_striped_board, barriers.draw_poster_board),
    "bush": (greenery.draw_hedge, greenery.draw_planter, greenery.draw_shrub),
    "umbrella": (street_furniture.draw_parasol, street_furniture.draw_umbrella),
}
_VERTICAL: dict[str, tuple[DrawFunction, ...]] = {
    "pole": (street_furniture.draw_steel_pole, street_furniture.draw_striped_pole),
    "sign": (street_furniture.draw_traffic_sign, street_furniture.draw_street_sign),
    "trunk": (greenery.draw_smooth_trunk, greenery.draw_rough_trunk),
    "pillar": (street_furniture.draw_pillar, street_furniture.draw_door_frame),
}
STYLES = {**_HORIZONTAL, **_VERTICAL}
OCCLUDER_KINDS: tuple[str, ...] = tuple(STYLES)
ORIENTATION: dict[str, Orientation] = {
    **dict.fromkeys(_HORIZONTAL, "horizontal"),
    **dict.fromkeys(_VERTICAL, "vertical"),
}


def get_styles(kind: str, use: Use) -> tuple[DrawFunction, ...]:
    """Return the drawings of a kind for training, or the held-out one for testing."""
    return STYLES[kind][-1:] if use == "test" else STYLES[kind][:-1]


def paint_occluder(kind: str, rng: Rng, height: int, width: int, use: Use) -> Layer:
    """Paint an occluder on a transparent layer that it fills; see :func:`draw_occluder`."""
    layer = Layer(height, width)
    choose(rng, get_styles(kind, use))(layer, rng)
    return layer


def draw_occluder(
    kind: str, rng: Rng, height: int, width: int, use: Use = "training"
) -> np.ndarray:
    """Draw an occluder as an image with transparency, to paste over other images.

    >>> draw_occluder("car", np.random.default_rng(0), height=64, width=128).shape
    (64, 128, 4)

    Args:
        kind: one of :data:`OCCLUDER_KINDS`.
        rng: chooses style, color and detail.
        height: of the image, at least 8 pixels as its width; the drawing fills it.
        width: of the image.
        use: ``"training"`` for the styles of augmentation, ``"test"`` for the held-out one.

    Returns:
        (height, width, 4) uint8 RGBA, colors not premultiplied.
    """
    if kind not in STYLES:
        raise UserError(f"no occluder is called {kind!r}; choose one of {', '.join(STYLES)}")
    if min(height, width) < 8:
        raise UserError(f"an occluder needs at least 8 x 8 pixels, not {height} x {width}")
    return paint_occluder(kind, rng, height, width, use).to_rgba()

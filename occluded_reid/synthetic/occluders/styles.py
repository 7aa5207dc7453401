"""Things that stand before people: cars, fences, bushes, poles and the like.

Each kind has several styles, and each style is a drawing of its own. The last style of each kind
is held out (:data:`HELD_OUT`): the training set and occlusion augmentation use the other styles,
query and gallery pictures only the held-out one. So no method is tested on an occluder that it was
trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from occluded_reid.synthetic.occluders import barriers, greenery, street_furniture, vehicles
from occluded_reid.synthetic.paint.canvas import Layer
from occluded_reid.utils.errors import UserError

Draw = Callable[[Layer, np.random.Generator], None]
Orientation = Literal["horizontal", "vertical"]
Use = Literal["training", "test"]

STYLES: dict[str, tuple[Draw, ...]] = {
    "car": (vehicles.draw_van, vehicles.draw_hatchback, vehicles.draw_saloon),
    "bicycle": (vehicles.draw_bicycle, vehicles.draw_scooter),
    "fence": (
        barriers.draw_picket_fence,
        barriers.draw_crowd_barrier,
        barriers.draw_railing,
    ),
    "wall": (barriers.draw_brick_wall, barriers.draw_concrete_wall),
    "board": (barriers.draw_striped_board, barriers.draw_poster_board),
    "bush": (greenery.draw_hedge, greenery.draw_planter, greenery.draw_shrub),
    "umbrella": (street_furniture.draw_parasol, street_furniture.draw_umbrella),
    "pole": (street_furniture.draw_steel_pole, street_furniture.draw_striped_pole),
    "sign": (street_furniture.draw_traffic_sign, street_furniture.draw_street_sign),
    "trunk": (greenery.draw_smooth_trunk, greenery.draw_rough_trunk),
    "pillar": (street_furniture.draw_pillar, street_furniture.draw_door_frame),
}
ORIENTATION: dict[str, Orientation] = {
    "car": "horizontal",
    "bicycle": "horizontal",
    "fence": "horizontal",
    "wall": "horizontal",
    "board": "horizontal",
    "bush": "horizontal",
    "umbrella": "horizontal",
    "pole": "vertical",
    "sign": "vertical",
    "trunk": "vertical",
    "pillar": "vertical",
}
OCCLUDER_KINDS: tuple[str, ...] = tuple(STYLES)
HELD_OUT: dict[str, int] = {kind: len(styles) - 1 for kind, styles in STYLES.items()}
"""The style of each kind (an index into ``STYLES[kind]``) that only query and gallery show."""


def styles_for(kind: str, use: Use) -> tuple[Draw, ...]:
    """The drawings of a kind for training, or for testing."""
    held_out = HELD_OUT[kind]
    return STYLES[kind][held_out:] if use == "test" else STYLES[kind][:held_out]


def occluder_layer(kind: str, rng: np.random.Generator, height: int, width: int, use: Use) -> Layer:
    """One occluder on a transparent layer of its own box.

    Args:
        kind: one of :data:`OCCLUDER_KINDS`.
        rng: chooses style, colour and detail.
        height: of the box in pixels, which the drawing fills.
        width: of the box in pixels.
        use: which styles to draw from.
    """
    styles = styles_for(kind, use)
    layer = Layer(height, width)
    styles[int(rng.integers(len(styles)))](layer, rng)
    return layer


def draw_occluder(
    kind: str, rng: np.random.Generator, height: int, width: int, use: Use = "training"
) -> np.ndarray:
    """One occluder as a picture with transparency, to paste over other images.

    Args:
        kind: one of :data:`OCCLUDER_KINDS`.
        rng: chooses style, colour and detail.
        height: of the picture, at least 8 pixels; the drawing fills it.
        width: of the picture, at least 8 pixels.
        use: ``"training"`` for the styles that augmentation may use, ``"test"`` for the other.

    Returns:
        (height, width, 4) uint8 RGBA, colours not premultiplied.

    Raises:
        UserError: the kind is unknown or the size too small.
    """
    if kind not in STYLES:
        raise UserError(
            f"no occluder is called {kind!r}; choose one of {', '.join(OCCLUDER_KINDS)}"
        )
    if min(height, width) < 8:
        raise UserError(f"an occluder needs at least 8 x 8 pixels, not {height} x {width}")
    return occluder_layer(kind, rng, height, width, use).rgba()

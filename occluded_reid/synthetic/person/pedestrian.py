"""A person, painted from back to front."""

from __future__ import annotations

import numpy as np

from occluded_reid.synthetic.paint.canvas import Layer, Point
from occluded_reid.synthetic.paint.texture import Light
from occluded_reid.synthetic.person.appearance import Appearance
from occluded_reid.synthetic.person.belongings import paint_bag_before, paint_bag_behind
from occluded_reid.synthetic.person.figure import Figure
from occluded_reid.synthetic.person.head import paint_hair_behind, paint_head, paint_neck
from occluded_reid.synthetic.person.legs import paint_hips, paint_leg
from occluded_reid.synthetic.person.pose import Pose, Projection, build_skeleton
from occluded_reid.synthetic.person.trunk import paint_arm, paint_trunk
from occluded_reid.synthetic.streams import Rng


def draw_pedestrian(
    size: tuple[int, int], look: Appearance, pose: Pose, foot: Point, scale: float, light: Light,
    rng: Rng,
) -> Layer:  # fmt: skip
    """Paint a person on a transparent layer of (H, W) pixels.

    ``foot`` is (x, y) of the ground between the feet, ``scale`` the pixels per meter.
    """
    layer = Layer(*size)
    projection = Projection(foot, scale, pose.yaw, pose.pitch)
    joints = build_skeleton(look.body, pose, projection)
    figure = Figure(layer, look, joints, projection, light, rng)
    legs = sorted(("left", "right"), key=lambda side: joints[f"{side} knee"].depth)
    arms = sorted(("left", "right"), key=lambda side: joints[f"{side} elbow"].depth)
    far_arms = [side for side in arms if joints[f"{side} elbow"].depth < -0.05]
    paint_bag_behind(figure)
    paint_hair_behind(figure)
    for side in far_arms:
        paint_arm(figure, side)
    for side in legs:
        paint_leg(figure, side)
        if side == legs[0]:
            layer.color *= np.float32(0.9)
    paint_hips(figure)
    paint_neck(figure)
    paint_trunk(figure)
    paint_head(figure)
    bag_on_back = look.bag is not None and look.bag.kind == "backpack" and figure.facing < 0
    if not bag_on_back:
        paint_bag_before(figure)
    for side in arms:
        if side not in far_arms:
            paint_arm(figure, side)
    if bag_on_back:
        paint_bag_before(figure)
    return layer

"""Legs, shoes, trousers and skirts."""

from __future__ import annotations

import numpy as np

from occluded_reid.synthetic.paint.canvas import limb, loft
from occluded_reid.synthetic.person.figure import Figure

# Radius of a trouser leg in meters at hip, knee and ankle.
_LEG_CUTS = {
    "trousers": (0.092, 0.07, 0.058),
    "jeans": (0.09, 0.066, 0.052),
    "wide trousers": (0.1, 0.092, 0.095),
    "leggings": (0.084, 0.056, 0.04),
    "shorts": (0.1, 0.098, 0.09),
}


def paint_leg(figure: Figure, side: str) -> None:
    """Paint a leg with its shoe, and the trouser leg unless a skirt or dress is worn."""
    look, size = figure.look, figure.layer.size
    hip, knee, ankle = (figure.joints[f"{side} {name}"] for name in ("hip", "knee", "ankle"))
    bare = look.lower.kind in ("shorts", "skirt") or look.upper.kind == "dress"
    if bare or look.lower.length < 0.95:
        a, b, c, d = (figure.px(radius * look.body.limb) for radius in (0.08, 0.053, 0.056, 0.035))
        figure.paint_plain(limb(size, hip.point, knee.point, a, b), look.skin)
        figure.paint_plain(limb(size, knee.point, ankle.point, c, d), look.skin)
    _paint_shoe(figure, side)
    if look.lower.kind != "skirt" and look.upper.kind != "dress":
        _paint_trouser_leg(figure, side)


def _paint_shoe(figure: Figure, side: str) -> None:
    shoes, size = figure.look.shoes, figure.layer.size
    ankle, toe = figure.joints[f"{side} ankle"], figure.joints[f"{side} toe"]
    heel = (ankle.x - 0.22 * (toe.x - ankle.x), ankle.y + figure.px(0.028))
    tip = (toe.x - 0.1 * (toe.x - ankle.x), toe.y + figure.px(0.012))
    down = figure.px(0.013)
    ends = (heel[0], heel[1] + down), (tip[0], tip[1] + down)
    figure.paint_plain(limb(size, *ends, figure.px(0.039), figure.px(0.033)), shoes.sole)
    figure.paint_plain(limb(size, heel, tip, figure.px(0.044), figure.px(0.033)), shoes.color)
    if shoes.boots:
        knee = figure.joints[f"{side} knee"]
        top = (ankle.x + 0.4 * (knee.x - ankle.x), ankle.y + 0.4 * (knee.y - ankle.y))
        shaft = limb(size, top, ankle.point, figure.px(0.06), figure.px(0.05))
        figure.paint_plain(shaft, shoes.color)


def _paint_trouser_leg(figure: Figure, side: str) -> None:
    lower, size = figure.look.lower, figure.layer.size
    hip, knee, ankle = (figure.joints[f"{side} {name}"] for name in ("hip", "knee", "ankle"))
    radii = [figure.px(radius * figure.look.body.limb) for radius in _LEG_CUTS[lower.kind]]
    thigh_length = figure.look.body.height * figure.look.body.leg * 0.49
    spans = [(hip, knee, radii[0], radii[1], 0.0, min(lower.length / 0.51, 1.0))]
    if lower.length > 0.51:
        share = min((lower.length - 0.51) / 0.47, 1.0)
        spans.append((knee, ankle, radii[1], radii[2], thigh_length, share))
    for start, end, start_radius, end_radius, offset, share in spans:
        stop = (start.x + share * (end.x - start.x), start.y + share * (end.y - start.y))
        last = start_radius + share * (end_radius - start_radius)
        flat = share < 1 or end is ankle
        part = limb(size, start.point, stop, start_radius, last, flat_end=flat)
        turn = np.arcsin(part.across * np.float32(0.98))
        u, v = turn * np.float32(0.075), part.along * np.float32(thigh_length) + np.float32(offset)
        figure.layer.paint(part, figure.shade_cloth(part, lower.cloth, u, v, folds=0.08))
        if lower.side_stripe is not None:
            outside = np.float32(figure.yaw + (np.pi / 2 if side == "left" else -np.pi / 2))
            away = np.abs((turn - outside + np.pi) % (2 * np.pi) - np.pi)
            stripe = part.with_mask(part.mask * np.clip((0.32 - away) * 12, 0, 1))
            figure.layer.paint(stripe, figure.shade(part, lower.side_stripe))
    if lower.kind == "jeans":
        figure.darken(limb(size, hip.point, knee.point, figure.px(0.006), figure.px(0.004)), 0.12)


def paint_hips(figure: Figure) -> None:
    """Paint the seat of the trousers, or the skirt."""
    look, body = figure.look, figure.look.body
    if look.upper.kind == "dress":
        return
    pelvis, waist = figure.joints["pelvis"], figure.joints["waist"]
    knees = [figure.joints["left knee"], figure.joints["right knee"]]
    hip = figure.projection.project_width(body.hip, body.depth * 1.02)
    top = figure.projection.project_width(body.waist, body.depth * 0.9)
    levels = [waist.y - figure.px(0.03), pelvis.y, pelvis.y + figure.px(0.09)]
    centers, widths = [waist.x, pelvis.x, pelvis.x], [top, hip, hip * 0.98]
    if look.lower.kind == "skirt":
        hem = pelvis.y + figure.px(body.height * body.leg * look.lower.length)
        levels.append(hem)
        centers.append((knees[0].x + knees[1].x) / 2)
        widths.append(max(measure_stride(figure, hem), hip * 1.12))
    part = loft(figure.layer.size, levels, centers, widths)
    u = figure.compute_angles(part) * np.float32(0.15)
    v = part.along * np.float32((levels[-1] - levels[0]) / figure.projection.scale)
    figure.layer.paint(part, figure.shade_cloth(part, look.lower.cloth, u, v))


def measure_stride(figure: Figure, y: float) -> float:
    """Return half the width in pixels that the legs need at the height of a hem."""
    left, right = figure.joints["left knee"], figure.joints["right knee"]
    share = (y - figure.joints["pelvis"].y) / max(left.y - figure.joints["pelvis"].y, 1.0)
    return abs(left.x - right.x) / 2 * min(max(share, 0.0), 1.0) + figure.px(0.06)

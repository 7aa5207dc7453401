"""Trunk, arms and the garments on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from occluded_reid.synthetic.paint.canvas import Point, Region, ellipse, limb, loft
from occluded_reid.synthetic.paint.texture import weigh_print
from occluded_reid.synthetic.person.appearance import Cloth, Upper
from occluded_reid.synthetic.person.figure import Figure
from occluded_reid.synthetic.person.legs import measure_stride

# Meters that a garment adds to the half width of the trunk.
_THICKNESS = {"jacket": 0.016, "coat": 0.022, "hoodie": 0.02, "sweater": 0.012, "vest": 0.022}


def paint_trunk(figure: Figure) -> None:
    """Paint the upper garment with its print, opening, and collar or hood."""
    upper = figure.look.upper
    part = _shape_trunk(figure, upper)
    if not part.mask.size:
        return
    angle = figure.compute_angles(part)
    length = part.mask.shape[0] / figure.projection.scale
    v = part.along * np.float32(length)
    figure.layer.paint(part, figure.shade_cloth(part, upper.cloth, angle * np.float32(0.16), v))
    if upper.kind in ("jacket", "vest", "coat"):
        _paint_opening(figure, part, angle)
    elif upper.kind == "shirt":
        line = np.clip((0.025 - np.abs(angle)) * 60, 0, 1)
        figure.darken(part.with_mask(part.mask * line), 0.35)
    for kind, middle in ((upper.chest_print, 0.0), (upper.back_print, np.pi)):
        away = angle if middle == 0.0 else (angle % np.float32(2 * np.pi)) - np.float32(np.pi)
        weights = weigh_print(kind, away * np.float32(0.16), v - np.float32(0.25))
        if weights is not None and not (middle == 0.0 and upper.open_front):
            printed = part.with_mask(part.mask * weights)
            figure.layer.paint(printed, figure.shade(part, upper.print_color), 0.92)
    _paint_collar(figure, upper)


def _shape_trunk(figure: Figure, upper: Upper) -> Region:
    """Outline the upper garment."""
    body, joints = figure.look.body, figure.joints
    neck, chest, waist, pelvis = (joints[name] for name in ("neck", "chest", "waist", "pelvis"))
    extra = _THICKNESS.get(upper.kind, 0.006)
    width = figure.projection.project_width
    shoulder = width(body.shoulder - 0.02 + extra, body.depth * 0.75 + extra)
    hips = width(body.hip + extra, body.depth + extra)
    flare = {"coat": 1.12, "dress": 1.45}.get(upper.kind, 1.0)
    hem = waist.y + figure.px(upper.hem)
    seat = max(pelvis.y, waist.y + 1)
    rows = [
        (neck.y - figure.px(0.015), neck.x, width(0.062 + extra, 0.06 + extra)),
        (neck.y + figure.px(0.035), neck.x, shoulder * 0.72),
        (neck.y + figure.px(0.085), neck.x, shoulder * 0.98),
        (chest.y, chest.x, width(body.shoulder - 0.03 + extra, body.depth + 0.012 + extra)),
        (waist.y, waist.x, width(body.waist + extra, body.depth + extra)),
    ]
    if hem > seat + 1:
        rows.append((seat, pelvis.x, hips))
        rows.append((hem, pelvis.x, max(hips * flare, measure_stride(figure, hem))))
    else:
        rows.append((max(hem, waist.y + 1), pelvis.x, hips))
    return loft(figure.layer.size, *zip(*rows, strict=True))


def _paint_opening(figure: Figure, part: Region, angle: np.ndarray) -> None:
    """Paint the front of a jacket: open with the shirt showing, or closed with a zipper."""
    upper = figure.look.upper
    if upper.open_front:
        gap = np.clip(np.float32(0.42) - np.abs(angle) - 0.25 * part.along, -1, 1)
        inner = part.with_mask(part.mask * np.clip(gap * 14, 0, 1))
        figure.layer.paint(inner, figure.shade(part, upper.inner, 0.05))
        edge = part.with_mask(part.mask * np.clip((0.045 - np.abs(gap)) * 30, 0, 1))
        figure.darken(edge, 0.4)
    else:
        zipper = np.clip((0.03 - np.abs(angle)) * 50, 0, 1)
        figure.layer.paint(part.with_mask(part.mask * zipper), upper.print_color, 0.7)


def _paint_collar(figure: Figure, upper: Upper) -> None:
    """Paint a collar, a hood, or a round neckline with the skin in it."""
    neck, size, facing = figure.joints["neck"], figure.layer.size, figure.facing
    ahead = figure.px(0.03) * np.sin(figure.yaw)
    if upper.kind == "hoodie":
        center = (neck.x - 1.6 * ahead, neck.y + figure.px(0.045 if facing < 0 else 0.0))
        hood = ellipse(size, center, figure.px(0.115), figure.px(0.085 if facing < 0 else 0.05))
        figure.paint_plain(hood, upper.cloth.color, 0.08)
        figure.darken(ellipse(size, center, figure.px(0.09), figure.px(0.03)), 0.35)
    elif upper.kind in ("jacket", "coat", "shirt", "vest"):
        levels = [neck.y - figure.px(0.035), neck.y + figure.px(0.03)]
        collar = loft(size, levels, [neck.x] * 2, [figure.px(0.062), figure.px(0.085)])
        figure.paint_plain(collar, upper.cloth.color)
        figure.darken(ellipse(size, (neck.x, neck.y + figure.px(0.03)), figure.px(0.08), 1.5), 0.3)
    if facing > 0.1:
        depth = 0.075 if upper.kind in ("shirt", "jacket", "coat", "vest") else 0.045
        center = (neck.x + ahead, neck.y - figure.px(0.005))
        neckline = ellipse(size, center, figure.px(0.058 * facing + 0.01), figure.px(depth))
        figure.paint_plain(neckline, figure.look.skin)


def paint_arm(figure: Figure, side: str) -> None:
    """Paint an arm with its sleeve and hand."""
    look, size, upper = figure.look, figure.layer.size, figure.look.upper
    names = ("shoulder", "elbow", "hand")
    shoulder, elbow, hand = (figure.joints[f"{side} {name}"] for name in names)
    figure.paint_plain(ellipse(size, hand.point, figure.px(0.042), figure.px(0.05)), look.skin)
    bare = [figure.px(radius * look.body.limb) for radius in (0.05, 0.042, 0.03)]
    if upper.sleeve < 1:
        figure.paint_plain(limb(size, shoulder.point, elbow.point, bare[0], bare[1]), look.skin)
        figure.paint_plain(limb(size, elbow.point, hand.point, bare[1], bare[2]), look.skin)
    if upper.sleeve == 0:
        return
    extra = figure.px(0.008 + 0.6 * _THICKNESS.get(upper.kind, 0.004))
    color = upper.sleeve_color
    cloth = upper.cloth if color is None else replace(upper.cloth, color=color, pattern="plain")
    if cloth.pattern in ("yoke", "band", "gradient"):
        cloth = replace(cloth, pattern="plain")
    radii = [radius + extra for radius in bare]
    reach = min(upper.sleeve / 0.52, 1.0)
    _paint_sleeve(figure, shoulder.point, elbow.point, radii[:2], cloth, reach)
    if upper.sleeve == 1:
        _paint_sleeve(figure, elbow.point, hand.point, radii[1:], cloth, 0.9)


def _paint_sleeve(
    figure: Figure, start: Point, end: Point, radii: list[float], cloth: Cloth, share: float
) -> None:
    """Paint a tube of cloth around a share of one half of the arm."""
    stop = (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))
    last = radii[0] + share * (radii[1] - radii[0])
    part = limb(figure.layer.size, start, stop, radii[0], last * 1.06, flat_end=share < 1)
    u = np.arcsin(part.across * np.float32(0.98)) * np.float32(0.055)
    v = part.along * np.float32(0.3 * share)
    figure.layer.paint(part, figure.shade_cloth(part, cloth, u, v, folds=0.1))

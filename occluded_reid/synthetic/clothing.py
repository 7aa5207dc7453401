"""Legs, trunk and arms with the garments on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from occluded_reid.synthetic.appearance import Cloth, Upper
from occluded_reid.synthetic.canvas import Point, Region, ellipse, limb, loft
from occluded_reid.synthetic.figure import Figure
from occluded_reid.synthetic.prints import print_weights

# Metres that a garment adds to the half width of the trunk.
_THICKNESS = {"jacket": 0.016, "coat": 0.022, "hoodie": 0.02, "sweater": 0.012, "vest": 0.022}
# Radius of a trouser leg in metres at hip, knee and ankle.
_LEG_CUTS = {
    "trousers": (0.092, 0.07, 0.058),
    "jeans": (0.09, 0.066, 0.052),
    "wide trousers": (0.1, 0.092, 0.095),
    "leggings": (0.084, 0.056, 0.04),
    "shorts": (0.1, 0.098, 0.09),
}


def paint_leg(figure: Figure, side: str) -> None:
    """One leg with shoe, and the trouser leg unless a skirt is worn."""
    look, size = figure.look, figure.layer.size
    hip, knee, ankle = (figure.joints[f"{side} {name}"] for name in ("hip", "knee", "ankle"))
    thick = look.body.limb
    bare = look.lower.kind in ("shorts", "skirt") or look.upper.kind == "dress"
    if bare or look.lower.length < 0.95:
        thigh = limb(size, hip.point, knee.point, figure.px(0.08 * thick), figure.px(0.053 * thick))
        calf = limb(
            size, knee.point, ankle.point, figure.px(0.056 * thick), figure.px(0.035 * thick)
        )
        for part in (thigh, calf):
            figure.paint_plain(part, look.skin)
        _paint_shoe(figure, side)
    else:
        _paint_shoe(figure, side)
    if look.lower.kind != "skirt" and look.upper.kind != "dress":
        _paint_trouser_leg(figure, side)


def _paint_shoe(figure: Figure, side: str) -> None:
    shoes, size = figure.look.shoes, figure.layer.size
    ankle, toe = figure.joints[f"{side} ankle"], figure.joints[f"{side} toe"]
    heel = (ankle.x - 0.22 * (toe.x - ankle.x), ankle.y + figure.px(0.028))
    tip = (toe.x - 0.1 * (toe.x - ankle.x), toe.y + figure.px(0.012))
    down = figure.px(0.013)
    sole = limb(
        size,
        (heel[0], heel[1] + down),
        (tip[0], tip[1] + down),
        figure.px(0.039),
        figure.px(0.033),
    )
    figure.paint_plain(sole, shoes.sole)
    figure.paint_plain(limb(size, heel, tip, figure.px(0.044), figure.px(0.033)), shoes.colour)
    if shoes.boots:
        knee = figure.joints[f"{side} knee"]
        top = (ankle.x + 0.4 * (knee.x - ankle.x), ankle.y + 0.4 * (knee.y - ankle.y))
        shaft = limb(size, top, ankle.point, figure.px(0.06), figure.px(0.05))
        figure.paint_plain(shaft, shoes.colour)


def _paint_trouser_leg(figure: Figure, side: str) -> None:
    lower, size = figure.look.lower, figure.layer.size
    hip, knee, ankle = (figure.joints[f"{side} {name}"] for name in ("hip", "knee", "ankle"))
    thick = figure.look.body.limb
    radii = [figure.px(radius * thick) for radius in _LEG_CUTS[lower.kind]]
    thigh_length = figure.look.body.height * figure.look.body.leg * 0.49
    spans = [(hip, knee, radii[0], radii[1], 0.0, min(lower.length / 0.51, 1.0))]
    if lower.length > 0.51:
        share = min((lower.length - 0.51) / 0.47, 1.0)
        spans.append((knee, ankle, radii[1], radii[2], thigh_length, share))
    for start, end, wide, narrow, offset, share in spans:
        stop = (start.x + share * (end.x - start.x), start.y + share * (end.y - start.y))
        last = wide + share * (narrow - wide)
        part = limb(size, start.point, stop, wide, last, flat_end=share < 1 or end is ankle)
        if part is None:
            continue
        turn = np.arcsin(part.across * np.float32(0.98))
        u, v = turn * np.float32(0.075), part.along * np.float32(thigh_length) + np.float32(offset)
        colour = figure.cloth(part, lower.cloth, u, v, folds=0.08)
        figure.layer.paint(part, colour)
        if lower.side_stripe is not None:
            outside = np.float32(figure.yaw + (np.pi / 2 if side == "left" else -np.pi / 2))
            away = np.abs((turn - outside + np.pi) % (2 * np.pi) - np.pi)
            stripe = part.with_mask(part.mask * np.clip((0.32 - away) * 12, 0, 1))
            figure.layer.paint(stripe, figure.shaded(part, lower.side_stripe))
    if lower.kind == "jeans":
        figure.darken(limb(size, hip.point, knee.point, figure.px(0.006), figure.px(0.004)), 0.12)


def paint_hips(figure: Figure) -> None:
    """The seat of the trousers, or the skirt."""
    look, body = figure.look, figure.look.body
    if look.upper.kind == "dress":
        return
    pelvis, waist = figure.joints["pelvis"], figure.joints["waist"]
    knees = [figure.joints["left knee"], figure.joints["right knee"]]
    hip = figure.projection.half_width(body.hip, body.depth * 1.02)
    top = figure.projection.half_width(body.waist, body.depth * 0.9)
    levels = [waist.y - figure.px(0.03), pelvis.y, pelvis.y + figure.px(0.09)]
    centres, widths = [waist.x, pelvis.x, pelvis.x], [top, hip, hip * 0.98]
    if look.lower.kind == "skirt":
        length = body.height * body.leg * look.lower.length
        hem = pelvis.y + figure.px(length)
        spread = max(_stride_at(figure, hem), hip * 1.12)
        levels.append(hem)
        centres.append((knees[0].x + knees[1].x) / 2)
        widths.append(spread)
    part = loft(figure.layer.size, levels, centres, widths)
    if part is None:
        return
    u = figure.angle(part) * np.float32(0.15)
    v = part.along * np.float32((levels[-1] - levels[0]) / figure.projection.scale)
    figure.layer.paint(part, figure.cloth(part, look.lower.cloth, u, v))


def paint_trunk(figure: Figure) -> None:
    """The upper garment with its print, opening, collar, belt or hood."""
    upper = figure.look.upper
    part = _trunk_region(figure, upper)
    if part is None:
        return
    angle = figure.angle(part)
    length = part.mask.shape[0] / figure.projection.scale
    v = part.along * np.float32(length)
    colour = figure.cloth(part, upper.cloth, angle * np.float32(0.16), v)
    figure.layer.paint(part, colour)
    if upper.kind in ("jacket", "vest", "coat"):
        _paint_opening(figure, part, angle)
    elif upper.kind == "shirt":
        line = np.clip((0.025 - np.abs(angle)) * 60, 0, 1)
        figure.darken(part.with_mask(part.mask * line), 0.35)
    for kind, middle in ((upper.chest_print, 0.0), (upper.back_print, np.pi)):
        away = angle if middle == 0.0 else (angle % np.float32(2 * np.pi)) - np.float32(np.pi)
        weights = print_weights(kind, away * np.float32(0.16), v - np.float32(0.25))
        if weights is not None and not (middle == 0.0 and upper.open_front):
            printed = part.with_mask(part.mask * weights)
            figure.layer.paint(printed, figure.shaded(part, upper.print_colour), 0.92)
    _paint_collar(figure, upper)


def _trunk_region(figure: Figure, upper: Upper) -> Region | None:
    """The outline of the upper garment."""
    body, joints = figure.look.body, figure.joints
    neck, chest, waist, pelvis = (joints[name] for name in ("neck", "chest", "waist", "pelvis"))
    extra = _THICKNESS.get(upper.kind, 0.006)
    width = figure.projection.half_width
    shoulder = width(body.shoulder - 0.02 + extra, body.depth * 0.75 + extra)
    hips = width(body.hip + extra, body.depth + extra)
    flare = {"coat": 1.12, "dress": 1.45}.get(upper.kind, 1.0)
    hem = waist.y + figure.px(upper.hem)
    levels = [
        neck.y - figure.px(0.015),
        neck.y + figure.px(0.035),
        neck.y + figure.px(0.085),
        chest.y,
        waist.y,
        max(pelvis.y, waist.y + 1),
    ]
    half_widths = [
        width(0.062 + extra, 0.06 + extra),
        shoulder * 0.72,
        shoulder * 0.98,
        width(body.shoulder - 0.03 + extra, body.depth + 0.012 + extra),
        width(body.waist + extra, body.depth + extra),
        hips,
    ]
    centres = [neck.x, neck.x, neck.x, chest.x, waist.x, pelvis.x]
    if hem > levels[-1] + 1:
        levels.append(hem)
        half_widths.append(max(hips * flare, _stride_at(figure, hem)))
        centres.append(pelvis.x)
    else:
        levels[-1] = max(hem, levels[-2] + 1)
    return loft(figure.layer.size, levels, centres, half_widths)


def _stride_at(figure: Figure, y: float) -> float:
    """Half the width in pixels that the legs need at a height, for a hem that long."""
    left, right = figure.joints["left knee"], figure.joints["right knee"]
    share = (y - figure.joints["pelvis"].y) / max(left.y - figure.joints["pelvis"].y, 1.0)
    return abs(left.x - right.x) / 2 * min(max(share, 0.0), 1.0) + figure.px(0.06)


def _paint_opening(figure: Figure, part: Region, angle: np.ndarray) -> None:
    """The front of a jacket: open with the shirt showing, or closed with a zip."""
    upper = figure.look.upper
    if upper.open_front:
        gap = np.clip(np.float32(0.42) - np.abs(angle) - 0.25 * part.along, -1, 1)
        inner = part.with_mask(part.mask * np.clip(gap * 14, 0, 1))
        figure.layer.paint(inner, figure.shaded(part, upper.inner, 0.05))
        edge = part.with_mask(part.mask * np.clip((0.045 - np.abs(gap)) * 30, 0, 1))
        figure.darken(edge, 0.4)
    else:
        zip_line = np.clip((0.03 - np.abs(angle)) * 50, 0, 1)
        figure.layer.paint(part.with_mask(part.mask * zip_line), upper.print_colour, 0.7)


def _paint_collar(figure: Figure, upper: Upper) -> None:
    """A collar, a hood, or the round neck of a shirt with the skin in it."""
    neck, size, facing = figure.joints["neck"], figure.layer.size, figure.facing
    ahead = figure.px(0.03) * np.sin(figure.yaw)
    if upper.kind == "hoodie":
        centre = (neck.x - 1.6 * ahead, neck.y + figure.px(0.045 if facing < 0 else 0.0))
        hood = ellipse(size, centre, figure.px(0.115), figure.px(0.085 if facing < 0 else 0.05))
        figure.paint_plain(hood, upper.cloth.colour, 0.08)
        figure.darken(ellipse(size, centre, figure.px(0.09), figure.px(0.03)), 0.35)
    elif upper.kind in ("jacket", "coat", "shirt", "vest"):
        stand = loft(
            size,
            [neck.y - figure.px(0.035), neck.y + figure.px(0.03)],
            [neck.x, neck.x],
            [figure.px(0.062), figure.px(0.085)],
        )
        figure.paint_plain(stand, upper.cloth.colour)
        figure.darken(ellipse(size, (neck.x, neck.y + figure.px(0.03)), figure.px(0.08), 1.5), 0.3)
    if facing > 0.1:
        depth = 0.075 if upper.kind in ("shirt", "jacket", "coat", "vest") else 0.045
        cut = ellipse(
            size,
            (neck.x + ahead, neck.y - figure.px(0.005)),
            figure.px(0.058 * facing + 0.01),
            figure.px(depth),
        )
        figure.paint_plain(cut, figure.look.skin)


def paint_arm(figure: Figure, side: str) -> None:
    """One arm with its sleeve and hand."""
    look, size, upper = figure.look, figure.layer.size, figure.look.upper
    names = ("shoulder", "elbow", "hand")
    shoulder, elbow, hand = (figure.joints[f"{side} {name}"] for name in names)
    thick = look.body.limb
    figure.paint_plain(ellipse(size, hand.point, figure.px(0.042), figure.px(0.05)), look.skin)
    bare = [figure.px(radius * thick) for radius in (0.05, 0.042, 0.03)]
    if upper.sleeve < 1:
        figure.paint_plain(limb(size, shoulder.point, elbow.point, bare[0], bare[1]), look.skin)
        figure.paint_plain(limb(size, elbow.point, hand.point, bare[1], bare[2]), look.skin)
    if upper.sleeve == 0:
        return
    extra = figure.px(0.008 + 0.6 * _THICKNESS.get(upper.kind, 0.004))
    colour = upper.sleeve_colour
    cloth = upper.cloth if colour is None else replace(upper.cloth, colour=colour, pattern="plain")
    if cloth.pattern in ("yoke", "band", "gradient"):
        cloth = replace(cloth, pattern="plain")
    reach = min(upper.sleeve / 0.52, 1.0)
    _sleeve(figure, shoulder.point, elbow.point, (bare[0] + extra, bare[1] + extra), cloth, reach)
    if upper.sleeve == 1:
        _sleeve(figure, elbow.point, hand.point, (bare[1] + extra, bare[2] + extra), cloth, 0.9)


def _sleeve(
    figure: Figure, start: Point, end: Point, radii: tuple[float, float], cloth: Cloth, share: float
) -> None:
    """A tube of cloth around the given share of one half of the arm."""
    stop = (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))
    last = radii[0] + share * (radii[1] - radii[0])
    part = limb(figure.layer.size, start, stop, radii[0], last * 1.06, flat_end=share < 1)
    if part is None:
        return
    u = np.arcsin(part.across * np.float32(0.98)) * np.float32(0.055)
    v = part.along * np.float32(0.3 * share)
    figure.layer.paint(part, figure.cloth(part, cloth, u, v, folds=0.1))

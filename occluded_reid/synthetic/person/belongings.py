"""Bags: on the back, across the shoulder, in the hand, or pulled along."""

from __future__ import annotations

from occluded_reid.synthetic.paint.canvas import Point, limb, loft, rectangle
from occluded_reid.synthetic.person.appearance import Bag
from occluded_reid.synthetic.person.figure import Figure


def paint_bag_behind(figure: Figure) -> None:
    """Paint what the person partly hides: a backpack seen from the front or the side."""
    bag = figure.look.bag
    if bag is not None and bag.kind == "backpack" and figure.facing > -0.35:
        _paint_backpack(figure, bag)


def paint_bag_before(figure: Figure) -> None:
    """Paint what lies over the clothes."""
    bag = figure.look.bag
    if bag is None:
        return
    if bag.kind == "backpack":
        if figure.facing <= -0.35:
            _paint_backpack(figure, bag)
        elif figure.facing > 0.1:
            _paint_backpack_straps(figure, bag)
    elif bag.kind == "shoulder bag":
        _paint_shoulder_bag(figure, bag)
    else:
        _paint_hand_luggage(figure, bag)


def _paint_backpack(figure: Figure, bag: Bag) -> None:
    """Paint a backpack; ``w`` and ``h`` are half its width and height in pixels."""
    body, neck = figure.look.body, figure.joints["neck"]
    up = body.height - 2.75 * body.head
    middle = figure.projection.project(0.0, up - 0.27, -body.depth - 0.07)
    w = figure.projection.project_width(0.155 * bag.size, 0.085 * bag.size)
    h = figure.px(0.225 * bag.size)
    levels = [middle.y - h, middle.y - 0.8 * h, middle.y + 0.8 * h, middle.y + h]
    part = loft(figure.layer.size, levels, [middle.x] * 4, [0.6 * w, w, 1.04 * w, w])
    figure.paint_plain(part, bag.color, 0.06)
    if figure.facing > -0.35:
        return
    x, y = middle.x, middle.y + 0.35 * h
    size = figure.layer.size
    pocket = rectangle(size, (x - 0.7 * w, y - 0.25 * h), (x + 0.7 * w, y + 0.45 * h))
    figure.paint_plain(pocket, bag.trim, 0.06)
    figure.darken(limb(size, (x - w, y - 0.5 * h), (x + w, y - 0.5 * h), 1, 1), 0.5)
    top = (neck.x, middle.y - h)
    figure.darken(limb(size, top, (top[0], top[1] + 0.15 * h), 0.2 * w, 0.2 * w), 0.3)


def _paint_backpack_straps(figure: Figure, bag: Bag) -> None:
    body = figure.look.body
    up = body.height - 2.75 * body.head
    for sign in (-1, 1):
        start = figure.projection.project(sign * 0.105, up - 0.06, 0.05)
        end = figure.projection.project(sign * 0.13, up - 0.36, body.depth * 0.8)
        strap = limb(figure.layer.size, start.point, end.point, figure.px(0.021), figure.px(0.018))
        figure.paint_plain(strap, bag.color)


def _paint_shoulder_bag(figure: Figure, bag: Bag) -> None:
    body, size = figure.look.body, figure.layer.size
    up = body.height - 2.75 * body.head
    hip_up = body.height * body.leg + 0.02
    front = 1 if figure.facing > 0 else -1
    start = figure.projection.project(-bag.side * 0.11, up - 0.05, front * 0.05)
    end = figure.projection.project(bag.side * (body.hip + 0.02), hip_up + 0.08, front * 0.05)
    strap = limb(size, start.point, end.point, figure.px(0.017), figure.px(0.017))
    figure.paint_plain(strap, bag.trim)
    middle = figure.projection.project(bag.side * (body.hip + 0.05), hip_up - 0.03, 0.0)
    if middle.depth >= -0.1:
        _paint_box(figure, bag, middle.point, (0.14, 0.06), 0.11)


def _paint_hand_luggage(figure: Figure, bag: Bag) -> None:
    side = "left" if bag.side > 0 else "right"
    hand = figure.joints[f"{side} hand"]
    if bag.kind == "handbag":
        _paint_box(figure, bag, (hand.x, hand.y + figure.px(0.2)), (0.07, 0.15), 0.105)
        _paint_handles(figure, bag, hand.point, figure.px(0.1))
    elif bag.kind == "shopping bag":
        _paint_box(figure, bag, (hand.x, hand.y + figure.px(0.25)), (0.09, 0.17), 0.17)
        _paint_handles(figure, bag, hand.point, figure.px(0.09))
    else:
        behind = figure.projection.project(bag.side * 0.22, 0.0, -0.42)
        ground = figure.joints["left toe"].y + figure.joints["right toe"].y
        foot = (behind.x, 0.5 * ground - figure.px(0.32))
        pole = limb(figure.layer.size, hand.point, foot, figure.px(0.014), figure.px(0.014))
        figure.paint_plain(pole, (70.0, 70.0, 74.0))
        _paint_box(figure, bag, foot, (0.2, 0.13), 0.3)


def _paint_handles(figure: Figure, bag: Bag, hand: Point, drop: float) -> None:
    for sign in (-1, 1):
        end = (hand[0] + sign * figure.px(0.05), hand[1] + drop)
        strap = limb(figure.layer.size, hand, end, figure.px(0.01), figure.px(0.01))
        figure.paint_plain(strap, bag.trim)


def _paint_box(
    figure: Figure, bag: Bag, middle: Point, half_sizes: tuple[float, float], half_height: float
) -> None:
    """Paint a soft box; ``half_sizes`` are across and along the body, in meters."""
    w = max(figure.projection.project_width(*half_sizes) * bag.size, 1.0)
    h = figure.px(half_height * bag.size)
    x, y = middle
    size = figure.layer.size
    levels = [y - h, y - 0.7 * h, y + 0.9 * h, y + h]
    part = loft(size, levels, [x] * 4, [0.86 * w, w, 1.06 * w, w])
    figure.paint_plain(part, bag.color, 0.07)
    flap = rectangle(size, (x - 0.8 * w, y - 0.8 * h), (x + 0.8 * w, y - 0.35 * h))
    figure.layer.paint(flap, figure.shade(flap, bag.trim), 0.8, inside=True)
    if sum(bag.color) > 250:
        figure.darken(limb(size, (x - w, y + h), (x + w, y + h), 1, 1), 0.3)

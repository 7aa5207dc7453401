"""Choosing what each identity looks like.

Identities come in groups of :data:`GROUP_SIZE`. In every fifth group most members wear the same
colours, as colleagues or schoolmates do; only a pattern, a bag, the hair or the build tells them
apart.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

from occluded_reid.synthetic.paint import palette
from occluded_reid.synthetic.paint.palette import RGB
from occluded_reid.synthetic.paint.texture import PATTERNS
from occluded_reid.synthetic.person.appearance import (
    BAG_KINDS,
    HAIR_STYLES,
    HEADWEAR_KINDS,
    LOWER_KINDS,
    PRINTS,
    UPPER_KINDS,
    Appearance,
    Bag,
    Body,
    Cloth,
    Lower,
    Shoes,
    Upper,
)
from occluded_reid.synthetic.streams import Stream, between, chance, stream

GROUP_SIZE = 3
_ALIKE_GROUPS = 0.2
_UPPER_WEIGHTS = (20, 14, 14, 14, 18, 9, 5, 6)
_LOWER_WEIGHTS = (26, 26, 10, 10, 14, 9)
_HAIR_WEIGHTS = (4, 16, 20, 10, 12, 16, 12, 7)
_BAG_WEIGHTS = (34, 24, 18, 14, 8)
_PATTERN_WEIGHTS = (40, 8, 9, 3, 6, 7, 4, 3, 5, 6, 6, 3)


@functools.lru_cache(maxsize=4096)
def appearance_of(identity: int, seed: int) -> Appearance:
    """The looks of one identity.

    Args:
        identity: its number.
        seed: the data set's seed.
    """
    group = stream(seed, Stream.GROUP, identity // GROUP_SIZE)
    leader, alike = draw_appearance(group), chance(group, _ALIKE_GROUPS)
    rng = stream(seed, Stream.IDENTITY, identity)
    own = draw_appearance(rng)
    upper, lower = own.upper, own.lower
    if alike and chance(rng, 0.8):
        upper = _in_colours_of(rng, upper, leader.upper)
    if alike and chance(rng, 0.8):
        cloth = replace(lower.cloth, colour=palette.nearby(rng, leader.lower.cloth.colour, 6))
        lower = replace(lower, cloth=cloth)
    shoes = own.shoes
    if alike and chance(rng, 0.5):
        shoes = replace(shoes, colour=leader.shoes.colour)
    return replace(own, upper=upper, lower=lower, shoes=shoes)


def _in_colours_of(rng: np.random.Generator, upper: Upper, leader: Upper) -> Upper:
    """The garment in its leader's colour, and often of its cut."""
    cloth = replace(upper.cloth, colour=palette.nearby(rng, leader.cloth.colour, 6))
    if chance(rng, 0.5):
        cloth = replace(cloth, second=leader.cloth.second)
    if chance(rng, 0.5):
        upper = replace(upper, kind=leader.kind, sleeve=leader.sleeve, hem=leader.hem)
    return replace(upper, cloth=cloth, inner=leader.inner)


def _weighted(rng: np.random.Generator, names: tuple[str, ...], weights: tuple[float, ...]) -> str:
    shares = np.array(weights, np.float64)
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]


def draw_appearance(rng: np.random.Generator) -> Appearance:
    """A person at random."""
    build = float(np.clip(rng.normal(0, 1), -1.8, 2.2))
    body = Body(
        height=between(rng, 1.54, 1.92),
        shoulder=between(rng, 0.185, 0.235) + 0.012 * build,
        waist=between(rng, 0.135, 0.16) + 0.022 * build,
        hip=between(rng, 0.155, 0.18) + 0.016 * build,
        depth=between(rng, 0.105, 0.125) + 0.020 * build,
        leg=between(rng, 0.455, 0.505),
        limb=between(rng, 0.92, 1.08) + 0.11 * build,
        head=between(rng, 0.077, 0.087),
    )
    style = _weighted(rng, HAIR_STYLES, _HAIR_WEIGHTS)
    hair_shares = np.array(palette.HAIR_WEIGHTS, np.float64) / sum(palette.HAIR_WEIGHTS)
    return Appearance(
        body=body,
        skin=palette.nearby(rng, palette.SKIN[int(rng.integers(len(palette.SKIN)))], 5),
        hair_style=style,
        hair=palette.nearby(rng, palette.HAIR[int(rng.choice(9, p=hair_shares))], 4),
        beard=style in ("bald", "crop", "short") and chance(rng, 0.3),
        glasses=chance(rng, 0.25),
        headwear=_weighted(rng, HEADWEAR_KINDS, (8, 5, 3, 3)) if chance(rng, 0.2) else None,
        headwear_colour=palette.pick(rng, palette.CLOTH),
        upper=_upper(rng),
        lower=_lower(rng),
        shoes=_shoes(rng),
        bag=_bag(rng) if chance(rng, 0.6) else None,
    )


def _cloth(rng: np.random.Generator, table: dict[str, tuple[RGB, float]], pattern: str) -> Cloth:
    colour = palette.pick(rng, table)
    return Cloth(
        colour=colour,
        second=palette.contrasting(rng, colour, palette.CLOTH),
        third=palette.pick(rng, palette.CLOTH),
        pattern=pattern,
        frequency=between(rng, 7, 17),
    )


def _upper(rng: np.random.Generator) -> Upper:
    kind = _weighted(rng, UPPER_KINDS, _UPPER_WEIGHTS)
    pattern = _weighted(rng, PATTERNS, _PATTERN_WEIGHTS)
    if kind in ("coat", "jacket") and chance(rng, 0.6):
        pattern = "plain"
    cloth = _cloth(rng, palette.CLOTH, pattern)
    short = {"t-shirt": 0.46, "shirt": 1.0, "vest": 0.0, "dress": 0.4}.get(kind, 1.0)
    if kind in ("shirt", "dress") and chance(rng, 0.35):
        short = 0.48 if kind == "shirt" else 1.0
    hem = {"coat": between(rng, 0.42, 0.72), "dress": between(rng, 0.48, 0.85)}.get(
        kind, between(rng, 0.10, 0.24)
    )
    sleeves_differ = kind in ("t-shirt", "jacket", "hoodie") and chance(rng, 0.22)
    prints = [PRINTS[int(rng.integers(1, len(PRINTS)))] for _ in range(2)]
    printed = pattern in ("plain", "heather", "gradient", "yoke") and kind != "coat"
    return Upper(
        kind=kind,
        cloth=cloth,
        sleeve=short,
        sleeve_colour=palette.pick(rng, palette.CLOTH) if sleeves_differ else None,
        hem=hem,
        open_front=kind in ("jacket", "coat", "vest") and chance(rng, 0.5),
        inner=palette.contrasting(rng, cloth.colour, palette.CLOTH),
        chest_print=prints[0] if printed and chance(rng, 0.5) else "none",
        back_print=prints[1] if printed and chance(rng, 0.35) else "none",
        print_colour=palette.contrasting(rng, cloth.colour, palette.CLOTH),
    )


def _lower(rng: np.random.Generator) -> Lower:
    kind = _weighted(rng, LOWER_KINDS, _LOWER_WEIGHTS)
    pattern = _weighted(rng, ("plain", "heather", "plaid", "dots", "stripes"), (82, 9, 4, 3, 2))
    cloth = _cloth(rng, palette.TROUSER_CLOTH, "plain" if kind == "jeans" else pattern)
    if kind == "jeans":
        colour = palette.TROUSER_CLOTH[("denim", "dark denim", "pale denim")[int(rng.integers(3))]]
        cloth = replace(cloth, colour=palette.nearby(rng, colour[0], 8))
    length = {"shorts": between(rng, 0.36, 0.55), "skirt": between(rng, 0.34, 0.75)}.get(kind)
    if length is None:
        length = between(rng, 0.82, 0.9) if chance(rng, 0.18) else between(rng, 0.96, 1.0)
    stripe = palette.contrasting(rng, cloth.colour, palette.CLOTH)
    striped = kind in ("trousers", "leggings", "shorts") and chance(rng, 0.16)
    return Lower(kind, cloth, length, stripe if striped else None)


def _shoes(rng: np.random.Generator) -> Shoes:
    colour = palette.pick(rng, palette.SHOES)
    sole = (216.0, 214.0, 208.0) if chance(rng, 0.5) else (46.0, 44.0, 44.0)
    return Shoes(colour, sole, chance(rng, 0.2))


def _bag(rng: np.random.Generator) -> Bag:
    return Bag(
        kind=_weighted(rng, BAG_KINDS, _BAG_WEIGHTS),
        colour=palette.pick(rng, palette.BAGS),
        trim=palette.pick(rng, palette.BAGS),
        size=between(rng, 0.85, 1.2),
        side=1 if chance(rng, 0.5) else -1,
    )

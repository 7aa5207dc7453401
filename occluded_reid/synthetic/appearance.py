"""Who a person is: body, hair, clothes and belongings, drawn once per identity.

Identities come in groups of :data:`GROUP_SIZE` whose members often wear the same colours, as
colleagues or schoolmates do; only a pattern, a bag, the hair or the build tells them apart.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from occluded_reid.synthetic import palette
from occluded_reid.synthetic.palette import RGB
from occluded_reid.synthetic.randomness import Stream, between, chance, stream
from occluded_reid.synthetic.texture import PATTERNS

GROUP_SIZE = 4
UPPER_KINDS = ("t-shirt", "shirt", "sweater", "hoodie", "jacket", "coat", "vest", "dress")
UPPER_WEIGHTS = (20, 14, 14, 14, 18, 9, 5, 6)
LOWER_KINDS = ("trousers", "jeans", "wide trousers", "leggings", "shorts", "skirt")
LOWER_WEIGHTS = (26, 26, 10, 10, 14, 9)
HAIR_STYLES = ("bald", "crop", "short", "curly", "bob", "long", "ponytail", "bun")
HAIR_WEIGHTS = (4, 16, 20, 10, 12, 16, 12, 7)
BAG_KINDS = ("backpack", "shoulder bag", "handbag", "shopping bag", "suitcase")
BAG_WEIGHTS = (34, 24, 18, 14, 8)
HEADWEAR_KINDS = ("cap", "beanie", "hat", "headscarf")
PATTERN_WEIGHTS = (40, 8, 9, 3, 6, 7, 4, 3, 5, 6, 6, 3)
PRINTS = ("none", "box", "disc", "letters", "triangle", "bars")


@dataclass(frozen=True)
class Body:
    """Measures in metres; widths are half widths."""

    height: float
    shoulder: float
    waist: float
    hip: float
    depth: float
    leg: float
    limb: float
    head: float


@dataclass(frozen=True)
class Cloth:
    """What a garment is made of."""

    colour: RGB
    second: RGB
    third: RGB
    pattern: str
    frequency: float


@dataclass(frozen=True)
class Upper:
    """The upper garment.

    Attributes:
        kind: one of :data:`UPPER_KINDS`.
        cloth: its main cloth.
        sleeve: 0 without sleeves, 0.5 to the elbow, 1 to the wrist.
        sleeve_colour: colour of the sleeves where it differs, else None.
        hem: metres below the waist.
        open_front: whether a jacket stands open.
        inner: colour of the shirt under an open jacket.
        chest_print: print on the front, one of :data:`PRINTS`.
        back_print: print on the back.
        print_colour: colour of both.
    """

    kind: str
    cloth: Cloth
    sleeve: float
    sleeve_colour: RGB | None
    hem: float
    open_front: bool
    inner: RGB
    chest_print: str
    back_print: str
    print_colour: RGB


@dataclass(frozen=True)
class Lower:
    """Trousers or a skirt.

    Attributes:
        kind: one of :data:`LOWER_KINDS`.
        cloth: its cloth.
        length: 1 reaches the ankles, 0.5 the knees.
        side_stripe: colour of a stripe down the side, or None.
    """

    kind: str
    cloth: Cloth
    length: float
    side_stripe: RGB | None


@dataclass(frozen=True)
class Shoes:
    """Shoes, as boots or low ones."""

    colour: RGB
    sole: RGB
    boots: bool


@dataclass(frozen=True)
class Bag:
    """A carried thing, one of :data:`BAG_KINDS`; ``side`` is 1 for the left hand, -1 the right."""

    kind: str
    colour: RGB
    trim: RGB
    size: float
    side: int


@dataclass(frozen=True)
class Appearance:
    """All that is constant about an identity."""

    body: Body
    skin: RGB
    hair_style: str
    hair: RGB
    beard: bool
    glasses: bool
    headwear: str | None
    headwear_colour: RGB
    upper: Upper
    lower: Lower
    shoes: Shoes
    bag: Bag | None


@functools.lru_cache(maxsize=4096)
def appearance_of(identity: int, seed: int) -> Appearance:
    """The looks of one identity.

    Args:
        identity: its number.
        seed: the data set's seed.
    """
    leader = _drawn(stream(seed, Stream.GROUP, identity // GROUP_SIZE))
    rng = stream(seed, Stream.IDENTITY, identity)
    own = _drawn(rng)
    upper, lower = own.upper, own.lower
    if chance(rng, 0.7):
        upper = _in_colours_of(rng, upper, leader.upper)
    if chance(rng, 0.75):
        cloth = replace(lower.cloth, colour=palette.nearby(rng, leader.lower.cloth.colour, 6))
        lower = replace(lower, cloth=cloth)
    shoes = replace(own.shoes, colour=leader.shoes.colour) if chance(rng, 0.4) else own.shoes
    hair = leader.hair if chance(rng, 0.5) else own.hair
    return replace(own, upper=upper, lower=lower, shoes=shoes, hair=hair)


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


def _drawn(rng: np.random.Generator) -> Appearance:
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
    style = _weighted(rng, HAIR_STYLES, HAIR_WEIGHTS)
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
    kind = _weighted(rng, UPPER_KINDS, UPPER_WEIGHTS)
    pattern = _weighted(rng, PATTERNS, PATTERN_WEIGHTS)
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
    kind = _weighted(rng, LOWER_KINDS, LOWER_WEIGHTS)
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
        kind=_weighted(rng, BAG_KINDS, BAG_WEIGHTS),
        colour=palette.pick(rng, palette.BAGS),
        trim=palette.pick(rng, palette.BAGS),
        size=between(rng, 0.85, 1.2),
        side=1 if chance(rng, 0.5) else -1,
    )

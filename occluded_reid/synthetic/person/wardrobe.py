"""The appearance of each identity.

Identities come in groups of :data:`GROUP_SIZE`. In every fifth group most members wear the same
colors, like colleagues in uniform; only a pattern, a bag, the hair or the build tells them apart.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

from occluded_reid.synthetic.paint import palette
from occluded_reid.synthetic.person.appearance import (
    Appearance,
    Bag,
    Body,
    Cloth,
    Lower,
    Shoes,
    Upper,
)
from occluded_reid.synthetic.streams import Rng, Stream, bernoulli, choose, make_rng, uniform

GROUP_SIZE = 3
_ALIKE_GROUPS = 0.2
# Names with their relative frequencies.
_UPPERS = {
    "t-shirt": 20, "shirt": 14, "sweater": 14, "hoodie": 14, "jacket": 18, "coat": 9, "vest": 5,
    "dress": 6,
}  # fmt: skip
_LOWERS = {
    "trousers": 26, "jeans": 26, "wide trousers": 10, "leggings": 10, "shorts": 14, "skirt": 9,
}  # fmt: skip
_HAIR_STYLES = {
    "bald": 4, "crop": 16, "short": 20, "curly": 10, "bob": 12, "long": 16, "ponytail": 12,
    "bun": 7,
}  # fmt: skip
_HEADWEAR = {"cap": 8, "beanie": 5, "hat": 3, "headscarf": 3}
_BAGS = {"backpack": 34, "shoulder bag": 24, "handbag": 18, "shopping bag": 14, "suitcase": 8}
_UPPER_PATTERNS = {
    "plain": 40, "heather": 8, "stripes": 9, "pinstripes": 3, "checks": 6, "plaid": 7, "dots": 4,
    "camouflage": 3, "gradient": 5, "yoke": 6, "band": 6, "zigzag": 3,
}  # fmt: skip
_LOWER_PATTERNS = {"plain": 82, "heather": 9, "plaid": 4, "dots": 3, "stripes": 2}
_PRINTS = ("box", "disc", "letters", "triangle", "bars")


@functools.lru_cache(maxsize=4096)
def build_appearance(identity: int, seed: int) -> Appearance:
    """Build the appearance of an identity in the data set of a seed."""
    group = make_rng(seed, Stream.GROUP, identity // GROUP_SIZE)
    leader, alike = sample_appearance(group), bernoulli(group, _ALIKE_GROUPS)
    rng = make_rng(seed, Stream.IDENTITY, identity)
    own = sample_appearance(rng)
    upper, lower = own.upper, own.lower
    if alike and bernoulli(rng, 0.8):
        upper = _match_colors(rng, upper, leader.upper)
    if alike and bernoulli(rng, 0.8):
        cloth = replace(lower.cloth, color=palette.jitter_color(rng, leader.lower.cloth.color, 6))
        lower = replace(lower, cloth=cloth)
    shoes = own.shoes
    if alike and bernoulli(rng, 0.5):
        shoes = replace(shoes, color=leader.shoes.color)
    return replace(own, upper=upper, lower=lower, shoes=shoes)


def _match_colors(rng: Rng, upper: Upper, leader: Upper) -> Upper:
    """Give a garment the color of the leader's, and often its cut."""
    cloth = replace(upper.cloth, color=palette.jitter_color(rng, leader.cloth.color, 6))
    if bernoulli(rng, 0.5):
        cloth = replace(cloth, second=leader.cloth.second)
    if bernoulli(rng, 0.5):
        upper = replace(upper, kind=leader.kind, sleeve=leader.sleeve, hem=leader.hem)
    return replace(upper, cloth=cloth, inner=leader.inner)


def sample_appearance(rng: Rng) -> Appearance:
    """Sample a random person."""
    build = float(np.clip(rng.normal(0, 1), -1.8, 2.2))
    body = Body(
        height=uniform(rng, 1.54, 1.92),
        shoulder=uniform(rng, 0.185, 0.235) + 0.012 * build,
        waist=uniform(rng, 0.135, 0.16) + 0.022 * build,
        hip=uniform(rng, 0.155, 0.18) + 0.016 * build,
        depth=uniform(rng, 0.105, 0.125) + 0.020 * build,
        leg=uniform(rng, 0.455, 0.505),
        limb=uniform(rng, 0.92, 1.08) + 0.11 * build,
        head=uniform(rng, 0.077, 0.087),
    )
    style = choose(rng, _HAIR_STYLES)
    return Appearance(
        body=body,
        skin=palette.jitter_color(rng, choose(rng, palette.SKIN), 5),
        hair_style=style,
        hair=palette.jitter_color(rng, choose(rng, palette.HAIR, palette.HAIR_WEIGHTS), 4),
        beard=style in ("bald", "crop", "short") and bernoulli(rng, 0.3),
        glasses=bernoulli(rng, 0.25),
        headwear=choose(rng, _HEADWEAR) if bernoulli(rng, 0.2) else None,
        headwear_color=palette.pick(rng, palette.CLOTH),
        upper=_sample_upper(rng),
        lower=_sample_lower(rng),
        shoes=_sample_shoes(rng),
        bag=_sample_bag(rng) if bernoulli(rng, 0.6) else None,
    )


def _sample_cloth(rng: Rng, table: palette.Table, pattern: str) -> Cloth:
    color = palette.pick(rng, table)
    return Cloth(
        color=color,
        second=palette.pick_contrasting(rng, color, palette.CLOTH),
        third=palette.pick(rng, palette.CLOTH),
        pattern=pattern,
        frequency=uniform(rng, 7, 17),
    )


def _sample_upper(rng: Rng) -> Upper:
    kind = choose(rng, _UPPERS)
    pattern = choose(rng, _UPPER_PATTERNS)
    if kind in ("coat", "jacket") and bernoulli(rng, 0.6):
        pattern = "plain"
    cloth = _sample_cloth(rng, palette.CLOTH, pattern)
    sleeve = {"t-shirt": 0.46, "shirt": 1.0, "vest": 0.0, "dress": 0.4}.get(kind, 1.0)
    if kind in ("shirt", "dress") and bernoulli(rng, 0.35):
        sleeve = 0.48 if kind == "shirt" else 1.0
    hem = {"coat": uniform(rng, 0.42, 0.72), "dress": uniform(rng, 0.48, 0.85)}.get(
        kind, uniform(rng, 0.10, 0.24)
    )
    sleeves_differ = kind in ("t-shirt", "jacket", "hoodie") and bernoulli(rng, 0.22)
    prints = [choose(rng, _PRINTS) for _ in range(2)]
    printed = pattern in ("plain", "heather", "gradient", "yoke") and kind != "coat"
    return Upper(
        kind=kind,
        cloth=cloth,
        sleeve=sleeve,
        sleeve_color=palette.pick(rng, palette.CLOTH) if sleeves_differ else None,
        hem=hem,
        open_front=kind in ("jacket", "coat", "vest") and bernoulli(rng, 0.5),
        inner=palette.pick_contrasting(rng, cloth.color, palette.CLOTH),
        chest_print=prints[0] if printed and bernoulli(rng, 0.5) else "none",
        back_print=prints[1] if printed and bernoulli(rng, 0.35) else "none",
        print_color=palette.pick_contrasting(rng, cloth.color, palette.CLOTH),
    )


def _sample_lower(rng: Rng) -> Lower:
    kind = choose(rng, _LOWERS)
    pattern = choose(rng, _LOWER_PATTERNS)
    cloth = _sample_cloth(rng, palette.TROUSER_CLOTH, "plain" if kind == "jeans" else pattern)
    if kind == "jeans":
        color, _ = palette.TROUSER_CLOTH[choose(rng, ("denim", "dark denim", "pale denim"))]
        cloth = replace(cloth, color=palette.jitter_color(rng, color, 8))
    length = {"shorts": uniform(rng, 0.36, 0.55), "skirt": uniform(rng, 0.34, 0.75)}.get(kind)
    if length is None:
        length = uniform(rng, 0.82, 0.9) if bernoulli(rng, 0.18) else uniform(rng, 0.96, 1.0)
    stripe = palette.pick_contrasting(rng, cloth.color, palette.CLOTH)
    striped = kind in ("trousers", "leggings", "shorts") and bernoulli(rng, 0.16)
    return Lower(kind, cloth, length, stripe if striped else None)


def _sample_shoes(rng: Rng) -> Shoes:
    color = palette.pick(rng, palette.SHOES)
    sole = (216.0, 214.0, 208.0) if bernoulli(rng, 0.5) else (46.0, 44.0, 44.0)
    return Shoes(color, sole, bernoulli(rng, 0.2))


def _sample_bag(rng: Rng) -> Bag:
    return Bag(
        kind=choose(rng, _BAGS),
        color=palette.pick(rng, palette.BAGS),
        trim=palette.pick(rng, palette.BAGS),
        size=uniform(rng, 0.85, 1.2),
        side=1 if bernoulli(rng, 0.5) else -1,
    )

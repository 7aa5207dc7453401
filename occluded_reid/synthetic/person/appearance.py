"""The appearance of a person: body, hair, clothes and belongings."""

from __future__ import annotations

from dataclasses import dataclass

from occluded_reid.synthetic.paint.palette import RGB


@dataclass(frozen=True)
class Body:
    """Measures in meters, widths halved; ``leg`` is a fraction of the height, ``limb`` a factor."""

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
    """Colors and pattern of a garment."""

    color: RGB
    second: RGB
    third: RGB
    pattern: str
    frequency: float


@dataclass(frozen=True)
class Upper:
    """The upper garment."""

    kind: str  # such as "coat"; wardrobe lists them, as it does other names
    cloth: Cloth
    sleeve: float  # 0 without sleeves, 0.5 to the elbow, 1 to the wrist
    sleeve_color: RGB | None  # color of the sleeves where it differs, else None
    hem: float  # meters below the waist
    open_front: bool  # whether a jacket stands open
    inner: RGB  # color of the shirt under an open jacket
    chest_print: str  # print on the front, or "none"
    back_print: str  # print on the back
    print_color: RGB  # color of both prints


@dataclass(frozen=True)
class Lower:
    """Trousers or a skirt."""

    kind: str  # such as "jeans"
    cloth: Cloth
    length: float  # 1 reaches the ankles, 0.5 the knees
    side_stripe: RGB | None  # color of a stripe down the side, or None


@dataclass(frozen=True)
class Shoes:
    """Boots or low shoes."""

    color: RGB
    sole: RGB
    boots: bool


@dataclass(frozen=True)
class Bag:
    """A bag; ``side`` is 1 for the left hand, -1 for the right."""

    kind: str
    color: RGB
    trim: RGB
    size: float
    side: int


@dataclass(frozen=True)
class Appearance:
    """Everything that is constant about an identity."""

    body: Body
    skin: RGB
    hair_style: str
    hair: RGB
    beard: bool
    glasses: bool
    headwear: str | None
    headwear_color: RGB
    upper: Upper
    lower: Lower
    shoes: Shoes
    bag: Bag | None

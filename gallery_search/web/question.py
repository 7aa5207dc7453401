"""A search as its address states it: all that a visitor chose is in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from gallery_search.web import MAX_HITS

MAX_IMAGES = 16  # of one person in a query
MAX_MARKS = 200
MAX_TEXT = 200  # characters of a value
ORDERS = {"similarity": "Most alike first", "time": "By time", "camera": "By camera"}


@dataclass(frozen=True)
class Question:
    """What to search for; keys name images, see :meth:`GallerySearch.find_image`."""

    images: tuple[str, ...] = ()  # of the person; none to browse the gallery
    same: tuple[str, ...] = ()  # gallery images that the visitor confirmed
    other: tuple[str, ...] = ()  # and those that show somebody else
    cameras: tuple[str, ...] = ()  # none for all
    since: str = ""
    until: str = ""
    order: str = "similarity"
    top: int = 40

    @classmethod
    def read(cls, pairs: Sequence[tuple[str, str]], top: int = 40) -> Question:
        """Read the query of an address; what is too long or unknown is left out."""
        values: dict[str, list[str]] = {}
        for name, value in pairs:
            if value and len(value) <= MAX_TEXT and value not in values.setdefault(name, []):
                values[name].append(value)

        def last(name: str) -> str:
            return values.get(name, [""])[-1]

        same = tuple(values.get("same", ())[:MAX_MARKS])
        if last("top").isascii() and last("top").isdigit():
            top = int(last("top"))
        return cls(
            tuple(values.get("q", ())[:MAX_IMAGES]),
            same,
            tuple(key for key in values.get("other", ())[:MAX_MARKS] if key not in same),
            tuple(values.get("camera", ())),
            last("since"),
            last("until"),
            last("order") if last("order") in ORDERS else cls.order,
            min(max(top, 1), MAX_HITS),
        )

    def address(self, path: str, **changes: Any) -> str:
        """Return the address of this question, with some fields changed, below ``path``."""
        extra = changes.pop("extra", ())
        other = replace(self, **changes)
        pairs = [("q", key) for key in other.images]
        pairs += [("same", key) for key in other.same] + [("other", key) for key in other.other]
        pairs += [("camera", name) for name in other.cameras]
        pairs += [(name, getattr(other, name)) for name in ("since", "until", "order", "top")
                  if getattr(other, name) != getattr(Question, name)]  # fmt: skip
        text = urlencode([*pairs, *extra])
        return f"{path}?{text}" if text else path

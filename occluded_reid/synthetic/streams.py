"""Random generators addressed by name, so that the order of the work does not matter.

Each thing that is drawn (a scene, a person, an image) has its own generator, addressed by integers.
One worker and twenty therefore draw the same pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Rng = np.random.Generator

VERSION = 3
"""Version of the drawings. Raise it whenever the same seed would give other pixels."""


# The purpose of a generator, 1 to 8: the first number of its address.
Stream = IntEnum("Stream", "CAMERA SCENE GROUP IDENTITY TRACK IMAGE PLAN NOISE_FIELD")


def make_rng(seed: int, purpose: Stream, *address: int) -> Rng:
    """Return the generator of what is drawn: ``address`` is, for example, identity and camera."""
    return np.random.default_rng(np.random.SeedSequence([VERSION, seed, int(purpose), *address]))


def uniform(rng: Rng, low: float, high: float) -> float:
    """Sample a number in [low, high)."""
    return float(rng.uniform(low, high))


def bernoulli(rng: Rng, probability: float) -> bool:
    """Return True with the given probability."""
    return bool(rng.random() < probability)


def choose(rng: Rng, items: Sequence[T] | Mapping[T, float], weights: Sequence[float] = ()) -> T:
    """Choose an item: all are equally likely, or have relative weights, as in a mapping."""
    if isinstance(items, Mapping):
        weights, items = tuple(items.values()), tuple(items)
    if not weights:
        return items[int(rng.integers(len(items)))]
    shares = np.asarray(weights, np.float64)
    return items[int(rng.choice(len(items), p=shares / shares.sum()))]

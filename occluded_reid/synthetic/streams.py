"""Random numbers that depend on names, never on the order of the work.

Each thing that is drawn (a scene, a person, one picture) has its own stream, addressed by integers.
So the pixels are the same for one worker or twenty, and in whatever order they run.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

VERSION = 2
"""Version of the drawings. It rises whenever the same seed would give other pixels."""


class Stream(IntEnum):
    """What a random stream is for; the first number of its address."""

    CAMERA = 1
    SCENE = 2
    GROUP = 3
    IDENTITY = 4
    TRACK = 5
    PICTURE = 6
    PLAN = 7
    NOISE_FIELD = 8


def stream(seed: int, purpose: Stream, *address: int) -> np.random.Generator:
    """The generator at one address.

    Args:
        seed: the data set's seed, not negative.
        purpose: what is drawn.
        address: numbers that tell this thing from its siblings, such as identity and camera.
    """
    return np.random.default_rng(np.random.SeedSequence([VERSION, seed, int(purpose), *address]))


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform number in [low, high)."""
    return float(rng.uniform(low, high))


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)

"""Randomness as a function of the seed, never of what ran before.

Epoch ``e`` of a run draws from generators seeded by ``(SEED, e, rank)``, and image ``i`` of batch
``b`` from ``(SEED, e, rank, b, i)``. So the number of workers does not change a run, and a run that
was interrupted after epoch ``e`` continues as if it had not been.
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import torch


def derive_seed(*path: int) -> int:
    """Return a seed in [0, 2**32) for a place in the run, such as ``(SEED, epoch, rank)``."""
    return int(np.random.SeedSequence(path).generate_state(1)[0])


def seed_from_clock() -> int:
    """Return a seed in [0, 2**31) that differs from call to call."""
    return time.time_ns() % 2**31


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class PrivateRandomness:
    """A stream of random numbers of its own for code that draws from the global CPU generators.

    Inside ``with stream:`` the global generators of Python, numpy and torch continue this stream;
    after it they are as they were before. The stream goes on at the next ``with``.
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._own: tuple[Any, ...] | None = None
        self._outer: tuple[Any, ...] = ()

    def __enter__(self) -> None:
        self._outer = _states()
        if self._own is None:
            random.seed(self._seed)
            np.random.seed(self._seed)
            # torch.manual_seed would seed the GPUs too
            torch.default_generator.manual_seed(self._seed)
        else:
            _restore(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = _states()
        _restore(self._outer)


def random_states() -> tuple[Any, ...]:
    """Return the states of all generators that :func:`seed_everything` seeds on this device."""
    own_gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return *_states(), own_gpu


def restore_random_states(states: tuple[Any, ...]) -> None:
    """Set the generators to what :func:`random_states` has returned."""
    _restore(states)
    if states[3] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[3])


def check_random_states(states: tuple[Any, ...]) -> None:
    """Raise a ValueError unless the CPU generators can be set to ``states`` read from a file."""
    try:
        python, of_numpy, of_torch, of_gpu = states
        random.Random().setstate(python)
        np.random.RandomState().set_state(of_numpy)
        torch.Generator().set_state(of_torch)
        sound = of_gpu is None or of_gpu.dtype == torch.uint8
        sound &= python[2] is None or isinstance(python[2], float)
        sound &= 0 <= of_numpy[2] <= len(of_numpy[1])  # else numpy reads beyond its memory
    except (AttributeError, LookupError, TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"it is no random state: {error}") from error
    if not sound:
        raise ValueError("it is no random state")


def _states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _restore(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])

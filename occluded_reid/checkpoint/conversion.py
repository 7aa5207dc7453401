"""Weights on their way from another code base's names to ours, with an account of every key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

Weights = dict[str, torch.Tensor]
Shape = tuple[int, ...]


class Fate(NamedTuple):
    """What became of one key of a file.

    Attributes:
        key: as the file has it.
        shape: of its tensor; None for what is no tensor.
        fate: ``used`` as it is, ``renamed``, ``reshaped`` (other values or another shape: ``why``
            says how), or ``left out`` (``why`` says the reason).
        names: where it is now.
        why: see ``fate``.
    """

    key: str
    shape: Shape | None
    fate: str
    names: tuple[str, ...] = ()
    why: str = ""


class Conversion:
    """Weights under changing names.

    Args:
        weights: by the file's keys.
        beside: what else the file holds, by key.

    Attributes:
        weights: what is left of them, by the names of the moment.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], beside: Iterable[str] = ()):
        self.weights: Weights = dict(weights)
        self._shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
        self._sources: dict[str, tuple[str, ...]] = {key: (key,) for key in weights}
        self._changes: dict[str, list[str]] = {key: [] for key in weights}
        self._left_out: dict[str, str] = {}
        self._beside = tuple(beside)

    def rename(self, new_name: Callable[[str], str | None]) -> None:
        """Give every weight the name ``new_name(name)``; None keeps the name it has."""
        names = {name: new_name(name) or name for name in self.weights}
        self.weights = {names[name]: tensor for name, tensor in self.weights.items()}
        self._sources = {names[name]: of for name, of in self._sources.items()}
        self._changes = {names[name]: how for name, how in self._changes.items()}

    def strip(self, prefix: str) -> None:
        """Take ``prefix`` off the names if all of them have it."""
        if self.weights and all(name.startswith(prefix) for name in self.weights):
            self.rename(lambda name: name[len(prefix) :])

    def leave_out(self, pattern: str, why: str) -> None:
        """Leave out the weights whose names match a regular expression as a whole."""
        for name in [name for name in self.weights if re.fullmatch(pattern, name)]:
            del self.weights[name], self._changes[name]
            for key in self._sources.pop(name):
                self._left_out[key] = why

    def replace(self, names: Sequence[str], made: Mapping[str, torch.Tensor], how: str) -> None:
        """Put ``made`` in the place of the weights ``names``: joined, split, resized, copied."""
        sources = tuple(key for name in names for key in self._sources[name])
        changes = [change for name in names for change in self._changes[name]]
        for name in names:
            del self.weights[name], self._sources[name], self._changes[name]
        for name, tensor in made.items():
            self.weights[name] = tensor
            self._sources[name], self._changes[name] = sources, [*dict.fromkeys([*changes, how])]

    def add(self, made: Mapping[str, torch.Tensor]) -> None:
        """Add weights that are not from the file."""
        for name, tensor in made.items():
            self.weights[name], self._sources[name], self._changes[name] = tensor, (), []

    def left_out(self) -> dict[str, list[str]]:
        """Return the keys that were left out, by the reason."""
        reasons: dict[str, list[str]] = {}
        for key, why in self._left_out.items():
            reasons.setdefault(why, []).append(key)
        return reasons

    def report(self) -> list[Fate]:
        """Return what became of each key, in the file's order, what stands beside them last."""
        places: dict[str, list[str]] = {key: [] for key in self._shapes}
        for name, sources in self._sources.items():
            for key in sources:
                places[key].append(name)
        fates = [self._fate(key, tuple(names)) for key, names in places.items()]
        beside = "no weight of the model"
        return [*fates, *(Fate(key, None, "left out", why=beside) for key in self._beside)]

    def _fate(self, key: str, names: tuple[str, ...]) -> Fate:
        shape = self._shapes[key]
        if not names:
            return Fate(key, shape, "left out", why=self._left_out[key])
        changes = [change for name in names for change in self._changes[name]]
        if changes:
            return Fate(key, shape, "reshaped", names, "; ".join(dict.fromkeys(changes)))
        return Fate(key, shape, "used" if names == (key,) else "renamed", names)


def mismatches(
    weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> list[str]:
    """Name what is missing in ``weights``, left over in them, or of another shape than wanted."""
    faults = [f"{key} is not in the file" for key in wanted if key not in weights]
    faults += [f"{key} is not in the model" for key in weights if key not in wanted]
    return faults + [
        f"{key} is {tuple(tensor.shape)} in the file, {tuple(wanted[key].shape)} in the model"
        for key, tensor in weights.items()
        if key in wanted and tensor.shape != wanted[key].shape
    ]


def first_of(faults: Sequence[str], count: int = 5) -> str:
    """Return the first faults as one text that tells how many there are."""
    more = f"; and {len(faults) - count} more" if len(faults) > count else ""
    return "; ".join(faults[:count]) + more

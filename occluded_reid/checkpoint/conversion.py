"""Convert weights from another code base's names to ours, with a record of every key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from occluded_reid.utils.terminal import show

Weights = dict[str, torch.Tensor]

COUNTER = ".num_batches_tracked"  # of a batch normalization; old files have none


class Conversion:
    """Weights whose names and shapes change step by step.

    ``weights`` holds tensors by the file's keys, then those that are left by their current names;
    ``beside``, keys of the file that hold no weights.

    >>> conversion = Conversion({"module.fc.weight": torch.ones(2)})
    >>> conversion.strip("module.")
    >>> [(entry["fate"], entry["now"]) for entry in conversion.report()]
    [('renamed', {'fc.weight': [2]})]
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], beside: Iterable[str] = ()):
        self.weights: Weights = dict(weights)
        self._shapes = {key: list(tensor.shape) for key, tensor in weights.items()}
        self._sources: dict[str, tuple[str, ...]] = {key: (key,) for key in weights}
        self._changes: dict[str, list[str]] = {key: [] for key in weights}
        self._left_out: dict[str, str] = {}
        self._beside = tuple(beside)

    def rename(self, new_name: Callable[[str], str | None]) -> None:
        """Rename every weight to ``new_name(name)``; None keeps its name."""
        names = {name: new_name(name) or name for name in self.weights}
        self.weights = {names[name]: tensor for name, tensor in self.weights.items()}
        self._sources = {names[name]: of for name, of in self._sources.items()}
        self._changes = {names[name]: how for name, how in self._changes.items()}

    def strip(self, prefix: str) -> None:
        """Remove ``prefix`` from the names if all of them have it."""
        if self.weights and all(name.startswith(prefix) for name in self.weights):
            self.rename(lambda name: name[len(prefix) :])

    def leave_out(self, pattern: str, why: str) -> None:
        """Leave out the weights whose full names match a regular expression."""
        for name in [name for name in self.weights if re.fullmatch(pattern, name)]:
            del self.weights[name], self._changes[name]
            for key in self._sources.pop(name):
                self._left_out[key] = why

    def replace(self, names: Sequence[str], made: Mapping[str, torch.Tensor], how: str) -> None:
        """Replace the weights ``names`` by ``made``: joined, split, resized or copied."""
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

    def group_left_out(self) -> dict[str, list[str]]:
        """Return the keys that were left out, by reason."""
        reasons: dict[str, list[str]] = {}
        for key, why in self._left_out.items():
            reasons.setdefault(why, []).append(key)
        return reasons

    def report(self) -> list[dict[str, Any]]:
        """Return what happened to each key, in the file's order; keys without weights come last.

        An entry has the file's ``key``; its ``shape``, None if it is no tensor; as ``fate``
        ``used`` (unchanged), ``renamed``, ``reshaped`` (other values or another shape) or ``left
        out``; as ``now`` the shapes by its current names; ``why`` it was reshaped or left out.
        """
        names_of: dict[str, list[str]] = {key: [] for key in self._shapes}
        for name, sources in self._sources.items():
            for key in sources:
                names_of[key].append(name)
        entries: list[dict[str, Any]] = []
        for key, names in names_of.items():
            fate = "used" if names == [key] else "renamed"
            why = "; ".join(dict.fromkeys(how for name in names for how in self._changes[name]))
            if not names:
                fate, why = "left out", self._left_out[key]
            elif why:
                fate = "reshaped"
            now = {name: list(self.weights[name].shape) for name in names}
            entry = {"key": key, "shape": self._shapes[key], "fate": fate, "now": now, "why": why}
            entries.append(entry)
        why = "no weight of the model"
        for key in self._beside:
            entries.append({"key": key, "shape": None, "fate": "left out", "now": {}, "why": why})
        return entries


def find_mismatches(
    weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> list[str]:
    """List which weights are missing, left over, or of another shape than in ``wanted``."""
    faults = [f"{key} is not in the file" for key in wanted if key not in weights]
    faults += [f"{key} is not in the model" for key in weights if key not in wanted]
    return faults + [
        f"{key} is {tuple(tensor.shape)} in the file, {tuple(wanted[key].shape)} in the model"
        for key, tensor in weights.items()
        if key in wanted and tensor.shape != wanted[key].shape
    ]


def join_first(faults: Sequence[str], count: int = 5) -> str:
    """Join the first ``count`` faults and say how many more there are.

    >>> join_first(["a", "b", "c"], count=2)
    'a; b; and 1 more'
    """
    more = f"; and {len(faults) - count} more" if len(faults) > count else ""
    return "; ".join(map(show, faults[:count])) + more

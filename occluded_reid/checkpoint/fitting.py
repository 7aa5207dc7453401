"""Which weights of a file a model takes, and which of its own stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from fastreid.modeling.heads import EmbeddingHead
from torch import nn

from occluded_reid.checkpoint.conversion import COUNTER, Weights, find_mismatches, join_first
from occluded_reid.utils.errors import UserError

Purpose = Literal["resume", "train", "evaluate"]

_FOREIGN = {r"heads\.(bnneck|classifier)\.": "fastreid", r"base\.": "transreid"}
"""Names in weights of fast-reid before 1.0, as its model zoo has them, and of TransReID."""


class Fit(NamedTuple):
    """The weights that a model takes from a file, and the parts or weights that it does not."""

    weights: Weights
    left_out: tuple[str, ...]  # of the file
    made_anew: tuple[str, ...]  # of the model: they keep their initial values


def fit_weights(
    weights: Weights, model: nn.Module, source: str, *, purpose: Purpose, num_classes: int
) -> Fit:
    """Choose what ``model``, built for ``num_classes`` identities, takes from the file ``source``.

    A resumed run takes all. Otherwise a classifier or memory bank for another number of identities
    is left out. Parts that only training needs are made anew if the file lacks them whole; a model
    that is only evaluated needs nothing of them. Anything else that does not fit is a UserError.
    """
    own: Weights = model.state_dict()
    left_out: set[str] = set()
    made_anew: set[str] = set()
    if purpose != "resume":
        parts = list_training_parts(model)
        if purpose == "train":
            parts = [each for each in parts if not any(is_inside(key, [each]) for key in weights)]
        left_out = {key for key in weights if key not in own and is_inside(key, parts)}
        left_out |= {
            key
            for key, tensor in weights.items()
            if key in own and _differ_in_identities(tensor.shape, own[key].shape, num_classes)
        }
        made_anew = {key for key in own if key not in weights and is_inside(key, parts)}
        made_anew |= left_out.intersection(own)
    taken = {key: tensor for key, tensor in weights.items() if key not in left_out}
    wanted = {
        key: tensor
        for key, tensor in own.items()
        if key not in made_anew and (key in taken or not key.endswith(COUNTER))
    }
    faults = find_mismatches(taken, wanted)
    faults += [
        f"{key} holds {tensor.dtype} in the file, {wanted[key].dtype} in the model"
        for key, tensor in taken.items()
        if key in wanted and tensor.is_floating_point() != wanted[key].is_floating_point()
    ]
    if faults:
        raise UserError(
            f"{source} does not fit the model: {join_first(faults)}. {_advise(weights, source)}"
        )
    return Fit(taken, _name_parts(left_out, model), _name_parts(made_anew, model))


def _advise(weights: Weights, source: str) -> str:
    """Name the command that converts weights with the names of another code base."""
    for names, code_base in _FOREIGN.items():
        if any(re.match(names, key) for key in weights):
            return (
                "Names like these are converted by tools/import_checkpoint.py --source "
                f"{code_base} --input {source} --output NEW.pth"
            )
    return (
        "Is it from another architecture or configuration? tools/import_checkpoint.py reads other "
        "code bases"
    )


def _name_parts(keys: Iterable[str], model: nn.Module) -> tuple[str, ...]:
    """Return the names of the training parts that weights lie in, or else their own."""
    parts = list_training_parts(model)
    inside = {key: [part for part in parts if is_inside(key, [part])] or [key] for key in keys}
    return tuple(sorted({names[0] for names in inside.values()}))


def _differ_in_identities(found: torch.Size, wanted: torch.Size, num_classes: int) -> bool:
    """Whether two shapes differ only in the number of identities, which is ``num_classes``."""
    same_kind = found != wanted and found[1:] == wanted[1:] and len(found) == len(wanted) > 0
    return same_kind and wanted[0] == num_classes


def list_training_parts(model: nn.Module) -> Sequence[str]:
    """Return the dotted names of the modules and parameters that only training needs.

    A method names them in its model's class attribute ``training_only``, a head in its own.
    """
    heads = type(getattr(model, "heads", None))
    own = ("weight",) if heads is EmbeddingHead else getattr(heads, "training_only", ())
    return (*getattr(type(model), "training_only", ()), *(f"heads.{name}" for name in own))


def is_inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a name of the state dict is one of ``modules`` or lies inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)

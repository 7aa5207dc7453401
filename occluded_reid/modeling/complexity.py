"""What a model costs: parameters, multiply-adds, and what of them only training needs.

Counted as parameters are those of the modules, frozen ones too, and memories: buffers of floats in
the state dict. Running statistics of normalisation are not, as everywhere. A multiplication and the
addition after it are one operation; papers mostly call their number FLOPs.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from occluded_reid.checkpoint.checkpointer import is_inside, training_only
from occluded_reid.modeling.outputs import as_embedding

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore's functions are scripted on import
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

_STATISTICS = ("running_mean", "running_var")


class Cost(NamedTuple):
    """What a module, or a parameter of its own, costs.

    Attributes:
        name: as in the state dict, ``backbone.layer1``; ``heads.forward`` is what a module
            computes outside of its parts.
        parameters: numbers in it.
        macs: multiply-adds for one image in evaluation.
        training_only: whether evaluation does without it.
    """

    name: str
    parameters: int
    macs: int
    training_only: bool


class Complexity(NamedTuple):
    """What a model costs.

    Attributes:
        modules: the model's parts, each followed by its own parts.
        params_total: all parameters and memories.
        params_inference: those that evaluation needs.
        macs_inference: multiply-adds for one image in evaluation, fvcore's count.
        not_counted: operators that are not part of it, such as ``add``, by name.
    """

    modules: list[Cost]
    params_total: int
    params_inference: int
    macs_inference: int
    not_counted: list[str]


class _Evaluation(nn.Module):
    """A model as fvcore wants it: tensors in, tensors out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = as_embedding(self.model({"images": images}))
        return embedding.features, embedding.visibility


def complexity(model: nn.Module, image_size: Sequence[int]) -> Complexity:
    """Return what a model costs for one image.

    Args:
        model: on the CPU; it is left in evaluation mode.
        image_size: (H, W).
    """
    analysis = FlopCountAnalysis(_Evaluation(model.eval()), torch.zeros(1, 3, *image_size))
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    macs = Counter(
        {
            name.removeprefix("model."): int(number)
            for name, number in analysis.by_module().items()
            if name.startswith("model.")
        }
    )
    sizes = {name: tensor.numel() for name, tensor in parameters_and_memories(model).items()}
    unread = training_only(model)
    return Complexity(
        modules=_modules(sizes, macs, unread),
        params_total=sum(sizes.values()),
        params_inference=sum(n for name, n in sizes.items() if not is_inside(name, unread)),
        macs_inference=int(analysis.total()),
        not_counted=sorted(name.removeprefix("aten::") for name in analysis.unsupported_ops()),
    )


def parameters_and_memories(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and memories by name; one that has several names has the first."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and name.split(".")[-1] not in _STATISTICS:
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _modules(sizes: dict[str, int], macs: Counter[str], unread: tuple[str, ...]) -> list[Cost]:
    def cost(name: str) -> Cost:
        parameters = sum(size for key, size in sizes.items() if is_inside(key, (name,)))
        return Cost(name, parameters, macs[name], is_inside(name, unread))

    names = [*sizes, *macs]
    costs: list[Cost] = []
    for top in dict.fromkeys(name.split(".")[0] for name in names):
        paths = dict.fromkeys(
            ".".join(name.split(".")[:2]) for name in names if name.startswith(f"{top}.")
        )
        whole, parts = cost(top), [cost(path) for path in paths]
        left = whole.macs - sum(part.macs for part in parts)
        parts.append(Cost(f"{top}.forward", 0, left, whole.training_only))
        parts = [part for part in parts if part.parameters or part.macs]
        costs += [whole, *parts] if len(parts) > 1 else [whole]
    return [each for each in costs if each.parameters or each.macs]


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """``softmax(q k^T) v`` of q (..., L, E), k (..., S, E), v (..., S, V): two products."""
    query, key, value = (get_shape(given) for given in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])

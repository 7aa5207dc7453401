"""Parameters and multiply-adds of a model, and which of them only training needs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from occluded_reid.checkpoint.fitting import is_inside, list_training_parts
from occluded_reid.deploy.formats import InferenceGraph

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore uses torch.jit.script on import
    from fvcore.nn import FlopCountAnalysis, flop_count_table, parameter_count
    from fvcore.nn.jit_handles import get_shape

_STATISTICS = ("running_mean", "running_var")
_MAX_DEPTH = 2


class ModuleCost(NamedTuple):
    """Cost of a module, or of a parameter outside of modules."""

    name: str  # as in the state dict
    parameters: int  # memories included
    macs: int  # multiply-adds for one image at inference, as fvcore counts them
    training_only: bool


class Complexity(NamedTuple):
    """Cost of a model; ``params_inference`` are the parameters that inference needs."""

    modules: list[ModuleCost]  # each is followed by its own modules and parameters
    params_total: int
    params_inference: int
    macs_inference: int
    not_counted: list[str]  # operators that fvcore does not count, such as "add"
    table: str  # fvcore's, with a column that marks what only training needs


def measure_complexity(model: nn.Module, image_size: Sequence[int]) -> Complexity:
    """Count parameters and multiply-adds of a model.

    Args:
        model: on the CPU; it is left in evaluation mode, with parameters in place of memories.
        image_size: (H, W).

    >>> measure_complexity(build_untrained(cfg), (256, 128)).params_total  # doctest: +SKIP
    30219841
    """
    _turn_memories_into_parameters(model.eval())
    unused = list_training_parts(model)
    analysis = FlopCountAnalysis(InferenceGraph(model, "cosine"), torch.zeros(1, 3, *image_size))
    analysis.set_op_handle("aten::scaled_dot_product_attention", _count_attention)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    parameters, macs = parameter_count(model), analysis.by_module()
    names = [name for name, n in parameters.items() if name and n and name.count(".") < _MAX_DEPTH]
    return Complexity(
        modules=[
            ModuleCost(name, parameters[name], int(macs[f"model.{name}"]), is_inside(name, unused))
            for name in names
        ],
        params_total=parameters[""],
        params_inference=sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if not is_inside(name, unused)
        ),
        macs_inference=int(analysis.total()),
        not_counted=sorted(name.removeprefix("aten::") for name in analysis.unsupported_ops()),
        table=_mark_training_only(flop_count_table(analysis, _MAX_DEPTH), unused),
    )


def _turn_memories_into_parameters(model: nn.Module) -> None:
    """Let fvcore, which knows no buffers, count the memories; running statistics stay out."""
    for name, tensor in model.state_dict().items():
        path, _, own_name = name.rpartition(".")
        module = model.get_submodule(path)
        is_memory = own_name in module._buffers and own_name not in _STATISTICS
        if is_memory and tensor.is_floating_point():
            delattr(module, own_name)
            module.register_parameter(own_name, nn.Parameter(tensor, requires_grad=False))


def _mark_training_only(table: str, unused: Sequence[str]) -> str:
    """Add a column to fvcore's table."""
    head, rule, *rows = table.splitlines()
    lines = [f"{head} {'needed for':13} |", f"{rule}:{'-' * 14}|"]
    for row in rows:
        name = row.split("|")[1].strip()
        lines.append(f"{row} {'training only' if is_inside(name, unused) else '':13} |")
    return "\n".join(lines)


def _count_attention(inputs: list[Any], outputs: list[Any]) -> int:
    """``softmax(q k^T) v`` of q (..., L, E), k (..., S, E), v (..., S, V): two products."""
    query, key, value = (get_shape(each) for each in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])

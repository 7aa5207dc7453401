"""States of a run beside its weights: whether one from a file has the form of our own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

MAX_EPOCHS = 10**6


def require_form(found: Any, own: Any, place: str) -> None:
    """Raise a ValueError that names the entry in which ``found`` has not the form of ``own``.

    The form: kinds, keys, lengths, and the shapes of tensors and arrays. A whole number stands for
    any other, numbers are finite.

    >>> require_form({"last_epoch": "3"}, {"last_epoch": 0}, "lr_sched")
    Traceback (most recent call last):
    ValueError: lr_sched/last_epoch is text, not a whole number
    """
    if isinstance(own, torch.Tensor | np.ndarray):
        _require_array(found, own, place)
        return
    if isinstance(own, Counter):  # of a schedule's steps
        own = dict.fromkeys(found, 0) if isinstance(found, Counter) else own
    if _kind(found) != _kind(own) and (_kind(found), _kind(own)) != (_WHOLE, _REAL):
        raise ValueError(f"{place} is {_kind(found)}, not {_kind(own)}")
    if isinstance(own, Mapping):
        if found.keys() != own.keys():
            differing = next(iter(found.keys() ^ own.keys()))
            whose = "lacks" if differing in own else "has another entry,"
            raise ValueError(f"{place} {whose} {differing}")
        for key, value in own.items():
            require_form(found[key], value, f"{place}/{key}")
    elif isinstance(own, list | tuple):
        if len(found) != len(own):
            raise ValueError(f"{place} has {len(found)} entries, not {len(own)}")
        for number, (one, other) in enumerate(zip(found, own, strict=True)):
            require_form(one, other, f"{place}/{number}")
    elif isinstance(found, float) and not math.isfinite(found):
        raise ValueError(f"{place} is {found}")


_WHOLE, _REAL = "a whole number", "a number"
_KINDS = {bool: "a truth value", int: _WHOLE, float: _REAL, str: "text", type(None): "nothing"}


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def _require_array(found: Any, own: Any, place: str) -> None:
    if type(found) is not type(own) and not (torch.is_tensor(found) and torch.is_tensor(own)):
        raise ValueError(f"{place} is {_kind(found)}, not {_kind(own)}")
    if tuple(found.shape) != tuple(own.shape):
        raise ValueError(f"{place} is {tuple(found.shape)} in the file, not {tuple(own.shape)}")
    one, other = (str(each.dtype) for each in (found, own))
    if ("float" in one) != ("float" in other):
        raise ValueError(f"{place} holds {one} in the file, not {other}")


def fit_state(found: Any, item: Any, name: str, *, kind: Any) -> Any:
    """Return the state ``name`` of a file as ``item`` loads it; a ValueError if it is of another.

    ``kind`` is the name of the class that the file says it is of; None if it does not say.
    """
    if kind not in (None, type(item).__name__):
        raise ValueError(f"{name} is of {kind!r:.40}, not {type(item).__name__}")
    if isinstance(item, torch.optim.Optimizer):
        return fit_optimizer_state(found, item)
    require_form(found, item.state_dict(), name)
    return found


def require_progress(found: Mapping[str, Any]) -> None:
    """Raise a ValueError unless a checkpoint's ``epoch`` and ``best_metric`` are possible.

    The epoch is the last finished one: -1 if SIGTERM came in the first.
    """
    require_form(found["epoch"], 0, "epoch")
    require_form(found.get("best_metric", 0.0), 0.0, "best_metric")
    if not -1 <= found["epoch"] < MAX_EPOCHS:
        raise ValueError(f"epoch is not from -1 to {MAX_EPOCHS}")


def fit_optimizer_state(found: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state from a file, laid out in memory as the parameters are.

    Raises a ValueError unless it is the state of such an optimizer over such parameters: a fused
    step would read and write beyond tensors of other shapes.
    """
    own = optimizer.state_dict()
    if not isinstance(found, dict) or not isinstance(found.get("state"), dict):
        raise ValueError("optimizer holds no state")
    require_form({**found, "state": {}}, {**own, "state": {}}, "optimizer")
    numbers = [each for group in own["param_groups"] for each in group["params"]]
    if [each for group in found["param_groups"] for each in group["params"]] != numbers:
        raise ValueError("optimizer/param_groups are of other parameters")
    wanted = _list_wanted_states(optimizer)
    fitted = {}
    for number, state in found["state"].items():
        if number not in numbers:
            raise ValueError(f"optimizer/state is of a parameter {number}, which does not exist")
        form, parameter = wanted[number]
        require_form(state, form, f"optimizer/state/{number}")
        fitted[number] = {key: _lay_out(each, parameter) for key, each in state.items()}
    return {**found, "state": fitted}


def _list_wanted_states(
    optimizer: torch.optim.Optimizer,
) -> list[tuple[dict[str, Any], torch.Tensor]]:
    """Return what the optimizer keeps of each parameter after a step, and the parameter.

    The step is taken with a parameter of zeros for each shape; its tensors are returned without
    their memory.
    """
    wanted = []
    for group in optimizer.param_groups:
        by_shape: dict[torch.Size, dict[str, Any]] = {}
        for parameter in group["params"]:
            if parameter.shape not in by_shape:
                zeros = torch.zeros(parameter.shape, dtype=parameter.dtype, requires_grad=True)
                zeros.grad = torch.zeros_like(zeros)
                kind: Any = type(optimizer)
                stepped = kind([{**group, "params": [zeros]}])
                stepped.step()
                by_shape[parameter.shape] = {
                    key: value.to("meta") if torch.is_tensor(value) else value
                    for key, value in stepped.state[zeros].items()
                }
            wanted.append((by_shape[parameter.shape], parameter))
    return wanted


def _lay_out(value: Any, parameter: torch.Tensor) -> Any:
    """Copy a tensor of the parameter's shape to memory of its own with the parameter's strides."""
    if not torch.is_tensor(value) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value)

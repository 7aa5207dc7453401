"""The optimizer: fast-reid's parameter groups without its flat buffers.

fast-reid keeps all parameters as views into one buffer per group. Since PyTorch 2.0 an optimizer
over such buffers moves nothing (``zero_grad`` drops their gradient), and a parameter without a
gradient still decays. Plain groups with a fused or foreach step have neither fault.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.solver.build import build_lr_scheduler, get_default_optimizer_params
from torch import nn

from occluded_reid.config import changed_copy
from occluded_reid.utils.errors import UserError


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPT`` over the parameters grouped by learning rate, decay and freezing."""
    solver = cfg.SOLVER
    kind = getattr(torch.optim, solver.OPT, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise UserError(f"SOLVER.OPT is {solver.OPT}; torch.optim has no such optimizer")
    groups: dict[tuple[Any, ...], list[nn.Parameter]] = defaultdict(list)
    for entry in get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        heads_lr_factor=solver.HEADS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        freeze_layers=cfg.MODEL.FREEZE_LAYERS if solver.FREEZE_ITERS > 0 else [],
    ):
        key = (entry["lr"], entry["weight_decay"], entry["freeze_status"])
        groups[key].extend(entry["params"])
    options: dict[str, Any] = {}
    if solver.OPT == "SGD":
        options = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    offered = inspect.signature(kind).parameters
    if fastest := next((name for name in ("fused", "foreach") if name in offered), None):
        options[fastest] = True
    entries = [
        {"params": params, "lr": lr, "weight_decay": decay, "freeze_status": freeze_status}
        for (lr, decay, freeze_status), params in groups.items()
    ]
    try:
        _try_step(kind, [entry | {"params": None} for entry in entries], options)
        return kind(entries, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"SOLVER.OPT {solver.OPT} cannot be used with this SOLVER: {error}. It must work "
            "without a closure, on dense gradients, and on vectors as well as matrices"
        ) from error


def _try_step(kind: Any, entries: list[dict[str, Any]], options: dict[str, Any]) -> None:
    """Take one step with an optimizer like the one to be built; it raises what a training would."""
    for entry in entries:
        entry["params"] = [nn.Parameter(torch.zeros(2))]
        entry["params"][0].grad = torch.ones(2)
    kind(entries, **options).step()


def build_lr_schedulers(
    cfg: CfgNode, optimizer: torch.optim.Optimizer, iters_per_epoch: int
) -> dict[str, Any]:
    """Build fast-reid's schedulers: of the warm-up, by iteration, and of ``SOLVER.SCHED``."""
    solver, unit, steps_per_epoch = cfg.SOLVER, "epochs", 1
    if solver.SCHED_BY == "ITERATION":
        unit, steps_per_epoch = "iterations", iters_per_epoch
        with changed_copy(cfg) as cfg:
            cfg.SOLVER.MAX_EPOCH *= iters_per_epoch
            cfg.SOLVER.DELAY_EPOCHS *= iters_per_epoch
            cfg.SOLVER.STEPS = [step * iters_per_epoch for step in solver.STEPS]
    iters_per_step = iters_per_epoch // steps_per_epoch
    start = max(math.ceil(solver.WARMUP_ITERS / iters_per_step), cfg.SOLVER.DELAY_EPOCHS)
    if solver.SCHED == "CosineAnnealingLR" and start >= cfg.SOLVER.MAX_EPOCH:
        raise UserError(
            f"SOLVER.SCHED CosineAnnealingLR starts after {start} {unit} (SOLVER.WARMUP_ITERS "
            f"{solver.WARMUP_ITERS}, {iters_per_epoch} iterations an epoch, SOLVER.DELAY_EPOCHS "
            f"{solver.DELAY_EPOCHS}), but SOLVER.MAX_EPOCH is {solver.MAX_EPOCH}: shorten the "
            "warm-up"
        )
    return build_lr_scheduler(cfg, optimizer, iters_per_step)

"""An optimizer with a parameter group per tensor, as research code builds it."""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode
from torch import nn


def build_sgd(model: nn.Module, cfg: CfgNode) -> torch.optim.Optimizer:
    """Return PyTorch's SGD with its default implementation."""
    solver = cfg.SOLVER
    groups = []
    norms = tuple(
        f"{name}." for name, module in model.named_modules() if "Norm" in type(module).__name__
    )
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group: dict[str, Any] = {"params": [parameter], "lr": solver.BASE_LR}
        group["weight_decay"] = solver.WEIGHT_DECAY
        if name.endswith("bias"):
            group["lr"] *= solver.BIAS_LR_FACTOR
            group["weight_decay"] = solver.WEIGHT_DECAY_BIAS
        if name.startswith(norms):
            group["weight_decay"] = solver.WEIGHT_DECAY_NORM
        groups.append(group)
    return torch.optim.SGD(groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)

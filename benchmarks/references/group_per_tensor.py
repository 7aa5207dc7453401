"""An optimizer with a parameter group per tensor, as research code builds it."""

from __future__ import annotations

import torch
from fastreid.config import CfgNode
from torch import nn


def build_sgd(model: nn.Module, cfg: CfgNode) -> torch.optim.Optimizer:
    """Return PyTorch's SGD with its default implementation."""
    solver, groups = cfg.SOLVER, []
    for prefix, module in model.named_modules():
        is_norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.requires_grad:
                group = {"params": [parameter], "lr": solver.BASE_LR}
                group["weight_decay"] = solver.WEIGHT_DECAY
                if name.endswith("bias"):
                    group["lr"] *= solver.BIAS_LR_FACTOR
                    group["weight_decay"] = solver.WEIGHT_DECAY_BIAS
                if is_norm:
                    group["weight_decay"] = solver.WEIGHT_DECAY_NORM
                groups.append(group)
    return torch.optim.SGD(groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)

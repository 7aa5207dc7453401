"""``optimizer``: one SGD step over all of FED's parameters."""

from __future__ import annotations

import copy

import torch
from cases.fed_case import FEDCase, build_fed
from cases.training import sgd_cfg
from harness.comparison import Figure, make_figure, require_equal, time_alternately
from references.group_per_tensor import build_sgd
from torch import nn

from occluded_reid.engine.optimizer import build_optimizer

NAMES = ("optimizer",)


def measure(case: FEDCase = FEDCase(), rounds: int = 7) -> dict[str, Figure]:  # noqa: B008
    """Compare with one group per tensor, from equal gradients."""
    cfg = sgd_cfg()
    ours = build_fed(case)
    reference = copy.deepcopy(ours)
    _set_gradients(ours, reference)
    steps = build_optimizer(cfg, ours).step, build_sgd(reference, cfg).step
    for step in (*steps, *steps):
        step()
    others = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        require_equal(name, parameter, others[name], atol=1e-6)
    millions = sum(p.numel() for p in ours.parameters()) / 1e6
    unit = f"s per SGD step, {millions:.0f} M parameters"
    return {"optimizer": make_figure(time_alternately(*steps, rounds=rounds), unit)}


def _set_gradients(*models: nn.Module) -> None:
    torch.manual_seed(3)
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        gradient = 0.01 * torch.randn_like(parameters[0])
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.grad = gradient  # no step writes to it

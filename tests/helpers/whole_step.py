"""Checks of a whole training step in float64: against loops, and of two ranks against one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import nn

from occluded_reid.config import CfgNode
from occluded_reid.engine.optimizer import build_optimizer
from occluded_reid.engine.train_step import wrap_model
from occluded_reid.utils.distributed import unwrapped

STEP = 1e-6


def prepare(model: Any) -> Any:
    """Return a model in training mode in float64, without dropout and with larger weights."""
    model.double().backbone.dropout.p = 0.0
    for parameter in model.parameters():
        if parameter.dim() == 2:  # classifiers start with weights of 0.001
            nn.init.normal_(parameter, std=0.4)
    return model.train()


def check_gradients(model: nn.Module, loss: torch.Tensor, loops: Callable[[], float]) -> None:
    """Compare the loss, and its slope along a direction in each module's weights, with loops.

    ``loops`` computes the loss from the present weights of ``model``; what a step leaves behind,
    such as a bank, must not have changed it.
    """
    assert loss.item() == pytest.approx(loops(), rel=1e-10)
    loss.backward()
    modules: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            modules[".".join(name.split(".")[:2])].append(parameter)
    for name, parameters in modules.items():
        directions = [torch.randn_like(parameter) for parameter in parameters]
        both = list(zip(parameters, directions, strict=True))
        slope = sum(float((p.grad * direction).sum()) for p, direction in both)
        values = []
        for move in (STEP, -2 * STEP, STEP):
            with torch.no_grad():
                for parameter, direction in both:
                    parameter.add_(direction, alpha=move)
            values.append(loops() if len(values) < 2 else 0.0)
        expected = (values[0] - values[1]) / (2 * STEP)
        assert abs(expected) > 1e-4, name
        assert slope == pytest.approx(expected, rel=1e-5), name


def check_ranks(
    folder: Path, cfg: CfgNode, build: Callable[[], nn.Module], batch: dict[str, Any]
) -> None:
    """Check that two ranks with half of the batch each take the step of one with all of it."""

    def take_step(own: dict[str, Any]) -> dict[str, torch.Tensor]:
        model = wrap_model(cfg, build())
        optimizer = build_optimizer(cfg, model)
        sum(model(own).values()).backward()
        optimizer.step()
        return unwrapped(model).state_dict()

    def work(rank: int) -> None:
        own = {name: values[rank::2] for name, values in batch.items()}
        torch.save(take_step(own), folder / f"{rank}.pt")

    before, expected = build().state_dict(), take_step(batch)
    on_ranks(2, work)
    for state in (torch.load(folder / f"{rank}.pt") for rank in range(2)):
        for name, tensor in expected.items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-9, atol=1e-12, msg=name)
    moved = [name for name, tensor in expected.items() if not torch.equal(tensor, before[name])]
    assert set(moved) >= {name for name, _ in build().named_parameters()}

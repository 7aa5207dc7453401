"""One iteration: accumulation, clipping, freezing, precision, losses; and the optimizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage
from ranks import on_ranks
from runs import assert_same_run, read_metrics, tiny_cfg, train
from torch import nn

from occluded_reid.engine import spikes, train_step
from occluded_reid.engine.defaults import prepare_run
from occluded_reid.engine.optimizer import build_optimizer
from occluded_reid.engine.train_step import TrainingStep
from occluded_reid.engine.trainer import Trainer
from occluded_reid.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("data_root")


class Linear(nn.Module):
    """loss = mean of w * x, whose gradient is the mean of x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.scale = 1.0

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss_mean": (self.weight * batch["x"]).mean() * self.scale}


def steps_over(values, cfg, model=None, iters_per_epoch=None):
    """Run one iteration per value; return the weight after each and the event storage."""
    model = model or Linear()
    batches = [{"x": torch.tensor([float(value)])} for value in values]
    optimizer = torch.optim.SGD([{"params": [model.weight], "freeze_status": "freeze"}], lr=1.0)
    step = TrainingStep(
        cfg, model, batches, optimizer, iters_per_epoch=iters_per_epoch or len(values)
    )
    weights = []
    with EventStorage() as storage:
        for number in range(len(values)):
            storage.iter = step.iter = number
            step.run_step()
            weights.append(model.weight.item())
        step.read_losses()
    return weights, storage


def test_accumulation_steps_with_the_mean_and_ends_with_the_epoch(tmp_path):
    cfg = tiny_cfg(tmp_path / "run", "SOLVER.ACCUMULATE", 2)
    weights, _ = steps_over([1, 3, 5, 10, 20, 40], cfg, iters_per_epoch=3)
    # two epochs of three iterations: groups (1, 3), (5), (10, 20), (40)
    assert weights == [0, -2, -7, -7, -22, -62]


def test_clipping_is_over_all_parameters_together(tmp_path):
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 2.0)
    cfg = tiny_cfg(tmp_path / "run", *clip)
    np.testing.assert_allclose(steps_over([8], cfg)[0], [-2], rtol=1e-5)
    kind = ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value")
    assert steps_over([8], tiny_cfg(tmp_path / "run", *clip, *kind))[0] == [-2]


def test_frozen_layers_move_only_after_their_iterations(tmp_path):
    cfg = tiny_cfg(tmp_path / "run", "SOLVER.FREEZE_ITERS", 2)
    assert steps_over([1, 1, 1], cfg)[0] == [0, 0, -1]


def in_precision(folder: Path, dtype: str, *overrides: Any) -> CfgNode:
    """Return a configuration in ``dtype``; float16 without a GPU is refused only when read."""
    cfg = tiny_cfg(folder, "SOLVER.AMP.ENABLED", dtype != "float32", *overrides)
    cfg.defrost()
    cfg.SOLVER.AMP.DTYPE = dtype
    return cfg


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, dtype):
    cfg = in_precision(tmp_path / "run", dtype)
    for value in (math.nan, math.inf):
        message = rf"loss_mean became {value} at iteration 2 \(epoch 0\)"
        with pytest.raises(UserError, match=message):
            steps_over([1, 1, -value, 1], cfg)


def test_a_gradient_too_large_for_float16_skips_a_step_and_no_more(tmp_path):
    # 1e36 times the scale of 2 ** 16 is infinite; the loss, 0 * 1e36, is not
    weights, _ = steps_over([1e36, 1, 3], in_precision(tmp_path / "run", "float16"))
    assert weights == [0, -1, -4]


class NanGradient(Linear):
    """Its loss is 0, the gradient of which is nan."""

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss_mean": (self.weight * batch["x"]).abs().sqrt().mean()}


def test_gradients_that_are_never_finite_in_float16_end_the_run(tmp_path):
    with pytest.raises(UserError, match="not finite in float16 for many steps up to iteration 30"):
        steps_over([1] * 40, in_precision(tmp_path / "run", "float16"), NanGradient())


class FixedLosses(Linear):
    """The batch is the loss; the total is ten times the first term."""

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        value = batch["x"].mean() + 0 * self.weight.sum()
        return {"loss_fixed": value, "loss_small": 1e-3 * value, "loss_large": 9 + 0 * value}


def test_a_loss_that_jumps_is_warned_of_once(tmp_path, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(spikes.logger, "warning", warnings.append)
    values = [1] * 10 + [50] + [1] * 20 + [9, 11, 12] + [1] * 110 + [20]
    steps_over(values, tiny_cfg(tmp_path / "run"), FixedLosses())
    # 10: too early; 31: below ten times 1; 33: muted after 32
    assert [line.partition(";")[0] for line in warnings] == [
        "loss_fixed jumped to 11 at iteration 32",
        "loss_fixed jumped to 20 at iteration 144",
    ]
    assert "its median over the last 32 is 1 (SOLVER.SPIKE_FACTOR 10)" in warnings[0]
    for factor, count in ((0, 0), (100, 0), (8, 2)):
        warnings.clear()
        steps_over(
            values, tiny_cfg(tmp_path / "run", "SOLVER.SPIKE_FACTOR", float(factor)), FixedLosses()
        )
        assert len(warnings) == count


def test_losses_are_written_at_their_own_iterations(tmp_path):
    cfg = tiny_cfg(tmp_path / "run")
    model = Linear()
    nn.init.ones_(model.weight)
    _, storage = steps_over([4, 2], cfg, model)
    assert storage.history("loss_mean").values() == [(4.0, 0), (-6.0, 1)]


def test_bfloat16_autocast_trains(tmp_path):
    run = train(tiny_cfg(tmp_path / "run", "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_EPOCH", 1))
    assert run.grad_scaler is None
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


def test_ema_follows_the_weights(tmp_path):
    run = train(tiny_cfg(tmp_path / "run", "MODEL.EMA.ENABLED", True, "MODEL.EMA.DECAY", 0.0))
    for name, tensor in run.model.state_dict().items():
        torch.testing.assert_close(run.ema.module.state_dict()[name], tensor)


@pytest.mark.slow
def test_a_compiled_model_computes_the_losses_of_the_plain_one(tmp_path):
    losses = {}
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        cfg = tiny_cfg(folder, "SOLVER.MAX_EPOCH", 1, "MODEL.COMPILE", compiled)
        trainer = Trainer(prepare_run(cfg, training=True))
        trainer.model.backbone[3].p = 0.0  # a compiled dropout has other random numbers
        trainer.train()
        losses[compiled] = [line["total_loss"] for line in read_metrics(folder)]
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-3)


def test_optimizer_groups_by_rate_and_decay(tmp_path):
    cfg = tiny_cfg(tmp_path / "run", "SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.WEIGHT_DECAY_NORM", 0.0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    groups = build_optimizer(cfg, model).param_groups
    sizes = {(round(g["lr"], 4), g["weight_decay"]): len(g["params"]) for g in groups}
    assert sizes == {(0.01, 5e-4): 2, (0.02, 5e-4): 3, (0.01, 0.0): 1}
    with pytest.raises(UserError, match="SOLVER.OPT is Adamm"):
        build_optimizer(tiny_cfg(tmp_path / "run", "SOLVER.OPT", "Adamm"), model)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adadelta"])
def test_fast_optimizers_equal_their_plain_form(tmp_path, name):
    cfg = tiny_cfg(tmp_path / "run", "SOLVER.OPT", name)
    weights = []
    for fast in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = build_optimizer(cfg, model)
        for group in optimizer.param_groups if not fast else []:
            group.update({key: False for key in ("fused", "foreach") if key in group})
        for _ in range(3):
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(model.weight.detach())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("SOLVER.OPT", "LBFGS"), "closure"),
        (("SOLVER.OPT", "SparseAdam"), "dense gradients"),
        (("SOLVER.OPT", "Muon"), "2D"),
        (("SOLVER.OPT", "Optimizer"), "defaults"),
    ],
)
def test_an_optimizer_that_cannot_step_is_refused_when_it_is_built(tmp_path, words, reason):
    with pytest.raises(UserError, match=f"SOLVER.OPT {words[1]} cannot be used .*{reason}"):
        build_optimizer(tiny_cfg(tmp_path / "run", *words), nn.Linear(2, 2))


@pytest.mark.distributed
def test_gradients_of_ranks_are_held_once(tmp_path):
    """They are views of the bucket that DDP sends."""

    def work(rank: int) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        wrapped = train_step.wrap_model(tiny_cfg(tmp_path / "run"), model)
        for _ in range(2):
            wrapped.zero_grad(set_to_none=True)
            wrapped(torch.ones(2, 3)).sum().backward()
        assert len({p.grad.untyped_storage().data_ptr() for p in model.parameters()}) == 1

    on_ranks(2, work)


@pytest.mark.distributed
def test_gradients_held_once_or_twice_train_the_same_weights(tmp_path, monkeypatch):
    """Also with accumulation, loss scaling, clipping and frozen layers."""
    cfgs = [
        in_precision(
            tmp_path / name, "float16", "SOLVER.ACCUMULATE", 2, "SOLVER.MAX_EPOCH", 2,
            "SOLVER.CLIP_GRADIENTS.ENABLED", True,
            "SOLVER.FREEZE_ITERS", 3, "MODEL.FREEZE_LAYERS", ["backbone"],
        ) for name in ("once", "twice")
    ]  # fmt: skip
    wrap = train_step.defaults.DistributedDataParallel

    def copied(*args: Any, **options: Any) -> nn.Module:
        return wrap(*args, **{**options, "gradient_as_bucket_view": False})

    def work(rank: int) -> None:
        train(cfgs[0])
        monkeypatch.setattr(train_step.defaults, "DistributedDataParallel", copied)
        train(cfgs[1])

    on_ranks(2, work)
    assert_same_run(tmp_path / "once", tmp_path / "twice")

"""AONet through the whole trainer: learning, resuming, evaluating, several ranks."""

from __future__ import annotations

import json

import pytest
import torch
from ranks import on_ranks
from runs import final_states, train
from tiny_runs import check_resume_after_kill

from aonet.tiny import aonet_batch, aonet_model, aonet_run_cfg
from occluded_reid.checkpoint.checkpointer import Checkpointer
from occluded_reid.engine.defaults import prepare_run
from occluded_reid.engine.train_step import TrainingStep
from occluded_reid.evaluation import testing
from occluded_reid.modeling.build import build_model
from occluded_reid.utils.distributed import unwrapped

MEMORY = "/model/heads.memory.features"
pytestmark = pytest.mark.usefixtures("market_dataset")


def test_aonet_learns(tmp_path):
    folder = tmp_path / "run"
    train(aonet_run_cfg(folder, "SOLVER.MAX_EPOCH", 12))
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    for stage in ("before", "after"):
        losses = [line[f"loss_identity_{stage}"] for line in lines if "total_loss" in line]
        assert losses[-1] < 0.8 * losses[0]
    names = {key for key in lines[0] if key.startswith("loss_")}
    assert names == {"loss_identity_before", "loss_identity_after", "loss_orthogonal"}
    report = json.loads((folder / "results.json").read_text())["data_sets"]["Market1501"]
    assert report["metric"] == "dot"
    assert report["metrics"]["Rank-1"]["value"] > 60  # random: 12.5
    assert final_states(folder)[MEMORY].abs().max() > 0


def test_published_weights_give_equal_results(tmp_path):
    folder, again = tmp_path / "run", tmp_path / "again"
    schedule = ("SOLVER.MAX_EPOCH", 2, "TEST.FLIP.ENABLED", True)
    trained = train(aonet_run_cfg(folder, *schedule)).model.eval()
    published = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    published = {key: value for key, value in published.items() if not key.startswith("classifier")}
    cfg = prepare_run(aonet_run_cfg(again, *schedule), training=False)
    model = build_model(cfg)
    for name in model.training_only:
        delattr(model, name)
    torch.save({"model": published}, tmp_path / "published.pth")
    Checkpointer(model).load(str(tmp_path / "published.pth"))
    images = {"images": torch.rand(4, 3, 32, 16) * 255}
    assert torch.equal(model.eval()(images).features, trained(images).features)
    testing.test(cfg, model)
    one, other = (
        json.loads((run / "results.json").read_text())["data_sets"] for run in (folder, again)
    )
    assert one == other


def test_resumed_run_equals_uninterrupted_run(tmp_path, monkeypatch):
    states = check_resume_after_kill(aonet_run_cfg, tmp_path, monkeypatch)
    assert MEMORY in states


@pytest.mark.distributed
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_two_ranks_have_the_orthogonal_loss_of_the_joined_batch(tmp_path, reduction):
    """DDP averages the gradients of the ranks, as this does their losses."""
    key, batch = "MODEL.AONET.ORTHOGONAL_REDUCTION", aonet_batch()

    def loss_of(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        model = aonet_model(key, reduction)
        model.backbone.eval()
        return model.losses(model.landmarks(images), targets)["loss_orthogonal"].detach()

    def work(rank: int) -> None:
        half = [value[3 * rank : 3 * rank + 3] for value in batch.values()]
        torch.save(loss_of(*half), tmp_path / f"{rank}.pt")

    on_ranks(2, work)
    mean = sum(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)) / 2
    torch.testing.assert_close(mean, loss_of(*batch.values()))


@pytest.mark.distributed
def test_two_ranks_keep_equal_memories(tmp_path, monkeypatch):
    """After every step; at the end of an epoch the trainer copies rank 0's buffers anyway."""

    def work(rank: int) -> None:
        step, memories = TrainingStep.run_step, []

        def run_step(self: TrainingStep) -> None:
            step(self)
            memories.append(unwrapped(self.model).heads.memory.features.clone())

        monkeypatch.setattr(TrainingStep, "run_step", run_step)
        train(aonet_run_cfg(tmp_path / "run", "SOLVER.MAX_EPOCH", 1))
        torch.save(memories, tmp_path / f"{rank}.pt")

    on_ranks(2, work)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert len(one) == len(other) > 1
    for mine, yours in zip(one, other, strict=True):
        torch.testing.assert_close(mine, yours, rtol=0, atol=0)
        assert mine.abs().max() > 0

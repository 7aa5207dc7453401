"""FED through the whole trainer: filling the banks, learning, resuming, several ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ranks import on_ranks
from runs import draw_market, final_states, train
from tiny_runs import check_resume_after_kill

from fed.tiny import fed_cfg, fed_run_cfg
from fed_plugin import hooks
from fed_plugin.hooks import digest_identities
from occluded_reid.data.build import build_test_loader
from occluded_reid.engine.defaults import prepare_run
from occluded_reid.engine.trainer import Trainer
from occluded_reid.utils.distributed import unwrapped
from occluded_reid.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("market_dataset")


def read_banks(folder: Path) -> dict[str, torch.Tensor]:
    states = final_states(folder)
    return {name: states[name] for name in states if "_memory." in name and "/model/" in name}


def test_banks_start_as_mean_features(tmp_path):
    cfg = fed_run_cfg(tmp_path / "run")
    trainer = Trainer(prepare_run(cfg, training=True))
    model, dataset = trainer.model, trainer.data_loader.dataset
    trainer.start_iter = 0
    (tmp_path / "run").mkdir()
    trainer.before_train()
    assert model.training

    model.eval()
    sums: dict[int, list[torch.Tensor]] = {}
    for path, pid, _ in dataset.img_items:
        (batch,) = build_test_loader(cfg, [(path, 0, 0)], [])[0]
        with torch.no_grad():
            parts = model.part_features(batch["images"])
        sums.setdefault(dataset.pid_dict[pid], []).append(parts)
    for identity in range(8):
        actual = sums[identity]
        expected = torch.cat([parts.embedding for parts in actual]).mean(dim=0)
        torch.testing.assert_close(model.erased_memory.centres[identity], expected)
        label = torch.tensor([identity])
        with torch.no_grad():
            diffused = [model.diffuse(parts, label) for parts in actual]
        expected = torch.cat(diffused).mean(dim=0)
        torch.testing.assert_close(model.diffused_memory.centres[identity], expected)
    assert model.erased_memory.initialized and model.diffused_memory.initialized


def test_fed_learns(tmp_path):
    folder = tmp_path / "run"
    train(fed_run_cfg(folder, "SOLVER.MAX_EPOCH", 12, "SOLVER.BASE_LR", 0.02))
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert len([key for key in lines[0] if key.startswith("loss_")]) == 12
    results = json.loads((folder / "results.json").read_text())
    assert results["data_sets"]["Market1501"]["metrics"]["Rank-1"]["value"] > 60  # random: 12.5


def test_resumed_run_equals_uninterrupted_run(tmp_path, monkeypatch):
    def fill_nothing() -> None:  # a resumed run keeps its banks
        monkeypatch.setattr(hooks, "fill_memories", lambda *_: 1 / 0)

    check_resume_after_kill(fed_run_cfg, tmp_path, monkeypatch, fill_nothing)
    assert len(read_banks(tmp_path / "whole")) == 6


def draw_renamed_market(root: Path) -> Path:
    """Write the same images with another number for the last identity."""
    for path in draw_market(root).rglob("0008_*.jpg"):
        path.rename(path.with_name(path.name.replace("0008_", "0009_")))
    return root


def test_banks_of_other_identities_cannot_be_resumed(tmp_path, monkeypatch):
    folder, new = tmp_path / "run", tmp_path / "new"
    train(fed_run_cfg(folder, "SOLVER.MAX_EPOCH", 1))
    before = read_banks(folder)
    monkeypatch.setenv("FASTREID_DATASETS", str(draw_renamed_market(tmp_path / "data")))
    with pytest.raises(UserError, match="other data: .* of Market1501 have changed"):
        train(fed_run_cfg(folder), resume=True)
    weights = ("MODEL.WEIGHTS", folder / "model_final.pth")
    train(fed_run_cfg(new, *weights, "SOLVER.MAX_EPOCH", 1))
    digests = {name for name in before if name.endswith(".identities")}
    after = read_banks(new)
    assert len(digests) == 2 and all(before[name] != after[name] for name in digests)


def test_a_size_that_cannot_be_cut_into_stripes_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "run"
    sizes = ("INPUT.SIZE_TRAIN", "[40, 16]", "INPUT.SIZE_TEST", "[40, 16]")
    with pytest.raises(UserError, match="5 rows of features cannot be cut into 4 equal stripes"):
        train(fed_run_cfg(folder, *sizes))
    assert not folder.exists()


def test_more_classes_than_identities_raise(tmp_path):
    cfg = fed_run_cfg(tmp_path / "run", "MODEL.HEADS.NUM_CLASSES", 9)
    with pytest.raises(UserError, match="NUM_CLASSES is 9, but the training set has 8 identities"):
        train(cfg)


def test_digest_ignores_order():
    assert (
        digest_identities(["a_2", "a_1"])
        == digest_identities(["a_1", "a_2"])
        != digest_identities(["a_1", "a_3"])
    )
    assert 0 <= digest_identities([]) < 2**63


@pytest.mark.distributed
def test_two_ranks_fill_equal_banks(tmp_path):
    """With a learning rate of zero and banks that never move, the filled banks are saved."""
    still = ("SOLVER.BASE_LR", 0.0, "MODEL.FED.MEMORY_MOMENTUM", 1.0, "SOLVER.MAX_EPOCH", 1)
    on_ranks(2, lambda rank: train(fed_run_cfg(tmp_path / "two", *still)))
    train(fed_run_cfg(tmp_path / "one", *still))
    one, two = read_banks(tmp_path / "one"), read_banks(tmp_path / "two")
    assert len(one) == 6
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, msg=name)


@pytest.mark.distributed
def test_two_ranks_agree_and_resume(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    schedule = ("SOLVER.SCHED", "MultiStepLR", "SOLVER.MAX_EPOCH")

    def work(rank: int) -> None:
        trained = train(fed_run_cfg(whole, *schedule, 2))
        torch.save(unwrapped(trained.model).state_dict(), tmp_path / f"{rank}.pt")
        train(fed_run_cfg(parts, *schedule, 1))
        train(fed_run_cfg(parts, *schedule, 2), resume=True)

    on_ranks(2, work)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, tensor in one.items():
        if "_memory." in name or "classifiers" in name:
            torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, msg=name)
    one, other = final_states(whole), final_states(parts)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, msg=name)


def test_mistyped_key_is_suggested():
    assert fed_cfg("MODEL.FED.NUM_NEIGHBORS", 4).MODEL.FED.NUM_NEIGHBORS == 4
    with pytest.raises(UserError, match="did you mean MODEL.FED.NUM_NEIGHBORS"):
        fed_cfg("MODEL.FED.NUM_NEIGHBOURS", 4)

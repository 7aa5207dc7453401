"""The trainer: it learns, repeats itself, survives being killed, and says what goes wrong."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage
from ranks import on_ranks
from runs import draw_market, final_states, forked, kill_self, status_of, tiny_cfg, train
from torch import nn

from occluded_reid.checkpoint import checkpointer as checkpoints
from occluded_reid.data.build import build_train_loader
from occluded_reid.data.reid_dataset import ReidDataset
from occluded_reid.engine import spikes, train_step
from occluded_reid.engine.defaults import prepare_run
from occluded_reid.engine.optimizer import build_optimizer
from occluded_reid.engine.train_step import TrainingStep
from occluded_reid.engine.trainer import Trainer
from occluded_reid.evaluation import testing
from occluded_reid.modeling import build as build_module
from occluded_reid.modeling.build import build_model
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.random import PrivateRandomness, derive_seed, seed_everything


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_market(tmp_path_factory.mktemp("market"))


@pytest.fixture(autouse=True)
def data_root(market: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTREID_DATASETS", str(market))


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def assert_same_run(left: Path, right: Path) -> None:
    one, other = final_states(left), final_states(right)
    assert one.keys() == other.keys()
    for place, tensor in one.items():
        torch.testing.assert_close(tensor, other[place], rtol=0, atol=0, msg=place)


def test_parameters_move_and_the_loss_falls_through_the_whole_trainer(tmp_path):
    cfg = tiny_cfg(tmp_path / "run", "SOLVER.MAX_EPOCH", 8)
    trainer = Trainer(prepare_run(cfg, training=True))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    still = [
        name
        for name, p in trainer.model.named_parameters()
        if p.requires_grad and torch.equal(p, before[name])
    ]
    assert still == []
    losses = [line["total_loss"] for line in metrics(tmp_path / "run") if "total_loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data_sets"]["Market1501"]["metrics"]["Rank-1"]["value"] > 60  # chance: 12.5


@pytest.mark.skipif(importlib.util.find_spec("gdown") is not None, reason="gdown would download")
def test_pretrained_weights_that_are_missing_are_named_in_one_message(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.PRETRAIN", True]
    with pytest.raises(UserError, match=r"resnet50.*does not exist: download .*PRETRAIN False"):
        build_model(tiny_cfg(tmp_path / "run", *network))


def test_every_evaluation_stands_in_the_metrics(tmp_path):
    folder = tmp_path / "run"
    train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 2, "TEST.EVAL_PERIOD", 1))
    found = [line["mAP"] for line in metrics(folder) if "mAP" in line]
    results = json.loads((folder / "results.json").read_text())
    assert len(found) == 2
    assert found[-1] == pytest.approx(results["data_sets"]["Market1501"]["metrics"]["mAP"]["value"])


def test_a_run_leaves_the_files_that_others_rely_on(tmp_path):
    folder = tmp_path / "run"
    train(tiny_cfg(folder))
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "results.json", "metrics.json", "model_final.pth", "log.txt"} <= names
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not [name for name in names if name.startswith(".")]
    results = json.loads((folder / "results.json").read_text())
    assert results["seed"] == 7 and results["epoch"] == 3
    report = results["data_sets"]["Market1501"]
    assert report["counts"]["queries"] == 24 and report["counts"]["positives_per_query"] == 4
    for value in report["metrics"].values():
        assert value["low"] <= value["value"] <= value["high"]
    assert "NUM_CLASSES: 8" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_run_with_and_without_workers(tmp_path, workers):
    stateful = ("MODEL.EMA.ENABLED", True, "SOLVER.ACCUMULATE", 4)
    train(tiny_cfg(tmp_path / "one", *stateful))
    train(tiny_cfg(tmp_path / "two", *stateful, "DATALOADER.NUM_WORKERS", workers))
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_another_seed_gives_another_run(tmp_path):
    train(tiny_cfg(tmp_path / "one", "SOLVER.MAX_EPOCH", 1))
    train(tiny_cfg(tmp_path / "two", "SOLVER.MAX_EPOCH", 1, "SEED", 8))
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "one", tmp_path / "two")


RICH = ("MODEL.EMA.ENABLED", True, "SOLVER.ACCUMULATE", 2, "DATALOADER.NUM_WORKERS", 1)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, market) -> Path:
    """A finished run with all state there is: EMA, optimizer, two schedules, best metric."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    os.environ["FASTREID_DATASETS"] = str(market)
    assert status_of(forked(lambda: train(tiny_cfg(folder, *RICH)))) == 0
    return folder


def test_killed_at_any_moment_and_resumed_equals_uninterrupted(tmp_path, uninterrupted):
    chance = random.Random(3)
    killed = 0
    for trial in range(4):
        folder = tmp_path / f"trial{trial}"
        for attempt in range(40):
            pid = forked(lambda folder=folder: train(tiny_cfg(folder, *RICH), resume=True))
            time.sleep(chance.uniform(0.05, 0.3) * (1 + attempt / 2))  # longer on a busy machine
            os.kill(pid, signal.SIGKILL)
            if status_of(pid) == 0:
                break
            killed += 1
        else:
            raise AssertionError("the run never came to its end")
        assert_same_run(folder, uninterrupted)
    assert killed >= 4


@pytest.mark.parametrize("moment", ["step", "evaluation", "half a checkpoint", "before the tag"])
def test_killed_at_a_chosen_moment_and_resumed_equals_uninterrupted(
    tmp_path, uninterrupted, monkeypatch, moment
):
    folder = tmp_path / "run"

    def train_until_killed() -> None:
        if moment == "step":
            step = TrainingStep.run_step
            monkeypatch.setattr(
                TrainingStep, "run_step", lambda s: kill_self() if s.iter == 15 else step(s)
            )
        elif moment == "evaluation":
            test = testing.test
            monkeypatch.setattr(
                testing,
                "test",
                lambda *args, epoch: kill_self() if epoch == 3 else test(*args, epoch=epoch),
            )
        elif moment == "half a checkpoint":
            save = torch.save

            def save_half(content, stream):
                save(content, stream)
                if content["epoch"] == 2:
                    stream.truncate(stream.tell() // 2)
                    stream.flush()
                    kill_self()

            monkeypatch.setattr(checkpoints.torch, "save", save_half)
        else:
            tag = checkpoints.Checkpointer.tag_last_checkpoint
            monkeypatch.setattr(
                checkpoints.Checkpointer,
                "tag_last_checkpoint",
                lambda s, name: kill_self() if name == "model_0002.pth" else tag(s, name),
            )
        train(tiny_cfg(folder, *RICH))

    assert status_of(forked(train_until_killed)) == -signal.SIGKILL
    assert status_of(forked(lambda: train(tiny_cfg(folder, *RICH), resume=True))) == 0
    assert_same_run(folder, uninterrupted)
    iterations = [line["iteration"] for line in metrics(folder)]
    assert iterations == sorted(set(iterations))  # nothing stands twice


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    folder = tmp_path / "run"
    train(tiny_cfg(folder))
    before = (folder / "model_final.pth").read_bytes()
    train(tiny_cfg(folder), resume=True)
    assert (folder / "model_final.pth").read_bytes() == before


def test_a_finished_run_is_not_written_over_without_a_word(tmp_path):
    folder, message = tmp_path / "run", "holds a finished run, which this one overwrites"
    folder.mkdir()
    for resumed in (False, True):
        prepare_run(tiny_cfg(folder), training=True, resumed=resumed)
    (folder / "model_final.pth").touch()
    prepare_run(tiny_cfg(folder), training=True, resumed=True)
    prepare_run(tiny_cfg(folder), training=False)
    assert message not in (folder / "log.txt").read_text()
    prepare_run(tiny_cfg(folder), training=True)
    assert message in (folder / "log.txt").read_text()


def test_weights_keep_the_configuration_that_they_were_trained_with(tmp_path):
    folder = tmp_path / "run"
    train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 1))
    before = (folder / "config.yaml").read_bytes()
    evaluated = ("MODEL.WEIGHTS", folder / "model_final.pth", "TEST.METRIC", "dot")
    prepare_run(tiny_cfg(folder, *evaluated), training=False)
    assert "TEST.METRIC cosine -> dot), but the results" in (folder / "log.txt").read_text()
    synthetic = ("DATASETS.NAMES", ("SyntheticOccluded",))
    with pytest.raises(UserError, match="other data .DATASETS.NAMES .*SyntheticOccluded"):
        train(tiny_cfg(folder, *synthetic, "SOLVER.MAX_EPOCH", 2), resume=True)
    with pytest.raises(UserError, match="does not fit"):
        train(tiny_cfg(folder, "MODEL.BACKBONE.FEAT_DIM", 8), resume=True)
    train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 1, "SEED", 9), resume=True)
    assert (folder / "config.yaml").read_bytes() == before
    log = (folder / "log.txt").read_text()
    assert "has finished 1 epochs, SOLVER.MAX_EPOCH is 1: nothing to do" in log
    assert "another configuration: SEED 7 -> 9" in log
    train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 2), resume=True)
    assert (folder / "config.yaml").read_bytes() == before.replace(b"EPOCH: 1", b"EPOCH: 2")


def test_a_finished_run_without_results_is_evaluated_on_resume(tmp_path):
    folder = tmp_path / "run"
    train(tiny_cfg(folder))
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").unlink()
    train(tiny_cfg(folder), resume=True)
    again = json.loads((folder / "results.json").read_text())
    assert again["data_sets"] == results["data_sets"]
    assert again["weights_sha256"] == results["weights_sha256"]


def test_eval_only_gives_the_numbers_of_the_training(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    train(tiny_cfg(folder, "MODEL.EMA.ENABLED", True))
    results = json.loads((folder / "results.json").read_text())
    weights = str(folder / "model_final.pth")
    other = tmp_path / "eval"
    other.mkdir()
    build = build_module.build_model

    def build_untrained(cfg: CfgNode) -> nn.Module:
        assert not cfg.MODEL.BACKBONE.PRETRAIN
        return build(cfg)

    monkeypatch.setattr(build_module, "build_model", build_untrained)
    for extra in (
        ("MODEL.BACKBONE.PRETRAIN", True),
        ("DATALOADER.NUM_WORKERS", 1, "TEST.IMS_PER_BATCH", 5),
    ):
        cfg = tiny_cfg(other, "MODEL.EMA.ENABLED", True, "MODEL.WEIGHTS", weights, *extra)
        assert cfg.MODEL.HEADS.NUM_CLASSES == 0
        testing.evaluate_weights(cfg)
        again = json.loads((other / "results.json").read_text())
        assert again["data_sets"] == results["data_sets"]


def test_a_failing_evaluation_loses_no_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(testing, "test", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny_cfg(tmp_path / "run", "SOLVER.CHECKPOINT_PERIOD", 100))
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0001.pth"


def test_best_checkpoint_survives_a_resume(tmp_path, monkeypatch):
    """fast-reid forgets the best metric on resume: the next checkpoint then overwrites the best."""
    scores = iter([50.0, 10.0])
    monkeypatch.setattr(Trainer, "_evaluate", lambda self: next(scores))
    folder = tmp_path / "run"
    whole = tiny_cfg(folder)
    run = train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 2))
    best = torch.load(folder / "model_best.pth", weights_only=True)
    assert best["epoch"] == 1 and run._checkpoint_hook.best_metric == 50
    assert train(whole, resume=True)._checkpoint_hook.best_metric == 50
    assert torch.load(folder / "model_best.pth", weights_only=True)["epoch"] == 1


# ------------------------------------------------------------------------- one iteration


class Quadratic(nn.Module):
    """loss = mean of w * x: its gradient is the mean of x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.scale = 1.0

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss_mean": (self.weight * batch["x"]).mean() * self.scale}


def steps_over(values, cfg, model=None, iters_per_epoch=None):
    """Run one iteration per value; return the weight after each and the event storage."""
    model = model or Quadratic()
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
    """A configuration refuses float16 without a GPU, which has no fast one; PyTorch does not."""
    cfg = tiny_cfg(folder, "SOLVER.AMP.ENABLED", dtype != "float32", *overrides)
    cfg.defrost()
    cfg.SOLVER.AMP.DTYPE = dtype
    return cfg


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(tmp_path, dtype):
    cfg = in_precision(tmp_path / "run", dtype)
    for value in (math.nan, math.inf):
        message = rf"loss_mean became {value} at iteration 2 \(epoch 0\)"
        with pytest.raises(UserError, match=message):
            steps_over([1, 1, -value, 1], cfg)


def test_a_gradient_too_large_for_float16_skips_a_step_and_no_more(tmp_path):
    # 1e36 times the scale of 2 ** 16 is infinite; the loss, 0 * 1e36, is not
    weights, _ = steps_over([1e36, 1, 3], in_precision(tmp_path / "run", "float16"))
    assert weights == [0, -1, -4]


class Cornered(Quadratic):
    """Its loss is 0 and the gradient of that nan."""

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss_mean": (self.weight * batch["x"]).abs().sqrt().mean()}


def test_gradients_that_are_never_finite_in_float16_stop_the_run(tmp_path):
    with pytest.raises(UserError, match="not finite in float16 for many steps up to iteration 30"):
        steps_over([1] * 40, in_precision(tmp_path / "run", "float16"), Cornered())


class Told(Quadratic):
    """The losses are given: the total is ten times the first term."""

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        value = batch["x"].mean() + 0 * self.weight.sum()
        return {"loss_told": value, "loss_small": 1e-3 * value, "loss_large": 9 + 0 * value}


def test_a_loss_that_jumps_is_named_once_and_the_run_goes_on(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(spikes.logger, "warning", said.append)
    values = [1] * 10 + [50] + [1] * 20 + [9, 11, 12] + [1] * 110 + [20]
    steps_over(values, tiny_cfg(tmp_path / "run"), Told())
    # 10: too early to tell; 31: below ten times 1; 33: said just before
    assert [line.partition(";")[0] for line in said] == [
        "loss_told jumped to 11 at iteration 32",
        "loss_told jumped to 20 at iteration 144",
    ]
    assert "its median over the last 32 is 1 (SOLVER.SPIKE_FACTOR 10)" in said[0]
    for factor, count in ((0, 0), (100, 0), (8, 2)):
        said.clear()
        steps_over(values, tiny_cfg(tmp_path / "run", "SOLVER.SPIKE_FACTOR", float(factor)), Told())
        assert len(said) == count


def test_losses_are_written_at_their_own_iterations(tmp_path):
    cfg = tiny_cfg(tmp_path / "run")
    model = Quadratic()
    nn.init.ones_(model.weight)
    _, storage = steps_over([4, 2], cfg, model)
    assert storage.history("loss_mean").values() == [(4.0, 0), (-6.0, 1)]


def test_bfloat16_autocast_trains(tmp_path):
    run = train(tiny_cfg(tmp_path / "run", "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_EPOCH", 1))
    assert run.grad_scaler is None
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


def test_the_average_of_the_weights_follows_them(tmp_path):
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
        trainer.model.backbone[3].p = 0.0  # a compiled dropout draws other numbers
        trainer.train()
        losses[compiled] = [line["total_loss"] for line in metrics(folder)]
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-3)


def test_optimizer_groups_by_rate_and_decay(tmp_path):
    cfg = tiny_cfg(tmp_path / "run", "SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.WEIGHT_DECAY_NORM", 0.0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    groups = build_optimizer(cfg, model).param_groups
    found = {(round(g["lr"], 4), g["weight_decay"]): len(g["params"]) for g in groups}
    assert found == {(0.01, 5e-4): 2, (0.02, 5e-4): 3, (0.01, 0.0): 1}
    with pytest.raises(UserError, match="SOLVER.OPT is Adamm"):
        build_optimizer(tiny_cfg(tmp_path / "run", "SOLVER.OPT", "Adamm"), model)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adadelta"])
def test_every_optimizer_moves_parameters_as_its_plain_form(tmp_path, name):
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


# ------------------------------------------------------------------------------ the data


def test_private_randomness_leaves_the_global_generators_alone():
    seed_everything(5)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    seed_everything(5)
    stream = PrivateRandomness(9)
    with stream:
        first = torch.rand(1).item(), np.random.rand(), random.random()
    with stream:
        second = torch.rand(1).item(), np.random.rand(), random.random()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    with PrivateRandomness(9):
        both = [(torch.rand(1).item(), np.random.rand(), random.random()) for _ in range(2)]
    assert both == [first, second]


@pytest.mark.parametrize(("device", "chosen"), [("cuda:1", [1]), ("cuda", []), ("cpu:0", [])])
def test_a_gpu_that_is_named_is_the_one_whose_state_is_saved(device, chosen, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: found.append(device.index))
    cfg = tiny_cfg(tmp_path / "run").clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    prepare_run(cfg, training=True)
    assert found == chosen


def test_seeds_differ_by_place():
    seeds = {derive_seed(1, epoch, place) for epoch in range(20) for place in range(20)}
    assert len(seeds) == 400


def test_an_epoch_of_batches_does_not_depend_on_the_epochs_before(tmp_path):
    loader = build_train_loader(tiny_cfg(tmp_path / "run"))
    stream = iter(loader.batch_sampler)
    all_batches = [next(stream) for _ in range(12)]
    assert len({tuple(batch) for batch in all_batches}) == 12
    loader.batch_sampler.start_epoch = 1
    later = iter(loader.batch_sampler)
    assert [next(later) for _ in range(6)] == all_batches[6:]


def test_a_batch_holds_names_and_images_in_0_255(tmp_path):
    batch = next(iter(build_train_loader(tiny_cfg(tmp_path / "run"))))
    assert batch["images"].shape == (8, 3, 32, 16) and batch["images"].dtype == torch.float32
    assert batch["images"].min() >= 0 and 60 < batch["images"].max() <= 255
    assert batch["targets"].dtype == batch["camids"].dtype == torch.int64
    assert len(set(batch["targets"].tolist())) == 4
    assert len(batch["img_paths"]) == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("SOLVER.IMS_PER_BATCH", 64), "has 48 images, SOLVER.IMS_PER_BATCH asks for 64"),
        (("SOLVER.IMS_PER_BATCH", 24), "needs 12 identities .* the training set has 8"),
        (("DATALOADER.NUM_INSTANCE", 3), "no multiple of DATALOADER.NUM_INSTANCE 3"),
        (("DATALOADER.SAMPLER_TRAIN", "Nave"), "SAMPLER_TRAIN is Nave; fast-reid has"),
    ],
)
def test_batches_that_the_data_cannot_fill_are_refused(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        next(iter(build_train_loader(tiny_cfg(tmp_path / "run", *overrides))))


def test_the_log_says_how_long_the_data_take(tmp_path, monkeypatch):
    read = ReidDataset.read
    monkeypatch.setattr(ReidDataset, "read", lambda *args: time.sleep(0.01) or read(*args))
    train(tiny_cfg(tmp_path / "run", "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 0))
    assert all(line["data_time"] > 0.08 for line in metrics(tmp_path / "run"))
    assert "data_time: 0." in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_or_left_out(tmp_path, monkeypatch, workers):
    root = draw_market(tmp_path / "data")
    monkeypatch.setenv("FASTREID_DATASETS", str(root))
    bad = root / "Market-1501-v15.09.15" / "bounding_box_train" / "0003_c2s1_000000_01.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    options = ("DATALOADER.NUM_WORKERS", workers)
    with pytest.raises(UserError, match="0003_c2s1_000000_01.jpg.*INPUT.ON_ERROR skip"):
        train(tiny_cfg(tmp_path / "run", *options))
    train(tiny_cfg(tmp_path / "run", *options, "INPUT.ON_ERROR", "skip"))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("Skipped an image that cannot be read") == 1


def test_an_unreadable_gallery_image_is_counted_out(tmp_path, monkeypatch):
    root = draw_market(tmp_path / "data")
    monkeypatch.setenv("FASTREID_DATASETS", str(root))
    (root / "Market-1501-v15.09.15" / "query" / "0001_c1s1_000000_01.jpg").write_bytes(b"")
    gallery = root / "Market-1501-v15.09.15" / "bounding_box_test" / "0002_c1s1_000000_01.jpg"
    gallery.write_bytes(b"no picture")
    cfg = tiny_cfg(tmp_path / "run", "INPUT.ON_ERROR", "skip", "SOLVER.MAX_EPOCH", 1)
    train(cfg)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    counts = results["data_sets"]["Market1501"]["counts"]
    assert (counts["queries"], counts["gallery"]) == (23, 47)


@pytest.mark.parametrize("readable", [False, True])
def test_a_test_set_without_queries_or_gallery_is_refused(tmp_path, monkeypatch, readable):
    for folder, counts in (
        ("query", "0 queries and 48 gallery"),
        ("bounding_box_test", "24 queries and 0 gallery"),
    ):
        root = draw_market(tmp_path / folder)
        monkeypatch.setenv("FASTREID_DATASETS", str(root))
        images = root / "Market-1501-v15.09.15" / folder
        if readable:
            shutil.rmtree(images)
            images.mkdir()
        for number, path in enumerate(sorted(images.iterdir())):
            path.rename(images / f"person {number}.jpg")
        with pytest.raises(UserError, match=f"^Market1501 has {counts} .*tools/check_dataset.py"):
            testing.build_evaluator(tiny_cfg(tmp_path / "run"), "Market1501")


def test_all_test_sets_are_opened_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(testing, "run_inference", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(TrainingStep, "run_step", lambda _: 1 / 0)
    for names, message in (
        ("('Market1501', 'Market1502')", "there is no data set 'Market1502'"),
        ("('Market1501', 'PartialREID')", "PartialREID: found no folders"),
        ("('Market1501', 'PartialREID:crop')", "PartialREID has no protocol 'crop'"),
    ):
        cfg = tiny_cfg(tmp_path / "run", "DATASETS.TESTS", names)
        with pytest.raises(UserError, match=message):
            testing.test(cfg, build_model(cfg))
        with pytest.raises(UserError, match=message):
            train(cfg)


def test_num_classes_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UserError, match="NUM_CLASSES is 3, but the training set has 8"):
        train(tiny_cfg(tmp_path / "run", "MODEL.HEADS.NUM_CLASSES", 3))


@pytest.mark.distributed
def test_gradients_of_ranks_are_held_once(tmp_path):
    """They are views of the bucket that is sent."""

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
    """Also where they are accumulated, scaled, clipped and, of frozen layers, dropped."""
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

"""Whole trainings: learning, reproducibility, resuming, and errors."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fastreid.config import CfgNode
from fastreid.utils import comm
from ranks import on_ranks
from runs import (
    assert_same_run,
    draw_market,
    forked,
    kill_self,
    read_metrics,
    status_of,
    tiny_cfg,
    train,
)
from saved_runs import save_run
from torch import nn

from occluded_reid.checkpoint import checkpointer as checkpoints
from occluded_reid.checkpoint.checkpointer import weights_sha256
from occluded_reid.checkpoint.resolve import read_run_id, resolve_weights
from occluded_reid.data.build import build_train_loader
from occluded_reid.data.reid_dataset import ReidDataset
from occluded_reid.engine import hooks
from occluded_reid.engine.defaults import prepare_evaluation, prepare_run
from occluded_reid.engine.train_step import TrainingStep
from occluded_reid.engine.trainer import Trainer
from occluded_reid.evaluation import testing
from occluded_reid.modeling import build as build_module
from occluded_reid.modeling.build import build_model
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.random import PrivateRandomness, derive_seed, seed_everything

pytestmark = pytest.mark.usefixtures("data_root")


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
    losses = [line["total_loss"] for line in read_metrics(tmp_path / "run") if "total_loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data_sets"]["Market1501"]["metrics"]["Rank-1"]["value"] > 60  # at random: 12.5


@pytest.mark.skipif(importlib.util.find_spec("gdown") is not None, reason="gdown would download")
def test_pretrained_weights_that_are_missing_are_named_in_one_message(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FEAT_DIM", 0]
    network += ["MODEL.BACKBONE.PRETRAIN", True]
    with pytest.raises(UserError, match=r"resnet50.*does not exist: download .*PRETRAIN False"):
        build_model(tiny_cfg(tmp_path / "run", *network))


def test_metrics_hold_every_evaluation(tmp_path):
    folder = tmp_path / "run"
    train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 2, "TEST.EVAL_PERIOD", 1))
    mean_aps = [line["mAP"] for line in read_metrics(folder) if "mAP" in line]
    results = json.loads((folder / "results.json").read_text())
    assert len(mean_aps) == 2
    last = results["data_sets"]["Market1501"]["metrics"]["mAP"]
    assert mean_aps[-1] == pytest.approx(last["value"])


def test_a_run_leaves_the_files_that_others_rely_on(tmp_path):
    folder = tmp_path / "run"
    train(tiny_cfg(folder))
    names = {path.name for path in folder.iterdir()}
    run_id = read_run_id(folder)
    assert {line["run_id"] for line in read_metrics(folder)} == {run_id}
    assert torch.load(folder / "model_final.pth", weights_only=True)["run"]["id"] == run_id
    assert {"config.yaml", "results.json", "metrics.json", "model_final.pth", "log.txt"} <= names
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not [name for name in names if name.startswith(".")]
    results = json.loads((folder / "results.json").read_text())
    assert results["seed"] == 7 and results["epoch"] == 3 and results["run_id"] == run_id
    report = results["data_sets"]["Market1501"]
    assert report["counts"]["queries"] == 24 and report["counts"]["positives_per_query"] == 4
    for value in report["metrics"].values():
        assert value["low"] <= value["value"] <= value["high"]
    assert "NUM_CLASSES: 8" in (folder / "config.yaml").read_text()


def test_the_same_seed_gives_the_same_run_with_and_without_workers(tmp_path):
    stateful = ("MODEL.EMA.ENABLED", True, "SOLVER.ACCUMULATE", 4, "SOLVER.MAX_EPOCH", 2)
    for name, workers in (("one", 0), ("again", 0), ("two", 2)):
        train(tiny_cfg(tmp_path / name, *stateful, "DATALOADER.NUM_WORKERS", workers))
        assert_same_run(tmp_path / "one", tmp_path / name)


def test_another_seed_gives_another_run(tmp_path):
    train(tiny_cfg(tmp_path / "one", "SOLVER.MAX_EPOCH", 1))
    train(tiny_cfg(tmp_path / "two", "SOLVER.MAX_EPOCH", 1, "SEED", 8))
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "one", tmp_path / "two")


RICH = (
    "MODEL.EMA.ENABLED", True, "SOLVER.ACCUMULATE", 2, "DATALOADER.NUM_WORKERS", 1,
    "SOLVER.SCHED_BY", "ITERATION",
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, market) -> Path:
    """A finished run with every kind of state: EMA, optimizer, two schedules, best metric."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    os.environ["FASTREID_DATASETS"] = str(market)
    assert status_of(forked(lambda: train(tiny_cfg(folder, *RICH)))) == 0
    return folder


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
                lambda *args, epoch, **more: (
                    kill_self() if epoch == 3 else test(*args, epoch=epoch, **more)
                ),
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
    iterations = [line["iteration"] for line in read_metrics(folder)]
    assert iterations == sorted(set(iterations))  # nothing is written twice


def test_killed_between_any_two_steps_of_the_end_and_resumed_equals_uninterrupted(
    tmp_path, uninterrupted
):
    folder, interrupted = tmp_path / "run", tmp_path / "run" / "model_interrupted.pth"
    steps = [  # of the end, in their order
        (testing, "write_results"),
        (hooks.MetricsWriter, "after_epoch"),
        (hooks.CheckpointHook, "after_epoch"),
        (checkpoints, "atomic_write"),
        (checkpoints.Checkpointer, "tag_last_checkpoint"),
        (Path, "unlink"),
    ]
    ends = [(*step, after) for step in steps for after in (False, True)]

    def train_until_killed(owner: object, name: str, after: bool) -> None:
        plain = getattr(owner, name)

        def kill(*args, **options):
            is_end = (folder / "model_0002.pth").is_file() and not is_training
            if name == "unlink":
                is_end = args[0] == interrupted
            if is_end and not after:
                kill_self()
            result = plain(*args, **options)
            if is_end:
                kill_self()
            return result

        is_training = True
        step = TrainingStep.run_step

        def run_step(self):
            nonlocal is_training
            step(self)
            is_training = self.iter < 23

        TrainingStep.run_step = run_step
        setattr(owner, name, kill)
        train(tiny_cfg(folder, *RICH), resume=True)

    killed = 0
    for owner, name, after in ends:
        status = status_of(forked(lambda: train_until_killed(owner, name, after)))  # noqa: B023
        assert status in (0, -signal.SIGKILL)
        killed += status != 0
    assert killed >= 8
    assert status_of(forked(lambda: train(tiny_cfg(folder, *RICH), resume=True))) == 0
    assert_same_run(folder, uninterrupted)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    rows, whole = read_metrics(folder), read_metrics(uninterrupted)
    assert [row["iteration"] for row in rows] == [row["iteration"] for row in whole]
    assert [row.get("mAP") for row in rows] == [row.get("mAP") for row in whole]
    results = [json.loads((path / "results.json").read_text()) for path in (folder, uninterrupted)]
    assert results[0]["data_sets"] == results[1]["data_sets"]


def test_an_evaluation_that_failed_is_made_up_for_by_resume(tmp_path, monkeypatch):
    """In the middle of the run and at its end; the metrics are those of a whole run."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    train(tiny_cfg(whole))
    plain = testing.test
    for resume in (False, True):
        monkeypatch.setattr(testing, "test", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tiny_cfg(folder), resume=resume)
        monkeypatch.setattr(testing, "test", plain)
        if not resume:
            with monkeypatch.context() as context:
                context.setattr(testing, "test", fail_in_epoch(3, plain))
                with pytest.raises(ZeroDivisionError):
                    train(tiny_cfg(folder), resume=True)
    train(tiny_cfg(folder), resume=True)
    assert_same_run(whole, folder)
    rows = [
        [(row["iteration"], row.get("mAP")) for row in read_metrics(f)] for f in (whole, folder)
    ]
    assert rows[0] == rows[1]


def fail_in_epoch(number: int, test):
    return lambda *args, epoch, **more: (
        1 / 0 if epoch == number else test(*args, epoch=epoch, **more)
    )


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    folder = tmp_path / "run"
    train(tiny_cfg(folder))
    before = (folder / "model_final.pth").read_bytes()
    train(tiny_cfg(folder), resume=True)
    assert (folder / "model_final.pth").read_bytes() == before


def test_weights_keep_their_config_yaml(tmp_path):
    folder = tmp_path / "run"
    train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 1))
    before = (folder / "config.yaml").read_bytes()
    evaluated = ("MODEL.WEIGHTS", folder / "model_final.pth", "TEST.METRIC", "dot")
    prepare_evaluation(tiny_cfg(folder, *evaluated))
    assert "TEST.METRIC cosine -> dot), but the results" in (folder / "log.txt").read_text()
    longer = ("SOLVER.MAX_EPOCH", 2)
    for change, message in (
        (("DATASETS.NAMES", ("SyntheticOccluded",), *longer), "SyntheticOccluded"),
        (("MODEL.BACKBONE.FEAT_DIM", 8, *longer), "FEAT_DIM"),
        (("SEED", 9, *longer), "SEED 7 -> 9: these keys cannot change"),
        (("SOLVER.BASE_LR", 0.1, "SOLVER.MAX_EPOCH", 1), "BASE_LR 0.01 -> 0.1: all 1 epochs"),
    ):
        with pytest.raises(UserError, match=message):
            train(tiny_cfg(folder, *change), resume=True)
    train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 1, "SOLVER.LOG_PERIOD", 3), resume=True)
    assert (folder / "config.yaml").read_bytes() == before
    log = (folder / "log.txt").read_text()
    assert "has finished 1 epochs, SOLVER.MAX_EPOCH is 1: nothing to do" in log
    train(tiny_cfg(folder, *longer), resume=True)
    assert (folder / "config.yaml").read_bytes() == before.replace(b"EPOCH: 1", b"EPOCH: 2")


def test_a_run_that_goes_on_after_its_end_has_not_ended(tmp_path, monkeypatch):
    """Else its folder stands for the weights of the former end beside the new configuration."""
    folder = tmp_path / "run"
    train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 1))
    former = (folder / "model_final.pth").read_bytes()
    with monkeypatch.context() as context:
        context.setattr(TrainingStep, "run_step", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 2), resume=True)
    assert not (folder / "model_final.pth").exists()
    assert Path(resolve_weights(folder)[1]).name == "model_0000.pth"
    assert (folder / "model_0000.pth").read_bytes() == former
    train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 2), resume=True)
    assert torch.load(folder / "model_final.pth", weights_only=True)["epoch"] == 1


def test_a_run_that_goes_on_from_an_earlier_checkpoint_has_not_ended(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 2))
    former = (folder / "model_final.pth").read_bytes()
    (folder / "last_checkpoint").write_text("model_0000.pth")
    other = tiny_cfg(folder, "SOLVER.MAX_EPOCH", 2, "SOLVER.WEIGHT_DECAY", 0.1)
    with monkeypatch.context() as context:
        context.setattr(TrainingStep, "run_step", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(other, resume=True)
    assert Path(resolve_weights(folder)[1]).name == "model_0000.pth"
    assert (folder / "model_former.pth").read_bytes() == former
    train(other, resume=True)
    assert (folder / "model_final.pth").read_bytes() != former


@pytest.mark.distributed
def test_all_ranks_evaluate_the_average_that_is_saved(tmp_path):
    """Its batch statistics, too, follow those of the rank itself during an epoch."""
    cfg, digests = tiny_cfg(tmp_path / "run", "MODEL.EMA.ENABLED", True, "SOLVER.MAX_EPOCH", 1), []

    class Recorder(Trainer):
        def evaluate(self):
            digests.append(comm.all_gather(weights_sha256(self.evaluated_model())))
            return 0.0

    def work(rank: int) -> None:
        train(cfg, trainer=Recorder)
        assert len(digests) == 1 and len(set(digests[0])) == 1

    on_ranks(2, work)


@pytest.mark.parametrize("content", [b"", b'{"data_sets": {', b"[]"])
def test_damaged_results_are_replaced_by_an_evaluation(tmp_path, content):
    folder = save_run(tiny_cfg(tmp_path / "run", "MODEL.HEADS.NUM_CLASSES", 8))
    (folder / "results.json").write_bytes(content)
    testing.evaluate_weights(tiny_cfg(folder, "MODEL.WEIGHTS", folder / "model_final.pth"))
    assert json.loads((folder / "results.json").read_text())["weights"] == "model_final.pth"


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
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(scores))
    folder = tmp_path / "run"
    whole = tiny_cfg(folder)
    run = train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 2))
    best = torch.load(folder / "model_best.pth", weights_only=True)
    assert best["epoch"] == 1 and run._evaluation.best_metric == 50
    assert train(whole, resume=True)._evaluation.best_metric == 50
    assert torch.load(folder / "model_best.pth", weights_only=True)["epoch"] == 1


# ------------------------------------------------------------------------------ data


def test_private_randomness_keeps_the_global_generators():
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


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", [1]), ("cuda", []), ("cpu:0", [])])
def test_the_random_state_is_that_of_the_configured_gpu(device, expected, tmp_path, monkeypatch):
    devices = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: devices.append(device.index))
    cfg = tiny_cfg(tmp_path / "run").clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    prepare_run(cfg, training=True)
    assert devices == expected


def test_seeds_differ_by_path():
    seeds = {derive_seed(1, epoch, rank) for epoch in range(20) for rank in range(20)}
    assert len(seeds) == 400


def test_an_epoch_of_batches_does_not_depend_on_the_epochs_before(tmp_path):
    loader = build_train_loader(tiny_cfg(tmp_path / "run"))
    stream = iter(loader.batch_sampler)
    all_batches = [next(stream) for _ in range(12)]
    assert len({tuple(batch) for batch in all_batches}) == 12
    loader.batch_sampler.start_epoch = 1
    later = iter(loader.batch_sampler)
    assert [next(later) for _ in range(6)] == all_batches[6:]


def test_a_batch_holds_paths_and_images_in_0_255(tmp_path):
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
        (("SOLVER.IMS_PER_BATCH", 1), "a batch of 1 images per process .* needs 2 at least"),
        (("DATALOADER.NUM_INSTANCE", 16), "8 images .* no multiple of DATALOADER.NUM_INSTANCE 16"),
        (("DATALOADER.NUM_INSTANCE", 3), "no multiple of DATALOADER.NUM_INSTANCE 3"),
        (("DATALOADER.SAMPLER_TRAIN", "Nave"), "SAMPLER_TRAIN is Nave; it can be TrainingSampler"),
        (("DATALOADER.SAMPLER_TRAIN", "SetReWeightSampler"), "it can be TrainingSampler"),
    ],
)
def test_impossible_batches_are_refused(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        next(iter(build_train_loader(tiny_cfg(tmp_path / "run", *overrides))))


def test_one_identity_is_refused(tmp_path):
    items = [(f"{number}.jpg", "one", 0) for number in range(8)]
    with pytest.raises(UserError, match="has 1 identity; training tells people apart"):
        build_train_loader(tiny_cfg(tmp_path / "run"), items)


def test_the_log_shows_the_data_time(tmp_path, monkeypatch):
    read = ReidDataset.read_sample
    monkeypatch.setattr(ReidDataset, "read_sample", lambda *args: time.sleep(0.01) or read(*args))
    train(tiny_cfg(tmp_path / "run", "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 0))
    assert all(line["data_time"] > 0.08 for line in read_metrics(tmp_path / "run"))
    assert "data_time: 0." in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_or_skipped(tmp_path, monkeypatch, workers):
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


def test_an_unreadable_gallery_image_is_not_counted(tmp_path, monkeypatch):
    root = draw_market(tmp_path / "data")
    monkeypatch.setenv("FASTREID_DATASETS", str(root))
    (root / "Market-1501-v15.09.15" / "query" / "0001_c1s1_000000_01.jpg").write_bytes(b"")
    gallery = root / "Market-1501-v15.09.15" / "bounding_box_test" / "0002_c1s1_000000_01.jpg"
    gallery.write_bytes(b"no image")
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


def test_all_test_sets_are_opened_first(tmp_path, monkeypatch):
    monkeypatch.setattr(testing, "run_inference", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(TrainingStep, "run_step", lambda _: 1 / 0)
    for names, message in (
        ("('Market1501', 'Market1502')", "there is no data set 'Market1502'"),
        ("('Market1501', 'PartialREID')", "PartialREID:occluded: found no folders"),
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

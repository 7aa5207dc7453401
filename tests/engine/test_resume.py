"""A run that is resumed with another configuration uses it, or says that it cannot."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import forked, status_of, tiny_cfg, train

from occluded_reid.config.resume import RULES, Rule
from occluded_reid.engine.defaults import FILLED_FIRST, prepare_evaluation, prepare_run
from occluded_reid.engine.train_step import TrainingStep
from occluded_reid.engine.trainer import Trainer
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.random import random_states

BASE = ("SOLVER.SCHED", "CosineAnnealingLR", "MODEL.EMA.ENABLED", True)
STEPWISE = ("SOLVER.SCHED", "MultiStepLR")
SCHEDULES: dict[str, tuple[Any, ...]] = {
    "SOLVER.BASE_LR": (0.003,),
    "SOLVER.BIAS_LR_FACTOR": (2.0,),
    "SOLVER.DELAY_EPOCHS": (2,),
    "SOLVER.ETA_MIN_LR": (0.002,),
    "SOLVER.GAMMA": (0.5, "SOLVER.STEPS", [1], *STEPWISE),
    "SOLVER.HEADS_LR_FACTOR": (2.0,),
    "SOLVER.MAX_EPOCH": (6,),
    "SOLVER.SCHED": ("MultiStepLR",),
    "SOLVER.SCHED_BY": ("ITERATION",),
    "SOLVER.STEPS": ([1, 3], *STEPWISE),
    "SOLVER.WARMUP_FACTOR": (0.5, "SOLVER.WARMUP_ITERS", 15),
    "SOLVER.WARMUP_ITERS": (15,),
    "SOLVER.WARMUP_METHOD": ("constant", "SOLVER.WARMUP_ITERS", 15),
}

pytestmark = pytest.mark.usefixtures("data_root")


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory, market: Path) -> Path:
    """A run of four epochs of which two are done."""
    folder = tmp_path_factory.mktemp("halfway") / "run"
    os.environ["FASTREID_DATASETS"] = str(market)
    assert status_of(forked(lambda: train(tiny_cfg(folder, *BASE)))) == 0
    (folder / "last_checkpoint").write_text("model_0001.pth")
    return folder


@pytest.fixture
def run(halfway: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(halfway, tmp_path / "run"))


def resumed(folder: Path, *changes: Any, resume: bool = True) -> Trainer:
    trainer = Trainer(prepare_run(tiny_cfg(folder, *BASE, *changes), training=True, resumed=resume))
    trainer.resume_or_load(resume=resume)
    return trainer


def list_options(trainer: Trainer, *names: str) -> dict[str, list[Any]]:
    """Return options of the optimizer by the name of the parameter."""
    groups = trainer.optimizer.param_groups
    by_parameter = {p: [group[name] for name in names] for group in groups for p in group["params"]}
    return {
        name: by_parameter[p] for name, p in trainer.model.named_parameters() if p.requires_grad
    }


def record_rates(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Go through a run without training; return the rates of all parameters by iteration."""
    rates: list[Any] = []
    monkeypatch.setattr(
        TrainingStep, "run_step", lambda _: rates.append(list_options(trainer, "lr"))
    )
    monkeypatch.setattr(Trainer, "evaluate", lambda _: 0.0)
    monkeypatch.setattr(Trainer, "save", lambda *_, **__: None)
    trainer.train()
    return rates


def test_every_key_of_the_schedule_is_tried() -> None:
    assert {key for key, rule in RULES.items() if rule is Rule.SCHEDULE} == {*SCHEDULES}


@pytest.mark.parametrize("key", SCHEDULES)
def test_the_rates_of_a_changed_schedule_are_those_of_a_run_that_always_had_it(
    run, tmp_path, monkeypatch, key
):
    changes = (key, *SCHEDULES[key])
    plain = record_rates(resumed(tmp_path / "plain", resume=False), monkeypatch)
    whole = record_rates(resumed(tmp_path / "whole", *changes, resume=False), monkeypatch)
    rates = record_rates(resumed(run, *changes), monkeypatch)
    assert rates == whole[12:] != plain[12:]


@pytest.mark.parametrize(
    ("key", "value", "option"),
    [
        ("SOLVER.WEIGHT_DECAY", 0.01, "weight_decay"),
        ("SOLVER.WEIGHT_DECAY_BIAS", 0.02, "weight_decay"),
        ("SOLVER.WEIGHT_DECAY_NORM", 0.03, "weight_decay"),
    ],
)
def test_options_of_the_optimizer_hold_at_once_and_its_state_goes_on(run, key, value, option):
    before, after = resumed(run), resumed(run, key, value)
    options = list_options(after, option)
    assert [value] in options.values() and options != list_options(before, option)
    assert list_options(before, "lr") == list_options(after, "lr")
    names = [name for name, p in before.model.named_parameters() if p.requires_grad]
    for name in names:  # the parameters are in other groups now
        one, other = (
            each.optimizer.state[each.model.get_parameter(name)] for each in (before, after)
        )
        assert torch.equal(one["exp_avg"], other["exp_avg"]) and torch.any(one["exp_avg"] != 0)


def test_another_optimizer_begins_with_a_new_state(run):
    sgd = resumed(run, "SOLVER.OPT", "SGD", "SOLVER.MOMENTUM", 0.5, "SOLVER.NESTEROV", True)
    assert type(sgd.optimizer) is torch.optim.SGD and not sgd.optimizer.state
    assert {(g["momentum"], g["nesterov"]) for g in sgd.optimizer.param_groups} == {(0.5, True)}
    assert list_options(sgd, "lr") == list_options(resumed(run), "lr")


def test_other_tests_begin_with_a_new_best_metric(run):
    assert resumed(run)._evaluation.best_metric > 0
    for change in (("TEST.METRIC", "dot"), ("DATASETS.TESTS", ("Market1501", "Market1501"))):
        assert resumed(run, *change)._evaluation.best_metric == -1


def test_a_finished_run_with_other_tests_is_evaluated_again(run):
    (run / "last_checkpoint").write_text("model_final.pth")
    before = (run / "results.json").read_bytes()
    train(tiny_cfg(run, *BASE), resume=True)
    assert (run / "results.json").read_bytes() == before
    train(tiny_cfg(run, *BASE, "TEST.METRIC", "dot"), resume=True)
    assert (run / "results.json").read_bytes() != before
    assert "METRIC: dot" in (run / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("SOLVER.IMS_PER_BATCH", 4), "IMS_PER_BATCH 8 -> 4: these keys cannot change"),
        (("SEED", 8), "with SEED 7 -> 8: these keys cannot change"),
        (("MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0]), "MODEL.PIXEL_MEAN .*: these keys cannot change"),
        (("SOLVER.MAX_EPOCH", 2), "MAX_EPOCH 4 -> 2: all 2 epochs .* would not be used"),
    ],
)
def test_other_changes_are_refused_and_change_nothing(run, change, message):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(UserError, match=message):
        resumed(run, *change)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_changes_are_counted_from_the_checkpoint_not_from_config_yaml(run):
    """A run that was resumed with a change and killed before its next checkpoint."""
    config = run / "config.yaml"
    config.write_text(
        config.read_text().replace("WEIGHT_DECAY_BIAS: 0.0005", "WEIGHT_DECAY_BIAS: 0.02")
    )
    after = resumed(run, "SOLVER.WEIGHT_DECAY_BIAS", 0.02)
    assert [str(change) for change in after.changes if change.rule is Rule.ONWARD] == [
        "SOLVER.WEIGHT_DECAY_BIAS 0.0005 -> 0.02"
    ]


def test_another_number_of_processes_is_said(run, capsys):
    path = run / "model_0001.pth"
    content = torch.load(path, weights_only=False)
    resumed(run)
    assert "was trained by" not in capsys.readouterr().out
    content["run"]["processes"] = 2
    torch.save(content, path)
    resumed(run)
    assert "was trained by 2 processes and goes on with 1" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"SEED: \xff\n", b"- 1\n"])
def test_a_damaged_config_yaml_is_one_message(tmp_path, content):
    torch.save({"model": {}, "epoch": 0}, tmp_path / "model_0000.pth")
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match="config.yaml is no configuration"):
        prepare_run(tiny_cfg(tmp_path), training=True, resumed=True)
    with pytest.raises(UserError, match="config.yaml is no configuration"):
        prepare_evaluation(tiny_cfg(tmp_path))


@pytest.mark.parametrize("key", FILLED_FIRST)
def test_data_inside_the_folder_of_a_new_run_is_refused_before_it_is_made(tmp_path, key):
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=f"{key} .*run/data is inside OUTPUT_DIR"):
        prepare_run(tiny_cfg(folder, key, folder / "data"), training=True)
    assert not folder.exists()


@pytest.mark.parametrize("resumed", [False, True])
def test_a_name_that_is_too_long_is_one_message(tmp_path, resumed):
    with pytest.raises(UserError, match="cannot write .*name too long"):
        cfg = tiny_cfg(tmp_path / "run", "OUTPUT_DIR", "a" * 300)
        prepare_run(cfg, training=True, resumed=resumed)


def test_in_the_middle_of_an_epoch_its_batches_cannot_change(run):
    path = run / "model_0001.pth"
    content = torch.load(path, weights_only=False)
    states = resumed(run).model.buffers()
    begun = {"steps": 2, "ranks": [{"random": random_states(), "buffers": list(states)}]}
    torch.save({**content, "begun": begun}, path)
    with pytest.raises(UserError, match="NUM_INSTANCE 2 -> 4: they cannot .* middle"):
        resumed(run, "DATALOADER.NUM_INSTANCE", 4)
    assert resumed(run, "SOLVER.BASE_LR", 0.003).resumed.steps == 2
    begun["steps"] = 7  # of an epoch that was longer: images have been removed
    torch.save({**content, "begun": begun}, path)
    with pytest.raises(UserError, match="begun/steps is not from 0 to 6"):
        resumed(run)
    begun["steps"] = 2**60  # a file that somebody made: no schedule goes so far
    torch.save({**content, "begun": begun}, path)
    with pytest.raises(UserError, match="begun/steps is not from 0 to 6"):
        resumed(run, "SOLVER.BASE_LR", 0.003)


def test_other_people_are_refused(run, market, tmp_path, monkeypatch):
    moved = tmp_path / "data"
    shutil.copytree(market, moved)
    monkeypatch.setenv("FASTREID_DATASETS", str(moved))
    resumed(run)  # the same people elsewhere
    for path in (moved / "Market-1501-v15.09.15" / "bounding_box_train").glob("0008_*"):
        path.rename(path.with_name(path.name.replace("0008", "0009")))
    with pytest.raises(UserError, match="was trained on other data"):
        resumed(run)

"""tools/train_net.py as a user types it: runs, several processes, and mistakes."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from runs import (
    LAUNCHED,
    TINY,
    assert_same_run,
    build_arguments,
    draw_market,
    forked,
    load_tool,
    status_of,
    tiny_cfg,
)

from occluded_reid.engine.launch import launch
from occluded_reid.modeling.build import build_model
from occluded_reid.utils.errors import UserError

REPOSITORY = Path(__file__).parents[2]
TOOL = REPOSITORY / "tools" / "train_net.py"
train_net = load_tool("train_net")


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_market(tmp_path_factory.mktemp("market"))


@pytest.fixture
def config(tmp_path, market, monkeypatch) -> str:
    monkeypatch.setenv("FASTREID_DATASETS", str(market))
    path = tmp_path / "tiny.yml"
    path.write_text(TINY)
    return str(path)


def test_train_then_evaluate(tmp_path, config):
    folder, other = tmp_path / "run", tmp_path / "eval"
    assert train_net.command(build_arguments(config, folder)) == 0
    weights = folder / "model_final.pth"
    assert (
        train_net.command(
            ["--eval-only", *build_arguments(config, other, "MODEL.WEIGHTS", weights)]
        )
        == 0
    )
    results = [json.loads((path / "results.json").read_text()) for path in (folder, other)]
    assert results[0]["data_sets"] == results[1]["data_sets"]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert (results[0]["weights"], results[1]["weights"]) == ("", "model_final.pth")


def test_weights_are_a_run_or_a_file(tmp_path, config):
    folder, copy, other = tmp_path / "run", tmp_path / "copy", tmp_path / "other"
    assert train_net.command(build_arguments(config, folder, "SOLVER.MAX_EPOCH", 1)) == 0
    results = json.loads((folder / "results.json").read_text())
    shutil.copytree(folder, copy)  # its config.yaml names the folder of the original
    (copy / "results.json").unlink()
    (folder / "results.json").unlink()
    device = ["MODEL.DEVICE", "cpu"]
    assert train_net.command(["--eval-only", "--weights", str(copy), *device]) == 0
    assert not (folder / "results.json").exists()
    again = json.loads((copy / "results.json").read_text())
    assert again["data_sets"] == results["data_sets"]
    output = ["OUTPUT_DIR", str(other), *device]
    weights = ["--weights", str(folder / "model_final.pth")]
    assert train_net.command(["--eval-only", *weights, *output]) == 0
    assert json.loads((other / "results.json").read_text())["data_sets"] == results["data_sets"]


def test_a_training_can_start_from_a_run(tmp_path, config, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert train_net.command(build_arguments(config, first, "SOLVER.MAX_EPOCH", 1)) == 0
    still = build_arguments(config, second, "SOLVER.MAX_EPOCH", 1, "SOLVER.BASE_LR", 0.0)
    assert train_net.command(["--weights", str(first), *still]) == 0
    old, new = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (first, second)
    )
    assert torch.equal(old["backbone.0.weight"], new["backbone.0.weight"])
    assert train_net.command(["--weights", str(tmp_path / "none"), *still]) == 2
    assert "error: there are no weights" in capsys.readouterr().err


def test_one_command_tests_on_all_sets_that_exist(tmp_path, config, capsys, monkeypatch):
    folder, other = tmp_path / "run", tmp_path / "eval"
    assert train_net.command(build_arguments(config, folder, "SOLVER.MAX_EPOCH", 1)) == 0
    market = Path(os.environ["FASTREID_DATASETS"]) / "Market-1501-v15.09.15"
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    for name in ("Market-1501", "Occluded_Duke"):
        (tmp_path / name).symlink_to(market, target_is_directory=True)
    more = ["MODEL.WEIGHTS", folder / "model_final.pth", "DATASETS.ALLOW_PARTIAL", True]
    also = ["--also", str(REPOSITORY / "configs" / "test_all.yml")]
    saved = ["--config-file", str(folder / "config.yaml"), "OUTPUT_DIR", str(other)]
    assert train_net.command(["--eval-only", *also, *saved, *map(str, more)]) == 0
    results = json.loads((other / "results.json").read_text())
    assert list(results["data_sets"]) == ["Market1501", "OccludedDuke"]
    assert {"DukeMTMC", "MSMT17"} < set(results["missing"])
    log = (other / "log.txt").read_text()
    for name in ("DukeMTMC", "MSMT17", "PartialREID:partial", "PDukeMTMC:cameras"):
        assert f"Not tested on {name}: {name}: found no folders" in log
    missing = ["DATASETS.TESTS", "('OccludedREID', 'PartialREID:partial')", *map(str, more)]
    assert train_net.command(["--eval-only", *also, *saved, *missing]) == 2
    assert "none of DATASETS.TESTS exists: OccludedREID: found" in capsys.readouterr().err
    assert train_net.command(["--eval-only", *saved, *missing]) == 2
    assert "error: OccludedREID: found no folders" in capsys.readouterr().err


def test_results_name_the_protocol(tmp_path, config, monkeypatch):
    root = Path(os.environ["FASTREID_DATASETS"])
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    home = tmp_path / "Partial_REID"
    for source, names in (
        ("query", ["occluded_body_images", "partial_body_images"]),
        ("bounding_box_test", ["whole_body_images"]),
    ):
        for name in names:
            shutil.copytree(root / "Market-1501-v15.09.15" / source, home / name)
    weights = tmp_path / "weights.pth"
    cfg = tiny_cfg(tmp_path / "run")
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    tests = ["DATASETS.TESTS", "('PartialREID', 'PartialREID:partial')", "MODEL.WEIGHTS", weights]
    assert (
        train_net.command(["--eval-only", *build_arguments(config, tmp_path / "eval", *tests)]) == 0
    )
    reports = json.loads((tmp_path / "eval" / "results.json").read_text())["data_sets"]
    protocols = {name: report["protocol"] for name, report in reports.items()}
    assert protocols == {"PartialREID": "occluded", "PartialREID:partial": "partial"}


def test_dry_run_needs_no_data_and_leaves_nothing(tmp_path, config, monkeypatch, capsys):
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "nothing"))
    assert train_net.command(["--dry-run", *build_arguments(config, tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "loss_cls" in printed and "loss_triplet" in printed
    assert "features: (4, 16) torch.float32" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["SOLVER.MAX_EPOCHS", 3], "did you mean SOLVER.MAX_EPOCH"),
        (["DATASETS.NAMES", "('Market1502',)"], "Market1501"),
        (["DATASETS.TESTS", "('Market1501:occluded',)"], "occluded"),
        (["DATASETS.ALLOW_PARTIAL", False], "12936"),
        (["MODEL.WEIGHTS", "gone.pth"], "there is no checkpoint gone.pth"),
        (
            ["MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.PRETRAIN_PATH", "gone.pth"],
            "there are no weights gone.pth",
        ),
        (["MODEL.WEIGHTS", "."], "there are no weights in .; expected model_final.pth"),
        (["MODEL.META_ARCHITECTURE", "Xyz"], "'Xyz', which does not exist; there is AONet"),
        (["MODEL.BACKBONE.NAME", "build_resnt_backbone"], "did you mean build_resnet_backbone"),
        (["MODEL.HEADS.NAME", "EmbedingHead"], "did you mean EmbeddingHead"),
        (
            ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "base"],
            "build_resnet_backbone has no MODEL.BACKBONE.DEPTH 'base'",
        ),
        (["SOLVER.SCHED", "CosineAnnealingLR", "SOLVER.MAX_EPOCH", 1], "1: shorten the warm-up"),
        (["MODEL.HEADS.NUM_CLASSES", 9], "NUM_CLASSES is 9, but the training set has 8 identities"),
        (["MODEL.HEADS.NUM_CLASSES", 7], "NUM_CLASSES is 7, but the training set has 8 identities"),
        (["INPUT.NPO.ENABLED", True, "INPUT.NPO.MODE", "pair"], "Baseline does not train on pairs"),
        (["MODEL.HEADS.POOL_LAYER", "Foo"], "the model cannot be built"),
        (["SOLVER.BASE_LR", 1e30, "TEST.EVAL_PERIOD", 0], "became nan at iteration"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(tmp_path, config, capsys, more, message):
    assert train_net.command(build_arguments(config, tmp_path / "run", *more)) == 2
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 1 and message in captured.err
    assert "Traceback" not in captured.err + captured.out


def test_a_training_needs_a_configuration_and_overwrite_a_new_run(tmp_path, config, capsys):
    for words in ([], ["OUTPUT_DIR", str(tmp_path)], ["--eval-only"]):
        assert train_net.command(words) == 2
        assert "name a configuration: --config-file" in capsys.readouterr().err
    for option in ("--resume", "--eval-only"):
        assert train_net.command(["--overwrite", option, "--config-file", config]) == 2
        assert "--overwrite starts a new run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_refused_start_changes_nothing(tmp_path, config, capsys):
    """Neither where nothing stands, nor where a run does."""
    folder = tmp_path / "run"
    wrong = ["DATASETS.TESTS", "('Market1501:occluded',)"]
    assert train_net.command(build_arguments(config, folder, *wrong)) == 2
    assert not folder.exists()
    assert train_net.command(build_arguments(config, folder, "SOLVER.MAX_EPOCH", 1)) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    more = build_arguments(config, folder, "SOLVER.MAX_EPOCH", 2)
    for words in (more, ["--overwrite", *more, *wrong], ["--resume", *more, *wrong]):
        assert train_net.command(words) == 2
    gone = build_arguments(config, folder, "MODEL.WEIGHTS", "gone.pth")
    assert train_net.command(["--eval-only", *gone]) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert train_net.command(["--overwrite", *build_arguments(config, folder), *LAST]) == 0
    assert (tmp_path / "run.1" / "model_final.pth").read_bytes() == before["model_final.pth"]


LAST = ["SOLVER.MAX_EPOCH", "1"]


def test_evaluating_another_checkpoint_keeps_the_results_of_the_run(tmp_path, config, capsys):
    folder = tmp_path / "run"
    assert train_net.command(build_arguments(config, folder, "SOLVER.MAX_EPOCH", 2)) == 0
    before = (folder / "results.json").read_bytes()
    first = ["--eval-only", "--weights", str(folder / "model_0000.pth"), "MODEL.DEVICE", "cpu"]
    assert train_net.command(first) == 0
    assert "is of other weights and is kept" in capsys.readouterr().out
    assert (folder / "results.json").read_bytes() == before
    beside = json.loads((folder / "results-model_0000.json").read_text())
    assert beside["weights"] == "model_0000.pth"
    shutil.copy(folder / "model_final.pth", tmp_path / "model_0000.pth")  # others of that name
    content = torch.load(tmp_path / "model_0000.pth", weights_only=False)
    next(iter(content["model"].values())).mul_(1.5)
    torch.save(content, folder / "model_0000.pth")
    assert train_net.command(first) == 0
    assert "results-model_0000.json is of other weights and is repl" in capsys.readouterr().out
    assert train_net.command(["--eval-only", "--weights", str(folder), "MODEL.DEVICE", "cpu"]) == 0
    assert json.loads((folder / "results.json").read_text())["weights"] == "model_final.pth"


def test_results_name_the_run_of_their_weights_whatever_the_configuration(tmp_path, config, capsys):
    folder, other = tmp_path / "run", tmp_path / "other"
    assert train_net.command(build_arguments(config, folder, "SOLVER.MAX_EPOCH", 2)) == 0
    results = json.loads((folder / "results.json").read_text())
    for name in ("model_final", "model_0000"):
        weights = ["MODEL.WEIGHTS", folder / f"{name}.pth", "RUN_ID", "rmine"]
        assert train_net.command(["--eval-only", *build_arguments(config, other, *weights)]) == 0
        again = json.loads((other / "results.json").read_text())
        assert again["run_id"] == results["run_id"] and again["weights"] == f"{name}.pth"
    assert "is of other weights and is replaced" in capsys.readouterr().out
    assert "RUN_ID: ''" in (other / "config.yaml").read_text()


def test_an_option_after_the_overrides_is_named(tmp_path, config, capsys):
    assert train_net.command([*build_arguments(config, tmp_path / "run"), "--eval-only"]) == 2
    error = capsys.readouterr().err
    assert "--eval-only comes after KEY VALUE pairs" in error
    assert "put options before the first KEY" in error


def test_missing_data_is_named_with_its_folder(tmp_path, config, monkeypatch, capsys):
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "nothing"))
    assert train_net.command(build_arguments(config, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "nothing") in error and "Market-1501" in error


def test_an_output_folder_that_cannot_be_created_is_named(tmp_path, config, capsys):
    (tmp_path / "file").write_text("")
    assert train_net.command(build_arguments(config, tmp_path / "file" / "run")) == 2
    assert "cannot write" in capsys.readouterr().err


def test_damaged_and_missing_weights(tmp_path, config, capsys):
    bad = tmp_path / "bad.pth"
    bad.write_text("no checkpoint")
    options = build_arguments(config, tmp_path / "run", "MODEL.WEIGHTS", bad)
    assert train_net.command(["--eval-only", *options]) == 2
    assert "bad.pth is no checkpoint" in capsys.readouterr().err
    assert train_net.command(["--eval-only", *build_arguments(config, tmp_path / "run")]) == 2
    assert "--eval-only needs weights" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path, config):
    with pytest.raises(UserError):
        train_net.command(["--debug", *build_arguments(config, tmp_path / "run", "SEEED", 3)])


def test_a_resumed_run_keeps_a_seed_from_the_clock(tmp_path, config):
    folder = tmp_path / "run"
    options = build_arguments(config, folder, "SEED", -1, "SOLVER.MAX_EPOCH", 1)
    assert train_net.command(options) == 0
    first = json.loads((folder / "results.json").read_text())["seed"]
    assert train_net.command(["--resume", *options[:-1], "2"]) == 0
    assert json.loads((folder / "results.json").read_text())["seed"] == first >= 0


def run_python(*command: object) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests' / 'helpers'}",
    }
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True, text=True, timeout=240, env=environment, check=False,
    )  # fmt: skip


def test_the_exit_code_of_the_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--config-file", str(tmp_path / "gone.yml")])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(TOOL), run_name="__main__")
    assert capsys.readouterr().err.startswith("error: no configuration file")


def on_two_ranks(options: list[str]) -> list[int]:
    """Run the command in two processes with the environment that torchrun sets."""

    def rank(_: int) -> None:
        assert train_net.command(options) == 0

    return run_ranks(2, rank)


@pytest.mark.distributed
def test_two_ranks_save_what_they_evaluate(tmp_path, config):
    folder, other = tmp_path / "run", tmp_path / "eval"
    assert on_two_ranks(build_arguments(config, folder, "SOLVER.MAX_EPOCH", 2)) == [0, 0]
    results = json.loads((folder / "results.json").read_text())
    assert results["data_sets"]["Market1501"]["counts"]["queries"] == 24
    weights = folder / "model_final.pth"
    assert (
        train_net.command(
            ["--eval-only", *build_arguments(config, other, "MODEL.WEIGHTS", weights)]
        )
        == 0
    )
    again = json.loads((other / "results.json").read_text())
    assert again["data_sets"] == results["data_sets"]
    assert (folder / "log.txt.rank1").is_file()


@pytest.mark.distributed
def test_a_resumed_run_of_two_ranks_equals_an_uninterrupted_one(tmp_path, config):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    schedule = ("SOLVER.SCHED", "MultiStepLR", "SOLVER.MAX_EPOCH")
    assert on_two_ranks(build_arguments(config, whole, *schedule, 2)) == [0, 0]
    assert on_two_ranks(build_arguments(config, parts, *schedule, 1)) == [0, 0]
    assert on_two_ranks(["--resume", *build_arguments(config, parts, *schedule, 2)]) == [0, 0]
    assert_same_run(whole, parts)


@pytest.mark.slow
@pytest.mark.distributed
def test_num_gpus_starts_processes(tmp_path, config):
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED.format(tools=str(REPOSITORY / "tools")))
    folder = tmp_path / "run"
    done = run_python(
        script, "--num-gpus", 2, *build_arguments(config, folder, "SOLVER.MAX_EPOCH", 1)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "results.json").is_file() and (folder / "log.txt.rank1").is_file()


@pytest.mark.distributed
@pytest.mark.slow
def test_a_mistake_in_several_processes_is_one_message(tmp_path, config):
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED.format(tools=str(REPOSITORY / "tools")))
    options = build_arguments(config, tmp_path / "run", "MODEL.WEIGHTS", "gone.pth")
    done = run_python(script, "--num-gpus", 2, *options)
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.count("error: ") == done.stderr.count("there is no checkpoint gone.pth") == 1
    assert "Traceback" not in done.stderr


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--num-gpus 2, but this machine has 1 GPUs"):
        launch(print, device="cuda", processes=2)
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(UserError, match="--nproc-per-node 2, but this machine has 1 GPUs"):
        launch(print, device="cuda")


def test_a_failing_fork_is_noticed():
    """Other tests rely on it."""
    assert status_of(forked(lambda: 1 / 0)) == 1
    assert status_of(forked(lambda: None)) == 0

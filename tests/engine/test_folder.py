"""What a start may do with a folder, and what --resume finds in one."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from runs import forked, kill_self, status_of

from occluded_reid.checkpoint.resolve import check_run_id, read_run_id, resolve_weights
from occluded_reid.config import changed_copy, load_config
from occluded_reid.engine.folder import (
    check_start,
    choose_run_id,
    claim,
    find_checkpoint,
    open_log,
    write_config,
)
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.logs import setup_logging


def cfg_of(folder: Path, run_id: str = "rone"):
    with changed_copy(load_config("", ["OUTPUT_DIR", str(folder)])) as cfg:
        cfg.RUN_ID = run_id
    return cfg


def write_checkpoint(folder: Path, epoch: int, run_id: str = "rone", name: str = "") -> Path:
    path = folder / (name or f"model_{epoch:04d}.pth")
    torch.save({"model": {}, "epoch": epoch, "run": {"id": run_id}}, path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three epochs whose last checkpoint is that of the second."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(cfg_of(folder))
    for epoch in range(3):
        write_checkpoint(folder, epoch)
    (folder / "last_checkpoint").write_text("model_0001.pth")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def found_in(folder: Path) -> str:
    found = find_checkpoint(str(folder))
    return Path(found.path).name if found else ""


# --------------------------------------------------------------------------- a new run


def test_a_new_run_may_start_where_no_weights_are(tmp_path):
    for folder in (tmp_path / "none", tmp_path / "empty", tmp_path / "begun"):
        if folder.name != "none":
            folder.mkdir()
        if folder.name == "begun":
            write_config(cfg_of(folder, "rold"))
            (folder / "log.txt").write_text("old\n")
            (folder / "metrics.json").write_text("{}\n")
        check_start(str(folder))
        with claim(cfg_of(folder), None):
            assert (folder / "log.txt").is_file()
        assert not (folder / ".lock").exists()
    assert (folder / "log.txt").read_text().startswith("old\n")


def test_a_new_run_is_refused_where_another_is_and_changes_nothing(run, tmp_path):
    before = contents(run)
    with pytest.raises(UserError, match="already holds a run .*--resume .*--overwrite"):
        check_start(str(run))
    link = tmp_path / "link"
    link.symlink_to(run)
    for other in (link, run / ".." / "run"):
        with pytest.raises(UserError, match="already holds a run"):
            check_start(str(other))
    assert contents(run) == before


@pytest.mark.parametrize("name", ["notes.txt", "results.json", "data"])
def test_files_that_are_none_of_ours_are_refused_even_with_overwrite(tmp_path, name):
    (tmp_path / name).mkdir() if name == "data" else (tmp_path / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"no run's .{name}.; set another OUTPUT_DIR"):
            check_start(str(tmp_path), overwrite=overwrite)
    with pytest.raises(UserError, match="no run's"):
        find_checkpoint(str(tmp_path))  # --resume would start a new run


def test_overwrite_moves_the_whole_run_aside(run, tmp_path):
    (run / "notes.txt").write_text("mine")
    (tmp_path / "run.1").mkdir()
    link = tmp_path / "link"
    link.symlink_to(run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    check_start(str(link), overwrite=True)
    setup_logging(keep=True)
    with claim(cfg_of(link, "rtwo"), None, overwrite=True):
        assert "moved the run" in (run / "log.txt").read_text()
        assert {path.name for path in run.iterdir()} == {".lock", "log.txt"}
    assert {path.name: path.read_bytes() for path in (tmp_path / "run.2").iterdir()} == before
    assert link.is_symlink()


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="cannot write .*run: it is a file"):
        check_start(str(tmp_path / "run"))


def test_overwrite_does_not_move_the_folder_in_which_it_runs(run, monkeypatch):
    (run / "notebooks").mkdir()
    monkeypatch.chdir(run / "notebooks")
    before = contents(run)
    with pytest.raises(UserError, match="in which this command runs"):
        check_start("..", overwrite=True)
    assert contents(run) == before


# --------------------------------------------------------------------------- the lock


def test_a_second_start_is_refused_at_once_while_the_first_runs(run):
    with claim(cfg_of(run), find_checkpoint(str(run))):
        for start in (
            lambda: check_start(str(run)),
            lambda: check_start(str(run), overwrite=True),
            lambda: find_checkpoint(str(run)),
        ):
            with pytest.raises(UserError, match="another training is writing into"):
                start()
    assert found_in(run) == "model_0001.pth"


def test_a_killed_run_leaves_no_lock_behind_even_if_its_workers_live_on(run):
    read, write = os.pipe()

    def train() -> None:
        with claim(cfg_of(run), find_checkpoint(str(run))):
            worker = forked(lambda: time.sleep(60))
            os.write(write, str(worker).encode())
            kill_self()

    assert status_of(forked(train)) == -signal.SIGKILL
    worker = int(os.read(read, 100))
    try:
        assert (run / ".lock").exists() and found_in(run) == "model_0001.pth"
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_start_that_comes_second_is_refused_when_it_claims(run, tmp_path):
    found = find_checkpoint(str(run))
    write_checkpoint(run, 3)  # by another process
    with pytest.raises(UserError, match="another process has written"), claim(cfg_of(run), found):
        pass
    new = tmp_path / "new"
    check_start(str(new))
    new.mkdir()
    write_checkpoint(new, 0)
    with pytest.raises(UserError, match="another process has written"), claim(cfg_of(new), None):
        pass


# --------------------------------------------------------------------------- resume


def test_resume_takes_the_file_that_last_checkpoint_names(run):
    assert found_in(run) == "model_0001.pth" and choose_run_id(str(run), resume=True) == "rone"
    assert choose_run_id(str(run), resume=False) not in ("", "rone")


@pytest.mark.parametrize("name", [None, "", "..", "../other/model_0000.pth", "gone.pth", "\0"])
def test_resume_without_a_sound_last_checkpoint_takes_the_newest_of_the_run(run, name):
    other = run.with_name("other")
    other.mkdir()
    write_checkpoint(other, 9)
    write_checkpoint(run, 9, "rother", "model_0009.pth")
    (run / "model_final.pth").write_bytes(b"damaged")
    (run / "last_checkpoint").unlink() if name is None else (run / "last_checkpoint").write_text(
        name
    )
    before = contents(run)
    assert found_in(run) == "model_0002.pth"
    assert contents(run) == before


def test_weights_that_cannot_be_resumed_are_an_error_never_a_fresh_start(run):
    for path in run.glob("*.pth"):
        path.unlink()
    assert find_checkpoint(str(run)) is None  # killed before its first checkpoint
    assert choose_run_id(str(run), resume=True) == "rone"
    write_checkpoint(run, 0, "rother")
    with pytest.raises(UserError, match="of the run rother, but config.yaml .* of the run rone"):
        find_checkpoint(str(run))
    torch.save({"model": {}}, run / "model_0000.pth")
    with pytest.raises(UserError, match="holds only weights and cannot be resumed"):
        find_checkpoint(str(run))
    (run / "model_0000.pth").unlink()
    (run / "best").mkdir()
    write_checkpoint(run / "best", 0)
    with pytest.raises(UserError, match="none that --resume can continue"):
        find_checkpoint(str(run))
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match="weights but no config.yaml"):
        find_checkpoint(str(run))


@pytest.mark.parametrize("name", ["weights.safetensors", "results.json"])
def test_resume_starts_no_run_in_a_published_folder_or_in_that_of_an_evaluation(tmp_path, name):
    write_config(cfg_of(tmp_path, ""))
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"already holds a run .{name}.: --resume continues it if"):
        find_checkpoint(str(tmp_path))


def test_a_link_to_a_lost_disk_is_passed_over(run):
    (run / "model_0001.pth").unlink()
    (run / "model_0001.pth").symlink_to("/gone/model_0001.pth")
    found = find_checkpoint(str(run))
    assert found is not None and Path(found.path).name == "model_0002.pth"
    with claim(cfg_of(run), found):
        pass


def test_a_run_from_before_there_were_ids_goes_on_without_one(tmp_path):
    write_config(cfg_of(tmp_path, ""))
    torch.save({"model": {}, "epoch": 3}, tmp_path / "model_0003.pth")
    (tmp_path / "last_checkpoint").write_text("model_0003.pth\n")
    assert found_in(tmp_path) == "model_0003.pth"
    assert choose_run_id(str(tmp_path), resume=True) == ""
    write_checkpoint(tmp_path, 4, "rone")
    (tmp_path / "last_checkpoint").write_text("model_0004.pth")
    assert found_in(tmp_path) == "model_0003.pth"


def test_a_copied_folder_is_the_same_run(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert found_in(copy) == "model_0001.pth" and read_run_id(copy) == "rone"


# --------------------------------------------------------------------------- readers


def test_readers_refuse_weights_beside_another_runs_config(run):
    write_checkpoint(run, 2, "rother", "model_final.pth")
    path = Path(resolve_weights(run)[1])
    content = torch.load(path, weights_only=True)
    with pytest.raises(UserError, match="keep weights with the configuration of their own run"):
        check_run_id(path, content)
    with pytest.raises(UserError, match="is of no named run, but"):
        check_run_id(path, {"model": {}, "epoch": 2})
    check_run_id(path, {"model": {}})  # weights alone: a warning
    (run / "config.yaml").unlink()
    check_run_id(path, content)


def test_a_pipe_in_place_of_the_log_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.txt")
    with pytest.raises(UserError, match="log.txt is not a regular file"):
        open_log(tmp_path)

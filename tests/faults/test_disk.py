"""Disks that are full, small or read-only: one message, and no part of a file under its name."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import draw_market, forked, status_of, tiny_cfg, train
from torch import nn

from occluded_reid import files
from occluded_reid.checkpoints import Checkpointer
from occluded_reid.engine import Trainer
from occluded_reid.engine.hooks import forget_metrics_from
from occluded_reid.engine.setup import prepare_run
from occluded_reid.errors import UserError
from occluded_reid.files import remove_unfinished, whole_file, zip_fault

KIB = 1024


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """Mount a file system of so many KiB on ``folder``; for the superuser of Linux alone."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("no permission to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def write_checkpoint(folder: Path) -> None:
    Checkpointer(nn.Linear(256, 256), str(folder)).save("model_final")


def write_config(folder: Path) -> None:
    prepare_run(tiny_cfg(folder), training=False)


def write_metrics(folder: Path) -> None:
    forget_metrics_from(folder / "metrics.json", 9)


def write_array(folder: Path) -> None:
    with whole_file(folder / "features.npz") as stream:
        np.savez(stream, features=np.zeros((500, 100)))


def write_picture(folder: Path) -> None:
    with whole_file(folder / "figure.png") as stream:
        noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
        Image.fromarray(noise).save(stream, format="PNG")


WRITERS = [write_checkpoint, write_config, write_metrics, write_array, write_picture]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with metrics.json of some KiB."""
    made = tmp_path / "run"
    made.mkdir()
    line = json.dumps({"iteration": 1, "note": "x" * 200})
    (made / "metrics.json").write_text(f"{line}\n" * 20)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "log.txt"}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_limit_of_file_size_leaves_the_old_files(folder, writer: Callable[[Path], None]):
    writer(folder)
    before = contents(folder)

    def again() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (KIB, KIB))
        with pytest.raises(UserError, match="cannot write .*larger than a file may be there"):
            writer(folder)

    assert status_of(forked(again)) == 0
    assert contents(folder) == before


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_cannot_be_opened_or_renamed_leaves_the_old_files(folder, writer, number, monkeypatch):
    writer(folder)
    before = contents(folder)
    for module, name in ((files.tempfile, "mkstemp"), (files.os, "replace")):

        def refuse(*args: object, **kwargs: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as context:
            context.setattr(module, name, refuse)
            with pytest.raises(UserError, match="cannot write .*choose another folder"):
                writer(folder)
        assert contents(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("kib", [8, 24, 40, 60, 80, 100, 120])
def test_a_training_on_a_small_disk_ends_in_one_message(tmp_path, monkeypatch, kib):
    """It is full at the configuration, the metrics, TensorBoard's events, or a checkpoint."""
    monkeypatch.setenv("FASTREID_DATASETS", str(draw_market(tmp_path / "data")))
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = tiny_cfg(folder)

    def work() -> None:
        with pytest.raises(UserError, match="cannot write .*the disk is full"):
            train(cfg)
        assert not [name for name in contents(folder) if name.startswith(".")]
        for path in folder.glob("*.pth"):
            assert zip_fault(path) == ""

    with small_disk(folder, kib):
        assert status_of(forked(work)) == 0


def test_a_data_set_that_loses_a_file_during_the_run_names_it(tmp_path, monkeypatch):
    root = draw_market(tmp_path / "data")
    monkeypatch.setenv("FASTREID_DATASETS", str(root))
    lost = next(root.rglob("bounding_box_train/0003_c2*.jpg"))
    trainer = Trainer(prepare_run(tiny_cfg(tmp_path / "run"), training=True))
    lost.unlink()
    with pytest.raises(UserError, match=f"cannot read the image .*{lost.name}.*FileNotFound"):
        trainer.train()


def test_what_a_killed_process_left_is_removed_at_the_next_start(folder):
    """And nothing else."""

    def half() -> None:
        with whole_file(folder / "model_final.pth") as stream:
            stream.write(b"half")
            stream.flush()
            os._exit(9)

    assert status_of(forked(half)) == 9
    (folder / ".kept").write_text("")
    assert len(list(folder.iterdir())) == 3
    remove_unfinished(folder)
    assert {path.name for path in folder.iterdir()} == {".kept", "metrics.json"}

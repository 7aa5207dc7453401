"""Full, small and read-only disks: one message, and no incomplete file under a final name."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from indexes import add, create
from PIL import Image
from runs import draw_market, forked, status_of, tiny_cfg, train
from torch import nn

from occluded_reid.checkpoint.checkpointer import Checkpointer
from occluded_reid.data.build import open_dataset
from occluded_reid.data.prepare.occluder_sets import write_occluder_set, write_synthetic_patches
from occluded_reid.engine.defaults import prepare_run
from occluded_reid.engine.folder import write_config as write_run_config
from occluded_reid.engine.hooks import truncate_metrics
from occluded_reid.engine.train_step import TrainingStep
from occluded_reid.engine.trainer import Trainer
from occluded_reid.synthetic.generation import generate
from occluded_reid.utils import files
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_write, diagnose_zip, remove_unfinished

KIB = 1024


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """Mount a file system of ``kib`` KiB on ``folder``; only root on Linux can."""
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
    write_run_config(tiny_cfg(folder))


def write_metrics(folder: Path) -> None:
    truncate_metrics(folder / "metrics.json", 9, "")


def write_array(folder: Path) -> None:
    with atomic_write(folder / "features.npz") as stream:
        np.savez(stream, features=np.zeros((500, 100)))


def write_image(folder: Path) -> None:
    with atomic_write(folder / "figure.png") as stream:
        noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
        Image.fromarray(noise).save(stream, format="PNG")


def write_occluders(folder: Path) -> None:
    write_occluder_set(folder / "set", write_synthetic_patches)


def write_pasted_queries(folder: Path) -> None:
    open_dataset(tiny_cfg(folder, "DATASETS.OCCLUDED.ROOT", folder), "OccludedMarket1501")


def write_synthetic_set(folder: Path) -> None:
    generate(folder, "tiny", workers=1)


def write_index(folder: Path) -> None:
    create(folder / "index")


WRITERS = [write_checkpoint, write_config, write_metrics, write_array, write_image]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with a metrics.json of a few KiB."""
    made = tmp_path / "run"
    made.mkdir()
    line = json.dumps({"iteration": 1, "note": "x" * 200})
    (made / "metrics.json").write_text(f"{line}\n" * 20)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files by name, without the log and lock files."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.name: path.read_bytes() for path in files if path.name != "log.txt"}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_size_limit_leaves_the_old_files(folder, writer: Callable[[Path], None]):
    writer(folder)
    before = contents(folder)

    def again() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (KIB, KIB))
        with pytest.raises(UserError, match="cannot write .*the file is larger than allowed"):
            writer(folder)

    assert status_of(forked(again)) == 0
    assert contents(folder) == before


@pytest.mark.parametrize(
    "writer", [write_occluders, write_pasted_queries, write_synthetic_set, write_index]
)
def test_a_file_size_limit_leaves_no_half_folder(folder, tmp_path, monkeypatch, writer):
    monkeypatch.setenv("FASTREID_DATASETS", str(draw_market(tmp_path / "data")))
    before = contents(folder)

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (KIB, KIB))
        with pytest.raises(UserError, match="the file is larger than allowed|is the disk full"):
            writer(folder)

    assert status_of(forked(write)) == 0
    assert contents(folder) == before and not list(folder.rglob(".*.tmp-*"))


@pytest.mark.parametrize(
    ("kib", "message"),
    [(8, "gallery.sqlite .*is the disk full"), (256, "vectors-0.f32: the file is larger")],
)
def test_a_file_size_limit_leaves_the_index_as_it_was(tmp_path, kib, message):
    """Either the database or the vectors cannot grow."""
    dim, few, many = 2048, 8, 100
    index = create(tmp_path / "index", dim=dim)
    add(index, np.eye(dim, dtype=np.float32)[:few])

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kib * KIB, kib * KIB))
        with pytest.raises(UserError, match=message):
            add(index, np.ones((many, dim), np.float32), few)

    def count_results() -> int:
        return len(index.search(np.ones((1, dim)), top=few + many)[0])

    assert status_of(forked(write)) == 0
    assert len(index) == few == count_results()
    add(index, np.ones((many, dim), np.float32), few)
    assert len(index) == few + many == count_results()


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_errors_on_open_and_rename_leave_the_old_files(folder, writer, number, monkeypatch):
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
    """The disk is full at config.yaml, the metrics, TensorBoard's events, or a checkpoint."""
    monkeypatch.setenv("FASTREID_DATASETS", str(draw_market(tmp_path / "data")))
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = tiny_cfg(folder)

    def work() -> None:
        with pytest.raises(UserError, match="cannot write .*the disk is full"):
            train(cfg)
        assert not [name for name in contents(folder) if name.startswith(".")]
        for path in folder.glob("*.pth"):
            assert diagnose_zip(path) == ""

    with small_disk(folder, kib):
        assert status_of(forked(work)) == 0


def test_a_data_set_that_loses_a_file_during_the_run_names_it(tmp_path, monkeypatch):
    root = draw_market(tmp_path / "data")
    monkeypatch.setenv("FASTREID_DATASETS", str(root))
    lost = next(root.rglob("bounding_box_train/0003_c2*.jpg"))
    trainer = Trainer(prepare_run(tiny_cfg(tmp_path / "run"), training=True))
    lost.unlink()
    with pytest.raises(UserError, match=f"cannot read the image .*{lost.name}.*No such file"):
        trainer.train()


@pytest.mark.parametrize(
    ("gone", "options", "message"),
    [
        ("bounding_box_train", [], "cannot read the image .*bounding_box_train.*No such file"),
        (
            "bounding_box_train",
            ["INPUT.ON_ERROR", "skip"],
            "no image of 10 batches could be read, the last .*No such file.*; is its folder still",
        ),
        ("query", [], "Market1501"),
        ("bounding_box_test", ["INPUT.ON_ERROR", "skip"], "Market1501"),
    ],
)
def test_a_folder_that_vanishes_during_the_run_ends_it(
    tmp_path, monkeypatch, gone, options, message
):
    root = draw_market(tmp_path / "data")
    monkeypatch.setenv("FASTREID_DATASETS", str(root))
    step = TrainingStep.run_step

    def run_step(self: TrainingStep) -> None:
        if self.iter == 7:
            shutil.rmtree(next(root.rglob(gone)))
        step(self)

    monkeypatch.setattr(TrainingStep, "run_step", run_step)
    with pytest.raises(UserError, match=message):
        train(tiny_cfg(tmp_path / "run", *options))
    last = "model_0000.pth" if gone == "bounding_box_train" else "model_0001.pth"
    assert (tmp_path / "run" / "last_checkpoint").read_text() == last


def test_only_the_leftovers_of_a_killed_process_are_removed(folder):

    def write_half() -> None:
        with atomic_write(folder / "model_final.pth") as stream:
            stream.write(b"half")
            stream.flush()
            os._exit(9)

    assert status_of(forked(write_half)) == 9
    (folder / ".kept").write_text("")
    assert len(list(folder.iterdir())) == 3
    remove_unfinished(folder)
    assert {path.name for path in folder.iterdir()} == {".kept", "metrics.json"}

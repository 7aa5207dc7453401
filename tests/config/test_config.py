"""Configurations: what a mistake in one says, and what the keys accept."""

from __future__ import annotations

import logging
import os
import time

import pytest
import torch

from occluded_reid.config import load_config
from occluded_reid.utils.errors import UserError


def write(folder, text, name="run.yml"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_a_file_over_its_base_and_overrides_over_both(tmp_path):
    write(tmp_path, "SEED: 3\nSOLVER:\n  ACCUMULATE: 2\n  MAX_EPOCH: 9\n", "base.yml")
    path = write(tmp_path, "_BASE_: base.yml\nSOLVER:\n  ACCUMULATE: 4\n")
    cfg = load_config(path, ["SOLVER.MAX_EPOCH", "5"])
    assert (cfg.SEED, cfg.SOLVER.ACCUMULATE, cfg.SOLVER.MAX_EPOCH) == (3, 4, 5)
    assert cfg.is_frozen()


def test_shipped_files_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "configs/synthetic_baseline.yml"
    assert load_config(name).DATASETS.NAMES == ("SyntheticOccluded",)
    with pytest.raises(UserError, match=f"^no configuration file configs/synth.yml.*{name}"):
        load_config("configs/synth.yml")
    (tmp_path / "configs").mkdir()
    write(tmp_path, "SEED: 3\n", name)  # the working directory comes first
    assert load_config(name).SEED == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "SOLVER:\n  MAX_EPOC: 5\n",
            "no configuration key SOLVER.MAX_EPOC; did you mean SOLVER.MA",
        ),
        ("seed: 5\n", "there is no configuration key seed; did you mean SEED"),
        (
            "SOLVER:\n  MAX_EPOCH: [5]\n",
            "MAX_EPOCH cannot be .5.; it takes a whole number such as 120",
        ),
        ("SOLVER: 5\n", "SOLVER is a section"),
        ("SOLVER:\n", "SOLVER is a section"),
        ("_BASE_: run.yml\n", "its _BASE_ leads back to itself"),
        ("a: [1\n", "is no configuration"),
        ("just words\n", "is no configuration"),
        ("", "is no configuration"),
        ("_BASE_: gone.yml\n", "its _BASE_ .*gone.yml does not exist"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, text))


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 15))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: other.yml\n", "run.yml: its _BASE_ leads back to itself .*run.yml > .*other.yml"),
        ("_BASE_: pipe.yml\n", "pipe.yml is no configuration .*it is no file"),
        ("_BASE_: binary.yml\n", "binary.yml is no configuration"),
        ("_BASE_: huge.yml\n", "huge.yml is no configuration .*at most 262144 are read"),
        (LAUGHS, "run.yml is no configuration .*more than 10000 values"),
        (f"SEED: {'[' * 50}{']' * 50}\n", "nested more than 20 deep"),
    ],
)
def test_an_odd_file_is_refused_at_once(tmp_path, text, message):
    write(tmp_path, "_BASE_: run.yml\n", "other.yml")
    os.mkfifo(tmp_path / "pipe.yml")
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    write(tmp_path, "#" * 300_000, "huge.yml")
    began = time.monotonic()
    with pytest.raises(UserError, match=f"(?s){message}"):
        load_config(write(tmp_path, text))
    assert time.monotonic() - began < 5


def test_an_unknown_file_suggests_its_neighbours(tmp_path):
    write(tmp_path, "SEED: 1\n", "synthetic_baseline.yml")
    with pytest.raises(UserError, match="did you mean .*synthetic_baseline.yml"):
        load_config(str(tmp_path / "synthetic_baselin.yml"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.MAX_EPOCHS", "5"], "the command line: .* SOLVER.MAX_EPOCHS; did you mean"),
        (["SOLVER.MAX_EPOCH"], "KEY VALUE pairs, but 1 words"),
        (
            ["SOLVER.MAX_EPOCH=5"],
            "=5: separate key and value by a space: SOLVER.MAX_E.* 5$",
        ),
        (["SOLVER.MAX_EPOCH", "many"], "SOLVER.MAX_EPOCH cannot be 'many'; it takes a whole num"),
        (["SOLVER.MAX_EPOCH", "2.5"], "SOLVER.MAX_EPOCH cannot be 2.5; it takes a whole number"),
        (["DATASETS.NAMES", "Market1501"], "NAMES cannot be 'Market1501'; it takes a list"),
        (["INPUT.SIZE_TEST", "256"], r"SIZE_TEST cannot be 256; .* a list such as \[256, 128\]"),
        (["INPUT.SIZE_TRAIN", "[256]"], r"SIZE_TRAIN is \[256\]; it must be height and width"),
        (["MODEL.HEADS", "5"], "MODEL.HEADS cannot be 5; it takes a section with keys below it$"),
        (["INPUT.ON_ERROR", "ignore"], "INPUT.ON_ERROR is 'ignore'; it can be raise or skip"),
        (["TEST.METRIC", "cosin"], "TEST.METRIC is 'cosin'"),
        (["SOLVER.AMP.DTYPE", "int8"], "SOLVER.AMP.DTYPE is 'int8'"),
        (["SOLVER.ACCUMULATE", "0"], "SOLVER.ACCUMULATE is 0; it must be from 1"),
        (["SOLVER.WEIGHT_DECAY", "-0.1"], "SOLVER.WEIGHT_DECAY is -0.1; it must be from 0"),
        (["DATALOADER.NUM_INSTANCE", "0"], "DATALOADER.NUM_INSTANCE is 0; it must be from 1"),
        (["SOLVER.BASE_LR", "-1.0"], "SOLVER.BASE_LR is -1.0"),
        (["SOLVER.MAX_EPOCH", "0"], "SOLVER.MAX_EPOCH is 0"),
        (["SOLVER.SCHED", "Foo"], "SOLVER.SCHED is 'Foo'"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu'; it can be cpu, cuda or cuda:0"),
        (["MODEL.LOSSES.NAME", "('TripletLos',)"], "it can hold CircleLoss"),
        (["MODEL.LOSSES.NAME", "()"], "MODEL.LOSSES.NAME is"),
        (["OUTPUT_DIR", ""], "OUTPUT_DIR is empty"),
        (["DATASETS.NAMES", "()"], "DATASETS.NAMES is empty"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config("", overrides)


def test_a_whole_number_will_do_where_a_decimal_point_is_expected(tmp_path):
    assert load_config("", ["SOLVER.BASE_LR", "1"]).SOLVER.BASE_LR == 1.0
    path = write(tmp_path, "SOLVER: {BASE_LR: 1}\n")
    assert isinstance(load_config(path).SOLVER.BASE_LR, float)


def test_an_image_size_that_lies_on_its_side_is_said_to(caplog):
    logging.getLogger("occluded_reid").propagate = True
    with caplog.at_level(logging.WARNING):
        load_config("", ["INPUT.SIZE_TRAIN", "[256, 128]"])
        assert "no crops of people" not in caplog.text
        load_config("", ["INPUT.SIZE_TRAIN", "[128, 256]"])
    assert "INPUT.SIZE_TRAIN is [height, width]: images 256 wide, 128 high" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_the_device_becomes_the_cpu_and_the_log_says_so(caplog):
    logging.getLogger("occluded_reid").propagate = True
    with caplog.at_level(logging.WARNING):
        assert load_config().MODEL.DEVICE == "cpu"
    assert "No GPU found, using the CPU" in caplog.text
    with pytest.raises(UserError, match="float16 needs a GPU"):
        load_config("", ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"])

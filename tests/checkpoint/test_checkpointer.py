"""Checkpoints: written whole, read safely, and refused when they do not fit."""

from __future__ import annotations

import errno
import os
import pickle

import numpy as np
import pytest
import torch
from fastreid.utils import comm
from ranks import on_ranks
from torch import nn

from occluded_reid.checkpoint import checkpointer as checkpoints
from occluded_reid.checkpoint.checkpointer import Checkpointer, weights_sha256
from occluded_reid.checkpoint.fitting import list_training_parts
from occluded_reid.config import load_config
from occluded_reid.modeling.build import build_untrained, remove_training_parts
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_write, make_folder


def network(classes: int = 4) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model.heads = nn.Linear(2, classes, bias=False)
    return model


def test_round_trip(tmp_path):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    Checkpointer(model, str(tmp_path), optimizer=optimizer).save("model_0001", epoch=1)
    other = network()
    loader = Checkpointer(other, str(tmp_path), optimizer=torch.optim.Adam(other.parameters()))
    assert loader.resume(str(tmp_path / "model_0001.pth")) == {"epoch": 1}
    assert weights_sha256(other) == weights_sha256(model)


@pytest.mark.distributed
def test_machines_without_the_file_get_what_rank_0_reads(tmp_path):
    def work(rank: int) -> None:
        torch.manual_seed(rank)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=(1 + rank) / 10)
        loader = Checkpointer(model, str(tmp_path), optimizer=optimizer, save_to_disk=rank == 0)
        loader.save("model_0001", epoch=1)
        file = str(tmp_path / f"{'elsewhere/' * rank}model_0001.pth")
        assert loader.load(file) == {"epoch": 1} and optimizer.param_groups[0]["lr"] == 0.1
        assert len(set(comm.all_gather(weights_sha256(model)))) == 1
        with pytest.raises(UserError, match="there is no checkpoint gone0"):
            loader.load(f"gone{rank}")

    on_ranks(2, work)


def test_fastreid_reads_what_we_write(tmp_path):
    from fastreid.utils.checkpoint import Checkpointer as Fastreids

    model, other = network(), network()
    Checkpointer(model, str(tmp_path)).save("model_final")
    Fastreids(other).load(str(tmp_path / "model_final.pth"))
    assert weights_sha256(other) == weights_sha256(model)


def test_a_bare_state_dict_and_a_data_parallel_one_are_read(tmp_path):
    model = network()
    path = tmp_path / "weights.pth"
    for prefix in ("", "module."):
        state = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
        torch.save(state, path)
        other = network()
        Checkpointer(other).load(str(path))
        assert weights_sha256(other) == weights_sha256(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.weight"), "0.weight is not in the file"),
        (lambda s: s.update(extra=torch.ones(1)), "extra is not in the model"),
        (lambda s: s.update({"0.weight": torch.ones(2, 9)}), r"0.weight is \(2, 9\) in the file, "),
        (
            lambda s: [s.update({f"base.{k}": s.pop(k)}) for k in list(s)],
            "0.weight is not in the file; .*and 10 more",
        ),
        (lambda s: s.update({"0.bias": torch.ones(5)}), r"0.bias is \(5,\) in the file"),
    ],
)
def test_weights_that_do_not_fit_stop_the_run(tmp_path, change, message):
    state = network().state_dict()
    change(state)
    path = tmp_path / "weights.pth"
    torch.save({"model": state}, path)
    with pytest.raises(UserError, match=message):
        Checkpointer(network(), num_classes=4).load(str(path))


def test_a_classifier_of_other_identities_is_left_out_but_not_when_resuming(tmp_path):
    Checkpointer(network(classes=9), str(tmp_path)).save("model_0000", epoch=0)
    model = network(classes=4)
    before = model.heads.weight.clone()
    fresh = Checkpointer(model, str(tmp_path), num_classes=4)
    fresh.resume_or_load(str(tmp_path / "model_0000.pth"), resume=False)
    torch.testing.assert_close(model.heads.weight, before, rtol=0, atol=0)
    with pytest.raises(UserError, match=r"heads.weight is \(9, 2\) in the file"):
        fresh.resume(str(tmp_path / "model_0000.pth"))


def test_the_optimizer_of_another_run_is_refused(tmp_path):
    model = network()
    one_group = torch.optim.SGD(model.parameters(), lr=1.0)
    Checkpointer(model, str(tmp_path), optimizer=one_group).save("model_0000", epoch=0)
    two_groups = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=1.0)
    adam = torch.optim.Adam(model.parameters(), lr=1.0)
    for other, told in (two_groups, "2 entries|1 entries"), (adam, "optimizer is of 'SGD', not Ad"):
        loader = Checkpointer(model, str(tmp_path), optimizer=other)
        with pytest.raises(UserError, match=rf"holds the state of another run \(.*{told}"):
            loader.resume(str(tmp_path / "model_0000.pth"))


class Malicious:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_a_file_that_would_run_code_is_refused(tmp_path, plain_pickle):
    path, trap = tmp_path / "model.pth", tmp_path / "code_has_run"
    content = {"model": network().state_dict(), "extra": Malicious(str(trap))}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match="(?s)model.pth .*can run code.*--trust-checkpoint"):
        Checkpointer(network()).load(str(path))
    assert not trap.exists()
    if not plain_pickle:
        Checkpointer(network(), trust=True).load(str(path))
        assert trap.exists()


def test_numpy_numbers_are_data(tmp_path):
    model = network()
    path = tmp_path / "model.pth"
    torch.save({"model": model.state_dict(), "metric": np.float64(3), "iter": np.int64(2)}, path)
    assert Checkpointer(network()).load(str(path))["metric"] == 3


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half a zip"])
def test_what_is_no_checkpoint_is_said_so(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model.pth is no checkpoint"):
        Checkpointer(network()).load(str(path))


def test_a_truncated_checkpoint_and_one_without_weights_are_said_so(tmp_path):
    Checkpointer(network(), str(tmp_path)).save("model")
    path = tmp_path / "model.pth"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="model.pth is no checkpoint or is damaged"):
        Checkpointer(network()).load(str(path))
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="holds no weights"):
        Checkpointer(network()).load(str(path))
    with pytest.raises(UserError, match="there is no checkpoint"):
        Checkpointer(network()).load(str(tmp_path / "gone.pth"))


def test_averaged_weights_are_asked_for_by_name(tmp_path):
    model, average = network(), network()
    Checkpointer(model, str(tmp_path), ema=average).save("model")
    path, other = str(tmp_path / "model.pth"), network()
    Checkpointer(other).load(path, part="ema")
    assert weights_sha256(other) == weights_sha256(average)
    Checkpointer(model, str(tmp_path)).save("model")
    with pytest.raises(UserError, match="holds no averaged weights"):
        Checkpointer(other).load(path, part="ema")


# ------------------------------------------------------------- what only training needs


class WithTrainingParts(nn.Module):
    training_only = ("classifiers", "bank")

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)
        self.classifiers = nn.ModuleDict({"one": nn.Linear(2, 5)})
        self.register_buffer("bank", torch.zeros(5, 2))


def published(folder) -> str:
    """Weights without what only training needs."""
    torch.save(WithTrainingParts().body.state_dict(prefix="body."), folder / "published.pth")
    return str(folder / "published.pth")


def test_evaluation_reads_weights_without_what_only_training_needs(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(checkpoints.logger, "info", said.append)
    path, model = published(tmp_path), WithTrainingParts()
    Checkpointer(model).load(path)
    assert torch.equal(model.body.weight, torch.load(path)["body.weight"])
    assert len(said) == 2 and said[1].endswith("only needed in training: bank, classifiers")
    torch.save({"classifiers.one.weight": torch.ones(5, 2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="body.weight is not in the file; body.bias is not in the"):
        Checkpointer(model).load(str(tmp_path / "other.pth"))


def test_a_training_makes_them_anew_but_a_resumed_one_needs_them(tmp_path):
    model = WithTrainingParts()
    before = model.classifiers["one"].weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loader = Checkpointer(model, str(tmp_path), optimizer=optimizer)
    loaded = loader.resume_or_load(published(tmp_path), resume=False)
    assert loaded.made_anew == ("bank", "classifiers") and loaded.states == loaded.left_out == ()
    assert torch.equal(model.classifiers["one"].weight, before)
    torch.save({"classifiers.one.weight": torch.ones(5, 2)}, tmp_path / "broken.pth")
    with pytest.raises(UserError, match="body.weight is not in the file"):
        loader.resume_or_load(str(tmp_path / "broken.pth"), resume=False)
    states = {"optimizer": optimizer.state_dict(), "epoch": 0}
    torch.save({"model": torch.load(published(tmp_path)), **states}, tmp_path / "published.pth")
    with pytest.raises(UserError, match="bank is not in the file"):
        loader.resume(str(tmp_path / "published.pth"))


def test_a_model_without_them_reads_a_file_that_has_them(tmp_path):
    whole = WithTrainingParts()
    Checkpointer(whole, str(tmp_path)).save("model_final")
    model = remove_training_parts(WithTrainingParts())
    assert model.state_dict().keys() == {"body.weight", "body.bias"}
    Checkpointer(model).load(str(tmp_path / "model_final.pth"))
    assert torch.equal(model.body.weight, whole.body.weight)


def test_of_fastreids_models_the_classifier_is_left_out():
    words = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.FEAT_DIM", "512"]
    words += ["MODEL.HEADS.NUM_CLASSES", "7", "MODEL.BACKBONE.PRETRAIN", "True"]
    model = build_untrained(load_config("", words)).eval()
    images = torch.rand(2, 3, 64, 32)
    before = model({"images": images})
    assert list_training_parts(model) == ("heads.weight",)
    assert torch.equal(remove_training_parts(model)({"images": images}), before)
    assert "heads.weight" not in model.state_dict()


# --------------------------------------------------------------------------- whole files


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, number):
    path = tmp_path / "model.pth"
    saver = Checkpointer(network(), str(tmp_path))
    saver.save("model")
    before = path.read_bytes()

    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="cannot write .*model.pth: "):
        saver.save("model")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]


def test_other_errors_pass_and_leave_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "file") as stream:
        stream.write(b"half")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_a_file_stands_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file|a file is where"):
        make_folder(tmp_path / "file")
    with pytest.raises(UserError, match="a part of the path is a file"):
        make_folder(tmp_path / "file" / "folder")

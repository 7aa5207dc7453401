"""The messages that several ranks send are those that the shapes of model and memories imply."""

from __future__ import annotations

import argparse
import json
import pickle

import distributed
import numpy as np
import pytest
from cases.training import AONetCase, FEDCase
from documented import ROOT
from ranks import on_ranks

FED = FEDCase(pairs=4, instances=2, identities=8, channels=16, blocks=1, heads=2, image=(64, 32))
AONET = AONetCase(images=4, identities=4, depth="18x", channels=512, image=(64, 32))


def count_pickled(value: object) -> int:
    """Return the bytes that fast-reid's all_gather sends: a length, then a pickle."""
    return 8 + len(pickle.dumps(value))


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("case", "memories", "terms"),
    [
        (FED, [4 * 8 * (4 * 16 + 1)] * 2, 12),  # I sums of D values, and counts
        pytest.param(
            AONET, [4 * 6 * (512 + 1)], 3,  # P sums of C values, and counts
            marks=pytest.mark.slow,
        ),
    ],
    ids=["FED", "AONet"],
)  # fmt: skip
def test_bytes_follow_from_the_shapes(case, memories, terms, tmp_path, monkeypatch, capfd):
    file = tmp_path / "new" / "two.json"
    monkeypatch.setattr(distributed, "build_case", lambda *_: case)
    args = argparse.Namespace(
        method="either", images=4, rounds=1, device="cpu", json=str(file)
    )  # fmt: skip
    on_ranks(2, lambda rank: distributed.run(args))
    results = json.loads(file.read_text())
    model = case.build_model()
    gradients = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    buffers = [4 * b.numel() if b.is_floating_point() else b.nbytes for b in model.buffers()]
    rows = {row["purpose"]: (row["number"], row["bytes"]) for row in results["messages"]}
    assert rows.pop("gradients")[1] == gradients == sum(results["gradient_messages"])
    assert rows == {
        "memories": (len(memories), sum(memories)),
        "losses": (2, count_pickled(np.zeros((1, terms), np.float32))),
        "stop signal": (2, count_pickled(False)),
        "buffers": (len(buffers), sum(buffers)),
    }
    assert results["memory_messages"] == memories
    assert results["gradient_bytes_held"] == gradients
    assert {*results["times"]} == {"step", "step alone"}
    assert "| step alone " in capfd.readouterr().out


def test_committed_messages_follow_from_the_shapes():
    for name, identities, memories in (("fed", 702, 2 * 702 * 3073), ("aonet", 702, 6 * 2049)):
        file = ROOT / "benchmarks" / "results" / f"distributed_{name}.json"
        results = json.loads(file.read_text(encoding="utf-8"))
        assert results["case"]["identities"] == identities
        assert sum(results["gradient_messages"]) == 4 * results["parameters"]
        assert sum(results["memory_messages"]) == 4 * memories
        assert {*results["times"]} == {"step", "step alone"}


def test_one_process_is_refused(capsys):
    assert distributed.command(["--ranks", "1"]) == 2
    assert "one process sends no messages" in capsys.readouterr().err


def test_options_are_checked_before_anything_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "launch", None)
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 1)
    for words, message in (
        (["--images", "3"], "an even number"),
        (["--device", "cuda"], "this machine has 1 GPUs"),
        (["--json", str(tmp_path)], f"cannot write {tmp_path}"),
    ):
        assert distributed.command(words) == 2
        assert message in capsys.readouterr().err

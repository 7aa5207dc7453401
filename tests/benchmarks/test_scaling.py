"""What several ranks send, counted and by formula; how a training scales by that."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import distributed
import numpy as np
import pytest
import scaling
from cases.aonet_case import AONetCase, build_aonet
from cases.fed_case import FEDCase, build_fed
from documented import ROOT, commands
from ranks import on_ranks
from scaling import (
    AS_TRAINED,
    BF16,
    Link,
    Training,
    all_gather,
    all_reduce,
    hiding,
    iteration,
    shares,
)

BENCHMARKS = ROOT / "benchmarks"
FED = FEDCase(pairs=4, instances=2, identities=8, channels=16, blocks=1, heads=2, image=(64, 32))
AONET = AONetCase(images=4, identities=4, depth="18x", channels=512, image=(64, 32))
PAGE = "docs/scaling.md"


def measured(case, folder: Path, monkeypatch, *variants: str) -> Path:
    """Measure on two ranks; return the file."""
    file = folder / "new" / "two.json"
    monkeypatch.setattr(distributed, "of_method", lambda *_: case)
    args = argparse.Namespace(
        method="either", images=4, variants=variants, rounds=1, device="cpu", json=str(file)
    )
    on_ranks(2, lambda rank: distributed.run(args))
    return file


def pickled(value: object) -> int:
    """Bytes of what fast-reid's all_gather sends: a length, then a pickle."""
    return 8 + len(pickle.dumps(value))


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("case", "build", "memories", "terms"),
    [
        (FED, build_fed, [4 * 8 * (4 * 16 + 1)] * 2, 12),  # I sums of D numbers, and counts
        pytest.param(
            AONET, build_aonet, [4 * 6 * (512 + 1)], 3,  # P sums of C numbers, and counts
            marks=pytest.mark.slow,
        ),
    ],
    ids=["FED", "AONet"],
)  # fmt: skip
def test_bytes_are_those_of_the_shapes(case, build, memories, terms, tmp_path, monkeypatch, capfd):
    found = json.loads(measured(case, tmp_path, monkeypatch, BF16).read_text())
    model = build(case)
    gradients = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    buffers = [4 * b.numel() if b.is_floating_point() else b.nbytes for b in model.buffers()]
    variants = found["variants"]
    messages = variants[AS_TRAINED]["messages"]
    rows = {row["purpose"]: (row["number"], row["bytes"]) for row in messages}
    assert rows.pop("gradients")[1] == gradients
    assert rows == {
        "memories": (len(memories), sum(memories)),
        "losses": (2, pickled(np.zeros((1, terms), np.float32))),
        "stop signal": (2, pickled(False)),
        "buffers": (len(buffers), sum(buffers)),
    }
    assert variants[AS_TRAINED]["memory_messages"] == memories
    assert [sum(variants[name]["gradient_messages"]) for name in (AS_TRAINED, BF16)] == [
        gradients, gradients // 2
    ]  # fmt: skip
    assert variants[AS_TRAINED]["gradient_bytes_held"] == gradients
    assert {*variants[AS_TRAINED]["times"]} == {"step", "step alone"}
    assert "| memories, rows gathered " in capfd.readouterr().out


def test_one_process_is_refused(capsys):
    assert distributed.command(["--ranks", "1"]) == 2
    assert "one process sends no messages" in capsys.readouterr().err


def ring(ranks: int) -> int:
    """Hops of a ring all-reduce of as many numbers as ranks, by doing it."""
    held = np.arange(ranks)[:, None] + np.zeros((ranks, ranks))  # of a rank: one number per rank
    hops = 0
    for start, adds in ((0, True), (1, False)):
        for turn in range(ranks - 1):
            hops += 1
            place = [(rank + start - turn) % ranks for rank in range(ranks)]
            sent = [held[rank, place[rank]] for rank in range(ranks)]
            for rank in range(ranks):
                to, what = (rank + 1) % ranks, place[rank]
                held[to, what] = held[to, what] * adds + sent[rank]
    assert (held == np.arange(ranks).sum()).all()
    return hops


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_seconds_of_an_all_reduce_are_those_of_its_hops(ranks):
    link = Link(gbit=8, latency=0.5)  # a byte takes a nanosecond
    hops = ring(ranks)
    assert all_reduce(ranks * 10**9, ranks, link) == pytest.approx(hops * (1 + 0.5))
    assert all_gather(10**9, ranks, link) == pytest.approx((ranks - 1) * (1 + 0.5))


def test_an_iteration_is_its_parts():
    """Two ranks, a byte a nanosecond: an all-reduce takes as many seconds as it has gigabytes."""
    link, giga = Link(gbit=8, latency=0), 10**9
    training = Training(step=6, gradients=(giga, 2 * giga), memories=(giga,))
    assert iteration(training, 2, link, overlap=False) == pytest.approx(6 + 1 + 3)
    assert iteration(training, 2, link, overlap=True) == pytest.approx(6 + 1 + 2)  # the last one
    slow = Training(step=3, gradients=(4 * giga, giga), memories=(), gathered=(giga,))
    assert iteration(slow, 2, link, overlap=True) == pytest.approx(1 + 5 + 1)  # forward and network
    often = Training(step=6, gradients=(2 * giga, 2 * giga), memories=(giga,), accumulate=4)
    assert iteration(often, 2, link, overlap=False) == pytest.approx(6 + 1 + 4 / 4)
    assert hiding(slow, 2) == pytest.approx(8 * 5 / 2)
    assert shares(training, 2, link) == "67 / 60"


def test_the_page_shows_what_the_command_prints(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    shown = [words for words in commands(page) if "benchmarks/scaling.py" in words]
    assert len(shown) == 2
    for words in shown:
        assert scaling.command(words[words.index("benchmarks/scaling.py") + 1 :]) == 0
        printed = capsys.readouterr().out
        assert printed.count("\n|") > 10 and printed in page


def test_committed_messages_are_those_of_the_shapes():
    for name, identities, memories in (("fed", 702, 2 * 702 * 3073), ("aonet", 702, 6 * 2049)):
        file = BENCHMARKS / "results" / f"distributed_{name}.json"
        found = json.loads(file.read_text(encoding="utf-8"))
        plain = found["variants"][AS_TRAINED]
        assert found["case"]["identities"] == identities
        assert sum(plain["gradient_messages"]) == 4 * found["parameters"]
        assert sum(plain["memory_messages"]) == 4 * memories


def test_what_distributed_has_not_written_is_refused(tmp_path, capsys):
    assert scaling.command([str(tmp_path / "none.json"), "--step-ms", "22"]) == 2
    assert "cannot read" in capsys.readouterr().err
    for content in ("", "[]", '{"figures": {}}', '{"variants": 5}', '{"variants": {}}'):
        (tmp_path / "other.json").write_text(content)
        assert scaling.command([str(tmp_path / "other.json"), "--step-ms", "22"]) == 2
    with pytest.raises(SystemExit):
        scaling.command(["x.json", "--step-ms", "22", "--links", "10"])


@pytest.mark.parametrize(
    "words",
    [
        ("--step-ms", "0"), ("--step-ms", "-5"), ("--step-ms", "nan"), ("--links", "inf:5"),
        ("--ranks", "0"), ("--accumulate", "-2"), ("--images", "x"), ("--numbers", "2", "0"),
    ],
)  # fmt: skip
def test_a_number_that_means_nothing_is_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        scaling.command(["x.json", "--step-ms", "22", *words])
    assert ended.value.code == 2 and "invalid" in capsys.readouterr().err


def test_two_links_of_one_name_are_refused(capsys):
    assert scaling.command(["x.json", "--step-ms", "22", "--links", "10:5", "10:50"]) == 2
    assert "the same Gbit/s" in capsys.readouterr().err


def test_what_cannot_be_started_is_refused_before_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "launch", None)
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 1)
    for words, message in (
        (["--images", "3"], "an even number"),
        (["--device", "cuda"], "this machine has 1 GPUs"),
        (["--json", str(tmp_path)], f"cannot write {tmp_path}"),
    ):
        assert distributed.command(words) == 2
        assert message in capsys.readouterr().err

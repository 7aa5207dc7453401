"""Fuzz the readers of a run's files and of weights: content or one message, never a traceback.

``FUZZ_EXAMPLES=2000 pytest -m slow tests/faults/test_files_of_others.py`` tries that many files of
each kind.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.utils import ModelEmaV3
from torch import nn

from occluded_reid.checkpoint.checkpointer import Checkpointer
from occluded_reid.checkpoint.pretrained import read_weights
from occluded_reid.checkpoint.resolve import read_last_checkpoint
from occluded_reid.config import read_yaml
from occluded_reid.engine.hooks import truncate_metrics
from occluded_reid.engine.interruption import capture_rank_state, read_partial_epoch
from occluded_reid.evaluation.comparison import compare_runs
from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.evaluation.results import pack_queries, report_queries, summarize_ranking
from occluded_reid.evaluation.run_tables import tabulate_runs
from occluded_reid.utils.errors import UserError
from occluded_reid.visualization.curves import group_curves, read_metrics

pytestmark = pytest.mark.slow

fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", 300)),
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
DTYPES = st.sampled_from(
    [torch.float32, torch.float16, torch.float64, torch.bfloat16, torch.int64, torch.int8,
     torch.bool, torch.complex64, torch.float8_e5m2, torch.uint16]
)  # fmt: skip
TENSORS = st.one_of(
    st.builds(lambda shape, dtype: torch.zeros(shape).to(dtype), SHAPES, DTYPES),
    st.builds(lambda shape, value: torch.full(shape, value), SHAPES, st.floats(width=32)),
    st.builds(lambda size: torch.ones(1).expand(size, 5), st.integers(1, 10**9)),
    st.builds(lambda size: torch.as_strided(torch.ones(size + 3), (size, 4), (1, 1)), st.just(3)),
    st.builds(lambda size: torch.ones(size).to_sparse(), st.integers(1, 3)),
    st.builds(lambda size: torch.ones(size, device="meta"), st.integers(1, 3)),
)
SIMPLE = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.just(10**4000) | st.just("a" * 10**5)
)  # fmt: skip
KEYS = st.text(max_size=4) | st.integers(-2, 9)
JSON = st.recursive(
    SIMPLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)
THINGS = st.recursive(
    SIMPLE | TENSORS | st.just(np.zeros(3)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=6,
)


def mutate(content: Any, data: st.DataObject, things: st.SearchStrategy[Any]) -> Any:
    """Return a copy in which a few entries are replaced, deleted or added."""
    content = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 2))):
        node = content
        while True:
            inner = [key for key in _keys(node) if _keys(node[key])]
            if not inner or data.draw(st.integers(0, 3)) == 0:
                break
            node = node[data.draw(st.sampled_from(inner))]
        keys = _keys(node)
        if isinstance(node, tuple) or not keys:
            continue
        key, how = data.draw(st.sampled_from(keys)), data.draw(st.sampled_from("rrrda"))
        if how == "d":
            del node[key]
        elif how == "a" and isinstance(node, dict):
            node[data.draw(KEYS)] = data.draw(things)
        else:
            node[key] = data.draw(things)
    return content


def _keys(node: Any) -> list[Any]:
    if isinstance(node, list | tuple):
        return list(range(len(node)))
    return list(node) if isinstance(node, dict) else []


def attempt(action: Callable[[], Any], path: Path) -> Any:
    """Return what ``action`` gives, or None if it is refused in a message that names a file."""
    try:
        return action()
    except UserError as error:
        assert str(path) in str(error) and len(str(error)) < 5000
        return None


# ---------------------------------------------------------------------------- checkpoints


class Trained:
    """A model with all states that a run has."""

    def __init__(self, folder: Path, kind: str):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.optimizer = getattr(torch.optim, kind)(self.model.parameters(), lr=0.1, fused=True)
        states = {
            "lr_sched": torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 5]),
            "ema": ModelEmaV3(self.model),
            "grad_scaler": torch.amp.GradScaler("cpu"),
        }
        self.checkpointer = Checkpointer(
            self.model, str(folder), optimizer=self.optimizer, num_classes=4, **states
        )

    def step(self) -> None:
        self.model(torch.rand(2, 3, 3, 3)).sum().backward()
        self.optimizer.step()


@fuzzed
@given(data=st.data())
def test_any_checkpoint_is_resumed_or_refused(tmp_path, data):
    kind = data.draw(st.sampled_from(["Adam", "SGD", "AdamW"]))
    run = Trained(tmp_path, kind)
    run.step()
    begun = {"steps": 1, "ranks": [capture_rank_state(run.model)]}
    run.checkpointer.save("model_0000", epoch=0, best_metric=1.0, begun=begun)
    path = tmp_path / "model_0000.pth"
    content = torch.load(path, weights_only=False)
    try:
        torch.save(mutate(content, data, THINGS), path)
    except (RuntimeError, NotImplementedError):  # cannot be written
        return
    fresh = Trained(tmp_path, kind)
    loaded = attempt(lambda: fresh.checkpointer.resume(str(path)), path)
    if loaded is not None:
        attempt(lambda: read_partial_epoch(loaded, str(tmp_path), fresh.model, 6), tmp_path)
        fresh.step()  # reads and writes what was loaded


@fuzzed
@given(content=THINGS | st.dictionaries(st.just("model"), THINGS))
def test_any_content_is_read_or_refused(tmp_path, content):
    path = tmp_path / "a.pth"
    try:
        torch.save(content, path)
    except (RuntimeError, NotImplementedError):
        return
    attempt(lambda: read_weights(str(path)), path)
    attempt(lambda: Trained(tmp_path, "SGD").checkpointer.load(str(path), []), path)


def _whole(suffix: str) -> bytes:
    weights = {"backbone.a": torch.arange(6.0).reshape(2, 3), "cls": torch.ones(1, 1, 4)}
    stream = io.BytesIO()
    if suffix == ".safetensors":
        return safetensors.torch.save(weights)
    if suffix == ".npz":
        np.savez(stream, **{"embedding/kernel": np.ones((2, 2, 3, 4)), "cls": np.ones((1, 1, 4))})
    else:
        torch.save({"model": weights}, stream, _use_new_zipfile_serialization=suffix == ".pth")
    return stream.getvalue()


WHOLE = {suffix: _whole(suffix) for suffix in (".pth", ".pt", ".npz", ".safetensors")}


@fuzzed
@given(data=st.data(), suffix=st.sampled_from(sorted(WHOLE)))
def test_any_bytes_are_read_or_refused(tmp_path, data, suffix):
    content = bytearray(WHOLE[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        end = at + data.draw(st.sampled_from([0, 1, 4, 10**6]))
        content[at:end] = data.draw(st.binary(max_size=8))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    attempt(lambda: read_weights(str(path)), path)


# ------------------------------------------------------------------------------ run files


def _write_run() -> dict[str, Any]:
    precision = np.linspace(0.1, 1, 10)
    ranks = np.arange(10)
    ranking = Ranking(ranks, ranks + 1, ranks + 1, precision, (ranks + 1) / 40)
    names = np.array([f"/data/{number}.jpg" for number in ranks])
    counts = {"queries": 10, "queries_without_positive": 0, "gallery": 9, "positives_per_query": 2}
    packed = pack_queries(report_queries(names, ranking))
    report = {"metrics": summarize_ranking(ranking), "counts": counts, "per_query": packed}
    return {"data_sets": {"Set": report}, "seed": 0}


@fuzzed
@given(data=st.data())
def test_any_results_are_compared_or_refused(tmp_path, data):
    content = _write_run()
    if data.draw(st.booleans()):
        numbers = data.draw(st.lists(st.integers(-9, 2**31 - 1), min_size=39, max_size=41))
        packed = zlib.compress(np.array(numbers, "<i4").tobytes())
        packed = packed if data.draw(st.booleans()) else data.draw(st.binary())
        content["data_sets"]["Set"]["per_query"]["values"] = base64.b64encode(packed).decode()
    else:
        content = mutate(content, data, JSON)
    try:
        text = json.dumps(content)
    except ValueError:
        return
    (tmp_path / "results.json").write_text(text)
    attempt(lambda: compare_runs([str(tmp_path), str(tmp_path)]), tmp_path)
    attempt(lambda: compare_runs([str(tmp_path), str(tmp_path)], seeds=True), tmp_path)
    attempt(lambda: tabulate_runs([str(tmp_path)]), tmp_path)


@fuzzed
@given(content=st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_the_files_of_a_run(tmp_path, content):
    for name, read in {
        "last_checkpoint": lambda path: read_last_checkpoint(path.parent),
        "config.yaml": read_yaml,
        "results.json": lambda path: compare_runs([str(path), str(path)]),
    }.items():
        (tmp_path / name).write_bytes(content)
        attempt(lambda read=read, name=name: read(tmp_path / name), tmp_path)


@fuzzed
@given(lines=st.lists(st.binary(max_size=9) | st.dictionaries(
    st.sampled_from(["iteration", "lr", "total_loss", "mAP"]), SIMPLE | st.integers(0, 9)
), max_size=4))  # fmt: skip
def test_any_metrics_are_drawn_or_refused_and_can_be_cut(tmp_path, lines):
    path = tmp_path / "metrics.json"
    texts = []
    for line in lines:
        try:
            texts.append(line if isinstance(line, bytes) else json.dumps(line).encode())
        except ValueError:
            continue
    path.write_bytes(b"\n".join(texts))
    attempt(lambda: group_curves(read_metrics(path)), path)
    truncate_metrics(path, 5, "")
    assert all(json.loads(line)["iteration"] < 5 for line in path.read_text().splitlines())

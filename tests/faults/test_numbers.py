"""Any number of processes has the gradients, memory banks and metrics of one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from aonet.tiny import aonet_batch, aonet_model
from fed.tiny import fed_batch, fed_model, fed_run_cfg
from ranks import on_ranks
from runs import draw_market, tiny_cfg
from torch import nn

from faults.long_run import long_run, measure_growth
from occluded_reid.config import CfgNode
from occluded_reid.engine.defaults import prepare_run
from occluded_reid.engine.train_step import wrap_model
from occluded_reid.evaluation.testing import evaluate_weights
from occluded_reid.modeling.build import build_model
from occluded_reid.utils.distributed import unwrapped

MODELS: dict[str, tuple[Callable[[], Any], Callable[[int], dict[str, Any]]]] = {
    "FED": (fed_model, fed_batch),
    "AONet": (aonet_model, aonet_batch),
}
SIZE = 8


def isolate_images(model: nn.Module) -> nn.Module:
    """Make each image independent of its batch and of randomness."""
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.Dropout)):
            module.eval()
    return model


def compute_gradients(
    cfg: CfgNode, name: str, rank: int = 0, ranks: int = 1
) -> dict[str, torch.Tensor]:
    """Return the gradients, and then the buffers, of one rank's share of a batch.

    Without the triplet loss, which mines the hardest images within a process.
    """
    build, draw = MODELS[name]
    share = slice(rank * SIZE // ranks, (rank + 1) * SIZE // ranks)
    batch = {key: value[share] for key, value in draw(SIZE).items()}
    model = wrap_model(cfg, isolate_images(build()))
    losses = model(batch)
    sum(value for key, value in losses.items() if "triplet" not in key).backward()
    plain = unwrapped(model)
    gradients = {
        key: value.grad for key, value in plain.named_parameters() if value.grad is not None
    }
    return gradients | dict(plain.named_buffers())


@pytest.mark.distributed
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_have_the_gradients_and_memories_of_one(tmp_path, name, ranks):
    cfg = tiny_cfg(tmp_path / "run")
    whole = compute_gradients(cfg, name)

    def work(rank: int) -> None:
        torch.save(compute_gradients(cfg, name, rank, ranks), tmp_path / f"{rank}.pt")

    on_ranks(ranks, work)
    assert sum(bool(value.float().abs().max() > 0) for value in whole.values()) > 5
    for rank in range(ranks):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert result.keys() == whole.keys()
        for key, value in whole.items():
            torch.testing.assert_close(result[key], value, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.slow
@pytest.mark.distributed
def test_any_number_of_ranks_and_any_batch_size_give_the_same_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(draw_market(tmp_path / "data")))
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save({"model": build_model(fed_run_cfg(tmp_path / "cfg")).state_dict()}, weights)
    reports = {}
    for ranks, size in ((1, 8), (1, 5), (2, 8), (3, 7), (4, 64)):
        folder = tmp_path / f"{ranks} {size}"
        cfg = fed_run_cfg(folder, "MODEL.WEIGHTS", weights, "TEST.IMS_PER_BATCH", size)

        def work(rank: int, cfg: CfgNode = cfg) -> None:
            evaluate_weights(prepare_run(cfg, training=False))

        on_ranks(ranks, work)
        reports[ranks, size] = json.loads((folder / "results.json").read_text())["data_sets"]
    first = reports.pop((1, 8))
    assert 0 < first["Market1501"]["metrics"]["mAP"]["value"] < 100
    for setting, report in reports.items():
        assert report == first, setting


@pytest.mark.slow
def test_memory_does_not_grow_in_a_long_run(tmp_path, monkeypatch):
    """A leak of one file or 20 KiB per iteration would show."""
    monkeypatch.setenv("FASTREID_DATASETS", "")
    memory, files, _ = measure_growth(long_run(tmp_path, 400))
    assert files <= 2 and memory < 0.02 * 300

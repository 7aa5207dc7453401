"""The smallest trainings and test sets that make sense give a result."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from aonet.tiny import aonet_run_cfg
from fed.tiny import fed_run_cfg
from runs import assert_same_run, read_metrics, tiny_cfg, train

from occluded_reid.evaluation.evaluator import Evaluator

pytestmark = pytest.mark.usefixtures("data_root")


@pytest.mark.parametrize("make_cfg", [tiny_cfg, fed_run_cfg, aonet_run_cfg])
@pytest.mark.parametrize(("batch", "per_identity"), [(8, 8), (2, 1)])
def test_a_batch_of_one_identity_or_of_one_image_of_each_trains(
    tmp_path: Path, make_cfg: Callable[..., Any], batch: int, per_identity: int
) -> None:
    """Neither has a triplet: that loss is zero."""
    size = "SOLVER.IMS_PER_BATCH", batch, "DATALOADER.NUM_INSTANCE", per_identity
    train(make_cfg(tmp_path / "run", *size, "SOLVER.MAX_EPOCH", 1))
    lines = [line for line in read_metrics(tmp_path / "run") if "total_loss" in line]
    assert lines and all(math.isfinite(line["total_loss"]) for line in lines)
    assert {line.get("loss_triplet", 0.0) for line in lines} == {0.0}


@pytest.mark.parametrize("option", ["AQE", "RERANK", "FLIP", "ROC"])
def test_one_query_and_one_gallery_image_are_scored(tmp_path: Path, option: str) -> None:
    evaluator = Evaluator(tiny_cfg(tmp_path / "run", f"TEST.{option}.ENABLED", True), num_query=1)
    batch = {
        "targets": torch.zeros(2, dtype=torch.int64), "camids": torch.arange(2),
        "index": torch.arange(2), "img_paths": ["query.jpg", "gallery.jpg"],
    }  # fmt: skip
    evaluator.process(batch, torch.eye(2, 8) + 0.1)
    report = evaluator.evaluate()
    values = {name: metric["value"] for name, metric in report["metrics"].items()}
    assert (values["Rank-1"], values["mAP"], values["mINP"]) == (100, 100, 100)
    assert report["counts"]["queries"] == report["counts"]["gallery"] == 1
    json.dumps(report, allow_nan=False)


def test_a_run_with_frozen_layers_is_resumed_in_the_middle_of_the_freeze(tmp_path: Path) -> None:
    """An evaluation in the first epoch does not thaw them either."""
    frozen = ("SOLVER.FREEZE_ITERS", 9, "MODEL.FREEZE_LAYERS", ["backbone"], "TEST.EVAL_PERIOD", 1)
    whole, part = tmp_path / "whole", tmp_path / "part"
    train(tiny_cfg(whole, *frozen))
    shutil.copytree(whole, part)
    for path in part.glob("model_*.pth"):
        if path.name != "model_0000.pth":
            path.unlink()
    (part / "last_checkpoint").write_text("model_0000.pth")
    train(tiny_cfg(part, *frozen), resume=True)
    assert_same_run(whole, part)

"""Landmark metrics: overlap, mean cosine, usual rows, and the AUC of visibility."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import draw_market, load_tool

from aonet.tiny import aonet_run_cfg
from aonet_plugin.landmark_metrics import landmark_report, mean_cosine, usual_rows, visible_share
from occluded_reid.engine.defaults import prepare_run
from occluded_reid.engine.trainer import Trainer


def test_mean_cosine_equals_the_loop():
    features = torch.randn(5, 4, 7, dtype=torch.float64)
    pairs = [
        float(image[i] @ image[j] / image[i].norm() / image[j].norm())
        for image in features
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    assert mean_cosine(features) == pytest.approx(np.mean(pairs), abs=1e-9)


def test_usual_rows_use_unoccluded_images():
    maps = np.zeros((3, 2, 4, 2))
    maps[0, :, 0] = maps[1, :, 2] = 0.5
    maps[2, :, 3] = 0.5
    rows = usual_rows(maps, np.array([1.0, 0.95, 0.3]))
    assert rows.tolist() == [[0.5, 0, 0.5, 0]] * 2


def test_visible_share_uses_rows_with_the_person():
    rows = np.array([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    person = np.array([[10, 10, 0], [0, 0, 10]])
    visible = np.array([[10, 5, 0], [0, 0, 5]])
    actual = visible_share(rows, person, visible)
    assert actual[0, 0] == pytest.approx((0.5 * 1 + 0.25 * 0.5) / 0.75)
    assert np.isnan(actual[0, 1])
    assert actual[1].tolist() == pytest.approx([0.5, 0.5])


def record(hidden_rows: int, kind: str) -> SimpleNamespace:
    visible = (np.arange(16) < 16 - hidden_rows) * 10
    return SimpleNamespace(
        visible_fraction=1 - hidden_rows / 16,
        stripe_person_pixels=(10,) * 16,
        stripe_visible_pixels=tuple(visible.tolist()),
        occlusion=kind,
    )


def test_visibility_auc_of_a_perfect_landmark():
    # landmark 0 looks at the top, 1 at the bottom; of every second the lower half is hidden
    logits = torch.full((8, 2, 4, 1), -20.0)
    logits[:, 0, 0] = logits[:, 1, 3] = 20.0
    truth = [record(8, "horizontal") if n % 2 else record(0, "none") for n in range(8)]
    visibility = torch.full((8, 2), 0.9)
    visibility[1::2, 1] = 0.2
    features = torch.eye(2).repeat(8, 1, 1)
    report = landmark_report(logits, visibility, features, truth)
    assert report["overlap"] == pytest.approx(0, abs=1e-6)
    assert report["mean_cosine"] == pytest.approx(0, abs=1e-6)
    assert report["centre_row"] == pytest.approx([0.125, 0.875])
    # landmark 0 is never hidden, so it has no AUC of its own
    assert report["visibility_auc"] == {"horizontal": {"all": 1.0, "each": [None, 1.0]}}
    turned = landmark_report(logits, 1 - visibility, features, truth)
    assert turned["visibility_auc"]["horizontal"]["each"][1] == 0.0
    same = landmark_report(logits[:, :1].expand(-1, 2, -1, -1), visibility, features, None)
    assert same["overlap"] == pytest.approx(same["overlap_if_all_the_same"], abs=1e-6)
    assert "visibility_auc" not in same


def test_command_on_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTREID_DATASETS", str(draw_market(tmp_path / "data")))
    cfg = prepare_run(aonet_run_cfg(tmp_path / "run"), training=True)
    Trainer(cfg).train()
    tool = load_tool("analyze_landmarks")
    config = ["--config-file", str(tmp_path / "run" / "config.yaml")]
    weights = ["MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth")]
    assert tool.command(["--weights", str(tmp_path / "run")]) == 0
    assert "overlap of the maps" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "landmarks.json").read_text())
    assert report["images"] == 72 and len(report["centre_row"]) == 3
    assert tool.command([*config, "MODEL.WEIGHTS", ""]) == 2
    baseline = ["MODEL.META_ARCHITECTURE", "Baseline"]
    assert tool.command([*config, *weights, *baseline]) == 2
    assert "no landmarks" in capsys.readouterr().err

"""Test of projects/measure_visible_parts.py: which features and weights each comparison takes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from occluded_reid.config import get_cfg
from occluded_reid.evaluation.evaluator import Evaluator
from occluded_reid.evaluation.gather import FeatureTable

SCRIPT = Path(__file__).resolve().parent.parent / "projects/measure_visible_parts.py"


@pytest.fixture
def module():
    spec = importlib.util.spec_from_file_location("measure_visible_parts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_occluder_changes_and_what_the_truth_repairs(module) -> None:
    def make_table(query: list[list[float]], scores: list[float]) -> FeatureTable:
        """One query with two parts of two channels, and a gallery: its own person, and another."""
        gallery = [[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.866], [0.0, 1.0]]
        rows = torch.tensor([query, *gallery]).flatten(1) / 2**0.5
        return FeatureTable(
            rows, np.array([scores, [1, 1], [1, 1]], np.float32), np.array([7, 7, 8]),
            np.array([1, 2, 2]), np.array(["q", "a", "b"]), torch.arange(3), 1,
        )  # fmt: skip

    # The occluder turns the lower part to the other person; the model does not notice it.
    original = make_table([[1.0, 0.0], [1.0, 0.0]], [1, 1])
    occluded = make_table([[1.0, 0.0], [0.0, 1.0]], [1, 1])
    truth = {
        "q": SimpleNamespace(
            stripe_person_pixels=[10] * 16, stripe_visible_pixels=[10] * 8 + [0] * 8,
            occlusion="horizontal",
        )
    }  # fmt: skip
    evaluator = Evaluator(get_cfg(), 1)
    first = {
        way: int(ranking.first_match[0])
        for way, ranking in module.compare(original, occluded, occluded, original, truth, evaluator)
    }
    assert first == {
        "all parts": 2,
        "weighted by the model's visibility": 2,
        "hidden parts left out, by the truth": 1,
        "all parts, the occluder's box painted in the mean color": 2,
        "all parts, the occluder painted in the mean color": 1,
        "without the occluder, the same parts left out": 1,
        "without the occluder, all parts": 1,
    }
    noticed = occluded._replace(visibility=np.array([[1, 0], [1, 1], [1, 1]], np.float32))
    ranked = dict(module.compare(original, noticed, noticed, original, truth, evaluator))
    assert ranked["weighted by the model's visibility"].first_match[0] == 1
    assert ranked["all parts"].first_match[0] == 2


def test_only_what_the_occluder_changed_is_painted(module) -> None:
    before = torch.randint(256, (1, 3, 32, 16), dtype=torch.uint8)
    image = before.clone()
    image[:, :, 20:, :8] = 255 - before[:, :, 20:, :8].where(before[:, :, 20:, :8] > 200, 0)
    loaders = [[{"images": each, "index": 0}] for each in (before, image)]
    (batch,) = module.Painted(*loaders, [10, 20, 30], whole_box=False)
    painted = (batch["images"] == torch.tensor([10.0, 20, 30]).view(3, 1, 1)).all(dim=1)[0]
    assert painted[20:, :8].all() and painted.sum() == 12 * 8
    assert batch["index"] == 0
    image[:, :, :10, 15] = 255 - image[:, :, 20:30, 7]
    (batch,) = module.Painted(*loaders, [10, 20, 30], whole_box=True)
    painted = (batch["images"] == torch.tensor([10.0, 20, 30]).view(3, 1, 1)).all(dim=1)[0]
    assert painted.all()


def test_table_of_the_page_is_of_the_files() -> None:
    projects = SCRIPT.parent
    page = (projects / "FED/README.md").read_text()
    files = ("fed_market_split", "fed_lite0_drawn")
    columns = [
        json.loads((projects / f"results/visible_parts/{name}.json").read_text())["comparisons"]
        for name in files
    ]
    for way in columns[0]:
        values = [f"{column[way]['metrics']['mAP']['value']:.1f}" for column in columns]
        assert f"| {way} | {' | '.join(values)} |" in page


def test_table_of_trackers_is_of_the_files() -> None:
    projects = SCRIPT.parent
    page = (projects.parent / "docs/trackers.md").read_text()
    files = ("fed_lite0_drawn", "fed_market_split")
    columns = [
        json.loads((projects / f"results/visible_parts/{name}.json").read_text())["comparisons"]
        for name in files
    ]
    for row, way in {
        "as they are": "all parts",
        "the box of the person in front painted":
            "all parts, the occluder's box painted in the mean color",
        "the mask of the person in front painted":
            "all parts, the occluder painted in the mean color",
    }.items():  # fmt: skip
        groups = [column[way]["by_occlusion"]["pedestrian"] for column in columns]
        cells = [f"{group['Rank-1']:.1f} \\| {group['mAP']:.1f}" for group in groups]
        assert f"| {row} | {' | '.join(cells)} |" in page

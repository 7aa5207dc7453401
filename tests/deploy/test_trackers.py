"""Trackers of other packages get the features of the model; with the packages themselves."""

from __future__ import annotations

import inspect
import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from saved_runs import MODELS, save_run
from torch import nn

import occluded_reid
from occluded_reid.deploy.trackers import Appearance
from occluded_reid.utils.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "trackers.md"
BOXES = np.array([[10, 5, 40, 80], [50, 10, 80, 88], [85, 4, 118, 70]], np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(MODELS["FED"](tmp_path_factory.mktemp("runs") / "fed"))


@pytest.fixture
def frame() -> np.ndarray:
    """Blocks of colour: resizing them by another filter changes little."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((120, 90), Image.Resampling.NEAREST))


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


class Detections:
    xyxy = BOXES


def test_both_ways_to_ask_give_the_features_of_the_boxes(run, frame):
    model = occluded_reid.load(run)
    expected = unit(model.make_rows(model.embed(frame, boxes=BOXES)))
    appearance = Appearance(model)
    np.testing.assert_allclose(appearance.get_features(BOXES, frame), expected, rtol=1e-6)
    found = appearance.extract_embeddings(Detections(), frame, batch_size=2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    loaded = Appearance(run, batch_size=2)
    assert (loaded.embedding_dim, loaded.input_shape) == (model.dim, model.input_size)
    assert loaded.model.batch_size == 2
    assert appearance.get_features(np.empty((0, 4)), frame).shape == (0, model.dim)


def test_a_model_whose_norms_mean_something_is_refused(tmp_path, frame):
    run = save_run(MODELS["AONet"](tmp_path / "aonet"))
    with pytest.raises(UserError, match="the model compares by dot, but trackers by the cosine"):
        Appearance(run)
    with pytest.raises(UserError, match="compares by shared"):
        Appearance(run, overrides=["TEST.SIMILARITY", "shared"])
    Appearance(run, overrides=["TEST.METRIC", "cosine"])
    model = occluded_reid.load(run, overrides=["TEST.SIMILARITY", "query"])
    embedding = model.embed(frame, boxes=BOXES)
    rows = model.make_rows(embedding)
    np.testing.assert_allclose(Appearance(model).get_features(BOXES, frame), rows, rtol=1e-5)
    # as a gallery, divided by their norms or not, they are in the order of the model
    cosines = unit(model.make_query_rows(embedding)) @ unit(rows).T
    order = (-model.similarity(embedding, embedding)).argsort(1)
    np.testing.assert_array_equal((-cosines).argsort(1), order)


@pytest.mark.trackers
def test_boxmot_tracks_with_it(run, frame):
    import boxmot

    asked = []

    class Counting(Appearance):
        def get_features(self, boxes: Any, image: np.ndarray) -> np.ndarray:
            asked.append(len(boxes))
            return super().get_features(boxes, image)

    for name in ("BotSort", "StrongSort", "DeepOcSort"):
        asked.clear()
        tracker = getattr(boxmot, name)(reid_model=Counting(run))
        for _ in range(6):
            detections = np.hstack([BOXES, np.full((3, 1), 0.9), np.zeros((3, 1))])
            tracks = tracker.update(detections.astype(np.float32), frame)
        assert asked == [3] * 6, name
        assert len({int(track[4]) for track in tracks}) == 3, name


@pytest.mark.trackers
def test_the_encoder_of_boxmot_takes_it(run, frame):
    from boxmot.reid.adapters import RuntimeAppearanceEncoder
    from boxmot.reid.specs import ReIDEncoderSpec
    from boxmot.structures import Boxes, Frame
    from boxmot.structures import Detections as BoxmotDetections

    appearance = Appearance(run)
    encoder = RuntimeAppearanceEncoder(ReIDEncoderSpec(backend="pytorch"), appearance)
    assert encoder.embedding_dim == appearance.embedding_dim
    pixels = torch.from_numpy(np.ascontiguousarray(frame[:, :, ::-1].transpose(2, 0, 1)))
    detections = BoxmotDetections(
        geometry=Boxes(torch.from_numpy(BOXES)), scores=torch.ones(3),
        class_ids=torch.zeros(3, dtype=torch.int64), sample_id="one",
    )  # fmt: skip
    (found,) = encoder.encode([Frame(image=pixels, sample_id="one")], [detections])
    np.testing.assert_allclose(found, appearance.get_features(BOXES, frame), atol=1e-5)


class RawModel(nn.Module):
    """The model on images in [0, 1], as roboflow prepares them."""

    def __init__(self, appearance: Appearance):
        super().__init__()
        self.appearance = appearance

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        model = self.appearance.model
        return torch.from_numpy(model.make_rows(model.embed_batch(images * 255)))


@pytest.mark.trackers
def test_it_stands_in_for_a_model_of_roboflow(run, frame):
    import supervision
    from reid import ReIDModel
    from reid.preprocessing import Interpolation, ReIDPreprocessing

    appearance = Appearance(run)
    names = inspect.signature(ReIDModel.extract_embeddings).parameters
    assert inspect.signature(Appearance.extract_embeddings).parameters.keys() == names.keys()
    prepare = ReIDPreprocessing(
        input_size=appearance.input_shape, interpolation=Interpolation.BICUBIC, to_rgb=True,
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
    )  # fmt: skip
    theirs = ReIDModel(RawModel(appearance), torch.device("cpu"), prepare)
    detections = supervision.Detections(xyxy=BOXES)
    found = appearance.extract_embeddings(detections, frame)
    np.testing.assert_allclose(found, unit(theirs.extract_embeddings(detections, frame)), atol=1e-4)
    empty = supervision.Detections.empty()
    assert len(appearance.extract_embeddings(empty, frame)) == 0
    assert len(theirs.extract_embeddings(empty, frame)) == 0


@pytest.mark.trackers
def test_tracklab_gets_embeddings_and_visibility(run, frame, tmp_path):
    import pandas as pd

    from occluded_reid.deploy.tracklab_module import OccludedReID

    path = tmp_path / "frame.png"
    Image.fromarray(frame[:, :, ::-1]).save(path)
    module = OccludedReID(weights=run, device="cpu", batch_size=2)
    corners = BOXES.copy()
    corners[:, 2:] -= corners[:, :2]
    detections = pd.DataFrame({"bbox_ltwh": list(corners), "image_id": 7}, index=[3, 5, 9])
    module.validate_input(detections)
    module.datapipe.update({7: path}, pd.DataFrame({"frame": [0]}, index=[7]), detections)

    class Engine:
        num_workers = 0

    found = pd.concat(
        module.process(images, detections.loc[numbers], None)
        for numbers, images in module.dataloader(Engine())
    )
    module.validate_output(found)
    expected = module.model.embed(frame, boxes=BOXES)
    np.testing.assert_allclose(np.stack(found.embeddings), expected.features, atol=1e-5)
    visible = np.stack(found.visibility_scores)
    np.testing.assert_allclose(visible, expected.visibility, atol=1e-5)
    assert found.index.tolist() == [3, 5, 9] and module.level == "detection"


@pytest.mark.trackers
def test_the_page_runs_as_written(frame):
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    detections = np.hstack([BOXES, [[0.9, 0]] * 3]).astype(np.float32)
    names: dict[str, Any] = {"frames": [frame] * 3, "detect": lambda frame: detections}
    for block in code:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(names["tracks"]) == 3
    assert names["embeddings"].shape == (3, names["appearance"].embedding_dim)
    assert names["visibility"].shape == (3, 4)


@pytest.mark.trackers
def test_the_two_lines_of_the_readme_run_beside_the_peers(frame, tmp_path):
    import boxmot
    import supervision
    from reid import ReIDModel
    from reid.architectures import build_architecture

    weights = tmp_path / "osnet_x0_25_msmt17.pt"  # of random values, named as BoxMOT's
    torch.save(build_architecture("osnet_x0_25", pretrained=False).state_dict(), weights)
    rows = np.hstack([BOXES, [[0.9, 0]] * 3]).astype(np.float32)
    detections = supervision.Detections(xyxy=BOXES)
    page = PAGE.parents[1].joinpath("README.md").read_text()
    lines = re.findall(r"^\| [^|]* \|([^|]*)\| (`\w+.*?=.*?`) \|$", page, re.MULTILINE)
    names = {
        "BotSort": boxmot.BotSort, "ReIDModel": ReIDModel, "Appearance": Appearance,
        "occluded_reid": occluded_reid, "FILE": weights, "boxes": rows, "frame": frame,
        "detections": detections,
    }  # fmt: skip
    results = []
    for cell in filter(None, (cell.strip(" `") for row in lines for cell in row)):
        code = cell.split("`<br>`")
        assert len(code) == 2
        space = dict(names)
        exec("\n".join(code).replace("from_pretrained(FILE", "from_pretrained(str(FILE)"), space)
        results.append(space.get("tracks", space.get("features")))
    assert [len(found) for found in results] == [3] * 5


@pytest.mark.trackers
def test_association_with_and_without_visibility(tmp_path):
    script = runpy.run_path(str(PAGE.with_name("example") / "associate.py"))
    words = ["--people", "3", "--frames", "5", "--sequences", "1"]
    report = script["main"]([*words, "--output", str(tmp_path / "results.json")])
    assert report["results"] == json.loads((tmp_path / "results.json").read_text())["results"]
    assert len(report["results"]) == 7 and report["seeds"] == [1000, 1001]
    assert all(0 < each["idf1"] <= 1 for each in report["results"].values())


@pytest.mark.trackers
def test_parts_and_tracks_move_by_their_visibility():
    script = runpy.run_path(str(PAGE.with_name("example") / "associate.py"))
    one, other = np.eye(4, dtype=np.float32)[:2, None].repeat(2, 1)  # (P, C) of two people
    mixed = np.stack([one[0], other[1]])  # whoever hides the second part of the first person
    seen, half = np.ones((1, 2), np.float32), np.array([[1, 0]], np.float32)
    compare = script["compare"]
    assert np.allclose(compare(one[None], seen, mixed[None], half, True), 1, atol=1e-5)
    assert np.allclose(compare(one[None], seen, mixed[None], half, False), 0.5)
    rows = [(np.array([0]), one[None], seen), *[(np.array([0]), mixed[None], half)] * 60]
    rows += [(np.array([0]), one[None], seen)]
    kept = script["associate"](rows, False, True, 0.45)
    assert [tracks.tolist() for tracks in kept] == [[0]] * 62
    rows[-1] = (np.array([0]), np.stack([other[0], one[1]])[None], seen)  # the second part alone
    kept, lost = (script["associate"](rows, False, by_part, 0.45) for by_part in (True, False))
    assert kept[-1].tolist() == [0] and lost[-1].tolist() == [1]
    distances = script["score"]([[(np.array([4, 7]), np.eye(2)[:, None], np.ones((2, 1)))] * 3],
                                False, False, 0.5)  # fmt: skip
    assert distances == {"num_switches": 0, "idf1": 1, "num_objects": 6}
    silhouette = np.zeros((9, 3), bool)
    silhouette[1:] = True
    visible = silhouette.copy()
    visible[1:4] = False
    assert script["measure_stripes"](silhouette, visible) == [0, 0.5, 1, 1]

"""A loaded model embeds arrays exactly as evaluation does files; load errors are named."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fastreid.modeling.meta_arch import build_model
from PIL import Image
from reference import part_similarity
from runs import load_tool
from saved_runs import MODELS, draw_crops, save_run

import occluded_reid
from fed_plugin import add_fed_config
from occluded_reid.checkpoint.checkpointer import Checkpointer
from occluded_reid.config import load_config
from occluded_reid.config.methods import installed_methods
from occluded_reid.data.build import build_test_loader
from occluded_reid.deploy.trackers import Appearance
from occluded_reid.evaluation.distances import distance_matrix
from occluded_reid.evaluation.evaluator import Evaluator
from occluded_reid.evaluation.inference import run_inference
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "embedding.md"


IMPORTS = """
import sys
import numpy as np
from occluded_reid import load

load(sys.argv[1]).embed([np.zeros((8, 4, 3), np.uint8)])
unwanted = {"cv2", "faiss", "matplotlib", "pandas", "scipy", "sklearn", "tensorboard", "timm"}
unwanted |= {"fastreid.engine", "fastreid.evaluation", "occluded_reid.evaluation"}
assert not unwanted & sys.modules.keys(), unwanted & sys.modules.keys()
"""


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    return [cv2.imread(str(path)) for path in draw_crops(tmp_path_factory.mktemp("crops"))]


@pytest.fixture(scope="module")
def fed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(MODELS["FED"](tmp_path_factory.mktemp("runs") / "fed"))


@pytest.mark.parametrize("name", MODELS)
def test_arrays_and_files_give_the_same_features(name, tmp_path):
    cfg = MODELS[name](tmp_path / "run")
    folder = save_run(cfg)
    paths = [str(path) for path in draw_crops(tmp_path / "crops")]
    model = build_model(cfg)
    Checkpointer(model, num_classes=8).load(str(folder / "model_final.pth"))
    items = [(path, 1, camera) for camera, path in enumerate(paths)]
    loader, queries = build_test_loader(cfg, items[:2], items[2:])
    evaluator = Evaluator(cfg, queries)
    run_inference(model, loader, evaluator, name="crops", flip=cfg.TEST.FLIP.ENABLED)
    expected = evaluator.gather()

    embedder = occluded_reid.load(folder)
    actual = embedder.embed([cv2.imread(path) for path in paths])
    assert actual.features.dtype == actual.visibility.dtype == np.float32
    rows, parts = embedder.make_rows(actual), {"FED": 4, "AONet": 3}.get(name, 0)
    np.testing.assert_allclose(rows, expected.features.numpy(), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(actual.visibility, expected.visibility)
    assert (embedder.dim, embedder.num_parts) == (rows.shape[1], parts)
    assert actual.features.shape == (len(paths), parts or 1, embedder.dim // (parts or 1))
    assert embedder.stripes == actual.stripes == (name != "AONet")
    assert embedder.input_size == (32, 16) and embedder.metric == cfg.TEST.METRIC
    similarity = embedder.similarity(actual, rows[:2])
    distances = distance_matrix(expected.features, expected.features[:2], cfg.TEST.METRIC)
    np.testing.assert_allclose(similarity, (name != "AONet") - distances, atol=1e-6)


def test_batching_keeps_the_order_and_no_image_gives_empty_arrays(fed_run, crops):
    whole, small = occluded_reid.load(fed_run), occluded_reid.load(fed_run, batch_size=4)
    actual = small.embed(iter(crops))
    expected = whole.embed(crops)
    np.testing.assert_allclose(actual.features, expected.features, atol=1e-5)
    np.testing.assert_allclose(actual.visibility, expected.visibility, atol=1e-5)
    empty = whole.embed([])
    assert empty.features.shape == (0, 4, whole.dim // 4) and empty.visibility.shape == (0, 4)
    assert whole.similarity(empty, expected).shape == (0, len(crops))


def test_similarity_follows_the_metric(fed_run):
    one, other = np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32)
    norms = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
    expected = {
        "cosine": one @ other.T / norms,
        "dot": one @ other.T,
        "euclidean": -((one[:, None] - other[None]) ** 2).sum(2),
    }
    for metric, values in expected.items():
        model = occluded_reid.load(fed_run, overrides=["TEST.METRIC", metric])
        np.testing.assert_allclose(model.similarity(one, other), values, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"shape \(3, 5\) cannot .*expected rows \(N, 64\)"):
        model.similarity(one[:, :5], other)
    with pytest.raises(UserError, match="their similarities overflow float32"):
        model.similarity(one * np.float32(1e25), other * np.float32(1e25))
    cosine = occluded_reid.load(fed_run).similarity
    np.testing.assert_allclose(cosine(one * np.float32(1e25), other), expected["cosine"], rtol=1e-4)
    many = np.random.default_rng(0).normal(size=(300, 64))
    assert cosine(many, many).max() <= 1
    many[3, 3] = np.nan
    with pytest.raises(UserError, match="not finite"):
        cosine(many, many)


@pytest.mark.parametrize("similarity", ["shared", "query"])
def test_similarity_of_parts_weights_them_by_their_visibility(fed_run, crops, similarity):
    model = occluded_reid.load(fed_run, overrides=["TEST.SIMILARITY", similarity])
    assert model.metric == similarity
    embedding = model.embed(crops)
    features, visibility, _ = embedding
    every = range(len(crops))
    expected = [
        [
            part_similarity((features[q], features[g]), (visibility[q], visibility[g]), similarity)
            for g in every
        ]
        for q in every[:2]
    ]
    first = Embedding(features[:2], visibility[:2])
    np.testing.assert_allclose(model.similarity(first, embedding), expected, atol=1e-5)
    rows = model.make_rows(embedding)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    stored = Embedding(rows, visibility)  # as a feature file has them
    np.testing.assert_allclose(model.similarity(first, stored), expected, atol=1e-5)
    if similarity == "query":
        products = model.make_query_rows(first) @ rows.T
        np.testing.assert_allclose(products, expected, atol=1e-5)
    with pytest.raises(UserError, match=f"{similarity} needs the visibility of the parts: give"):
        model.similarity(rows, rows)
    for wrong in (Embedding(rows, visibility[:, 1:]), Embedding(features[:, 1:], visibility)):
        with pytest.raises(UserError, match="with its visibility. Are they from another model"):
            model.similarity(wrong, stored)
    with pytest.raises(UserError, match="with its visibility. Are they from another model"):
        occluded_reid.load(fed_run, overrides=["TEST.METRIC", "dot"]).similarity(features, rows)


def test_models_of_one_vector_have_no_parts_to_compare(tmp_path):
    run = save_run(MODELS["baseline"](tmp_path / "run"))
    with pytest.raises(UserError, match="shared needs a visibility for each part"):
        occluded_reid.load(run, overrides=["TEST.SIMILARITY", "shared"])


def test_bfloat16_is_close_and_returned_as_float32(fed_run, crops):
    exact = occluded_reid.load(fed_run).embed(crops).features
    rounded = occluded_reid.load(fed_run, bf16=True).embed(crops).features
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((9, 9, 3)), r"image 1 has shape \(9, 9, 3\) of float64"),
        (np.zeros((9, 9), np.uint8), r"image 1 has shape \(9, 9\) of uint8"),
        (np.zeros((9, 9, 4), np.uint8), r"image 1 has shape \(9, 9, 4\)"),
        (np.zeros((0, 9, 3), np.uint8), "image 1 is empty"),
        (None, "image 1 is a NoneType; expected a BGR array"),  # cv2.imread of a text file
    ],
)
def test_bad_images_are_named(fed_run, crops, image, message):
    with pytest.raises(UserError, match=message):
        occluded_reid.load(fed_run).embed([crops[0], image])


def test_the_fingerprint_covers_everything_that_affects_the_features(fed_run, tmp_path):
    def fingerprint(run: Path = fed_run, *overrides: str, **options: Any) -> str:
        return occluded_reid.load(run, overrides=overrides, **options).fingerprint

    first = fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", first)
    same = [
        fingerprint(batch_size=2, bf16=True, add_keys=[add_fed_config]),
        fingerprint(fed_run, "OUTPUT_DIR", "elsewhere", "MODEL.LOSSES.TRI.MARGIN", "0.1"),
        fingerprint(save_run(MODELS["FED"](tmp_path / "again"))),
        fingerprint(_publish(fed_run, tmp_path)),
    ]
    assert set(same) == {first}
    others = [
        fingerprint(save_run(MODELS["FED"](tmp_path / "other"), seed=1)),
        fingerprint(fed_run, "TEST.METRIC", "dot"),
        fingerprint(fed_run, "TEST.FLIP.ENABLED", "True"),
        fingerprint(fed_run, "INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "[32, 16]"),
        fingerprint(fed_run, "MODEL.FED.TEST_BEFORE_NECK", "True"),
        fingerprint(fed_run, "MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]"),
    ]
    assert len({first, *others}) == 1 + len(others)
    baseline = save_run(MODELS["baseline"](tmp_path / "baseline"))
    assert fingerprint(baseline) != fingerprint(baseline, "INPUT.SIZE_TEST", "[64, 32]")


def _publish(run: Path, folder: Path) -> Path:
    """Write the weights for inference alone, with the configuration beside them."""
    states = torch.load(run / "model_final.pth", weights_only=True)["model"]
    kept = {key: value for key, value in states.items() if key.startswith(("backbone", "heads"))}
    assert len(kept) < len(states)
    torch.save({"model": kept}, folder / "published.pth")
    (folder / "config.yaml").write_text((run / "config.yaml").read_text())
    return folder / "published.pth"


def test_training_parts_are_deleted(fed_run):
    model = occluded_reid.load(fed_run)._model
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "heads"}
    assert not model.training


def test_an_unfinished_run_gives_its_last_or_its_best_weights(tmp_path, crops):
    cfg = MODELS["baseline"](tmp_path / "run")
    folder = save_run(cfg, seed=1, name="model_best")
    best = occluded_reid.load(folder / "model_best.pth").fingerprint
    (folder / "last_checkpoint").unlink()
    assert occluded_reid.load(folder).fingerprint == best
    save_run(cfg, seed=2, name="model_0001")  # and last_checkpoint names it
    last = occluded_reid.load(folder / "model_0001.pth").fingerprint
    assert occluded_reid.load(folder).fingerprint == last != best
    save_run(cfg, seed=3)
    save_run(cfg, seed=2, name="model_0001")
    final = occluded_reid.load(folder / "model_final.pth").fingerprint
    assert occluded_reid.load(folder).fingerprint == final not in (best, last)


def test_a_weights_file_needs_a_configuration(fed_run, tmp_path):
    alone = tmp_path / "alone.pth"
    alone.write_bytes((fed_run / "model_final.pth").read_bytes())
    with pytest.raises(UserError, match=r"no config\.yaml beside .*alone\.pth; .*config=FILE"):
        occluded_reid.load(alone)
    model = occluded_reid.load(alone, config=fed_run / "config.yaml")
    assert model.fingerprint == occluded_reid.load(fed_run).fingerprint


def test_load_errors_are_named(fed_run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there are no weights .*none.pth"):
        occluded_reid.load(tmp_path / "none.pth")
    with pytest.raises(UserError, match="model_final.pth, the file that last_checkpoint names"):
        occluded_reid.load(tmp_path)
    with pytest.raises(UserError, match="MODEL.DEVICE is 'gpu'; it can be cpu, cuda or cuda:0"):
        occluded_reid.load(fed_run, "gpu")
    with pytest.raises(UserError, match="MODEL.DEVICE is 'mps'; it can be cpu, cuda or cuda:0"):
        occluded_reid.load(fed_run, "mps")
    assert occluded_reid.load(fed_run, torch.device("cpu")).device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="the device is cuda:2, but PyTorch finds 2 GPUs"):
        occluded_reid.load(fed_run, "cuda:2")
    with pytest.raises(UserError, match="INPUT.SIZE_TEST is"):
        occluded_reid.load(fed_run, overrides=["INPUT.SIZE_TEST", "[32]"])
    (tmp_path / "config.yaml").write_text((fed_run / "config.yaml").read_text())
    torch.save({"model": {}, "object": Path()}, tmp_path / "model_final.pth")
    with pytest.raises(UserError, match="holds Python objects"):
        occluded_reid.load(tmp_path)


def test_weights_that_give_nan_are_refused(fed_run, tmp_path):
    content = torch.load(fed_run / "model_final.pth", weights_only=True)
    content["model"]["backbone.norm.weight"].fill_(float("nan"))
    torch.save(content, tmp_path / "broken.pth")
    with pytest.raises(UserError, match="not finite"):
        occluded_reid.load(tmp_path / "broken.pth", config=fed_run / "config.yaml")


def test_images_without_finite_features_are_named(fed_run, crops, monkeypatch):
    model = occluded_reid.load(fed_run, batch_size=2)
    whole = model.embed(crops)
    calls = iter(range(9))

    def broken(*_, **__):
        features = torch.from_numpy(whole.features[:2]).clone()
        features[1, 0, 0] = np.inf if next(calls) == 1 else 0
        return Embedding(features, torch.zeros(2, 0))

    monkeypatch.setattr("occluded_reid.deploy.embedder.embed_batch", broken)
    with pytest.raises(UserError, match="the features of image 3 are not finite"):
        model.embed(crops[:4])


def test_what_an_image_may_be(fed_run, tmp_path):
    model = occluded_reid.load(fed_run)
    paths = draw_crops(tmp_path, 3)
    arrays = [cv2.imread(str(path)) for path in paths]
    expected = model.embed(arrays).features
    pictures = [Image.open(path) for path in paths]
    for images in (paths, map(str, paths), pictures):
        np.testing.assert_array_equal(model.embed(images).features, expected)
    rgb = [array[:, :, ::-1] for array in arrays]
    np.testing.assert_array_equal(model.embed(rgb, colour="rgb").features, expected)
    for one in (arrays[0], paths[0], str(paths[0]), pictures[0], arrays[0][None]):
        np.testing.assert_array_equal(model.embed(one).features, model.embed(arrays[:1]).features)
    gray, clear = pictures[0].convert("L"), pictures[0].convert("RGBA")
    np.testing.assert_array_equal(
        model.embed([gray, clear]).features,
        model.embed([gray.convert("RGB"), pictures[0]]).features,
    )
    with pytest.raises(UserError, match="the colour order is 'grb'; it can be bgr or rgb"):
        model.embed(arrays, colour="grb")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(UserError, match=r"cannot read the image .*text\.png"):
        model.embed(tmp_path / "text.png")


class Detections:
    """As supervision's: boxes in ``xyxy``."""

    def __init__(self, xyxy: Any):
        self.xyxy = xyxy


def test_boxes_of_a_frame_are_its_crops(fed_run):
    model = occluded_reid.load(fed_run, batch_size=2)
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    boxes = np.array([[10, 5, 40, 80], [-7.0, 2, 20.2, 60.7], [100.5, 40, 500, 400]])
    crops = [frame[5:80, 10:40], frame[2:61, 0:21], frame[40:90, 100:120]]
    expected = model.embed(crops)
    for given in (boxes, boxes.tolist(), Detections(boxes), Detections(torch.from_numpy(boxes))):
        embedding = model.embed(frame, boxes=given)
        np.testing.assert_array_equal(embedding.features, expected.features)
        np.testing.assert_array_equal(embedding.visibility, expected.visibility)
    rgb = Image.fromarray(frame[:, :, ::-1])
    np.testing.assert_array_equal(model.embed(rgb, boxes).features, expected.features)
    several = model.embed(iter([frame, frame[::-1], frame]), [boxes[:1], [], Detections(boxes[1:])])
    np.testing.assert_allclose(several.features, expected.features, atol=1e-5)
    for none in ([], np.empty((0, 4)), Detections(np.empty((0, 4))), np.empty(0)):
        assert model.embed(frame, boxes=none).features.shape == (0, 4, model.dim // 4)
    assert model.embed([], boxes=[]).visibility.shape == (0, 4)


def test_overlaps_with_nearer_people_are_painted(fed_run):
    model = occluded_reid.load(fed_run)
    frame = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    boxes = np.array([[0, 0, 20, 40], [10.5, 5, 30, 50], [5, 30, 25, 45], [40, 0, 50, 40]])
    painted = frame[:40, :20].copy()
    mean = np.round(load_config().MODEL.PIXEL_MEAN).astype(np.uint8)[::-1]  # BGR
    painted[5:, 10:] = painted[30:, 5:] = mean  # boxes 1 and 2 end lower; pixels in part are too
    embedding = model.embed(frame, boxes=boxes, hide_overlaps=True)
    expected = model.embed([painted, frame[5:50, 10:30], frame[:40, 40:]])
    assert np.allclose(embedding.features[[0, 1, 3]], expected.features, atol=1e-5)
    unpainted = model.embed(frame, boxes)
    assert not np.allclose(embedding.features[2], unpainted.features[2], atol=1e-2)
    twice = np.array([[0, 0, 20, 40], [0, 2, 20, 41]])  # one person, found twice
    same = model.embed(frame, twice, hide_overlaps=True)
    assert np.array_equal(same.features, model.embed(frame, twice).features)
    detections = Detections(boxes[:2])
    detections.mask = np.zeros((2, 60, 50), bool)
    detections.mask[0, :30, :12], detections.mask[1, 20:50, 8:30] = True, True
    painted = frame[:40, :20].copy()
    painted[20:30, 12:] = painted[30:, 8:] = mean  # what both masks show is the person's own
    by_mask = model.embed(frame, detections, hide_overlaps=True).features
    assert np.allclose(by_mask[0], model.embed(painted).features[0], atol=1e-5)
    detections.mask = detections.mask[:, :20]
    with pytest.raises(UserError, match=r"masks of frame 0 have shape \(2, 20, 50\); expected"):
        model.embed(frame, detections, hide_overlaps=True)
    appearance = Appearance(model, hide_overlaps=True)
    unit = embedding.features.reshape(4, -1)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert np.allclose(appearance.get_features(boxes, frame), unit, atol=1e-6)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 9, 9], [5, 5, 5, 9], [9, 9, 4, 4]], r"box 1, 2, \[5.0, 5.0, 5.0, 9.0\]"),
        ([[200, 0, 220, 9]], r"frame 0 has 120 x 90 pixels, and no part of them is in box 0"),
        ([[0, 0, np.nan, 9]], "no part of them is in box 0"),
        ([0, 0, 5, 5], r"the boxes of frame 0 have shape \(4,\); expected \(N, 4\) of x0"),
        (np.zeros((2, 5)), r"shape \(2, 5\)"),
        ([["a", 0, 5, 5]], "the boxes of frame 0 are no numbers"),
    ],
)
def test_bad_boxes_are_named(fed_run, boxes, message):
    with pytest.raises(UserError, match=message):
        occluded_reid.load(fed_run).embed(np.zeros((90, 120, 3), np.uint8), boxes=boxes)


def test_each_frame_has_its_boxes(fed_run):
    model, frame = occluded_reid.load(fed_run), np.zeros((90, 120, 3), np.uint8)
    with pytest.raises(UserError, match="there are 1 sets of boxes, but more frames"):
        model.embed([frame, frame], [[[0, 0, 9, 9]]])
    with pytest.raises(UserError, match="there are 1 frames, but more boxes"):
        model.embed([frame], [[], []])
    with pytest.raises(UserError, match="frame 1 is a NoneType"):
        model.embed([frame, None], [[], []])


def test_threads_may_share_a_model(fed_run, crops):
    model = occluded_reid.load(fed_run, batch_size=2)
    expected = model.embed(crops)
    similarity = model.similarity(expected, expected)

    def embed(start: int) -> tuple[np.ndarray, np.ndarray]:
        turned = [*crops[start:], *crops[:start]]
        found = model.embed(turned if start % 2 else [crop[:, :, ::-1] for crop in turned],
                            colour="bgr" if start % 2 else "rgb")  # fmt: skip
        features = np.roll(found.features, start, axis=0)
        return features, model.similarity(features, expected)

    with ThreadPoolExecutor(6) as pool:
        for features, compared in pool.map(embed, [*range(len(crops))] * 5):
            np.testing.assert_allclose(features, expected.features, atol=1e-5)
            np.testing.assert_allclose(compared, similarity, atol=1e-5)


def test_importing_the_package_does_not_import_the_embedder(monkeypatch):
    name = "occluded_reid.deploy.embedder"
    monkeypatch.delitem(sys.modules, name)
    importlib.reload(occluded_reid)
    assert name not in sys.modules
    assert occluded_reid.load.__module__ == name and name in sys.modules
    with pytest.raises(AttributeError, match="no attribute 'lead'"):
        occluded_reid.lead  # noqa: B018


def test_the_page_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("logs").mkdir()
    save_run(MODELS["FED"](Path("logs/demo")))
    for name, path in zip("abc", draw_crops(tmp_path, 3), strict=True):
        path.rename(f"{name}.png")
    draw_crops(Path("crops"))
    rng = np.random.default_rng(0)
    cv2.imwrite("street.png", rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    frames = rng.integers(0, 256, (3, 90, 120, 3), dtype=np.uint8)
    boxes = np.array([[-5.0, 2, 20, 60], [40, 10, 70, 200], [119.5, 89.5, 130, 95]])
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"frames": frames, "detect": lambda frame: boxes}
    for block in code[:-1]:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["features"].shape == (3, 64) and names["features"].dtype == np.float32
    assert len(names["tracks"]) >= 3
    matrix = re.search(r"\[\[.*?\]\]", capsys.readouterr().out, re.DOTALL)
    assert matrix[0].count("[") == 4

    page = PAGE.read_text()
    first = re.search(r"tools/extract_features\.py (.*)", page)
    assert load_tool("extract_features").command(first[1].split()) == 0
    exec(compile(code[-1], str(PAGE), "exec"), names)
    assert names["paths"].tolist() == [f"{number}.png" for number in range(6)]
    expected = names["model"].embed([cv2.imread(f"crops/{path}") for path in names["paths"]])
    np.testing.assert_allclose(names["features"], names["model"].make_rows(expected), atol=1e-5)


def test_a_threshold_is_read_from_the_curve(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("logs").mkdir()
    save_run(MODELS["FED"](Path("logs/shop")))
    rows = ["path,identity,camera,split", "0.png,anna,1,train"]
    for number, path in enumerate(draw_crops(Path("datasets/shop"), 6)):
        rows.append(f"{path.name},{('anna', 'bob', '')[number // 2]},{number % 2},query")
    Path("datasets/shop/images.csv").write_text("\n".join(rows))
    text = PAGE.with_name("threshold.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "threshold.md", "exec"), names)
    assert len(names["a"]) == 4 and names["people"].tolist() == ["anna", "anna", "bob", "bob"]
    threshold = names["thresholds"][names["last"]]
    same = names["people"][names["a"]] == names["people"][names["b"]]
    wrong = names["similarity"][names["a"], names["b"]][~same]
    assert (wrong < threshold).all()
    assert re.search(r"from (inf|[\d.-]+) on: [\d.]+% hits", capsys.readouterr().out)


@pytest.mark.slow  # imports PyTorch once more
def test_loading_and_embedding_imports_nothing_heavy(tmp_path):
    words = ["MODEL.DEVICE", "cpu", "MODEL.HEADS.NUM_CLASSES", "4", "OUTPUT_DIR", str(tmp_path)]
    words += ["MODEL.BACKBONE.DEPTH", "18x"]  # timm's networks import timm
    config = ROOT / "projects" / "AONet" / "configs" / "occ_duke.yml"
    run = save_run(load_config(str(config), words, add_keys=installed_methods()))
    subprocess.run([sys.executable, "-c", IMPORTS, str(run)], check=True, cwd=ROOT)

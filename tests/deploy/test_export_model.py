"""tools/export_model.py: a graph that computes what the model does, or no file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from aonet.tiny import aonet_cfg, aonet_model
from fastreid.data.transforms import build_transforms
from fed.tiny import fed_cfg, fed_model
from PIL import Image
from runs import draw_market, load_tool, tiny_cfg
from torch import nn

import occluded_reid
from occluded_reid.config import load_config
from occluded_reid.config.methods import installed_methods
from occluded_reid.data.images import read_rgb
from occluded_reid.deploy import accuracy
from occluded_reid.deploy import export as exporting
from occluded_reid.modeling.build import build_inference_model, build_untrained
from occluded_reid.modeling.outputs import Embedding, as_embedding
from occluded_reid.modeling.similarity import make_rows, resolve_metric

tool = load_tool("export_model")
ADD_KEYS = installed_methods()
PAGE = Path(__file__).parents[2] / "docs" / "deploying.md"
PARTS = {"FED": 4, "AONet": 3, "Baseline": 0}
METHODS = ["FED", *(pytest.param(name, marks=pytest.mark.slow) for name in ("AONet", "Baseline"))]
VIT = (
    "MODEL.BACKBONE.NAME", "build_token_vit_backbone", "MODEL.BACKBONE.DEPTH", "custom",
    "MODEL.BACKBONE.NUM_BLOCKS", 2, "MODEL.BACKBONE.NUM_HEADS", 4,
    "MODEL.BACKBONE.PATCH_SIZE", "[8, 8]", "MODEL.BACKBONE.STRIDE_SIZE", "[8, 8]",
)  # fmt: skip


def save_model(folder: Path, method: str) -> Path:
    """Write weights and configuration of a tiny model with random running statistics."""
    torch.manual_seed(0)
    if method == "FED":
        cfg, model = fed_cfg(*VIT), fed_model(*VIT)
    elif method == "AONet":
        cfg, model = aonet_cfg(), aonet_model()
    else:
        cfg = tiny_cfg(folder / "run", "MODEL.HEADS.NUM_CLASSES", 5)
        model = build_untrained(cfg)
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return folder / "model.pth"


def run_export(
    folder: Path, method: str, suffix: str, kind: str = "", *options: str
) -> tuple[Path, dict]:
    path = folder / f"model.{suffix}"
    words = ["--weights", str(save_model(folder, method)), "--format", kind or suffix, *options]
    assert tool.command([*words, "--output", str(path)]) == 0
    return path, json.loads(Path(f"{path}.json").read_text())


def random_images(about: dict, count: int) -> torch.Tensor:
    return torch.rand(count, 3, *about["input_size"]) * 255


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_torch_export_computes_what_the_model_does(tmp_path, method):
    path, about = run_export(tmp_path, method, "torch")
    cfg = load_config(str(tmp_path / "config.yaml"), [], add_keys=ADD_KEYS)
    model = build_inference_model(cfg, str(tmp_path / "model.pth"))
    program = torch.export.load(path)
    for count in (1, 4, 7):
        images = random_images(about, count)
        features, visibility = program.module()(images)
        expected = model({"images": images.clone()})
        expected = as_embedding(expected)
        rows = make_rows(expected, about["metric"])
        torch.testing.assert_close(features, rows, rtol=0, atol=1e-4)
        torch.testing.assert_close(visibility, expected.visibility, rtol=0, atol=1e-4)
        assert visibility.shape == (count, PARTS[method])
    # no part that only training needs, by name and by count
    names = "|".join(program.state_dict)
    assert not re.search("classifier|diffusion|erased_memory|diffused_memory|heads.weight", names)
    whole = sum(value.numel() for value in build_untrained(cfg).parameters())
    inside = sum(value.numel() for value in program.parameters())
    assert inside == about["parameters"] < whole
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert about["metric"] == ("dot" if method == "AONet" else "cosine")
    assert (about["dim"], about["parts"]) == (features.shape[1], PARTS[method])
    assert about["input_size"] == [32, 16] and about["colour_order"] == "RGB"
    assert about["mean"] == list(cfg.MODEL.PIXEL_MEAN) and about["std"] == list(cfg.MODEL.PIXEL_STD)
    assert about["parity"]["max_abs_difference"] <= 1e-4


@pytest.mark.extras
@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_onnx_computes_what_the_model_does(tmp_path, method):
    import onnx
    import onnxruntime

    path, about = run_export(tmp_path, method, "onnx")
    cfg = load_config(str(tmp_path / "config.yaml"), [], add_keys=ADD_KEYS)
    model = build_inference_model(cfg, str(tmp_path / "model.pth"))
    graph = exporting.InferenceGraph(model, resolve_metric(cfg.TEST))
    session = onnxruntime.InferenceSession(str(path))
    assert [each.name for each in session.get_inputs()] == ["images"]
    assert [each.name for each in session.get_outputs()] == ["features", "visibility"]
    for count in (1, 4, 7):
        images = random_images(about, count)
        for actual, expected in zip(
            session.run(None, {"images": images.numpy()}), graph(images), strict=True
        ):
            np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-4)
    weights = onnx.load(path).graph.initializer
    names = "|".join(each.name for each in weights)
    assert not re.search("classifier|diffusion|erased_memory|diffused_memory|heads.weight", names)
    assert sorted(each.name for each in tmp_path.iterdir() if "onnx" in each.name) == [
        "model.onnx", "model.onnx.json"
    ]  # fmt: skip
    assert about["opset"] >= 18
    run_the_page(path)


@pytest.mark.extras
@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_openvino_computes_what_the_model_does(tmp_path, method):
    path, about = run_export(tmp_path, method, "xml", "openvino")
    cfg = load_config(str(tmp_path / "config.yaml"), [], add_keys=ADD_KEYS)
    model = build_inference_model(cfg, str(tmp_path / "model.pth"))
    graph = exporting.InferenceGraph(model, resolve_metric(cfg.TEST))
    compiled = compile_openvino(path, about)
    assert [each.any_name for each in compiled.inputs] == ["images"]
    for count in (1, 4, 7):
        images = random_images(about, count)
        actual = compiled(images.numpy())
        for name, expected in zip(("features", "visibility"), graph(images), strict=True):
            np.testing.assert_allclose(actual[name], expected.numpy(), rtol=0, atol=1e-4)
    assert about["compile_with"] == {"INFERENCE_PRECISION_HINT": "f32"}
    assert about["precision"] == "fp32" and "accuracy" not in about
    weights = path.with_suffix(".bin").read_bytes()
    assert about["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    run_the_page(path)


@pytest.mark.extras
@torch.no_grad()
def test_int8_reports_its_error_on_images_that_did_not_calibrate_it(tmp_path):
    paths = save_images(tmp_path / "images", 15)
    words = ["--precision", "int8", "--calibration", str(tmp_path / "images")]
    path, about = run_export(tmp_path, "FED", "xml", "openvino", *words)
    cfg = load_config(str(tmp_path / "config.yaml"), [], add_keys=ADD_KEYS)
    model = build_inference_model(cfg, str(tmp_path / "model.pth"))
    graph = exporting.InferenceGraph(model, resolve_metric(cfg.TEST))
    transform = build_transforms(cfg, is_train=False)
    held_out = torch.stack([transform(read_rgb(paths[index])) for index in (0, 5, 10)])
    actual = compile_openvino(path, about)(held_out.numpy())["features"]
    loss = 1 - F.cosine_similarity(torch.from_numpy(actual), graph(held_out)[0])
    error = about["accuracy"]
    assert error["pictures"] == 3 and not error["drawn"]
    assert error["one_minus_cosine"]["mean"] == pytest.approx(loss.mean().item(), abs=1e-5)
    assert 1e-6 < error["one_minus_cosine"]["max"] < 0.2
    assert about["parity"]["max_abs_difference"] <= 1e-4  # of the graph before quantization
    assert "u8" in path.read_text() or "i8" in path.read_text()


@pytest.mark.extras
def test_bf16_reports_its_error_or_why_it_cannot_be_measured(tmp_path, capsys):
    path = tmp_path / "model.xml"
    words = ["--weights", str(save_model(tmp_path, "FED")), "--format", "openvino", "--output"]
    code = tool.command([*words, str(path), "--precision", "bf16"])
    if code:
        assert "this processor cannot compute in bf16" in capsys.readouterr().err
        assert not path.exists()
        return
    about = json.loads(Path(f"{path}.json").read_text())
    assert about["compile_with"] == {"INFERENCE_PRECISION_HINT": "bf16"}
    assert about["accuracy"]["drawn"] and about["accuracy"]["pictures"] == 12
    assert 0 < about["accuracy"]["one_minus_cosine"]["mean"] < 1e-2


def compile_openvino(path: Path, about: dict):
    import openvino

    return openvino.Core().compile_model(str(path), "CPU", about["compile_with"])


def save_images(folder: Path, count: int) -> list[Path]:
    """Write rendered pedestrians; return their paths, sorted by name."""
    folder.mkdir()
    rendered = exporting.render_pedestrians(min(count, 12), (60, 30), 1)
    paths = []
    for number in range(count):
        pixels = rendered[number % 12].roll(number, dims=2).permute(1, 2, 0).byte().numpy()
        paths.append(folder / f"{number:02d}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def run_the_page(path: Path) -> None:
    """Run the Python of docs/deploying.md for a format on a model and a rendered image."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = (each for each in blocks if f'"model{path.suffix}"' in each)
    image = exporting.render_pedestrians(1, (60, 30), 0)[0].permute(1, 2, 0).byte().numpy()
    Image.fromarray(image).save(path.parent / "person.jpg")
    code = block.replace(f'"model{path.suffix}', f'"{path}')
    code = code.replace('"person.jpg"', f'"{path.parent}/person.jpg"')
    space: dict = {}
    exec(code, space)
    features, dim = space["features"], json.loads(Path(f"{path}.json").read_text())["dim"]
    assert features.shape[1:] == (dim,) and len(features) == space["visibility"].shape[0]
    if path.suffix == ".onnx":
        pixels = cv2.imread(f"{path.parent}/person.jpg")
        model = occluded_reid.load(path.parent / "model.pth")
        expected = model.embed([pixels, pixels])
        np.testing.assert_allclose(space["visibility"], expected.visibility, atol=1e-4)
        rows = model.make_rows(expected)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        wanted = rows / norms if model.metric == "cosine" else rows
        np.testing.assert_allclose(features, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["onnx", "x.onnx", "--precision", "int8"], "int8 is for --format openvino"),
        (["openvino", "x.onnx"], "OpenVINO's graph needs a name that ends in .xml"),
        (
            ["openvino", "x.xml", "--precision", "int8"],
            "int8 needs --calibration: a folder or list",
        ),
        (["openvino", "x.xml", "--calibration", "y"], "--calibration is for --precision bf16"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
    kind, path, *others = options
    words = dict(zip(others[::2], others[1::2], strict=True))
    named = {name.strip("-"): value for name, value in words.items()}
    with pytest.raises(exporting.UserError, match=message):
        exporting.export(nn.Identity(), fed_cfg(), path, kind, **named)


def test_calibration_images_are_read_and_split(tmp_path):
    cfg = fed_cfg()
    paths = save_images(tmp_path / "images", 12)
    images = accuracy.read_calibration_images(str(tmp_path / "images"), cfg)
    assert images.shape == (12, 3, *cfg.INPUT.SIZE_TEST)
    calibrating, held_out = accuracy.split_held_out(images)
    assert torch.equal(held_out, images[[0, 5, 10]]) and len(calibrating) == 9
    paths[3].write_bytes(b"not an image")
    with pytest.raises(exporting.UserError, match=r"cannot read the image .*03\.png"):
        accuracy.read_calibration_images(str(tmp_path / "images"), cfg)
    for path in paths[9:]:
        path.unlink()
    with pytest.raises(exporting.UserError, match="has 9 images; calibration needs 10"):
        accuracy.read_calibration_images(str(tmp_path / "images"), cfg)


def test_the_feature_error_by_hand():
    def graph(images):
        return images[:, :2, 0, 0], images[:, 2:, 0, 0]

    def rotated(images):  # by 60 degrees, twice the norm, 0.25 less visible
        x, y = images[:, 0, 0, 0], images[:, 1, 0, 0]
        features = torch.stack([x - 3**0.5 * y, 3**0.5 * x + y], dim=1)
        return [features.numpy(), (images[:, 2:, 0, 0] - 0.25).numpy()]

    actual = accuracy.measure_feature_error(graph, rotated, torch.rand(11, 3, 1, 1) + 0.1)
    assert actual["pictures"] == 11
    assert actual["one_minus_cosine"] == pytest.approx({"mean": 0.5, "max": 0.5}, abs=1e-5)
    assert actual["length_ratio"] == pytest.approx({"min": 2, "max": 2}, abs=1e-5)
    assert actual["max_visibility_difference"] == pytest.approx(0.25, abs=1e-6)
    with pytest.raises(exporting.UserError, match="not finite"):
        accuracy.measure_feature_error(
            graph, lambda images: [each.numpy() * np.nan for each in graph(images)],
            torch.rand(2, 3, 1, 1),
        )  # fmt: skip


def test_the_ranking_loss_of_a_graph(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(draw_market(tmp_path / "data")))
    cfg = tiny_cfg(tmp_path / "run", "MODEL.HEADS.NUM_CLASSES", 5)
    model = build_untrained(cfg).eval()

    def run(images):
        return [model({"images": images}).detach().numpy(), none(images)]

    def constant(images):
        return [np.ones((len(images), 16), np.float32), none(images)]

    def none(images):
        return np.empty((len(images), 0), np.float32)

    same = accuracy.measure_ranking_loss(cfg, model, run)["Market1501"]
    assert same["mAP"]["loss"] == 0 and same["mAP"]["model"] == same["mAP"]["graph"] > 50
    worse = accuracy.measure_ranking_loss(cfg, model, constant)["Market1501"]
    assert worse["mAP"]["loss"] == pytest.approx(same["mAP"]["model"] - worse["mAP"]["graph"])
    assert worse["mAP"]["loss"] > 20


class Drifting(nn.Module):
    """Computes something else than its exported graph."""

    def __init__(self, error: float):
        super().__init__()
        self.error = error

    def forward(self, batch: dict[str, torch.Tensor]) -> Embedding:
        features = batch["images"].mean(dim=(2, 3))
        if not torch.compiler.is_exporting():
            features = features + self.error
        return Embedding(features, torch.ones(features.shape[0], 1))


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_a_graph_that_differs_from_the_model_is_not_written(tmp_path, error):
    cfg = fed_cfg()
    with pytest.raises(exporting.UserError, match=r"differs from the model by .*was not written"):
        exporting.export(Drifting(error).eval(), cfg, str(tmp_path / "model.pt2"), "torch")
    assert list(tmp_path.iterdir()) == []
    assert exporting.export(Drifting(0.0).eval(), cfg, str(tmp_path / "model.pt2"), "torch")


def test_parity_is_measured_on_new_random_and_rendered_images():
    one, other = (exporting.render_pedestrians(2, (32, 16), seed) for seed in (1, 2))
    assert one.shape == (2, 3, 32, 16) and one.min() >= 0 and one.max() <= 255
    assert not torch.equal(one, other)
    seen = []
    graph = lambda images: (images[:, :, 0, 0], images[:, :1, 0, 0])  # noqa: E731
    for _ in range(2):
        exporting.measure_parity(
            graph, lambda images: seen.append(images) or [each.numpy() for each in graph(images)],
            (32, 16),
        )  # fmt: skip
    assert [len(each) for each in seen[:5]] == [1, 3, 8, 2, 5]
    assert not torch.equal(seen[0], seen[5])


def test_user_errors_are_named(tmp_path, capsys, monkeypatch):
    weights = save_model(tmp_path, "FED")
    words = ["--weights", str(weights), "--output", str(tmp_path / "x.onnx"), "--format", "onnx"]
    find = importlib.util.find_spec
    optional = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in optional else find(name)
    )
    assert tool.command(words) == 2
    error = capsys.readouterr().err
    assert "needs onnx, onnxscript, onnxruntime: pip install 'occluded-reid[onnx]'" in error
    words[-3:] = [str(tmp_path / "x.xml"), "--format", "openvino"]
    assert tool.command(words) == 2
    assert "needs openvino, nncf: pip install 'occluded-reid[openvino]'" in capsys.readouterr().err
    (tmp_path / "config.yaml").unlink()
    assert tool.command(words) == 2
    assert re.search("no config.yaml beside .*model.pth; .*--config-file", capsys.readouterr().err)

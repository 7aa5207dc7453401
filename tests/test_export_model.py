"""tools/export_model.py: one graph that computes what the model does, or no file."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from aonet.tiny import aonet_cfg, aonet_model
from fed.tiny import fed_cfg, fed_model
from PIL import Image
from runs import load_tool, tiny_cfg
from torch import nn

from occluded_reid import export as exporting
from occluded_reid.checkpoints import build_inference_model, build_untrained
from occluded_reid.evaluation.outputs import Embedding

tool = load_tool("export_model")
PAGE = Path(__file__).parents[1] / "docs" / "deploying.md"
PARTS = {"FED": 4, "AONet": 3, "Baseline": 0}
METHODS = ["FED", *(pytest.param(name, marks=pytest.mark.slow) for name in ("AONet", "Baseline"))]
VIT = (
    "MODEL.BACKBONE.NAME", "build_token_vit_backbone", "MODEL.BACKBONE.DEPTH", "custom",
    "MODEL.BACKBONE.NUM_BLOCKS", 2, "MODEL.BACKBONE.NUM_HEADS", 4,
    "MODEL.BACKBONE.PATCH_SIZE", "[8, 8]", "MODEL.BACKBONE.STRIDE_SIZE", "[8, 8]",
)  # fmt: skip


def saved(folder: Path, method: str) -> Path:
    """Write the weights and the configuration of a tiny model with statistics of its own."""
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


def exported(folder: Path, method: str, kind: str) -> tuple[Path, dict]:
    path = folder / f"model.{kind}"
    words = ["--weights", str(saved(folder, method)), "--format", kind, "--output", str(path)]
    assert tool.command(words) == 0
    return path, json.loads(Path(f"{path}.json").read_text())


def fresh(about: dict, count: int) -> torch.Tensor:
    return torch.rand(count, 3, *about["input_size"]) * 255


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_torch_export_computes_what_the_model_does(tmp_path, method):
    path, about = exported(tmp_path, method, "torch")
    cfg = tool.load_config(str(tmp_path / "config.yaml"), [], add_keys=tool.ADD_KEYS)
    model = build_inference_model(cfg, str(tmp_path / "model.pth"))
    program = torch.export.load(path)
    for count in (1, 4, 7):
        images = fresh(about, count)
        features, visibility = program.module()(images)
        wanted = model({"images": images.clone()})
        wanted = wanted if isinstance(wanted, Embedding) else Embedding(wanted, visibility)
        torch.testing.assert_close(features, wanted.features, rtol=0, atol=1e-4)
        torch.testing.assert_close(visibility, wanted.visibility, rtol=0, atol=1e-4)
        assert visibility.shape == (count, PARTS[method])
    # nothing of training, by names and by number
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


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_onnx_computes_what_the_model_does(tmp_path, method):
    pytest.importorskip("onnxscript")
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    path, about = exported(tmp_path, method, "onnx")
    cfg = tool.load_config(str(tmp_path / "config.yaml"), [], add_keys=tool.ADD_KEYS)
    graph = exporting.InferenceGraph(build_inference_model(cfg, str(tmp_path / "model.pth")))
    session = onnxruntime.InferenceSession(str(path))
    assert [each.name for each in session.get_inputs()] == ["images"]
    assert [each.name for each in session.get_outputs()] == ["features", "visibility"]
    for count in (1, 4, 7):
        images = fresh(about, count)
        for found, wanted in zip(
            session.run(None, {"images": images.numpy()}), graph(images), strict=True
        ):
            np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-4)
    weights = onnx.load(path).graph.initializer
    names = "|".join(each.name for each in weights)
    assert not re.search("classifier|diffusion|erased_memory|diffused_memory|heads.weight", names)
    assert sorted(each.name for each in tmp_path.iterdir() if "onnx" in each.name) == [
        "model.onnx", "model.onnx.json"
    ]  # fmt: skip
    assert about["opset"] >= 18
    run_the_page(path)


def run_the_page(path: Path) -> None:
    """Run the block of docs/deploying.md on a model and a drawn picture."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    picture = exporting.drawn_images(1, (60, 30), 0)[0].permute(1, 2, 0).byte().numpy()
    Image.fromarray(picture).save(path.parent / "person.jpg")
    code = block.replace('"model.onnx', f'"{path}')
    code = code.replace('"person.jpg"', f'"{path.parent}/person.jpg"')
    space: dict = {}
    exec(code, space)
    assert space["features"].shape == (1, json.loads(Path(f"{path}.json").read_text())["dim"])


class Drifting(nn.Module):
    """Computes something else than the graph that was taken from it."""

    def __init__(self, error: float):
        super().__init__()
        self.error = error

    def forward(self, batch: dict[str, torch.Tensor]) -> Embedding:
        features = batch["images"].mean(dim=(2, 3))
        if not torch.compiler.is_exporting():
            features = features + self.error
        return Embedding(features, torch.ones(features.shape[0], 1))


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_a_graph_that_computes_something_else_is_not_written(tmp_path, error):
    cfg = fed_cfg()
    with pytest.raises(exporting.UserError, match=r"differs from the model by .*was not written"):
        exporting.export(Drifting(error).eval(), cfg, str(tmp_path / "model.pt2"), "torch")
    assert list(tmp_path.iterdir()) == []
    assert exporting.export(Drifting(0.0).eval(), cfg, str(tmp_path / "model.pt2"), "torch")


def test_what_is_compared_on_is_new_each_time_and_looks_real():
    one, other = (exporting.drawn_images(2, (32, 16), seed) for seed in (1, 2))
    assert one.shape == (2, 3, 32, 16) and one.min() >= 0 and one.max() <= 255
    assert not torch.equal(one, other)
    seen = []
    graph = lambda images: (images[:, :, 0, 0], images[:, :1, 0, 0])  # noqa: E731
    for _ in range(2):
        exporting.compare(
            graph, lambda images: seen.append(images) or [each.numpy() for each in graph(images)],
            (32, 16),
        )  # fmt: skip
    assert [len(each) for each in seen[:5]] == [1, 3, 8, 2, 5]
    assert not torch.equal(seen[0], seen[5])


def test_mistakes_are_named(tmp_path, capsys, monkeypatch):
    weights = saved(tmp_path, "FED")
    words = ["--weights", str(weights), "--output", str(tmp_path / "x.onnx"), "--format", "onnx"]
    found = exporting.importlib.util.find_spec
    monkeypatch.setattr(
        exporting.importlib.util, "find_spec", lambda name: None if "onnx" in name else found(name)
    )
    assert tool.command(words) == 2
    said = capsys.readouterr().err
    assert "needs onnx, onnxscript, onnxruntime: pip install 'occluded-reid[onnx]'" in said
    (tmp_path / "config.yaml").unlink()
    assert tool.command(words) == 2
    assert "config.yaml beside the weights: name one with --config-file" in capsys.readouterr().err

"""A trained model as one graph, and the proof that the graph computes what the model does.

Shapes: B images, H, W height and width in pixels, D feature dimensions, P parts.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from PIL import Image
from torch import nn

from occluded_reid.errors import UserError
from occluded_reid.evaluation.outputs import Embedding
from occluded_reid.files import make_folder, whole_file
from occluded_reid.synthetic.composition import render
from occluded_reid.synthetic.plan import plan_pictures
from occluded_reid.synthetic.sizes import size_named

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
RANDOM_BATCHES, DRAWN_BATCHES = (1, 3, 8), (2, 5)
_NEEDED = ("onnx", "onnxscript", "onnxruntime")

Runner = Callable[[torch.Tensor], list[np.ndarray]]


class InferenceGraph(nn.Module):
    """A model as a function of one tensor, for exporters.

    Args:
        model: in evaluation mode, without what only training needs.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``features`` (B, D), not normalised, and ``visibility`` (B, P).

        Args:
            images: (B, 3, H, W) float32, red first, in 0-255.
        """
        output = self.model({"images": images})
        if isinstance(output, Embedding):
            return output.features, output.visibility
        return output, output[:, :0]  # fast-reid's models tell of no parts


def export(model: nn.Module, cfg: CfgNode, path: str, kind: str) -> dict[str, Any]:
    """Write the model as ``path`` and what its users must know as ``path``.json.

    Args:
        model: on the CPU, in evaluation mode, without what only training needs.
        cfg: its configuration.
        path: of the graph.
        kind: ``onnx``, or ``torch`` for torch.export's format.

    Returns:
        The content of ``path``.json.

    Raises:
        UserError: a package is missing, or the graph does not compute what the model does; then
            nothing is written.
    """
    if kind == "onnx":
        _require_onnx()
    graph = InferenceGraph(model).eval()
    size = tuple(cfg.INPUT.SIZE_TEST)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            graph, (torch.zeros(2, 3, *size),), dynamic_shapes={"images": {0: batch}}
        )
        content = _as_onnx(program) if kind == "onnx" else _as_program(program)
    runner, opset = (_onnx_runner if kind == "onnx" else _program_runner)(content)
    parity = compare(graph, runner, size)
    if not parity["max_abs_difference"] <= TOLERANCE:  # also where it is not a number
        raise UserError(
            f"the exported graph differs from the model by {parity['max_abs_difference']:.2g}, "
            f"more than {TOLERANCE:g}: {path} was not written"
        )
    about = {
        "format": kind,
        "opset": opset,
        **description(graph, cfg),
        "sha256": hashlib.sha256(content).hexdigest(),
        "parity": parity,
    }
    make_folder(Path(path).parent)
    with whole_file(path) as stream:
        stream.write(content)
    with whole_file(f"{path}.json", "w") as stream:
        json.dump(about, stream, indent=2)
        stream.write("\n")
    return about


def description(graph: InferenceGraph, cfg: CfgNode) -> dict[str, Any]:
    """Return what the users of a graph must know, for JSON."""
    size = list(cfg.INPUT.SIZE_TEST)
    with torch.no_grad():
        features, visibility = graph(torch.zeros(1, 3, *size))
    return {
        "meta_architecture": cfg.MODEL.META_ARCHITECTURE,
        "input": "images",
        "input_size": size,
        "layout": "(B, 3, H, W) float32",
        "colour_order": "RGB",
        "value_range": [0, 255],
        "resize": "bicubic (Pillow)",
        "normalisation": "in the graph: (images - mean) / std",
        "mean": list(cfg.MODEL.PIXEL_MEAN),
        "std": list(cfg.MODEL.PIXEL_STD),
        "outputs": ["features", "visibility"],
        "features_normalised": False,
        "metric": cfg.TEST.METRIC,
        "dim": features.shape[1],
        "parts": visibility.shape[1],
        "parameters": sum(each.numel() for each in graph.parameters()),
    }


def compare(graph: nn.Module, runner: Runner, size: tuple[int, ...]) -> dict[str, Any]:
    """Return how far a runner's outputs are from the model's, on inputs that are new each time.

    Args:
        graph: the model.
        runner: takes images (B, 3, H, W), returns features and visibility.
        size: (H, W).
    """
    chance = torch.Generator()
    seed = chance.seed() % 2**31
    chance.manual_seed(seed)
    inputs = [torch.rand(count, 3, *size, generator=chance) * 255 for count in RANDOM_BATCHES]
    inputs += list(drawn_images(sum(DRAWN_BATCHES), size, seed).split(DRAWN_BATCHES))
    greatest = {"features": 0.0, "visibility": 0.0}
    for images in inputs:
        with torch.no_grad():
            wanted = graph(images)
        for (name, before), ours, theirs in zip(
            greatest.items(), wanted, runner(images), strict=True
        ):
            if ours.shape != theirs.shape:
                raise UserError(
                    f"the exported graph gives {name} {theirs.shape}, the model "
                    f"{tuple(ours.shape)}: nothing was written"
                )
            differences = np.abs(ours.numpy() - theirs).ravel()
            greatest[name] = float(np.max([before, *differences]))  # keeps what is no number
    return {
        "max_abs_difference": float(np.max(list(greatest.values()))),
        **greatest,
        "tolerance": TOLERANCE,
        "random_batches": list(RANDOM_BATCHES),
        "drawn_batches": list(DRAWN_BATCHES),
        "seed": seed,
    }


def drawn_images(count: int, size: tuple[int, ...], seed: int) -> torch.Tensor:
    """Draw ``count`` occluded pedestrians (:mod:`occluded_reid.synthetic`) as (count, 3, H, W)."""
    queries = [each for each in plan_pictures(size_named("tiny"), seed) if each.split == "query"]
    pictures = []
    for picture in queries[:count]:
        image = Image.fromarray(render(picture, seed).image)
        resized = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        pictures.append(torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float())
    return torch.stack(pictures)


def _require_onnx() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}: pip install 'occluded-reid[onnx]', or in "
            "the repository: pip install -e '.[onnx]'"
        )


def _as_program(program: torch.export.ExportedProgram) -> bytes:
    stream = io.BytesIO()
    torch.export.save(program, stream)
    return stream.getvalue()


def _as_onnx(program: torch.export.ExportedProgram) -> bytes:
    try:
        made = torch.onnx.export(
            program,
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=["features", "visibility"],
            verbose=False,
        )
    except TypeError as error:
        raise UserError("--format onnx needs PyTorch 2.6 or newer") from error
    assert made is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        made.save(str(path), external_data=False)
        return path.read_bytes()


def _program_runner(content: bytes) -> tuple[Runner, None]:
    loaded = torch.export.load(io.BytesIO(content)).module()

    def run(images: torch.Tensor) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in loaded(images)]

    return run, None


def _onnx_runner(content: bytes) -> tuple[Runner, int]:
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> list[np.ndarray]:
        return session.run(["features", "visibility"], {"images": images.numpy()})

    opsets = onnx.load_from_string(content).opset_import
    return run, next(each.version for each in opsets if each.domain in ("", "ai.onnx"))

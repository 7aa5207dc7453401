"""A trained model as one graph, and the proof that the graph computes what the model does.

Shapes: B images, H, W height and width in pixels, D feature dimensions, P parts.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from PIL import Image
from torch import nn

from occluded_reid.deploy.accuracy import feature_cost, ranking_cost, read_pictures, split_pictures
from occluded_reid.deploy.formats import (
    OUTPUTS,
    Exported,
    Runner,
    as_bf16,
    as_int8,
    as_onnx,
    as_openvino,
    as_torch,
    require,
)
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.synthetic.plan import plan_pictures
from occluded_reid.synthetic.scene.composition import render
from occluded_reid.synthetic.sizes import size_named
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import make_folder, whole_file, write_json

TOLERANCE = 1e-4
RANDOM_BATCHES, DRAWN_BATCHES = (1, 3, 8), (2, 5)
MOST_DRAWN = 12
_MAKERS = {"torch": as_torch, "onnx": as_onnx, "openvino": as_openvino}


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


def export(
    model: nn.Module,
    cfg: CfgNode,
    path: str,
    kind: str,
    *,
    precision: str = "fp32",
    calibration: str = "",
    evaluate: bool = False,
) -> dict[str, Any]:
    """Write the model as ``path`` and what its users must know as ``path``.json.

    Args:
        model: on the CPU, in evaluation mode, without what only training needs.
        cfg: its configuration.
        path: of the graph; OpenVINO's ends in .xml, and its weights stand beside it, in .bin.
        kind: ``onnx``, ``openvino``, or ``torch`` for torch.export's format.
        precision: of OpenVINO's graph: ``fp32``, ``bf16`` or ``int8``.
        calibration: pictures, a folder or a list, for ``int8`` and for measuring what a lower
            precision costs; ``""`` measures on drawn ones.
        evaluate: measure what the graph loses on ``DATASETS.TESTS``.

    Returns:
        The content of ``path``.json.

    Raises:
        UserError: a package is missing, options that do not go together, pictures or test sets that
            cannot be read, or the graph does not compute what the model does; then nothing is
            written.
    """
    _check_options(kind, path, precision, calibration)
    require(kind)
    graph = InferenceGraph(model).eval()
    size = tuple(cfg.INPUT.SIZE_TEST)
    pictures = read_pictures(calibration, cfg) if calibration else None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = _MAKERS[kind](trace(graph, size))
    parity = _checked(compare(graph, made.run, size), path)
    cost: dict[str, Any] = {}
    if precision != "fp32":
        made, cost["accuracy"] = _lowered(graph, made, precision, pictures, size)
    if evaluate:
        cost["results"] = ranking_cost(cfg, model, made.run)
    first = next(iter(made.files.values()))
    about = {
        "format": kind,
        **made.facts,
        **description(graph, cfg),
        "sha256": hashlib.sha256(first).hexdigest(),
        "parity": parity,
        **cost,
    }
    _write(made.files, about, Path(path))
    return about


def trace(graph: InferenceGraph, size: tuple[int, ...]) -> torch.export.ExportedProgram:
    """Return the model as a program for images of ``size``, (H, W), in batches of any size."""
    return torch.export.export(
        graph,
        (torch.zeros(2, 3, *size),),
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
    )


def _check_options(kind: str, path: str, precision: str, calibration: str) -> None:
    if kind == "openvino" and not path.endswith(".xml"):
        raise UserError(f"--output {path}: OpenVINO's graph is a file that ends in .xml")
    if precision != "fp32" and kind != "openvino":
        raise UserError(f"--precision {precision} is for --format openvino")
    if precision == "fp32" and calibration:
        raise UserError("--calibration is for --precision bf16 or int8")
    if precision == "int8" and not calibration:
        raise UserError(
            "--precision int8 needs --calibration: some 300 pictures of persons like those to "
            "come, a folder or a list"
        )


def _checked(parity: dict[str, Any], path: str) -> dict[str, Any]:
    """Refuse a graph in float32 that does not compute what the model does."""
    if not parity["max_abs_difference"] <= TOLERANCE:  # also where it is not a number
        raise UserError(
            f"the exported graph differs from the model by {parity['max_abs_difference']:.2g}, "
            f"more than {TOLERANCE:g}: {path} was not written"
        )
    return parity


def _lowered(
    graph: nn.Module,
    made: Exported,
    precision: str,
    pictures: torch.Tensor | None,
    size: tuple[int, ...],
) -> tuple[Exported, dict[str, Any]]:
    """Return OpenVINO's graph in another precision, and how far its outputs then are."""
    if precision == "int8":
        assert pictures is not None  # checked with the options
        calibrating, held_out = split_pictures(pictures)
        transformer = any(isinstance(module, nn.LayerNorm) for module in graph.modules())
        made = as_int8(made, calibrating, transformer=transformer)
    else:
        held_out = drawn_images(MOST_DRAWN, size, 0) if pictures is None else pictures
        made = as_bf16(made)
    about = {"drawn": pictures is None, **feature_cost(graph, made.run, held_out)}
    return made, about


def _write(files: dict[str, bytes], about: dict[str, Any], path: Path) -> None:
    """Write the weights before the graph that reads them, and what is said of both last."""
    make_folder(path.parent)
    for suffix, content in reversed(files.items()):
        with whole_file(path.with_suffix(suffix) if suffix else path) as stream:
            stream.write(content)
    write_json(f"{path}.json", about)


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
        "outputs": list(OUTPUTS),
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

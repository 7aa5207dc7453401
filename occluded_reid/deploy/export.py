"""Export a trained model as one graph, and verify that the graph computes what the model does.

Shapes: B images, H, W height and width in pixels, D dimensions of a row, P parts.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from occluded_reid.config import CfgNode
from occluded_reid.deploy import accuracy, formats
from occluded_reid.deploy.formats import OUTPUTS, ExportedGraph, InferenceGraph, Runner
from occluded_reid.modeling.similarity import PART_METRICS, resolve_metric
from occluded_reid.synthetic.plan import get_size, plan_images
from occluded_reid.synthetic.scene.composition import render
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_write, make_folder, write_json

TOLERANCE = 1e-4
RANDOM_BATCHES, RENDERED_BATCHES = (1, 3, 8), (2, 5)
MAX_RENDERED = 12
_EXPORTERS = {
    "torch": formats.export_torch, "onnx": formats.export_onnx, "openvino": formats.export_openvino
}  # fmt: skip


def export(
    model: nn.Module, cfg: CfgNode, path: str, kind: str, *,
    precision: str = "fp32", calibration: str = "", evaluate: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write the model's graph to ``path`` and its description to ``path``.json.

    Args:
        model: on the CPU, in evaluation mode, without the parts that only training needs.
        cfg: its configuration.
        path: of the graph; OpenVINO's ends in .xml, and its weights are written to .bin beside it.
        kind: ``onnx``, ``openvino``, or ``torch`` for the format of ``torch.export``.
        precision: of OpenVINO's graph: ``fp32``, ``bf16`` or ``int8``.
        calibration: images, a folder or a list, that ``int8`` is calibrated by and that the loss
            of a lower precision is measured on; ``""`` measures on rendered pedestrians.
        evaluate: also rank ``DATASETS.TESTS`` by model and graph.

    Returns:
        The content of ``path``.json. Nothing is written if the graph does not compute what the
        model does, or after another error.

    >>> export(model, cfg, "model.onnx", "onnx")["metric"]  # doctest: +SKIP
    'cosine'
    """
    _check_options(kind, path, precision, calibration)
    formats.check_packages(kind)
    graph = InferenceGraph(model, resolve_metric(cfg.TEST)).eval()
    size = tuple(cfg.INPUT.SIZE_TEST)
    images = accuracy.read_calibration_images(calibration, cfg) if calibration else None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = _EXPORTERS[kind](trace(graph, size))
    parity = measure_parity(graph, exported.run, size)
    if not parity["max_abs_difference"] <= TOLERANCE:  # also if it is NaN
        raise UserError(
            f"the exported graph differs from the model by {parity['max_abs_difference']:.2g}, "
            f"more than {TOLERANCE:g}: {path} was not written"
        )
    loss: dict[str, Any] = {}
    if precision != "fp32":
        exported, loss["accuracy"] = _lower_precision(graph, exported, precision, images, size)
    if evaluate:
        loss["results"] = accuracy.measure_ranking_loss(cfg, model, exported.run)
    first = next(iter(exported.files.values()))
    description = {
        "format": kind,
        **exported.metadata,
        **describe_graph(graph, cfg),
        "sha256": hashlib.sha256(first).hexdigest(),
        "parity": parity,
        **loss,
    }
    make_folder(Path(path).parent)
    for suffix, content in reversed(exported.files.items()):  # the weights before their graph
        with atomic_write(Path(path).with_suffix(suffix) if suffix else path) as stream:
            stream.write(content)
    write_json(f"{path}.json", description)
    return description


def trace(graph: InferenceGraph, size: tuple[int, ...]) -> torch.export.ExportedProgram:
    """Trace the model for batches of any number of images of ``size`` (H, W)."""
    batch = torch.export.Dim("batch", min=1)
    example = torch.zeros(2, 3, *size)
    return torch.export.export(graph, (example,), dynamic_shapes={"images": {0: batch}})


def _check_options(kind: str, path: str, precision: str, calibration: str) -> None:
    if kind == "openvino" and not path.endswith(".xml"):
        raise UserError(f"--output {path}: OpenVINO's graph needs a name that ends in .xml")
    if precision != "fp32" and kind != "openvino":
        raise UserError(f"--precision {precision} is for --format openvino")
    if precision == "fp32" and calibration:
        raise UserError("--calibration is for --precision bf16 or int8")
    if precision == "int8" and not calibration:
        raise UserError(
            "--precision int8 needs --calibration: a folder or list of some 300 images of persons "
            "as the deployed cameras see them"
        )


def _lower_precision(
    graph: nn.Module, exported: ExportedGraph, precision: str, images: torch.Tensor | None,
    size: tuple[int, ...],
) -> tuple[ExportedGraph, dict[str, Any]]:  # fmt: skip
    """Return OpenVINO's graph in another precision, and the error of its outputs."""
    if precision == "int8":
        assert images is not None  # _check_options
        calibrating, held_out = accuracy.split_held_out(images)
        transformer = any(isinstance(module, nn.LayerNorm) for module in graph.modules())
        lowered = formats.quantize_to_int8(exported, calibrating, transformer=transformer)
    else:
        held_out = render_pedestrians(MAX_RENDERED, size, 0) if images is None else images
        lowered = formats.lower_to_bf16(exported)
    error = accuracy.measure_feature_error(graph, lowered.run, held_out)
    return lowered, {"drawn": images is None, **error}


def describe_graph(graph: InferenceGraph, cfg: CfgNode) -> dict[str, Any]:
    """Describe inputs, outputs, preprocessing and metric of a graph, for JSON."""
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
        "features_normalised": graph.metric in PART_METRICS,
        "metric": graph.metric,
        "dim": features.shape[1],
        "parts": visibility.shape[1],
        "parameters": sum(each.numel() for each in graph.parameters()),
    }


def measure_parity(graph: nn.Module, run: Runner, size: tuple[int, ...]) -> dict[str, Any]:
    """Measure how far a runner's outputs are from the model's, on new inputs of ``size`` (H, W)."""
    rng = torch.Generator()
    seed = rng.seed() % 2**31
    rng.manual_seed(seed)
    inputs = [torch.rand(count, 3, *size, generator=rng) * 255 for count in RANDOM_BATCHES]
    inputs += render_pedestrians(sum(RENDERED_BATCHES), size, seed).split(RENDERED_BATCHES)
    largest = {"features": 0.0, "visibility": 0.0}
    for images in inputs:
        with torch.no_grad():
            expected = graph(images)
        for name, ours, theirs in zip(OUTPUTS, expected, run(images), strict=True):
            if ours.shape != theirs.shape:
                raise UserError(
                    f"the exported graph gives {name} {theirs.shape}, the model "
                    f"{tuple(ours.shape)}: nothing was written"
                )
            differences = np.abs(ours.numpy() - theirs).ravel()
            largest[name] = float(np.max([largest[name], *differences]))  # np.max keeps NaN
    return {
        "max_abs_difference": float(np.max(list(largest.values()))),
        **largest,
        "tolerance": TOLERANCE,
        "random_batches": list(RANDOM_BATCHES),
        "drawn_batches": list(RENDERED_BATCHES),
        "seed": seed,
    }


def render_pedestrians(count: int, size: tuple[int, ...], seed: int) -> torch.Tensor:
    """Render occluded pedestrians (:mod:`occluded_reid.synthetic`): (count, 3, H, W) in 0-255."""
    queries = [each for each in plan_images(get_size("tiny"), seed) if each.split == "query"]
    images = []
    for query in queries[:count]:
        image = Image.fromarray(render(query, seed).image)
        resized = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float())
    return torch.stack(images)

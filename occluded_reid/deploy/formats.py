"""The formats that a traced model is exported to, each with a runner for its graph.

Shapes: B images, H, W height and width in pixels, D dimensions of a row, P parts.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from occluded_reid.modeling.outputs import as_embedding
from occluded_reid.modeling.similarity import make_rows
from occluded_reid.utils.errors import UserError

OUTPUTS = ("features", "visibility")

Runner = Callable[[torch.Tensor], list[np.ndarray]]
"""Maps images (B, 3, H, W) to features (B, D) and visibility (B, P).

It uses as many threads as PyTorch had when the runner was built.
"""

_REQUIRED_PACKAGES = {
    "torch": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "nncf"),
}
# OpenVINO would choose the precision by the processor if it were not told.
_PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class InferenceGraph(nn.Module):
    """A model as a function of one tensor, as exporters want it.

    ``metric`` is one of :data:`occluded_reid.modeling.similarity.METRICS`.
    """

    def __init__(self, model: nn.Module, metric: str):
        super().__init__()
        self.model = model
        self.metric = metric

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``features`` (B, D), the rows that ``metric`` compares, and ``visibility`` (B, P).

        Args:
            images: (B, 3, H, W) float32, RGB, in 0-255.
        """
        embedding = as_embedding(self.model({"images": images}))
        return make_rows(embedding, self.metric), embedding.visibility


class ExportedGraph(NamedTuple):
    """A graph as its files hold it."""

    files: dict[str, bytes]  # by suffix: the graph, then the files beside it
    run: Runner  # runs the graph, read back from ``files``
    metadata: dict[str, Any]  # what a user of the format must know, for JSON


def check_packages(kind: str) -> None:
    """Raise a UserError with the command to type if packages of a format are missing."""
    required = _REQUIRED_PACKAGES[kind]
    missing = [name for name in required if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format {kind} needs {', '.join(missing)}: pip install 'occluded-reid[{kind}]', "
            f"or in the repository: pip install -e '.[{kind}]'"
        )


def export_torch(program: torch.export.ExportedProgram) -> ExportedGraph:
    """Export to the format of ``torch.export``."""
    stream = io.BytesIO()
    torch.export.save(program, stream)
    module = torch.export.load(io.BytesIO(stream.getvalue())).module()

    def run(images: torch.Tensor) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in module(images)]

    return ExportedGraph({"": stream.getvalue()}, run, {"opset": None})


def export_onnx(program: torch.export.ExportedProgram) -> ExportedGraph:
    """Export to ONNX; ONNX Runtime runs it."""
    import onnx

    try:
        model = torch.onnx.export(
            program, dynamo=True, external_data=False, input_names=["images"],
            output_names=list(OUTPUTS), verbose=False,
        )  # fmt: skip
    except TypeError as error:
        raise UserError("--format onnx needs PyTorch 2.6 or newer") from error
    assert model is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        model.save(str(path), external_data=False)
        content = path.read_bytes()
    opsets = onnx.load_from_string(content).opset_import
    opset = next(each.version for each in opsets if each.domain in ("", "ai.onnx"))
    return ExportedGraph({"": content}, build_onnx_runner(content), {"opset": opset})


def build_onnx_runner(content: bytes) -> Runner:
    """Build a runner for an ONNX graph by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(list(OUTPUTS), {"images": images.numpy()})


def export_openvino(program: torch.export.ExportedProgram) -> ExportedGraph:
    """Export to OpenVINO in float32."""
    import openvino

    model = openvino.convert_model(program)
    _, _, height, width = program.example_inputs[0][0].shape
    model.reshape([-1, 3, height, width])
    for output, name in zip(model.outputs, OUTPUTS, strict=True):
        output.get_tensor().set_names({name})
    return _save_openvino(model, "fp32")


def lower_to_bf16(graph: ExportedGraph) -> ExportedGraph:
    """Run OpenVINO's graph in bfloat16, if the processor can; its files stay the same."""
    return _compile_openvino(graph.files[""], graph.files[".bin"], "bf16")


def quantize_to_int8(
    graph: ExportedGraph, images: torch.Tensor, *, transformer: bool
) -> ExportedGraph:
    """Quantize the heavy layers of OpenVINO's graph after training (NNCF).

    Weights are rounded to 8 bits; so are activations, by their ranges on the calibration images
    (N, 3, H, W) in 0-255. Some layers of a transformer stay in float32.
    """
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    samples = [image[None].numpy() for image in images]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nncf.quantize(
            openvino.Core().read_model(*graph.files.values()),
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        )
    return _save_openvino(model, "int8")


def _save_openvino(model: Any, precision: str) -> ExportedGraph:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
        xml, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    return _compile_openvino(xml, weights, precision)


def _compile_openvino(xml: bytes, weights: bytes, precision: str) -> ExportedGraph:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": _PRECISION_HINTS[precision]}
    core = openvino.Core()
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(core.read_model(xml, weights), "CPU", options | threads)
    actual = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if actual != _PRECISION_HINTS[precision]:
        raise UserError(
            f"this processor cannot compute in {precision} (OpenVINO falls back to {actual}), so "
            "its accuracy cannot be measured; use --precision fp32 or int8"
        )

    def run(images: torch.Tensor) -> list[np.ndarray]:
        outputs = compiled(images.numpy())
        return [np.array(outputs[name]) for name in OUTPUTS]

    metadata = {
        "opset": None,
        "precision": precision,
        "compile_with": options,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    return ExportedGraph({"": xml, ".bin": weights}, run, metadata)

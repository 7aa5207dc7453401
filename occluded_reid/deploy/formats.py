"""The formats a traced model can be written in, and how a graph in each of them is run.

Shapes: B images, H, W height and width in pixels, D feature dimensions, P parts.
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

from occluded_reid.utils.errors import UserError

OUTPUTS = ("features", "visibility")

Runner = Callable[[torch.Tensor], list[np.ndarray]]
"""Takes images (B, 3, H, W), returns features (B, D) and visibility (B, P).

It runs in as many threads as PyTorch had when it was made.
"""

_OPENVINO = ("openvino", "nncf")
_NEEDED = {
    "torch": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": _OPENVINO,
}
FORMATS = tuple(_NEEDED)

# What a graph of each precision is compiled with. Without it OpenVINO chooses by the processor.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
PRECISIONS = tuple(_HINTS)


class Exported(NamedTuple):
    """A graph as it will stand on the disk, already read back.

    Attributes:
        files: contents; the first is the graph, the others stand beside it, by their suffix.
        run: runs what the files hold.
        facts: what its users must know of the format, for JSON.
    """

    files: dict[str, bytes]
    run: Runner
    facts: dict[str, Any]


def require(kind: str) -> None:
    """Check that the packages of a format are installed.

    Raises:
        UserError: some are not; the message says how to get them.
    """
    missing = [name for name in _NEEDED[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format {kind} needs {', '.join(missing)}: pip install 'occluded-reid[{kind}]', "
            f"or in the repository: pip install -e '.[{kind}]'"
        )


def as_torch(program: torch.export.ExportedProgram) -> Exported:
    """Return the program in torch.export's own format."""
    stream = io.BytesIO()
    torch.export.save(program, stream)
    loaded = torch.export.load(io.BytesIO(stream.getvalue())).module()

    def run(images: torch.Tensor) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in loaded(images)]

    return Exported({"": stream.getvalue()}, run, {"opset": None})


def as_onnx(program: torch.export.ExportedProgram) -> Exported:
    """Return the program as ONNX, run by onnxruntime.

    Raises:
        UserError: PyTorch is too old.
    """
    import onnx

    try:
        made = torch.onnx.export(
            program,
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=list(OUTPUTS),
            verbose=False,
        )
    except TypeError as error:
        raise UserError("--format onnx needs PyTorch 2.6 or newer") from error
    assert made is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        made.save(str(path), external_data=False)
        content = path.read_bytes()
    opsets = onnx.load_from_string(content).opset_import
    opset = next(each.version for each in opsets if each.domain in ("", "ai.onnx"))
    return Exported({"": content}, onnx_runner(content), {"opset": opset})


def onnx_runner(content: bytes) -> Runner:
    """Return what runs a graph in ONNX by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(list(OUTPUTS), {"images": images.numpy()})


def as_openvino(program: torch.export.ExportedProgram) -> Exported:
    """Return the program as OpenVINO's graph in float32."""
    import openvino

    model = openvino.convert_model(program)
    _, _, height, width = program.example_inputs[0][0].shape
    model.reshape([-1, 3, height, width])
    for output, name in zip(model.outputs, OUTPUTS, strict=True):
        output.get_tensor().set_names({name})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
        return _compiled(path.read_bytes(), path.with_suffix(".bin").read_bytes(), "fp32")


def as_bf16(made: Exported) -> Exported:
    """Return OpenVINO's graph computed in bfloat16; the files are the same.

    Raises:
        UserError: this processor cannot compute so.
    """
    return _compiled(made.files[""], made.files[".bin"], "bf16")


def as_int8(made: Exported, pictures: torch.Tensor, *, transformer: bool) -> Exported:
    """Return OpenVINO's graph with heavy layers that compute in 8 bits.

    Post-training quantisation (NNCF): weights are rounded to 8 bits, and so are activations, whose
    ranges are those met on ``pictures``.

    Args:
        made: in float32.
        pictures: (N, 3, H, W) in 0-255, like those to come.
        transformer: the model is one; some of its layers then stay in float32.
    """
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    samples = [picture[None].numpy() for picture in pictures]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        model = nncf.quantize(
            openvino.Core().read_model(*made.files.values()),
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        )
        path = Path(folder, "model.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
        return _compiled(path.read_bytes(), path.with_suffix(".bin").read_bytes(), "int8")


def _compiled(xml: bytes, weights: bytes, precision: str) -> Exported:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": _HINTS[precision]}
    core = openvino.Core()
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(core.read_model(xml, weights), "CPU", options | threads)
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != _HINTS[precision]:
        raise UserError(
            f"this processor cannot compute in {precision}: OpenVINO takes {found} instead, and "
            "what the other costs cannot be measured here; use --precision fp32 or int8"
        )

    def run(images: torch.Tensor) -> list[np.ndarray]:
        outputs = compiled(images.numpy())
        return [np.array(outputs[name]) for name in OUTPUTS]

    facts = {
        "opset": None,
        "precision": precision,
        "compile_with": options,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    return Exported({"": xml, ".bin": weights}, run, facts)

"""``latency_*``: other ways to run one image: autocast, compiled, ONNX Runtime, OpenVINO in fp32.

Figures that need a missing package or C++ compiler are left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from cases.aonet_case import AONetCase
from cases.fed_case import FEDCase
from cases.one_image import (
    Network,
    Way,
    autocast_bf16,
    compiled,
    dynamic_int8,
    has_compiler,
    is_installed,
    networks,
)
from harness.comparison import Figure

from occluded_reid.deploy.formats import Runner, build_onnx_runner, export_onnx

WAYS = ("autocast", "compiled", "compiled_bf16", "openvino", "onnxruntime")
ONLY_TRANSFORMERS = ("dynamic_int8", "onnxruntime_int8")
NAMES = (
    *(f"latency_{way}" for way in (*WAYS, *ONLY_TRANSFORMERS)),
    *(f"latency_aonet_{way}" for way in WAYS),
)


def measure(
    fed: FEDCase = FEDCase(),  # noqa: B008
    aonet: AONetCase = AONetCase(),  # noqa: B008
    rounds: int = 20,
) -> dict[str, Figure]:
    """Compare with the eager float32 model."""
    return {
        f"{network.name}_{name}": network.compare(way, rounds)
        for network in networks(fed, aonet)
        for name, way in ways(network)
    }


def ways(network: Network) -> Iterator[tuple[str, Way]]:
    """Yield each way by name."""
    yield "autocast", autocast_bf16(network)
    if network.transformer:
        yield "dynamic_int8", dynamic_int8(network)
    if has_compiler():
        yield "compiled", compiled(network)
        yield "compiled_bf16", compiled(network, torch.bfloat16)
    if is_installed("openvino"):
        yield "openvino", Way(network.openvino.run, "fp32", "OpenVINO")
    if is_installed("onnx"):
        made = export_onnx(network.program)
        yield "onnxruntime", Way(made.run, "fp32", "ONNX Runtime")
        if network.transformer:
            run = quantised(made.files[""])
            yield "onnxruntime_int8", Way(run, "int8", "ONNX Runtime, dynamic")


def quantised(content: bytes) -> Runner:
    """Return a function that runs an ONNX graph with int8 matrix products."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        model = onnx.load_from_string(content)
        del model.graph.value_info[:]  # shapes from before the export transposed some weights
        quantize_dynamic(model, path, op_types_to_quantize=["MatMul", "Gemm"])
        return build_onnx_runner(path.read_bytes())

"""One image through a network with random weights, in all ways that are installed.

Figures that need a missing package or C++ compiler are left out.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cases.training import AONET, FED, AONetCase, FEDCase
from harness.comparison import Figure, Figures, make_figure, require_equal, time_alternately
from torch import nn

from occluded_reid.deploy.accuracy import measure_feature_error
from occluded_reid.deploy.export import render_pedestrians, trace
from occluded_reid.deploy.formats import (
    ExportedGraph,
    InferenceGraph,
    Runner,
    build_onnx_runner,
    check_packages,
    export_onnx,
    export_openvino,
    lower_to_bf16,
    quantize_to_int8,
)
from occluded_reid.modeling.build import remove_training_parts
from occluded_reid.utils.errors import UserError

IMAGES = 12
LIMITS = {"fp32": 1e-5, "bf16": 1e-3, "int8": 0.05}
"""Of 1 - cosine between the features of the model and of a way to run it."""


class Way(NamedTuple):
    """One way to run a network; ``precision`` is a key of :data:`LIMITS`."""

    run: Runner
    precision: str
    program: str


class Network:
    """A model in evaluation mode without training-only parts, and the size of its images."""

    def __init__(self, case: FEDCase | AONetCase):
        self.size, self.transformer = case.image, isinstance(case, FEDCase)
        metric = "cosine" if self.transformer else "dot"
        self.graph = InferenceGraph(remove_training_parts(case.build_model()), metric).eval()

    @functools.cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The program for the exporters."""
        with torch.no_grad():
            return trace(self.graph, self.size)

    @functools.cached_property
    def openvino(self) -> ExportedGraph:
        """OpenVINO's graph in float32."""
        return export_openvino(self.program)


def measure_latency(fed: FEDCase = FED, aonet: AONetCase = AONET, rounds: int = 20) -> Figures:
    """Compare lower precision with the eager float32 model.

    OpenVINO runs the exported graph if it is installed. Otherwise PyTorch compiles the model, or
    uses autocast without a C++ compiler, and quantizes linear layers; a convolutional network then
    has no int8 figure.
    """
    return compare_ways({"": in_bf16, "_int8": in_int8}, fed, aonet, rounds)


def measure_runtimes(fed: FEDCase = FED, aonet: AONetCase = AONET, rounds: int = 20) -> Figures:
    """Compare other ways with the eager float32 model."""
    ways: dict[str, Callable[[Network], Way | None]] = {
        "_autocast": in_autocast, "_dynamic_int8": in_dynamic_int8, "_compiled": in_compiled,
        "_compiled_bf16": functools.partial(in_compiled, dtype=torch.bfloat16),
        "_openvino": in_openvino, "_onnxruntime": in_onnxruntime,
        "_onnxruntime_int8": in_onnxruntime_int8,
    }  # fmt: skip
    return compare_ways(ways, fed, aonet, rounds)


def compare_ways(
    ways: dict[str, Callable[[Network], Way | None]], fed: FEDCase, aonet: AONetCase, rounds: int
) -> Figures:
    """Yield a figure per network and way, if there is one and the features agree."""
    for title, case in (("FED", fed), ("AONet", aonet)):
        network = Network(case)
        for suffix, find_way in ways.items():
            if way := find_way(network):
                name = "latency" + ("_aonet" if title == "AONet" else "") + suffix
                yield name, compare(network, way, title, rounds)


def compare(network: Network, way: Way, title: str, rounds: int) -> Figure:
    """Compare the latency with that of the eager float32 model, if the features agree."""
    images = render_pedestrians(IMAGES, network.size, seed=0)
    eager = in_torch(network.graph)

    def one_by_one(images: torch.Tensor) -> list[np.ndarray]:
        return list(map(np.concatenate, zip(*map(way.run, images.split(1)), strict=True)))

    cost = measure_feature_error(network.graph, one_by_one, images)["one_minus_cosine"]
    name = f"{title} in {way.precision}, 1 - cosine"
    require_equal(name, cost["max"], 0, atol=LIMITS[way.precision])
    image = images[:1]
    times = time_alternately(lambda: way.run(image), lambda: eager(image), rounds=rounds)
    unit = (
        f"s per image of {network.size[0]} x {network.size[1]}, {title}, {way.precision} by "
        f"{way.program}, 1 - cosine {cost['mean']:.1e} (at most {cost['max']:.1e})"
    )
    return make_figure(times, unit)


def is_installed(kind: str) -> bool:
    """Return whether an export format's packages are installed."""
    with contextlib.suppress(UserError):
        check_packages(kind)
        return True
    return False


def has_compiler() -> bool:
    """Return whether ``torch.compile`` finds a C++ compiler."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def in_torch(module: Callable[[torch.Tensor], Any], dtype: torch.dtype | None = None) -> Runner:
    """Return a function that runs a model, under autocast if ``dtype`` is given."""

    def run(images: torch.Tensor) -> list[np.ndarray]:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
            return [output.float().numpy() for output in module(images)]

    return run


def in_bf16(network: Network) -> Way | None:
    """Run in bfloat16 by the best program that is installed."""
    if is_installed("openvino"):
        with contextlib.suppress(UserError):  # not supported by this processor
            return Way(lower_to_bf16(network.openvino).run, "bf16", "OpenVINO")
    return in_compiled(network, torch.bfloat16) or in_autocast(network)


def in_int8(network: Network) -> Way | None:
    """Run in int8 by the best program that is installed, if there is one."""
    if not is_installed("openvino"):
        return in_dynamic_int8(network)
    drawn = render_pedestrians(IMAGES, network.size, seed=1)
    made = quantize_to_int8(network.openvino, drawn, transformer=network.transformer)
    return Way(made.run, "int8", "OpenVINO")


def in_autocast(network: Network) -> Way:
    """Run the model in bf16 autocast, its convolutions channels-last."""
    module = copy.deepcopy(network.graph).to(memory_format=torch.channels_last)
    return Way(in_torch(module, torch.bfloat16), "bf16", "PyTorch's autocast")


def in_dynamic_int8(network: Network) -> Way | None:
    """Run a transformer's linear layers in int8; their input range is taken from each image."""
    if not network.transformer:
        return None
    quantize = torch.ao.quantization.quantize_dynamic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but needs no other package
        module = quantize(network.graph, {nn.Linear}, dtype=torch.qint8)
    return Way(in_torch(module), "int8", "PyTorch, dynamic")


def in_compiled(network: Network, dtype: torch.dtype | None = None) -> Way | None:
    """Compile the model with its weights as constants, which are cast and laid out once."""
    if not has_compiler():
        return None
    import torch._inductor.config

    run = in_torch(torch.compile(network.graph), dtype)
    with torch._inductor.config.patch(freezing=True):  # as an option of compile it does nothing
        run(torch.zeros(1, 3, *network.size))
    return Way(run, "fp32" if dtype is None else "bf16", "torch.compile, frozen")


def in_openvino(network: Network) -> Way | None:
    """Run OpenVINO's graph in float32."""
    return Way(network.openvino.run, "fp32", "OpenVINO") if is_installed("openvino") else None


def in_onnxruntime(network: Network) -> Way | None:
    """Run the ONNX graph in float32."""
    if not is_installed("onnx"):
        return None
    return Way(export_onnx(network.program).run, "fp32", "ONNX Runtime")


def in_onnxruntime_int8(network: Network) -> Way | None:
    """Run a transformer's ONNX graph with int8 matrix products."""
    if not (network.transformer and is_installed("onnx")):
        return None
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        model = onnx.load_from_string(export_onnx(network.program).files[""])
        del model.graph.value_info[:]  # shapes from before the export transposed some weights
        quantize_dynamic(model, path, op_types_to_quantize=["MatMul", "Gemm"])
        return Way(build_onnx_runner(path.read_bytes()), "int8", "ONNX Runtime, dynamic")

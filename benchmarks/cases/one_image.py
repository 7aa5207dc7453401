"""Ways to run a network on one image at a time, and their latency."""

from __future__ import annotations

import copy
import functools
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch._inductor.config
from harness.comparison import Figure, make_figure, require_equal, time_alternately
from torch import nn

from cases.aonet_case import AONetCase, build_aonet
from cases.fed_case import FEDCase, build_fed
from occluded_reid.deploy.accuracy import measure_feature_error
from occluded_reid.deploy.export import render_pedestrians, trace
from occluded_reid.deploy.formats import (
    ExportedGraph,
    InferenceGraph,
    Runner,
    check_packages,
    export_openvino,
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
    """A model with random weights, in evaluation mode, without training-only parts.

    Args:
        name: Prefix of its figures.
        title: Its method.
        model: In training mode.
        size: (H, W) of its images.
        transformer: Whether it is one; otherwise it is convolutional.
    """

    def __init__(
        self, name: str, title: str, model: nn.Module, size: tuple[int, int], *, transformer: bool
    ):
        self.name, self.title, self.size, self.transformer = name, title, size, transformer
        self.graph = InferenceGraph(remove_training_parts(model)).eval()

    @functools.cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The program for the exporters."""
        with torch.no_grad():
            return trace(self.graph, self.size)

    @functools.cached_property
    def openvino(self) -> ExportedGraph:
        """OpenVINO's graph in float32."""
        return export_openvino(self.program)

    def compare(self, way: Way, rounds: int) -> Figure:
        """Compare the latency with that of the eager float32 model, if the features agree."""
        images = render_pedestrians(IMAGES, self.size, seed=0)
        eager = in_torch(self.graph)

        def one_by_one(images: torch.Tensor) -> list[np.ndarray]:
            outputs = zip(*map(way.run, images.split(1)), strict=True)
            return [np.concatenate(each) for each in outputs]

        cost = measure_feature_error(self.graph, one_by_one, images)["one_minus_cosine"]
        require_equal(f"{self.title} in {way.precision}, 1 - cosine", cost["max"], 0,
                      atol=LIMITS[way.precision])  # fmt: skip
        image = images[:1]
        times = time_alternately(lambda: way.run(image), lambda: eager(image), rounds=rounds)
        size = " x ".join(map(str, self.size))
        return make_figure(
            times,
            f"s per image of {size}, {self.title}, {way.precision} by {way.program}, "
            f"1 - cosine {cost['mean']:.1e} (at most {cost['max']:.1e})",
        )


def networks(fed: FEDCase, aonet: AONetCase) -> Iterator[Network]:
    """Yield the networks of both methods."""
    yield Network("latency", "FED", build_fed(fed), fed.image, transformer=True)
    yield Network("latency_aonet", "AONet", build_aonet(aonet), aonet.image, transformer=False)


def is_installed(kind: str) -> bool:
    """Return whether an export format's packages are installed."""
    try:
        check_packages(kind)
    except UserError:
        return False
    return True


def in_torch(module: Callable[[torch.Tensor], Any], dtype: torch.dtype | None = None) -> Runner:
    """Return a function that runs a model, under autocast if ``dtype`` is given."""

    def run(images: torch.Tensor) -> list[np.ndarray]:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
            return [output.float().numpy() for output in module(images)]

    return run


def autocast_bf16(network: Network) -> Way:
    """Run the model in bf16 autocast, its convolutions channels-last."""
    module = copy.deepcopy(network.graph).to(memory_format=torch.channels_last)
    return Way(in_torch(module, torch.bfloat16), "bf16", "PyTorch's autocast")


def has_compiler() -> bool:
    """Return whether ``torch.compile`` finds a C++ compiler."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def compiled(network: Network, dtype: torch.dtype | None = None) -> Way:
    """Compile the model with its weights as constants, which are cast and laid out once."""
    run = in_torch(torch.compile(network.graph), dtype)
    with torch._inductor.config.patch(freezing=True):  # as an option of compile it does nothing
        run(torch.zeros(1, 3, *network.size))
    return Way(run, "fp32" if dtype is None else "bf16", "torch.compile, frozen")


def dynamic_int8(network: Network) -> Way:
    """Run the linear layers in int8; their input range is taken from each image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but needs no other package
        module = torch.ao.quantization.quantize_dynamic(
            network.graph, {nn.Linear}, dtype=torch.qint8
        )
    return Way(in_torch(module), "int8", "PyTorch, dynamic")

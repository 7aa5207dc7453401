"""``latency`` and ``latency_int8``: one image in lower precision; ``*_aonet*`` likewise.

OpenVINO runs the exported graph if it is installed. Otherwise PyTorch compiles the model, or uses
autocast without a C++ compiler, and quantizes linear layers; a convolutional network then has no
int8 figure.
"""

from __future__ import annotations

import torch
from cases.aonet_case import AONetCase
from cases.fed_case import FEDCase
from cases.one_image import (
    IMAGES,
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

from occluded_reid.deploy.export import render_pedestrians
from occluded_reid.deploy.formats import lower_to_bf16, quantize_to_int8
from occluded_reid.utils.errors import UserError

NAMES = ("latency", "latency_int8", "latency_aonet", "latency_aonet_int8")


def measure(
    fed: FEDCase = FEDCase(),  # noqa: B008
    aonet: AONetCase = AONetCase(),  # noqa: B008
    rounds: int = 20,
) -> dict[str, Figure]:
    """Compare with the eager float32 model."""
    figures = {}
    for network in networks(fed, aonet):
        figures[network.name] = network.compare(in_bf16(network), rounds)
        if way := in_int8(network):
            figures[f"{network.name}_int8"] = network.compare(way, rounds)
    return figures


def in_bf16(network: Network) -> Way:
    """Return the way to run in bfloat16."""
    if is_installed("openvino"):
        try:
            return Way(lower_to_bf16(network.openvino).run, "bf16", "OpenVINO")
        except UserError:  # not supported by this processor
            pass
    return compiled(network, torch.bfloat16) if has_compiler() else autocast_bf16(network)


def in_int8(network: Network) -> Way | None:
    """Return the way to run in int8, if there is one."""
    if is_installed("openvino"):
        drawn = render_pedestrians(IMAGES, network.size, seed=1)
        made = quantize_to_int8(network.openvino, drawn, transformer=network.transformer)
        return Way(made.run, "int8", "OpenVINO")
    return dynamic_int8(network) if network.transformer else None

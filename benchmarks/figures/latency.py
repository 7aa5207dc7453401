"""``latency`` and ``latency_int8``: one image, in lower precision than float32; likewise AONet's.

OpenVINO runs the exported graph where it is installed, and can. Else PyTorch does what it can by
itself: it compiles the model where there is a C++ compiler, and has 8 bits in linear layers. A
network of convolutions then has no figure in int8.
"""

from __future__ import annotations

import torch
from cases.aonet_case import AONetCase
from cases.fed_case import FEDCase
from cases.one_image import (
    PICTURES,
    Network,
    Way,
    autocast_bf16,
    compiled,
    dynamic_int8,
    has_compiler,
    installed,
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
    """Compare with the model as it stands, in float32."""
    found = {}
    for network in networks(fed, aonet):
        found[network.name] = network.compare(in_bf16(network), rounds)
        if way := in_int8(network):
            found[f"{network.name}_int8"] = network.compare(way, rounds)
    return found


def in_bf16(network: Network) -> Way:
    """Return the way in bfloat16."""
    if installed("openvino"):
        try:
            return Way(lower_to_bf16(network.openvino).run, "bf16", "OpenVINO")
        except UserError:  # this processor cannot
            pass
    return compiled(network, torch.bfloat16) if has_compiler() else autocast_bf16(network)


def in_int8(network: Network) -> Way | None:
    """Return the way in 8 bits, if there is one."""
    if installed("openvino"):
        drawn = render_pedestrians(PICTURES, network.size, seed=1)
        made = quantize_to_int8(network.openvino, drawn, transformer=network.transformer)
        return Way(made.run, "int8", "OpenVINO")
    return dynamic_int8(network) if network.transformer else None

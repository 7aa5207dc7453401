"""Weights in a safetensors file: of a published folder, or of the model in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from occluded_reid.utils.errors import explain_read_errors
from occluded_reid.utils.files import atomic_write

NAME = "weights.safetensors"

TIMM_PREFIX = "backbone.network."
"""Left out of the names in files for ``reid``, which reads a network of timm by timm's names."""


def write_safetensors(
    path: Path, model: nn.Module, *, half: bool = False, timm_names: bool = False
) -> None:
    """Write the weights of ``model``.

    ``half`` writes matrices and kernels in half precision; vectors, such as the variances of a
    normalization, stay as they are. ``timm_names`` names those of a timm backbone as timm does.
    """
    weights = {}
    for name, tensor in model.state_dict().items():
        small = half and tensor.is_floating_point() and tensor.ndim > 1
        kept = tensor.to("cpu", torch.float16 if small else tensor.dtype).contiguous()
        weights[name.removeprefix(TIMM_PREFIX) if timm_names else name] = kept.clone()
    with atomic_write(path) as stream:
        stream.write(safetensors.torch.save(weights))


def read_safetensors(path: str) -> dict[str, Any]:
    """Read weights in fast-reid's form, under ``model``, by our names and in float32.

    Raises:
        UserError: the file is damaged or of another kind.
    """
    with explain_read_errors(path, "expected a safetensors file", (Exception,)):
        found = safetensors.torch.load_file(path)
    if not any(name.startswith("backbone.") for name in found):
        found = {
            (n if n.startswith("heads.") else TIMM_PREFIX + n): value for n, value in found.items()
        }
    halves = (torch.float16, torch.bfloat16)
    return {"model": {n: v.float() if v.dtype in halves else v for n, v in found.items()}}

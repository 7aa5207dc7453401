"""Pretrained weights of backbones: read safely, rename, fit to the model's grid, check.

They come from timm, DeiT, ``jx_vit_*``, torchvision, Google's augreg (.npz), and from whole models
of TransReID (``base.``), fast-reid and this package (``backbone.``), each also with ``module.``
before its keys.

Shapes: C channels, T = rows x columns patch tokens in raster order. Token 0 is the class token.
"""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import get_pretrained_cfg
from torch import nn

from occluded_reid.checkpoint import vit_npz
from occluded_reid.checkpoint.conversion import Conversion, Weights, find_mismatches, join_first
from occluded_reid.checkpoint.reading import (
    describe_foreign,
    load_safely,
    require_plain_tensors,
)
from occluded_reid.utils.errors import UserError, explain_read_errors, first_line
from occluded_reid.utils.files import diagnose_zip, open_regular
from occluded_reid.utils.terminal import show

logger = logging.getLogger(__name__)

Pair = tuple[int, int]

MAX_COMPRESSION = 16
"""How many times larger than the file the arrays of an .npz file may be; weights hardly shrink."""
MAX_ASPECT = 4.0
"""How many times longer, for its width, a guessed grid of patches may be than the model's."""

_KERNEL, _POSITIONS, _DISTILLED = "patch_embed.proj.weight", "pos_embed", "dist_token"
_CLASSIFIER = r"(?:.*/)?(?:head|head_dist|fc|pre_logits)[./].*"


def load_weights(model: nn.Module, source: str | Weights, *, resize: str) -> None:
    """Load a vision transformer's pretrained weights; resize position embeddings to its grid.

    Classifiers are left out. A camera embedding that is not in the file keeps its initial values.
    Both are logged. ``source`` is a file, or weights by timm's names; ``resize``, ``bicubic`` or
    ``bilinear``.
    """
    name = source if isinstance(source, str) else "the downloaded file"
    conversion = read_weights(source) if isinstance(source, str) else Conversion(source)
    of_reid_model = rename_to_backbone(conversion)
    fit_transformer(conversion, model, resize=resize, trust_own=of_reid_model)
    for why, keys in conversion.group_left_out().items():
        logger.info(f"Left out of {name}, {why}: {show(', '.join(sorted(keys)))}")
    wanted = model.state_dict()
    if "sie_embed" in wanted and "sie_embed" not in conversion.weights:
        logger.info(f"{name} has no camera embedding: it starts from random values")
        conversion.weights["sie_embed"] = wanted["sie_embed"]
    if faults := find_mismatches(conversion.weights, wanted):
        raise UserError(
            f"{name} does not fit the backbone: {join_first(faults)}. Does MODEL.BACKBONE (DEPTH, "
            "PATCH_SIZE, CAMERA_EMBEDDING) describe these weights?"
        )
    model.load_state_dict(conversion.weights)
    logger.info(f"Loaded pretrained weights from {name}")


def read_weights(path: str, *, trust: bool = False) -> Conversion:
    """Read the tensors of an .npz, .safetensors or PyTorch file; Google's get timm's names.

    The tensors may be under ``state_dict`` or ``model``. ``trust`` allows pickled Python objects,
    which can run code.
    """
    if not Path(path).is_file():
        raise UserError(f"there are no pretrained weights {path} (MODEL.BACKBONE.PRETRAIN_PATH)")
    content = _read_content(path, trust)
    beside: list[str] = []
    for inner in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(inner), dict):
            beside += [str(key) for key in content if key != inner]
            content = content[inner]
    entries = content if isinstance(content, dict) else {}
    weights = {key: value for key, value in entries.items() if torch.is_tensor(value)}
    if not weights:
        raise UserError(f"{path} holds no weights: neither a state dict nor one under 'model'")
    if unnamed := [key for key in weights if not isinstance(key, str)]:
        raise UserError(f"{path} holds no weights by name, but by {unnamed[0]!r:.40}")
    others = [str(key) for key in entries if key not in weights]
    conversion = Conversion(weights, [*beside, *others])
    if path.endswith(".npz"):
        with explain_read_errors(path, "expected Google's ViT", (RuntimeError, IndexError)):
            vit_npz.convert_to_timm(conversion)
    return conversion


def _read_content(path: str, trust: bool) -> Any:
    if not path.endswith((".npz", ".safetensors")):
        advice = "tools/import_checkpoint.py --trust-checkpoint extracts its weights"
        return load_safely(path, trust=trust, if_trusted=advice)
    try:
        with open_regular(path) as stream:
            if fault := describe_foreign(stream.read(512)):
                raise ValueError(fault)
            if path.endswith(".safetensors"):
                content = safetensors.torch.load_file(path)
            else:
                limit = MAX_COMPRESSION * os.fstat(stream.fileno()).st_size
                if fault := diagnose_zip(stream, limit=limit):
                    raise ValueError(fault)
                stream.seek(0)
                with np.load(stream, allow_pickle=False) as file:
                    content = {key: torch.from_numpy(file[key]) for key in file.files}
    except Exception as error:  # each format raises its own exceptions
        raise UserError(
            f"{path} holds no weights, is damaged, or holds Python objects, which could run code "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    require_plain_tensors(content, path)
    return content


def rename_to_backbone(conversion: Conversion) -> bool:
    """Rename the weights to the backbone's own names; leave out what is not in it.

    Returns whether the file holds a whole re-identification model.
    """
    conversion.strip("module.")
    inside = False
    for prefix in ("base.", "backbone."):
        if any(name.startswith(prefix) for name in conversion.weights):
            conversion.leave_out(rf"(?!{prefix}).*", "not of the backbone")
            conversion.strip(prefix)
            inside = True
            break
    conversion.leave_out(_CLASSIFIER, "of its classifier")
    positions = conversion.weights.get(_POSITIONS)
    if _DISTILLED in conversion.weights and positions is not None and positions.ndim == 3:
        own = torch.cat((positions[:, :1], positions[:, 2:]), dim=1)
        conversion.replace([_POSITIONS], {_POSITIONS: own}, "the distillation token's row left out")
    conversion.leave_out(_DISTILLED, "of its classifier")
    return inside


def fit_transformer(
    conversion: Conversion, model: Any, *, resize: str, trust_own: bool, prefix: str = ""
) -> None:
    """Fit position and patch embeddings to ``model``, a vision transformer.

    The weights have the model's names after ``prefix``, such as ``backbone.``; ``resize`` is
    ``bicubic`` or ``bilinear``; see :func:`guess_grid` for ``trust_own``.
    """
    patches, kernel = conversion.weights.get(prefix + _KERNEL), model.state_dict()[_KERNEL]
    if patches is not None and patches.ndim == 2 and patches.numel() == kernel.numel():
        # timm's oldest files: a linear layer
        made = {prefix + _KERNEL: patches.reshape(kernel.shape)}
        conversion.replace([prefix + _KERNEL], made, "a linear layer as a convolution")
    positions = conversion.weights.get(prefix + _POSITIONS)
    if positions is None or positions.ndim != 3:
        return
    new = model.patch_embed.grid_size
    old = guess_grid(positions.shape[1] - 1, new, trust_own=trust_own)
    if old != new:
        how = f"{old[0]} x {old[1]} -> {new[0]} x {new[1]}, {resize}"
        logger.info(f"Position embeddings: {how}")
        resized = resample_abs_pos_embed(
            positions, list(new), list(old), interpolation=resize, antialias=resize == "bicubic"
        )
        conversion.replace([prefix + _POSITIONS], {prefix + _POSITIONS: resized}, how)


def guess_grid(count: int, own: Pair, *, trust_own: bool) -> Pair:
    """Guess the (rows, columns) of ``count`` patch tokens, which files do not store.

    Returns the model's ``own`` grid, else a square, else the factors closest to the model's aspect
    ratio; a UserError if there are none. ``trust_own`` assumes the model's grid whenever the counts
    agree: a square count is ambiguous, as 196 = 14 x 14 = 28 x 7, and ImageNet files are square.

    >>> guess_grid(196, (28, 7), trust_own=False)
    (14, 14)
    """
    if count < 1:
        raise UserError("the position embeddings hold no patch")
    side = math.isqrt(count)
    is_square = side * side == count
    if count == own[0] * own[1] and (trust_own or not is_square):
        return own
    if is_square:
        return side, side
    pairs = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    ratios = {pair: abs(math.log(pair[0] * own[1] / (pair[1] * own[0]))) for pair in pairs}
    best = min(ratios, key=ratios.__getitem__)
    if ratios[best] > math.log(MAX_ASPECT):
        raise UserError(
            f"{count} position embeddings beside the class token are no grid of patches like the "
            f"model's {own[0]} x {own[1]}; does the file have other tokens?"
        )
    return best


def download_weights(name: str) -> Weights:
    """Download weights by timm's name, or read them from its cache.

    The error, if the download fails, names the file and where to put it.
    """
    try:
        return dict(timm.create_model(name, pretrained=True, num_classes=0).state_dict())
    except Exception as error:  # offline, each layer below raises its own exceptions
        source = get_pretrained_cfg(name)
        if source is None:
            raise UserError(f"timm has no weights {name} (MODEL.BACKBONE.PRETRAIN_NAME)") from error
        page = f"https://huggingface.co/{source.hf_hub_id}/resolve/main/model.safetensors"
        raise UserError(
            f"cannot download the pretrained weights {name} ({type(error).__name__}: "
            f"{first_line(error)}). Download {page}{f' or {source.url}' if source.url else ''} by "
            "other means and set MODEL.BACKBONE.PRETRAIN_PATH path/to/file"
        ) from error

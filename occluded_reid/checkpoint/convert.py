"""From the weights of another code base to a file in fast-reid's form, with a report."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from occluded_reid.checkpoint.checkpointer import training_only
from occluded_reid.checkpoint.conversion import Conversion, first_of, mismatches
from occluded_reid.checkpoint.pretrained import fit_transformer, name_as_backbone
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_write, make_folder

BACKBONES = ("transreid", "timm", "torchvision")
"""Sources of which the backbone is taken; of ``fastreid`` and others, the whole model."""

_OLD_HEADS = {"heads.classifier.": "heads.", "heads.bnneck.": "heads.bottleneck.0."}
_COUNTER = ".num_batches_tracked"  # of a batch normalisation; old files have none


def name_as_ours(conversion: Conversion, source: str) -> None:
    """Give the weights of a ``source`` our names, those of fast-reid."""
    if source in BACKBONES:
        name_as_backbone(conversion)
        conversion.rename(lambda name: f"backbone.{name}")
        return
    conversion.strip("module.")
    conversion.leave_out(r"pixel_(mean|std)", "the configuration holds it: MODEL.PIXEL_MEAN, _STD")
    conversion.rename(_newer_name)


def _newer_name(name: str) -> str | None:
    for old, new in _OLD_HEADS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None


def fit_to(conversion: Conversion, model: Any, *, resize: str, trust_own: bool) -> list[str]:
    """Bring the weights to the shapes of ``model``; leave out what it does not have.

    Args:
        conversion: by the names of the model.
        model: what the weights are for.
        resize: of position embeddings, ``bicubic`` or ``bilinear``.
        trust_own: see :func:`occluded_reid.checkpoint.pretrained.grid_of`.

    Returns:
        What keeps the weights from being the model's or its backbone's: missing, or of another
        shape. The latter are left out.
    """
    if hasattr(model.backbone, "patch_embed"):
        fit_transformer(
            conversion, model.backbone, resize=resize, trust_own=trust_own, prefix="backbone."
        )
    wanted = model.state_dict()
    for name in set(conversion.weights) - set(wanted):
        conversion.leave_out(re.escape(name), "the model has no such weight")
    needed = {name: tensor for name, tensor in wanted.items() if name in conversion.weights}
    needed |= {name: wanted[name] for name in missing_in(conversion, model)}
    faults = mismatches(conversion.weights, needed)
    for name, tensor in list(conversion.weights.items()):
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)} in the file, {tuple(wanted[name].shape)} in the model"
            conversion.leave_out(re.escape(name), shapes)
    return faults


def missing_in(conversion: Conversion, model: nn.Module) -> list[str]:
    """Return what evaluation needs and the weights lack: of the backbone, or of the whole model.

    It is the whole model where the weights have more than a backbone. What only training needs may
    be missing, each part as a whole; so may a camera embedding and the counters of batch
    normalisations.
    """
    found = tuple(f"{name}." for name in conversion.weights)
    whole = any(not name.startswith("backbone.") for name in found)
    parts = tuple(f"{part}." for part in training_only(model))
    absent = tuple(part for part in parts if not any(name.startswith(part) for name in found))
    return [
        name
        for name in model.state_dict()
        if f"{name}." not in found
        and (whole or name.startswith("backbone."))
        and not f"{name}.".startswith(absent)
        and not name.endswith((_COUNTER, "sie_embed"))
    ]


def write_weights(path: str, conversion: Conversion) -> None:
    """Write the weights whole, in fast-reid's form: under the key ``model``.

    A convolutional backbone alone is written as a bare state dict by its own names: that is all
    that fast-reid's ``MODEL.BACKBONE.PRETRAIN_PATH`` reads.

    Raises:
        UserError: nothing is left to write, or the place cannot be written.
    """
    weights = {name: tensor.contiguous() for name, tensor in conversion.weights.items()}
    if not weights:
        raise UserError(f"nothing is left to write to {path}; --report tells why of every key")
    content: Any = {"model": weights}
    is_backbone = all(name.startswith("backbone.") for name in weights)
    if is_backbone and "backbone.cls_token" not in weights:
        content = {name.removeprefix("backbone."): value for name, value in weights.items()}
    stream = io.BytesIO()
    torch.save(content, stream)
    make_folder(Path(path).parent)
    with atomic_write(path) as file:
        file.write(stream.getbuffer())


def report_of(conversion: Conversion, faults: list[str], **about: Any) -> dict[str, Any]:
    """Return what became of every key, for JSON.

    Args:
        conversion: the finished one.
        faults: what :func:`fit_to` returned.
        about: more entries.
    """
    fates = conversion.report()
    shapes = {name: list(tensor.shape) for name, tensor in conversion.weights.items()}
    keys = [
        {
            "key": fate.key,
            "shape": None if fate.shape is None else list(fate.shape),
            "fate": fate.fate,
            "now": {name: shapes[name] for name in fate.names},
            "why": fate.why,
        }
        for fate in fates
    ]
    return {**about, "counts": Counter(f.fate for f in fates), "faults": faults, "keys": keys}


def summary_of(report: dict[str, Any]) -> str:
    """Return a report for people: how many keys met which fate, what was left out and why."""
    counts = ", ".join(f"{count} {fate}" for fate, count in report["counts"].items())
    lines = [f"{len(report['keys'])} keys: {counts}"]
    reasons: dict[str, list[str]] = {}
    for entry in report["keys"]:
        if entry["fate"] == "left out":
            reasons.setdefault(entry["why"], []).append(entry["key"])
    lines += [f"left out, {why}: {first_of(keys, 4)}" for why, keys in reasons.items()]
    return "\n".join(lines)

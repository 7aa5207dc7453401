"""Convert weights of another code base to a file in fast-reid's form, with a report."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from occluded_reid.checkpoint.conversion import COUNTER, Conversion, find_mismatches, join_first
from occluded_reid.checkpoint.fitting import list_training_parts
from occluded_reid.checkpoint.pretrained import fit_transformer, rename_to_backbone
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_write, make_folder

BACKBONES = ("transreid", "timm", "torchvision")
"""Sources from which only the backbone is taken; ``fastreid`` and others give the whole model."""


def rename_to_ours(conversion: Conversion, source: str) -> None:
    """Rename the weights of ``source`` to our names, which are fast-reid's."""
    if source in BACKBONES:
        rename_to_backbone(conversion)
        conversion.rename(lambda name: f"backbone.{name}")
        return
    conversion.strip("module.")
    if source == "torchreid":
        _rename_torchreid(conversion)
        return
    conversion.leave_out(r"pixel_(mean|std)", "set in the configuration: MODEL.PIXEL_MEAN, _STD")
    conversion.rename(lambda name: re.sub(r"^heads\.classifier\.", "heads.", name))
    conversion.rename(lambda name: re.sub(r"^heads\.bnneck\.", "heads.bottleneck.0.", name))


def _rename_torchreid(conversion: Conversion) -> None:
    """Rename torchreid's networks of convolutions, with or without their ``fc``, as OSNet has one.

    ``fc`` is linear, a batch normalization, ReLU; our neck is a 1x1 convolution without a bias, a
    batch normalization, ReLU (``RectifiedHead``). The bias goes into the normalization's mean.
    """
    weights, neck = conversion.weights, "heads.bottleneck"
    conversion.leave_out(r"classifier\.bias", "our classifier has none")
    if "fc.0.weight" in weights and "fc.0.bias" in weights and "fc.1.running_mean" in weights:
        kernel = weights["fc.0.weight"][..., None, None]
        mean = weights["fc.1.running_mean"] - weights["fc.0.bias"]
        conversion.replace(["fc.0.weight"], {f"{neck}.0.weight": kernel}, "a 1x1 convolution")
        names = ["fc.1.running_mean", "fc.0.bias"]
        conversion.replace(names, {f"{neck}.1.running_mean": mean}, "less the bias of fc.0")
    conversion.rename(lambda name: re.sub(r"^fc\.1\.", f"{neck}.1.", name))
    conversion.rename(lambda name: re.sub(r"^classifier\.", "heads.", name))
    conversion.rename(lambda name: name if name.startswith("heads.") else f"backbone.{name}")


def fit_to_model(conversion: Conversion, model: Any, *, resize: str, trust_own: bool) -> list[str]:
    """Fit the weights, by the names of ``model``, to its shapes; leave out those it does not have.

    See :func:`~occluded_reid.checkpoint.pretrained.fit_transformer` for ``resize``, ``trust_own``.

    Returns:
        Faults that keep the weights from being the model's or its backbone's: missing weights, and
        weights of another shape, which are left out.
    """
    if hasattr(model.backbone, "network"):  # of build_timm_backbone
        conversion.rename(
            lambda name: re.sub(r"^backbone\.(?!network\.)", "backbone.network.", name)
        )
    if hasattr(model.backbone, "patch_embed"):
        fit_transformer(
            conversion, model.backbone, resize=resize, trust_own=trust_own, prefix="backbone."
        )
    wanted = model.state_dict()
    for name in set(conversion.weights) - set(wanted):
        conversion.leave_out(re.escape(name), "the model has no such weight")
    needed = {name: tensor for name, tensor in wanted.items() if name in conversion.weights}
    needed |= {name: wanted[name] for name in find_missing(conversion, model)}
    faults = find_mismatches(conversion.weights, needed)
    for name, tensor in list(conversion.weights.items()):
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)} in the file, {tuple(wanted[name].shape)} in the model"
            conversion.leave_out(re.escape(name), shapes)
    return faults


def find_missing(conversion: Conversion, model: nn.Module) -> list[str]:
    """List the weights that evaluation needs and the conversion lacks.

    The whole model is checked if the weights hold more than a backbone. Parts that only training
    needs may be missing, each as a whole; so may a camera embedding and batch counters.
    """
    present = tuple(f"{name}." for name in conversion.weights)
    whole = any(not name.startswith("backbone.") for name in present)
    parts = tuple(f"{part}." for part in list_training_parts(model))
    absent = tuple(part for part in parts if not any(name.startswith(part) for name in present))
    return [
        name
        for name in model.state_dict()
        if f"{name}." not in present
        and (whole or name.startswith("backbone."))
        and not f"{name}.".startswith(absent)
        and not name.endswith((COUNTER, "sie_embed"))
    ]


def write_weights(path: str, conversion: Conversion) -> None:
    """Write the weights in fast-reid's form, under the key ``model``.

    A convolutional backbone alone is written as a bare state dict with its own names: fast-reid's
    ``MODEL.BACKBONE.PRETRAIN_PATH`` reads nothing else.
    """
    weights = {name: tensor.contiguous() for name, tensor in conversion.weights.items()}
    if not weights:
        raise UserError(f"nothing is left to write to {path}; --report says why")
    content: Any = {"model": weights}
    is_backbone = all(name.startswith("backbone.") for name in weights)
    if is_backbone and "backbone.cls_token" not in weights:
        content = {name.removeprefix("backbone."): value for name, value in weights.items()}
    stream = io.BytesIO()
    torch.save(content, stream)
    make_folder(Path(path).parent)
    with atomic_write(path) as file:
        file.write(stream.getbuffer())


def build_report(conversion: Conversion, faults: list[str], **about: Any) -> dict[str, Any]:
    """Return what happened to every key and the ``faults`` of the fit, for JSON."""
    keys = conversion.report()
    counts = Counter(entry["fate"] for entry in keys)
    return {**about, "counts": counts, "faults": faults, "keys": keys}


def summarize_report(report: dict[str, Any]) -> str:
    """Return a report as text: how many keys had which outcome, what was left out and why."""
    counts = ", ".join(f"{count} {fate}" for fate, count in report["counts"].items())
    lines = [f"{len(report['keys'])} keys: {counts}"]
    reasons: dict[str, list[str]] = {}
    for entry in report["keys"]:
        if entry["fate"] == "left out":
            reasons.setdefault(entry["why"], []).append(entry["key"])
    lines += [f"left out, {why}: {join_first(keys, 4)}" for why, keys in reasons.items()]
    return "\n".join(lines)

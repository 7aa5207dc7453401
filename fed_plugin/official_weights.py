"""Weights of the authors' public code under the names of FED and FEDOfficial.

Their checkpoint is the state dict of a model in ``DataParallel``; their memory is a separate file
with one tensor. The meaning of the names was found by running that code as a black box.

``conversion`` is the account of keys, a :class:`occluded_reid.checkpoint.conversion.Conversion`.

Shapes: P parts, C channels, D = P * C, I identities.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from occluded_reid.utils.errors import UserError

TARGETS = ("FED", "FEDOfficial")
CONFIG = (  # of a file without a configuration: the network of Sec. 4.2
    "MODEL.BACKBONE.NAME", "build_token_vit_backbone", "MODEL.BACKBONE.DEPTH", "base",
    "MODEL.BACKBONE.FEAT_DIM", "768", "INPUT.SIZE_TRAIN", "[256, 128]",
    "INPUT.SIZE_TEST", "[256, 128]",
)  # fmt: skip

_UNUSED = {
    r"base\.fc\..*": "the ImageNet classifier, which nothing reads",
    r"bottleneck_local_stage2\..*": "a neck that nothing reads",
    r"classifier_local\..*": "classifiers whose logits no loss reads",
}
_INFERENCE = {
    r"base\.(.*)": r"backbone.\1",
    r"mask_detection\.(\d+)\.(\d\..*)": r"heads.erasing.scorers.\1.\2",
}
_LAYERS = {"norm": "norm", r"fn\.net\.0": "expand", r"fn\.net\.3": "contract"}
_TRAINING = {
    r"classifier1\.weight": "classifiers.erased.weight",
    r"classifier2\.weight": "classifiers.diffused.weight",
    r"classifier3\.weight": "classifiers.class_token.weight",
    r"cross_attention\.q\.weight": "diffusion.attention.query.weight",
    r"cross_attention\.proj\.(.*)": r"diffusion.attention.output.\1",
    **{
        rf"{theirs}\.layers2\.{layer}\.(.*)": rf"diffusion.{ours}.{name}.\1"
        for theirs, ours in (("ffn2", "first_ffn"), ("ffn3", "second_ffn"))
        for layer, name in _LAYERS.items()
    },
}
_KEYS_VALUES = "cross_attention.kv.weight"


def translate_names(conversion: Any, target: str) -> None:
    """Give the authors' weights the names of ``target``, ``FED`` or ``FEDOfficial``.

    ``FED`` takes the weights that inference needs: its FDM is built differently.
    """
    conversion.strip("module.")
    for pattern, why in _UNUSED.items():
        conversion.leave_out(pattern, why)
    _join_necks(conversion)
    names = {**_INFERENCE, **_TRAINING} if target == "FEDOfficial" else _INFERENCE
    if target == "FEDOfficial":
        _split_keys_values(conversion)
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            neck = conversion.weights[f"heads.neck.{kind}"]
            both = {f"{module}.neck.{kind}": neck for module in ("heads", "diffusion")}
            conversion.replace([f"heads.neck.{kind}"], both, "one neck for both features")
    else:
        training_names = "|".join([*_TRAINING, re.escape(_KEYS_VALUES)])
        conversion.leave_out(training_names, f"of training alone, which {target} does differently")
    conversion.rename(lambda name: _translate(name, names))


def add_memory(conversion: Any, memory: torch.Tensor | None) -> None:
    """Add FEDOfficial's one bank under both of its names.

    The rows of ``memory`` (I, D) are in the order of the classifiers'; None stands for a bank that
    training fills before its first step.
    """
    num_identities, dim = conversion.weights["classifiers.erased.weight"].shape
    centres = torch.zeros(num_identities, dim) if memory is None else memory.detach().float()
    if centres.shape != (num_identities, dim):
        raise UserError(
            f"the memory is {tuple(centres.shape)}; for these weights it must be "
            f"{(num_identities, dim)}, one row per identity"
        )
    bank = {
        "centres": centres,
        "initialized": torch.tensor(memory is not None),
        "identities": torch.zeros((), dtype=torch.int64),
    }
    for name in ("erased_memory", "diffused_memory"):
        conversion.add({f"{name}.{buffer}": value for buffer, value in bank.items()})


def _translate(name: str, names: dict[str, str]) -> str | None:
    for pattern, ours in names.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return None


def _join_necks(conversion: Any) -> None:
    """Join P batch normalizations of C channels to one of D; their counters are equal."""
    kinds: dict[str, list[tuple[int, str]]] = {}
    for name in conversion.weights:
        if match := re.fullmatch(r"bottleneck_local\.(\d+)\.(\w+)", name):
            kinds.setdefault(match[2], []).append((int(match[1]), name))
    if "running_var" not in kinds:
        raise UserError(
            "these weights are not of the authors' FED, which has batch normalizations "
            "bottleneck_local.0, bottleneck_local.1, ..."
        )
    for kind, numbered in kinds.items():
        names = [name for _, name in sorted(numbered)]
        parts = [conversion.weights[name] for name in names]
        joined = torch.cat(parts) if parts[0].ndim else parts[0]
        how = "joined to one" if parts[0].ndim else "the first of equal counters"
        conversion.replace(names, {f"heads.neck.{kind}": joined}, how)


def _split_keys_values(conversion: Any) -> None:
    if _KEYS_VALUES in conversion.weights:
        key, value = conversion.weights[_KEYS_VALUES].chunk(2)
        attention = "diffusion.attention"
        projections = {f"{attention}.key.weight": key, f"{attention}.value.weight": value}
        conversion.replace([_KEYS_VALUES], projections, "split into keys and values")

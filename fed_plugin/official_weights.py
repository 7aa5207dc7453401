"""The names of the authors' public code, translated to those of FED and FEDOfficial.

Their checkpoint is the state dict of a model in ``DataParallel``; their memory is a file of its
own, one tensor. What the names stand for was found by running that code from outside.

Shapes: P parts, C channels, D = P * C, I identities.
"""

from __future__ import annotations

import re

import torch

from occluded_reid.checkpoint.conversion import Conversion
from occluded_reid.utils.errors import UserError

TARGETS = ("FED", "FEDOfficial")
CONFIG = (  # of a file without another configuration: the network of Sec. 4.2
    "MODEL.BACKBONE.NAME", "build_token_vit_backbone", "MODEL.BACKBONE.DEPTH", "base",
    "MODEL.BACKBONE.FEAT_DIM", "768", "INPUT.SIZE_TRAIN", "[256, 128]",
    "INPUT.SIZE_TEST", "[256, 128]",
)  # fmt: skip

_UNUSED = {
    r"base\.fc\..*": "the classifier of ImageNet, which nothing reads",
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


def name_as_ours(conversion: Conversion, target: str) -> None:
    """Give the authors' weights the names of ``target``, ``FED`` or ``FEDOfficial``.

    ``FED`` takes what inference needs: its diffusion module is built otherwise.

    Raises:
        UserError: the weights are not of the authors' FED.
    """
    conversion.strip("module.")
    for pattern, why in _UNUSED.items():
        conversion.leave_out(pattern, why)
    _join_necks(conversion)
    names = {**_INFERENCE, **_TRAINING} if target == "FEDOfficial" else _INFERENCE
    if target == "FEDOfficial":
        _split_keys_values(conversion)
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            shared = conversion.weights[f"heads.neck.{kind}"]
            copies = {f"{of}.neck.{kind}": shared for of in ("heads", "diffusion")}
            conversion.replace([f"heads.neck.{kind}"], copies, "one neck for both features")
    else:
        trained = "|".join([*_TRAINING, re.escape(_KEYS_VALUES)])
        conversion.leave_out(trained, f"of training alone, which {target} does otherwise")
    conversion.rename(lambda name: _translated(name, names))


def add_memory(conversion: Conversion, memory: torch.Tensor | None) -> None:
    """Add the one bank of FEDOfficial under both of its names.

    Args:
        conversion: weights by the names of FEDOfficial.
        memory: (I, D), rows in the order of the classifiers'; None for a bank that training fills
            before its first step.
    """
    num_identities = len(conversion.weights["classifiers.erased.weight"])
    dim = conversion.weights["classifiers.erased.weight"].shape[1]
    centres = torch.zeros(num_identities, dim) if memory is None else memory.detach().float()
    if centres.shape != (num_identities, dim):
        raise UserError(
            f"the memory is {tuple(centres.shape)}; for these weights it must be "
            f"{(num_identities, dim)}, a row for each identity"
        )
    for bank in ("erased_memory", "diffused_memory"):
        conversion.add(
            {
                f"{bank}.centres": centres,
                f"{bank}.initialized": torch.tensor(memory is not None),
                f"{bank}.identities": torch.zeros((), dtype=torch.int64),
            }
        )


def _translated(name: str, names: dict[str, str]) -> str | None:
    for pattern, ours in names.items():
        if found := re.fullmatch(pattern, name):
            return found.expand(ours)
    return None


def _join_necks(conversion: Conversion) -> None:
    """P batch normalisations of C channels are one of D; their counters are equal."""
    kinds: dict[str, list[tuple[int, str]]] = {}
    for name in conversion.weights:
        if found := re.fullmatch(r"bottleneck_local\.(\d+)\.(\w+)", name):
            kinds.setdefault(found[2], []).append((int(found[1]), name))
    if "running_var" not in kinds:
        raise UserError(
            "these weights are not of the authors' FED: it has batch normalisations "
            "bottleneck_local.0, bottleneck_local.1, ..."
        )
    for kind, numbered in kinds.items():
        names = [name for _, name in sorted(numbered)]
        parts = [conversion.weights[name] for name in names]
        joined = torch.cat(parts) if parts[0].ndim else parts[0]
        how = "joined to one" if parts[0].ndim else "the first of equal counters"
        conversion.replace(names, {f"heads.neck.{kind}": joined}, how)


def _split_keys_values(conversion: Conversion) -> None:
    if _KEYS_VALUES in conversion.weights:
        key, value = conversion.weights[_KEYS_VALUES].chunk(2)
        place = "diffusion.attention"
        made = {f"{place}.key.weight": key, f"{place}.value.weight": value}
        conversion.replace([_KEYS_VALUES], made, "split into keys and values")

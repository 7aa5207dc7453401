"""Pretrained weights of timm's networks: renamed, fitted by timm's own function, checked."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import timm
import torch

from occluded_reid.checkpoint.conversion import Conversion, Weights, find_mismatches, join_first
from occluded_reid.checkpoint.convert import build_report, summarize_report
from occluded_reid.checkpoint.pretrained import download_weights, read_weights
from occluded_reid.utils.errors import UserError, explain_read_errors

logger = logging.getLogger(__name__)

_ADVICE = "does MODEL.BACKBONE.TIMM_NAME describe these weights?"


def load_timm_weights(backbone: Any, name: str, source: str) -> None:
    """Load pretrained weights into a backbone of timm, and log what happened to every key.

    Weights by other names are taken by their order, if all kinds and shapes agree one by one with
    those of timm's whole network. timm fits position embeddings and patches to the grid. What the
    backbone lacks, such as a classifier, is left out.

    Args:
        backbone: a :class:`~occluded_reid.modeling.timm_backbone.TimmBackbone`.
        name: of the network in timm.
        source: a file; or a name of weights that timm downloads, ``""`` for those of ``name``.
    """
    network = backbone.network
    is_file = timm.is_model(source or name) is False
    conversion = read_weights(source) if is_file else Conversion(download_weights(source or name))
    for prefix in ("module.", "backbone.", "network."):
        conversion.strip(prefix)
    _rename_by_order(conversion, name)
    _fit(conversion, network)
    wanted = network.state_dict()
    for key in [key for key in conversion.weights if key not in wanted]:
        conversion.leave_out(re.escape(key), "the backbone has no such weight")
    faults = find_mismatches(conversion.weights, wanted)
    summary = summarize_report(build_report(conversion, faults))
    if faults:
        raise UserError(f"{source or name} does not fit {name}: {join_first(faults)}; {_ADVICE}")
    network.load_state_dict(conversion.weights)
    logger.info(f"Loaded pretrained weights from {source or name}\n{summary}")


def _rename_by_order(conversion: Conversion, name: str) -> None:
    """Give the weights timm's names if they differ in nothing else from the whole network."""
    with torch.device("meta"):
        whole = timm.create_model(name).state_dict()
    if whole.keys() & conversion.weights.keys():
        return
    pairs = list(zip(conversion.weights.items(), whole.items(), strict=False))
    if len(conversion.weights) == len(whole) and all(
        key.rpartition(".")[2] == other.rpartition(".")[2] and mine.shape == theirs.shape
        for (key, mine), (other, theirs) in pairs
    ):
        conversion.rename(dict(zip(conversion.weights, whole, strict=True)).get)


def _fit(conversion: Conversion, network: Any) -> None:
    """Apply timm's ``checkpoint_filter_fn``; take over what it renamed, changed and left out."""
    module = sys.modules[type(network).__module__]
    fit = getattr(module, "checkpoint_filter_fn", None)
    if fit is None:
        return
    before = dict(conversion.weights)
    with explain_read_errors("the pretrained weights", _ADVICE, (Exception,)):
        after: Weights = fit(dict(before), network)
    names = {id(tensor): name for name, tensor in before.items()}
    new_names = {names[id(each)]: name for name, each in after.items() if id(each) in names}
    made = {name: each for name, each in after.items() if id(each) not in names}
    for name in before.keys() - new_names.keys():
        if name in made:
            conversion.replace([name], {name: made.pop(name)}, "fitted by timm")
        else:
            conversion.leave_out(re.escape(name), "timm leaves it out")
    conversion.rename(new_names.get)
    conversion.add(made)

"""Build the model that a configuration names, or say in one message what cannot be built."""

from __future__ import annotations

import logging

import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.modeling.meta_arch import build_model as build_in_fastreid
from torch import nn

import occluded_reid.modeling.backbones  # noqa: F401  (registers them)
import occluded_reid.modeling.baseline  # noqa: F401
import occluded_reid.modeling.heads  # noqa: F401
from occluded_reid.checkpoint.checkpointer import Checkpointer, Loaded
from occluded_reid.checkpoint.fitting import list_training_parts
from occluded_reid.checkpoint.sources import resolve_source
from occluded_reid.config import changed_copy
from occluded_reid.utils.errors import UserError, first_line, suggest

logger = logging.getLogger(__name__)


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model of ``cfg`` on ``MODEL.DEVICE``."""
    _check_names(cfg)
    cfg = complete(cfg)
    backbone = cfg.MODEL.BACKBONE
    try:
        model = build_in_fastreid(cfg)
    except FileNotFoundError as error:
        raise UserError(
            f"{error}; MODEL.BACKBONE.PRETRAIN False starts from random weights"
        ) from error
    except (KeyError, AssertionError) as error:
        if error.args == (backbone.DEPTH,):
            raise UserError(
                f"the model cannot be built: {backbone.NAME} has no MODEL.BACKBONE.DEPTH "
                f"{backbone.DEPTH!r}; 50x is a depth of ResNet, base one of ViT"
            ) from error
        raise UserError(
            f"the model cannot be built: {error}; check MODEL.META_ARCHITECTURE, MODEL.BACKBONE "
            "and MODEL.HEADS"
        ) from error
    except Exception as error:  # whatever fast-reid raises at weights of another form
        if isinstance(error, UserError) or not (backbone.PRETRAIN and backbone.PRETRAIN_PATH):
            raise
        raise UserError(
            f"{backbone.PRETRAIN_PATH} does not fit the backbone {backbone.NAME} "
            f"({first_line(error)}); tools/import_checkpoint.py converts other weights"
        ) from error
    _prepare_resnet(model)
    # feature maps take the memory format of the first layer's weights
    return model.to(memory_format=torch.channels_last) if cfg.MODEL.CHANNELS_LAST else model


def build_untrained(cfg: CfgNode) -> nn.Module:
    """Build the model of ``cfg`` without looking for pretrained weights."""
    with changed_copy(cfg) as cfg:
        cfg.MODEL.BACKBONE.PRETRAIN = False
    return build_model(cfg)


def load_trained(model: nn.Module, cfg: CfgNode, weights: str, *, trust: bool = False) -> Loaded:
    """Load the weights of a model that is only evaluated; their average if ``MODEL.EMA.ENABLED``.

    Returns what the file holds besides.

    Args:
        model: the model of ``cfg``, with or without the parts that only training needs.
        weights: a weights file or a run's folder.
        trust: allow pickled Python objects, which can run code.
    """
    checkpointer = Checkpointer(model, num_classes=cfg.MODEL.HEADS.NUM_CLASSES, trust=trust)
    return checkpointer.load(weights, part="ema" if cfg.MODEL.EMA.ENABLED else "model")


def build_inference_model(cfg: CfgNode, weights: str, *, trust: bool = False) -> nn.Module:
    """Build the model of ``cfg`` without the parts that only training needs, and load its weights.

    The model is in evaluation mode, on ``MODEL.DEVICE``. See :func:`load_trained` for the arguments
    and errors: a UserError if the model cannot be built, or the weights do not fit.

    >>> model = build_inference_model(cfg, "logs/demo")  # doctest: +SKIP
    """
    model = remove_training_parts(build_untrained(cfg))
    load_trained(model, cfg, weights, trust=trust)
    return model.eval()


def remove_training_parts(model: nn.Module) -> nn.Module:
    """Delete the parts of ``model`` that only training needs; return the same model."""
    for name in list_training_parts(model):
        parent, _, own = name.rpartition(".")
        delattr(model.get_submodule(parent), own)
    return model


def log_model(cfg: CfgNode, model: nn.Module) -> None:
    """Log the model's name and size; its modules to log.txt only."""
    size = sum(parameter.numel() for parameter in model.parameters())
    names = f"{cfg.MODEL.META_ARCHITECTURE} with {cfg.MODEL.BACKBONE.NAME}"
    logger.info(f"Model: {names}, {size:,} parameters")
    logger.debug(f"Modules:\n{model}")


def complete(cfg: CfgNode) -> CfgNode:
    """Fill in ``FEAT_DIM`` and the path of the pretrained weights; refuse a wrong ``FEAT_DIM``."""
    keys = cfg.MODEL.BACKBONE
    dim = _measure_feature_dim(cfg)
    if dim is None and not keys.FEAT_DIM:
        raise UserError(
            f"MODEL.BACKBONE.FEAT_DIM is 0, and {keys.NAME} does not tell its number of channels: "
            "set it"
        )
    if dim and keys.FEAT_DIM not in (0, dim):
        raise UserError(
            f"MODEL.BACKBONE.FEAT_DIM is {keys.FEAT_DIM}, but {keys.NAME} gives {dim} channels; 0 "
            "takes the number from the backbone"
        )
    with changed_copy(cfg) as cfg:
        cfg.MODEL.BACKBONE.FEAT_DIM = dim or keys.FEAT_DIM
        if keys.PRETRAIN and keys.PRETRAIN_PATH:
            path = cfg.MODEL.BACKBONE.PRETRAIN_PATH = resolve_source(keys.PRETRAIN_PATH)
            if BACKBONE_REGISTRY.get(keys.NAME).__module__.startswith("fastreid."):
                from occluded_reid.checkpoint.pretrained import read_weights  # imports timm

                read_weights(path)  # fast-reid reads it without a check
    return cfg


def _measure_feature_dim(cfg: CfgNode) -> int | None:
    """Return the backbone's number of channels, from a pass on the meta device without values.

    None if the backbone cannot be built there; building it in earnest says why.
    """
    with changed_copy(cfg) as cfg:
        cfg.MODEL.BACKBONE.PRETRAIN = False
        cfg.MODEL.BACKBONE.CAMERA_EMBEDDING = 0
    try:
        with torch.device("meta"), torch.no_grad():
            backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg)
            features = backbone.eval()(torch.zeros(1, 3, *cfg.INPUT.SIZE_TRAIN))
        return int(features.shape[-1 if features.dim() == 3 else 1])
    except UserError:
        raise
    except Exception:  # whatever a backbone of another package raises
        return None


def _prepare_resnet(model: nn.Module) -> None:
    """Set what a ResNet sets in its first forward pass: otherwise it is compiled twice."""
    for module in model.modules():
        for name in ("NL_1_idx", "NL_2_idx", "NL_3_idx", "NL_4_idx"):
            if getattr(module, name, None) == []:
                setattr(module, name, [-1])


def _check_names(cfg: CfgNode) -> None:
    """Raise a UserError that suggests similar names if a registry lacks a part of the model."""
    named = {
        "MODEL.META_ARCHITECTURE": (cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        "MODEL.BACKBONE.NAME": (cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
        "MODEL.HEADS.NAME": (cfg.MODEL.HEADS.NAME, REID_HEADS_REGISTRY),
    }
    for key, (name, registry) in named.items():
        try:
            registry.get(name)
        except KeyError as error:
            known = sorted(registry._obj_map)  # fast-reid's registry has no other list of names
            hint = suggest(name, known, count=2) or f"; there is {', '.join(known)}"
            raise UserError(f"{key} is {name!r}, which does not exist{hint}") from error

"""timm's networks and our vision transformers under fast-reid's keys, registered by importing this.

timm is imported only if such a backbone is built.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from occluded_reid.utils.errors import UserError

if TYPE_CHECKING:
    from occluded_reid.modeling.timm_backbone import TimmBackbone
    from occluded_reid.modeling.vit import ClassTokenViT, TokenViT

logger = logging.getLogger(__name__)

Pair = tuple[int, int]
# what build_timm_backbone leaves to timm
_NOT_OF_TIMM = {
    "WITH_IBN": False, "WITH_SE": False, "WITH_NL": False, "NORM": "BN", "CAMERA_EMBEDDING": 0,
    "PATCH_SIZE": [16, 16], "STRIDE_SIZE": (16, 16), "DROP_RATIO": 0.0, "ATT_DROP_RATE": 0.0,
}  # fmt: skip
# numbers of channels, blocks and heads
DEPTHS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}


@BACKBONE_REGISTRY.register()
def build_token_vit_backbone(cfg: CfgNode) -> TokenViT:
    """Build a transformer that returns all tokens, with the weights of ``MODEL.BACKBONE``."""
    from occluded_reid.modeling.vit import TokenViT

    return _build(TokenViT, cfg)


@BACKBONE_REGISTRY.register()
def build_class_token_vit_backbone(cfg: CfgNode) -> ClassTokenViT:
    """Build a transformer for fast-reid's heads, which need ``POOL_LAYER: Identity``."""
    from occluded_reid.modeling.vit import ClassTokenViT

    return _build(ClassTokenViT, cfg)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode) -> TimmBackbone:
    """Build timm's ``MODEL.BACKBONE.TIMM_NAME``, with the weights of ``MODEL.BACKBONE``."""
    from occluded_reid.checkpoint.timm_weights import load_timm_weights
    from occluded_reid.modeling.timm_backbone import create_backbone

    keys = cfg.MODEL.BACKBONE
    for key, value in _NOT_OF_TIMM.items():
        if keys[key] != value:
            raise UserError(
                f"MODEL.BACKBONE.{key} {keys[key]} does not apply to build_timm_backbone: leave it "
                f"at {value}"
            )
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    backbone = create_backbone(
        keys.TIMM_NAME, tuple(cfg.INPUT.SIZE_TRAIN), last_stride=keys.LAST_STRIDE,
        feature=keys.FEATURE, tokens=getattr(model, "reads_tokens", False),
        drop_path=keys.DROP_PATH_RATIO, recompute=keys.RECOMPUTE,
    )  # fmt: skip
    if keys.PRETRAIN:
        load_timm_weights(backbone, keys.TIMM_NAME, keys.PRETRAIN_PATH or keys.PRETRAIN_NAME)
        _compare_normalization(cfg, backbone.network.pretrained_cfg)
    return backbone


def _compare_normalization(cfg: CfgNode, trained: dict[str, Any]) -> None:
    """Warn if images are normalized otherwise than timm says they were for the weights."""
    for key, name in (("PIXEL_MEAN", "mean"), ("PIXEL_STD", "std")):
        wanted, present = [round(255 * each, 1) for each in trained[name]], list(cfg.MODEL[key])
        if any(abs(a - b) > 3 for a, b in zip(wanted, present, strict=True)):  # of 255
            logger.warning(
                f"MODEL.{key} is {present}, but timm's weights of {cfg.MODEL.BACKBONE.TIMM_NAME} "
                f"expect {wanted}"
            )


def _build(kind: type[Any], cfg: CfgNode) -> Any:
    from occluded_reid.checkpoint.pretrained import download_weights, load_weights

    keys = cfg.MODEL.BACKBONE
    dim, depth, num_heads = _shape(keys)
    image_size, patch_size, stride = _sizes(cfg)
    model = kind(
        num_cameras=keys.CAMERA_EMBEDDING, camera_weight=keys.SIE_COE, recompute=keys.RECOMPUTE,
        img_size=image_size, patch_size=patch_size, stride=stride,
        embed_dim=dim, depth=depth, num_heads=num_heads,
        mlp_ratio=keys.MLP_RATIO if keys.DEPTH == "custom" else 4.0,
        pos_drop_rate=keys.DROP_RATIO, proj_drop_rate=keys.DROP_RATIO,
        attn_drop_rate=keys.ATT_DROP_RATE, drop_path_rate=keys.DROP_PATH_RATIO,
    )  # fmt: skip
    if keys.PRETRAIN:
        source = keys.PRETRAIN_PATH or download_weights(_pretrain_name(keys))
        load_weights(model, source, resize=keys.POSITION_RESIZE)
    return model


def _shape(keys: CfgNode) -> tuple[int, int, int]:
    """Return the numbers of channels, blocks and heads."""
    if keys.DEPTH not in (*DEPTHS, "custom"):
        names = ", ".join(DEPTHS)
        raise UserError(f"MODEL.BACKBONE.DEPTH is {keys.DEPTH!r}; it can be {names} or custom")
    custom = (keys.FEAT_DIM, keys.NUM_BLOCKS, keys.NUM_HEADS)
    dim, depth, num_heads = DEPTHS.get(keys.DEPTH, custom)
    if keys.FEAT_DIM not in (0, dim) or not dim or dim % num_heads:
        raise UserError(
            f"MODEL.BACKBONE.FEAT_DIM is {keys.FEAT_DIM}, but DEPTH {keys.DEPTH} "
            + (
                f"has {dim}"
                if keys.DEPTH != "custom"
                else f"has {num_heads} heads, which do not divide it"
            )
        )
    return dim, depth, num_heads


def _sizes(cfg: CfgNode) -> tuple[Pair, Pair, Pair]:
    """Return image size, patch size and stride, each vertical and horizontal."""
    keys = cfg.MODEL.BACKBONE
    image, patch, stride = map(tuple, (cfg.INPUT.SIZE_TRAIN, keys.PATCH_SIZE, keys.STRIDE_SIZE))
    if tuple(cfg.INPUT.SIZE_TEST) != image:
        raise UserError(
            f"INPUT.SIZE_TEST {list(cfg.INPUT.SIZE_TEST)} must equal INPUT.SIZE_TRAIN "
            f"{list(image)}: a vision transformer takes images of one size"
        )
    if min(stride) < 1 or any(not 1 <= p <= i for p, i in zip(patch, image, strict=True)):
        raise UserError(
            f"MODEL.BACKBONE.PATCH_SIZE {list(patch)} and STRIDE_SIZE {list(stride)} do not fit "
            f"images of {list(image)}"
        )
    return image, patch, stride


def _pretrain_name(keys: CfgNode) -> str:
    """Return timm's name of the weights to download."""
    if keys.PRETRAIN_NAME:
        return str(keys.PRETRAIN_NAME)
    if keys.DEPTH == "custom" or tuple(keys.PATCH_SIZE) != (16, 16):
        raise UserError(
            f"MODEL.BACKBONE.PRETRAIN: no known weights fit DEPTH {keys.DEPTH} with PATCH_SIZE "
            f"{list(keys.PATCH_SIZE)}; set PRETRAIN_PATH, PRETRAIN_NAME, or PRETRAIN False"
        )
    tag = "orig_in21k_ft_in1k" if keys.DEPTH == "base" else "augreg_in21k_ft_in1k"
    return f"vit_{keys.DEPTH}_patch16_224.{tag}"

"""Vision transformers that hand out all their tokens: timm's, built from fast-reid's keys.

State-dict keys are timm's, which are those of fast-reid's and TransReID's transformers too. Weights
come from timm, DeiT, ``jx_vit_*``, Google's augreg (.npz), and from whole models of TransReID
(``base.``), fast-reid and this package (``backbone.``), each also with ``module.`` before its keys.

Shapes: B images, C channels, T = rows x columns patch tokens in raster order. Token 0 is the class
token.
"""

from __future__ import annotations

import logging
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models import checkpoint_seq, get_pretrained_cfg, load_state_dict
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from occluded_reid.errors import UserError

logger = logging.getLogger(__name__)

Weights = dict[str, torch.Tensor]
Pair = tuple[int, int]

_KERNEL = "patch_embed.proj.weight"
_CLASSIFIERS = ("head.", "head_dist.", "fc.", "pre_logits.", "dist_token")

DEPTHS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width C, number of blocks, number of heads."""


class OverlappingPatchEmbed(PatchEmbed):
    """timm's patch embedding with a step of its own between patches.

    Args:
        stride: step down and across in pixels; below the patch size, patches overlap.
        options: timm's.
    """

    def __init__(self, *, stride: Pair, **options: Any):
        super().__init__(**options)
        self.proj.stride = stride
        sizes = zip(self.img_size, self.patch_size, stride, strict=True)
        self.grid_size = tuple((image - patch) // step + 1 for image, patch, step in sizes)
        self.num_patches = self.grid_size[0] * self.grid_size[1]


class TokenViT(VisionTransformer):
    """timm's vision transformer; returns all tokens after the final norm.

    Args:
        stride: step between patches, down and across.
        num_cameras: cameras with an embedding of their own (TransReID's SIE); 0 for none.
        camera_weight: what the camera embedding is multiplied by.
        recompute: compute blocks again in the backward pass to save memory.
        options: timm's: ``img_size`` (H, W), the only size it takes, ``depth``, ...

    Attributes:
        grid: (rows, columns) of the patch tokens.
        feature_dim: C.
    """

    def __init__(
        self,
        *,
        stride: Pair = (16, 16),
        num_cameras: int = 0,
        camera_weight: float = 1.0,
        recompute: bool = False,
        **options: Any,
    ):
        embed = partial(OverlappingPatchEmbed, stride=stride)
        super().__init__(num_classes=0, global_pool="", embed_layer=embed, **options)
        self.grid: Pair = self.patch_embed.grid_size
        self.feature_dim = self.embed_dim
        self.camera_weight = camera_weight
        self.set_grad_checkpointing(recompute)
        self.sie_embed = None
        if num_cameras:
            self.sie_embed = nn.Parameter(torch.empty(num_cameras, 1, self.embed_dim))
            nn.init.trunc_normal_(self.sie_embed, std=0.02)

    def forward(  # type: ignore[override]
        self, images: torch.Tensor, camera_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the tokens (B, 1 + T, C), the class token first.

        Args:
            images: (B, 3, H, W), normalised.
            camera_ids: (B,), counted as in training; needed where there is a camera embedding.

        Raises:
            UserError: a camera embedding without cameras.
        """
        class_token: Any = self.cls_token
        positions: Any = self.pos_embed
        patches = self.patch_embed(images)
        tokens = torch.cat((class_token.expand(len(images), -1, -1), patches), dim=1) + positions
        if self.sie_embed is not None:
            if camera_ids is None:
                raise UserError(
                    "MODEL.BACKBONE.CAMERA_EMBEDDING needs the camera of every image, but this "
                    "MODEL.META_ARCHITECTURE hands the backbone none; 0 switches it off"
                )
            tokens = tokens + self.camera_weight * self.sie_embed[camera_ids]
        tokens = self.pos_drop(tokens)
        if self.grad_checkpointing and self.training:
            tokens = checkpoint_seq(self.blocks, tokens)
        else:
            tokens = self.blocks(tokens)
        return self.norm(tokens)


class ClassTokenViT(TokenViT):
    """The same transformer in the form of fast-reid's: the class token alone, as a 1 x 1 map."""

    def forward(  # type: ignore[override]
        self, images: torch.Tensor, camera_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the class token (B, C, 1, 1); for arguments see :class:`TokenViT`."""
        return super().forward(images, camera_ids)[:, 0, :, None, None]


@BACKBONE_REGISTRY.register()
def build_token_vit_backbone(cfg: CfgNode) -> TokenViT:
    """Build a transformer that returns all tokens, with weights as ``MODEL.BACKBONE`` says.

    Raises:
        UserError: values that do not fit each other, or weights that cannot be had or do not fit.
    """
    return _build(TokenViT, cfg)


@BACKBONE_REGISTRY.register()
def build_class_token_vit_backbone(cfg: CfgNode) -> ClassTokenViT:
    """Build one for fast-reid's heads with ``POOL_LAYER: Identity``; raises as the one above."""
    return _build(ClassTokenViT, cfg)


def _build(kind: type[Any], cfg: CfgNode) -> Any:
    keys = cfg.MODEL.BACKBONE
    width, depth, num_heads = _shape(keys)
    image_size, patch_size, stride = _sizes(cfg)
    model = kind(
        stride=stride,
        num_cameras=keys.CAMERA_EMBEDDING,
        camera_weight=keys.SIE_COE,
        recompute=keys.RECOMPUTE,
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=keys.MLP_RATIO if keys.DEPTH == "custom" else 4.0,
        pos_drop_rate=keys.DROP_RATIO,
        proj_drop_rate=keys.DROP_RATIO,
        attn_drop_rate=keys.ATT_DROP_RATE,
        drop_path_rate=keys.DROP_PATH_RATIO,
    )
    if keys.PRETRAIN:
        source = keys.PRETRAIN_PATH or download_weights(_pretrain_name(keys))
        load_weights(model, source, resize=keys.POSITION_RESIZE)
    return model


def _shape(keys: CfgNode) -> tuple[int, int, int]:
    """Return width, blocks and heads."""
    if keys.DEPTH not in (*DEPTHS, "custom"):
        names = ", ".join(DEPTHS)
        raise UserError(f"MODEL.BACKBONE.DEPTH is {keys.DEPTH!r}; it can be {names} or custom")
    custom = (keys.FEAT_DIM, keys.NUM_BLOCKS, keys.NUM_HEADS)
    width, depth, num_heads = DEPTHS.get(keys.DEPTH, custom)
    if width != keys.FEAT_DIM or width % num_heads:
        raise UserError(
            f"MODEL.BACKBONE.FEAT_DIM is {keys.FEAT_DIM}, but DEPTH {keys.DEPTH} has "
            + (f"{num_heads} heads, which cannot share it" if width % num_heads else f"{width}")
        )
    return width, depth, num_heads


def _sizes(cfg: CfgNode) -> tuple[Pair, Pair, Pair]:
    """Return image size, patch size and stride, each as (down, across)."""
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
            f"MODEL.BACKBONE.PRETRAIN: nothing is known to fit DEPTH {keys.DEPTH} with PATCH_SIZE "
            f"{list(keys.PATCH_SIZE)}; set PRETRAIN_PATH, PRETRAIN_NAME, or PRETRAIN False"
        )
    tag = "orig_in21k_ft_in1k" if keys.DEPTH == "base" else "augreg_in21k_ft_in1k"
    return f"vit_{keys.DEPTH}_patch16_224.{tag}"


def load_weights(model: nn.Module, source: str | Weights, *, resize: str) -> None:
    """Load pretrained weights, with their positions on the model's grid.

    Classifiers are left out. A camera embedding that is not in the file keeps its initial values.
    The log says both.

    Args:
        model: what to load into.
        source: a file, or weights by timm's names.
        resize: ``bicubic`` or ``bilinear``.

    Raises:
        UserError: the file is missing, damaged, not safe to read, or does not fit.
    """
    name = source if isinstance(source, str) else "the downloaded file"
    weights = read_weights(source, model) if isinstance(source, str) else source
    weights, of_reid_model = _of_backbone(weights, name)
    weights = _without_classifier(weights, name)
    wanted = model.state_dict()
    if "sie_embed" in wanted and "sie_embed" not in weights:
        logger.info(f"{name} has no camera embedding: it starts from random values")
        weights["sie_embed"] = wanted["sie_embed"]
    patches, kernel = weights.get(_KERNEL), wanted[_KERNEL]
    if patches is not None and patches.ndim == 2 and patches.numel() == kernel.numel():
        weights[_KERNEL] = patches.reshape(kernel.shape)  # the first files of timm: a linear layer
    if "pos_embed" in weights:
        weights["pos_embed"] = _on_grid(weights["pos_embed"], model, resize, of_reid_model)
    _check(weights, wanted, name)
    model.load_state_dict(weights)
    logger.info(f"Loaded pretrained weights from {name}")


def read_weights(path: str, model: nn.Module) -> Weights:
    """Read the tensors of an .npz (of blocks as the model's), .safetensors or PyTorch file.

    Raises:
        UserError: the file is missing, damaged, or could run code when it is read.
    """
    if not Path(path).is_file():
        raise UserError(f"there are no pretrained weights {path} (MODEL.BACKBONE.PRETRAIN_PATH)")
    try:
        if path.endswith(".npz"):
            return _read_npz(path, model)
        content = load_state_dict(path, use_ema=False, weights_only=True)
        weights = {key: value for key, value in content.items() if torch.is_tensor(value)}
    except UserError:
        raise
    except Exception as error:  # each format has exceptions of its own
        raise UserError(
            f"{path} holds no weights that fit, is damaged, or holds Python objects, which could "
            f"run code ({_first_line(error)})"
        ) from error
    if not weights:
        raise UserError(f"{path} holds no weights: neither a state dict nor one under 'model'")
    return weights


def _read_npz(path: str, model: Any) -> Weights:
    """Read Google's format through timm, into a transformer of as many patches: no resizing."""
    with np.load(path) as file:
        counts = [file[key].shape[1] for key in file.files if key.endswith("pos_embedding")]
        blocks = set(re.findall(r"encoderblock_(\d+)/", " ".join(file.files)))
        left_out = [key for key in file.files if re.search(r"(^|/)(head|pre_logits)/", key)]
    if not counts or len(blocks) != len(model.blocks):
        raise UserError(f"{path} has {len(blocks)} blocks, the model {len(model.blocks)}")
    patch, first = model.patch_embed.patch_size, model.blocks[0]
    twin = VisionTransformer(
        img_size=((counts[0] - 1) * patch[0], patch[1]),
        patch_size=patch,
        embed_dim=model.embed_dim,
        depth=len(model.blocks),
        num_heads=first.attn.num_heads,
        mlp_ratio=first.mlp.fc1.out_features / model.embed_dim,
        num_classes=0,
        global_pool="",
    )
    twin.load_pretrained(path)
    if left_out:
        logger.info(f"Left out of {path}, of its classifier: {', '.join(left_out)}")
    return dict(twin.state_dict())


def _of_backbone(weights: Weights, name: str) -> tuple[Weights, bool]:
    """Return the backbone's weights by its own names, and whether they lay in a whole model."""
    for prefix in ("base.", "backbone."):
        inside = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
        if inside:
            others = sorted({key.split(".")[0] for key in weights if not key.startswith(prefix)})
            if others:
                logger.info(f"Left out of {name}, not of the backbone: {', '.join(others)}")
            return inside, True
    return weights, False


def _without_classifier(weights: Weights, name: str) -> Weights:
    left_out = sorted(key for key in weights if key.startswith(_CLASSIFIERS))
    if left_out:
        logger.info(f"Left out of {name}, of its classifier: {', '.join(left_out)}")
    kept = {key: value for key, value in weights.items() if key not in left_out}
    if "dist_token" in left_out and "pos_embed" in kept:  # its position stands after the class's
        positions = kept["pos_embed"]
        kept["pos_embed"] = torch.cat((positions[:, :1], positions[:, 2:]), dim=1)
    return kept


def _on_grid(positions: torch.Tensor, model: Any, resize: str, of_reid_model: bool) -> torch.Tensor:
    """Resize position embeddings (1, 1 + T', C) to the model's grid."""
    new = model.patch_embed.grid_size
    old = grid_of(positions.shape[1] - 1, new, trust_own=of_reid_model)
    if old == new:
        return positions
    logger.info(f"Position embeddings: {old[0]} x {old[1]} -> {new[0]} x {new[1]}, {resize}")
    return resample_abs_pos_embed(
        positions, list(new), list(old), interpolation=resize, antialias=resize == "bicubic"
    )


def grid_of(count: int, own: Pair, *, trust_own: bool) -> Pair:
    """Guess the (rows, columns) of ``count`` patch tokens; files do not say it.

    Args:
        count: patch tokens of the file.
        own: the model's grid.
        trust_own: take the model's grid wherever the counts agree. A square count could be either,
            as 196 = 14 x 14 = 28 x 7, and ImageNet files are square.

    Returns:
        The model's grid, else a square, else the product nearest to the model's proportions.
    """
    side = math.isqrt(count)
    is_square = side * side == count
    if count == own[0] * own[1] and (trust_own or not is_square):
        return own
    if is_square:
        return side, side
    pairs = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[0] * own[1] / (pair[1] * own[0]))))


def _check(weights: Weights, wanted: Weights, name: str) -> None:
    """Stop where weights are missing, left over or of another shape."""
    faults = [f"{key} is not in the file" for key in wanted if key not in weights]
    faults += [f"{key} is not in the model" for key in weights if key not in wanted]
    faults += [
        f"{key} is {tuple(value.shape)} in the file, {tuple(wanted[key].shape)} in the model"
        for key, value in weights.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    if faults:
        raise UserError(
            f"{name} does not fit the backbone: {'; '.join(faults[:5])}"
            + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
            + ". Does MODEL.BACKBONE (DEPTH, PATCH_SIZE, CAMERA_EMBEDDING) describe these weights?"
        )


def download_weights(name: str) -> Weights:
    """Download weights by timm's name, or take them from its cache.

    Raises:
        UserError: they cannot be had; the message names the file and where to put it.
    """
    try:
        return dict(timm.create_model(name, pretrained=True, num_classes=0).state_dict())
    except Exception as error:  # offline, each layer below raises exceptions of its own
        source = get_pretrained_cfg(name)
        if source is None:
            raise UserError(f"timm has no weights {name} (MODEL.BACKBONE.PRETRAIN_NAME)") from error
        page = f"https://huggingface.co/{source.hf_hub_id}/resolve/main/model.safetensors"
        raise UserError(
            f"cannot download the pretrained weights {name} ({_first_line(error)}). Download "
            f"{page}{f' or {source.url}' if source.url else ''} by other means and name the file: "
            "MODEL.BACKBONE.PRETRAIN_PATH path/to/file"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]

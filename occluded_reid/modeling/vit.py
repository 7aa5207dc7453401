"""Vision transformers that hand out all their tokens: timm's, built from fast-reid's keys.

State-dict keys are timm's, which are those of fast-reid's and TransReID's transformers too; which
files of weights are read says :mod:`occluded_reid.checkpoint.pretrained`.

Shapes: B images, C channels, T = rows x columns patch tokens in raster order. Token 0 is the class
token.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from timm.layers import Mlp, PatchEmbed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from occluded_reid.checkpoint.pretrained import Pair, download_weights, load_weights
from occluded_reid.utils.errors import UserError

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


class _ActivatedLinear(torch.autograd.Function):
    """``linear(gelu(x))`` that keeps x alone and computes the activation again for its gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        return F.linear(F.gelu(hidden), weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden, weight = ctx.saved_tensors
        of_output = gradient.flatten(0, -2)
        of_weight = of_output.t() @ F.gelu(hidden).flatten(0, -2)
        of_hidden = torch.ops.aten.gelu_backward(gradient @ weight, hidden)
        return of_hidden, of_weight, of_output.sum(dim=0)


class LeanMlp(Mlp):
    """timm's feed-forward layers; in training they keep half as many of their wide activations."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what timm's return, with the same gradients."""
        if not (self.training and torch.is_grad_enabled()) or self.drop1.p or self.fc2.bias is None:
            return super().forward(x)
        hidden = self.fc1(x)
        weight, bias = self.fc2.weight.to(hidden.dtype), self.fc2.bias.to(hidden.dtype)
        return self.drop2(_ActivatedLinear.apply(hidden, weight, bias))


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
        super().__init__(
            num_classes=0, global_pool="", embed_layer=embed, mlp_layer=LeanMlp, **options
        )
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
        tokens = (
            torch.cat((class_token.expand(images.shape[0], -1, -1), patches), dim=1) + positions
        )
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

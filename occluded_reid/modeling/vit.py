"""timm's vision transformer, returning all its tokens.

State-dict keys are timm's, which fast-reid's and TransReID's transformers share. See
:mod:`occluded_reid.checkpoint.pretrained` for the weights that can be loaded.

Shapes: B images, C channels, T = rows x columns patch tokens in raster order. Token 0 is the class
token.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp, PatchEmbed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from occluded_reid.utils.errors import UserError


class OverlappingPatchEmbed(PatchEmbed):
    """timm's patch embedding with a ``stride`` of its own, vertical and horizontal, in pixels.

    Below the patch size, patches overlap.
    """

    def __init__(self, *, stride: tuple[int, int], **options: Any):
        super().__init__(**options)
        self.proj.stride = stride
        sizes = zip(self.img_size, self.patch_size, stride, strict=True)
        self.grid_size = tuple((image - patch) // step + 1 for image, patch, step in sizes)
        self.num_patches = self.grid_size[0] * self.grid_size[1]


class _GeluLinear(torch.autograd.Function):
    """``linear(gelu(x))``, saving x alone and recomputing the activation in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        return F.linear(F.gelu(hidden), weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden, weight = ctx.saved_tensors
        grad_rows = grad.flatten(0, -2)
        grad_weight = grad_rows.t() @ F.gelu(hidden).flatten(0, -2)
        grad_hidden = torch.ops.aten.gelu_backward(grad @ weight, hidden)
        return grad_hidden, grad_weight, grad_rows.sum(dim=0)


class LeanMlp(Mlp):
    """timm's feed-forward layers with half of the hidden activations saved in training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return timm's output, with the same gradients."""
        if not (self.training and torch.is_grad_enabled()) or self.drop1.p or self.fc2.bias is None:
            return super().forward(x)
        hidden = self.fc1(x)
        weight, bias = self.fc2.weight.to(hidden.dtype), self.fc2.bias.to(hidden.dtype)
        return self.drop2(_GeluLinear.apply(hidden, weight, bias))


class TokenViT(VisionTransformer):
    """timm's vision transformer; returns all tokens after the final norm.

    >>> TokenViT(img_size=(256, 128), depth=1)(torch.randn(2, 3, 256, 128)).shape
    torch.Size([2, 129, 768])

    Args:
        stride: between patches, vertical and horizontal.
        num_cameras: cameras with an embedding of their own (TransReID's SIE); 0 for none.
        camera_weight: factor of the camera embedding.
        recompute: recompute blocks in the backward pass to save memory.
        options: timm's: ``img_size`` (H, W), the only size it takes, ``depth``, ...

    Attributes:
        grid: (rows, columns) of the patch tokens.
        feature_dim: C.
    """

    def __init__(
        self,
        *,
        stride: tuple[int, int] = (16, 16),
        num_cameras: int = 0,
        camera_weight: float = 1.0,
        recompute: bool = False,
        **options: Any,
    ):
        embed = partial(OverlappingPatchEmbed, stride=stride)
        super().__init__(
            num_classes=0, global_pool="", embed_layer=embed, mlp_layer=LeanMlp, **options
        )
        self.grid: tuple[int, int] = self.patch_embed.grid_size
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
        """Return the tokens (B, 1 + T, C), class token first.

        Args:
            images: (B, 3, H, W), normalized.
            camera_ids: (B,), numbered as in training; required with a camera embedding.
        """
        class_token: Any = self.cls_token
        positions: Any = self.pos_embed
        patches = self.patch_embed(images)
        class_tokens = class_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat((class_tokens, patches), dim=1) + positions
        if self.sie_embed is not None:
            if camera_ids is None:
                raise UserError(
                    "MODEL.BACKBONE.CAMERA_EMBEDDING needs the camera of every image, but none "
                    "reaches the backbone: use MODEL.META_ARCHITECTURE CameraBaseline on images "
                    "whose cameras are known, or train without (CAMERA_EMBEDDING 0)"
                )
            tokens = tokens + self.camera_weight * self.sie_embed[camera_ids]
        tokens = self.pos_drop(tokens)
        if self.grad_checkpointing and self.training:
            return self.norm(checkpoint_seq(self.blocks, tokens))
        return self.norm(self.blocks(tokens))


class ClassTokenViT(TokenViT):
    """The same transformer in the form of fast-reid's: the class token alone, as a 1 x 1 map."""

    def forward(  # type: ignore[override]
        self, images: torch.Tensor, camera_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the class token (B, C, 1, 1); see :class:`TokenViT` for the arguments."""
        return super().forward(images, camera_ids)[:, 0, :, None, None]

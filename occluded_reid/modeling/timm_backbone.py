"""Any network of timm as a backbone: ``MODEL.BACKBONE.TIMM_NAME``.

Shapes: B images, C channels, T = rows x columns patch tokens in raster order. Token 0 is the class
token.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from occluded_reid.utils.errors import UserError, first_line, suggest

Pair = tuple[int, int]

HEAD_CONVOLUTIONS = (("conv_head", "bn2"), ("final_conv",))
"""timm's names of what follows the last block and precedes the pooling."""

_HALF_STRIDE = {"output_stride": 16}  # timm's way to say LAST_STRIDE 1


class TimmBackbone(nn.Module):
    """A network of timm without its pooling and classifier.

    A convolutional network returns its feature map (B, C, H, W). A transformer with a class token
    returns tokens (B, 1 + T, C), without registers and distillation token, if ``tokens``; otherwise
    its patch tokens laid out as a map.

    >>> network = timm.create_model("resnet18", num_classes=0)
    >>> TimmBackbone(network, tokens=False)(torch.randn(2, 3, 256, 128)).shape
    torch.Size([2, 512, 8, 4])

    Attributes:
        grid: (rows, columns) of the patch embedding; None for convolutional networks.
    """

    def __init__(self, network: nn.Module, *, tokens: bool):
        super().__init__()
        self.network: Any = network
        self.channels_last = str(getattr(network, "output_fmt", "")) == "NHWC"
        self.num_prefix = int(getattr(network, "num_prefix_tokens", 0))
        self.class_token = tokens and getattr(network, "cls_token", None) is not None
        grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
        self.grid: Pair | None = tuple(grid) if grid else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the feature map or the tokens of normalized ``images`` (B, 3, height, width)."""
        return self.arrange(self.network.forward_features(images))

    def arrange(self, features: torch.Tensor) -> torch.Tensor:
        """Return what ``forward`` returns, of the network's own features."""
        if features.dim() == 4:
            return features.permute(0, 3, 1, 2) if self.channels_last else features
        patches = features[:, self.num_prefix :]
        if self.class_token:
            return torch.cat((features[:, :1], patches), dim=1)
        return patches.transpose(1, 2).unflatten(2, self.grid)


class Plan(NamedTuple):
    """How a network is created, as found on the meta device.

    Attributes:
        options: of ``timm.create_model``.
        unused: names of parameters that the features do not depend on.
    """

    options: dict[str, Any]
    unused: tuple[str, ...]


def create_backbone(
    name: str, image_size: Pair, *, last_stride: int, feature: str, tokens: bool,
    drop_path: float = 0.0, recompute: bool = False,
) -> TimmBackbone:  # fmt: skip
    """Create a network of timm with random weights.

    Args:
        name: timm's; a pretrained tag after a dot is left to the weights.
        image_size: (H, W).
        last_stride: 1 keeps the last stage at a sixteenth of the image's size.
        feature: ``block`` or, after the head convolution, ``head``.
        tokens: return a transformer's tokens, not a map.
        drop_path: rate of stochastic depth; transformers only.
        recompute: recompute blocks in the backward pass to save memory.

    Raises:
        UserError: timm has no such network, or it gives no feature map or tokens with this stride.
    """
    if not timm.is_model(name):
        known = timm.list_models()
        raise UserError(
            f"MODEL.BACKBONE.TIMM_NAME is {name!r}, which timm does not have"
            f"{suggest(name.partition('.')[0], known) or '; timm.list_models() lists them'}"
        )
    plan = _plan(name, tuple(image_size), last_stride, feature, tokens, drop_path)
    backbone = _assemble(name, plan.options, feature=feature, tokens=tokens)
    if recompute:
        backbone.network.set_grad_checkpointing(True)
    _remove_unused(backbone, plan.unused)
    return backbone


def _assemble(name: str, options: dict[str, Any], *, feature: str, tokens: bool) -> TimmBackbone:
    network = timm.create_model(name, num_classes=0, **options)
    heads = [names for names in HEAD_CONVOLUTIONS if all(_has(network, each) for each in names)]
    if feature == "head" and not heads:
        raise UserError(
            f"MODEL.BACKBONE.FEATURE is head, but {name} has no head convolution before its "
            "pooling: use block"
        )
    for names in heads if feature == "block" else ():
        for each in names:
            setattr(network, each, nn.Identity())
    return TimmBackbone(network, tokens=tokens)


def _has(network: nn.Module, name: str) -> bool:
    return not isinstance(getattr(network, name, nn.Identity()), nn.Identity)


@functools.lru_cache(maxsize=8)
def _plan(
    name: str, size: Pair, last_stride: int, feature: str, tokens: bool, drop_path: float
) -> Plan:
    """Try the ways to create a network, on the meta device: no weights, no randomness.

    timm's networks differ in what they take: ``img_size`` where something depends on it,
    ``output_stride`` where the last stage can be dilated. What they do not take is a TypeError or
    an AssertionError.
    """
    sized: dict[str, Any] = {"img_size": size}
    ways = [sized, {}]
    if last_stride == 1:
        ways = [{**_HALF_STRIDE, **sized}, dict(_HALF_STRIDE), *ways]
    fault = ""
    for options in ways:
        try:
            with torch.inference_mode(False), torch.device("meta"), torch.enable_grad():
                backbone = _assemble(name, options, feature=feature, tokens=tokens)
                features = _compute_features(name, backbone, size)
        except (AssertionError, ValueError, RuntimeError) as error:
            fault = fault or first_line(error)
            continue
        except TypeError:
            continue
        rows = features.shape[2] if features.dim() == 4 or not backbone.grid else backbone.grid[0]
        # 24: between the strides 16 and 32 of networks that round sizes up or down
        if last_stride == 1 and "output_stride" not in options and size[0] / rows > 24:
            raise UserError(
                f"MODEL.BACKBONE.LAST_STRIDE is 1, but the last stage of {name} cannot be dilated: "
                "use 2"
            )
        used = _find_leaves(features)
        unused = tuple(key for key, each in backbone.named_parameters() if each not in used)
        if drop_path and backbone.grid:
            options = {**options, "drop_path_rate": drop_path}
        return Plan(options, unused)
    raise UserError(f"MODEL.BACKBONE.TIMM_NAME {name} cannot take images of {list(size)} ({fault})")


def _compute_features(name: str, backbone: TimmBackbone, size: Pair) -> torch.Tensor:
    """Return the features of two images, or say why the network gives none."""
    raw = backbone.network.forward_features(torch.zeros(2, 3, *size))
    if torch.is_tensor(raw) and raw.dim() == 4:
        return backbone.arrange(raw)
    grid = backbone.grid or (0, 0)
    if not torch.is_tensor(raw) or raw.dim() != 3 or (
        raw.shape[1] != backbone.num_prefix + grid[0] * grid[1]
    ):  # fmt: skip
        raise UserError(
            f"MODEL.BACKBONE.TIMM_NAME {name} gives no feature map, and no tokens on a grid: "
            "choose a convolutional network or a plain vision transformer"
        )
    return backbone.arrange(raw)


def _find_leaves(output: torch.Tensor) -> set[torch.Tensor]:
    """Return the parameters that ``output`` depends on.

    A backward pass would tell, too, but starts threads that later forks cannot do without.
    """
    leaves, seen, pending = set(), set(), [output.grad_fn]
    while pending:
        node: Any = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        pending += [each for each, _ in node.next_functions]
    return leaves


def _remove_unused(backbone: TimmBackbone, unused: tuple[str, ...]) -> None:
    """Remove what the features do not depend on; DDP refuses parameters without a gradient."""
    network = backbone.network
    for name, child in list(network.named_children()):
        own = [f"network.{name}.{key}" for key, _ in child.named_parameters()]
        if own and set(own) <= set(unused):
            setattr(network, name, nn.Identity())
    for key, parameter in backbone.named_parameters():
        if key in unused:
            parameter.requires_grad_(False)

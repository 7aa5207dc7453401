"""AONet: landmarks found by patterns, weighted by their visibility (Fig. 2).

Shapes: B images in the batch, P landmarks, C channels, I identities, S stages (before and after the
self-attention block).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.utils import comm
from torch import nn

from aonet_plugin.attention import build_attention
from aonet_plugin.classifiers import build_classifier
from aonet_plugin.config import check_values
from aonet_plugin.head import STAGES, AONetHead, Landmarks, init_patterns
from aonet_plugin.landmarks import normalized_maps
from aonet_plugin.losses import (
    landmark_triplet_loss,
    orthogonal_loss,
    overlap_loss,
    visible_identity_loss,
)
from aonet_plugin.memory import LandmarkMemory
from occluded_reid.config import changed_copy
from occluded_reid.modeling.layers import ImageNormalization
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

COMPARED = {"before": slice(0, 1), "after": slice(-1, None), "both": slice(None)}


@META_ARCH_REGISTRY.register()
class AONet(nn.Module):
    """Attentional Occlusion-aware Network.

    Args:
        normalization: of images in 0-255.
        backbone: returns feature maps (B, C, H, W) or tokens (B, 1 + H * W, C).
        heads: with the backbone, all that inference needs.
        classifier: from features after the neck (S, B, P, C) to logits (S, B, P, I).
        weights: of the losses besides Eq. 5: ``orthogonal``, ``overlap``, ``triplet``; a loss of
            weight 0 is not computed.
        detach_visibility: no gradient through the weights of Eq. 5.
        label_smoothing: of Eq. 5.
        orthogonal_after_neck: OLoss compares features after the neck, not before it.
        orthogonal_reduction: of OLoss over the images of all processes: ``mean`` or ``sum``.
        triplet_margin: of the triplet loss.
        weighted_update: weight the images in Eq. 1 by their landmarks' visibility.
        test_feature: stages in Eq. 8: ``before``, ``after`` or ``both``.
        test_after_neck: compare images by features after the neck, not before it.
    """

    # besides the keys of every model
    reads_keys = ("MODEL.AONET.", "MODEL.HEADS.NUM_CLASSES", "MODEL.LOSSES.TRI.MARGIN")
    # top-level names in the state dict that inference does not need
    training_only = ("classifier",)

    @configurable
    def __init__(
        self,
        *,
        normalization: ImageNormalization,
        backbone: nn.Module,
        heads: AONetHead,
        classifier: nn.Module,
        weights: Mapping[str, float],
        detach_visibility: bool,
        label_smoothing: float,
        orthogonal_after_neck: bool,
        orthogonal_reduction: Literal["mean", "sum"],
        triplet_margin: float,
        weighted_update: bool,
        test_feature: str,
        test_after_neck: bool,
    ):
        super().__init__()
        self.normalization = normalization
        self.backbone = backbone
        self.heads = heads
        self.classifier = classifier
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.detach_visibility = detach_visibility
        self.label_smoothing = label_smoothing
        self.orthogonal_after_neck = orthogonal_after_neck
        self.orthogonal_reduction = orthogonal_reduction
        self.triplet_margin = triplet_margin
        self.weighted_update = weighted_update
        self.test_feature = test_feature
        self.test_after_neck = test_after_neck

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the arguments of ``__init__`` from ``MODEL.AONET``."""
        aonet = cfg.MODEL.AONET
        if cfg.TEST.METRIC != "dot" and cfg.TEST.SIMILARITY == "paper":
            logger.warning(
                f"TEST.METRIC is {cfg.TEST.METRIC}, but AONet's similarity (Eq. 8) weights its "
                "landmarks by their visibility: use TEST.METRIC dot"
            )
        backbone = build_map_backbone(cfg)
        dim = getattr(backbone, "feature_dim", cfg.MODEL.BACKBONE.FEAT_DIM)
        check_values(aonet, dim)
        return {
            "normalization": ImageNormalization(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD),
            "backbone": backbone,
            "heads": build_head(aonet, dim, getattr(backbone, "grid", None)),
            "classifier": build_classifier(
                aonet.CLASSIFIERS, dim=dim, num_identities=cfg.MODEL.HEADS.NUM_CLASSES,
                num_landmarks=aonet.NUM_LANDMARKS,
            ),
            "weights": {
                "orthogonal": aonet.ORTHOGONAL_WEIGHT,
                "overlap": aonet.OVERLAP_WEIGHT,
                "triplet": aonet.TRIPLET_WEIGHT,
            },
            "detach_visibility": aonet.DETACH_VISIBILITY,
            "label_smoothing": aonet.LABEL_SMOOTHING,
            "orthogonal_after_neck": aonet.ORTHOGONAL_FEATURE == "after_neck",
            "orthogonal_reduction": aonet.ORTHOGONAL_REDUCTION,
            "triplet_margin": cfg.MODEL.LOSSES.TRI.MARGIN,
            "weighted_update": aonet.UPDATE_WEIGHTED_BY_AWARENESS,
            "test_feature": aonet.TEST_FEATURE,
            "test_after_neck": aonet.TEST_AFTER_NECK,
        }  # fmt: skip

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor] | Embedding:
        """Return the weighted loss terms in training, an :class:`Embedding` in evaluation.

        Args:
            batch: ``images`` (B, 3, H, W) in 0-255; in training ``targets`` (B,).
        """
        landmarks = self.landmarks(batch["images"])
        if not self.training:
            return self.embed(landmarks)
        losses = self.losses(landmarks, batch["targets"])
        if self.heads.memory is not None:
            # after the forward pass: the maps of step t refer to M^t (Algorithm 1)
            weights = landmarks.visibility if self.weighted_update else None
            self.heads.memory.update(landmarks.features, landmarks.responses, weights)
        return losses

    def landmarks(self, images: torch.Tensor) -> Landmarks:
        """Return the head's output for ``images`` in 0-255, which are not changed."""
        return self.heads(self.backbone(self.normalization(images)))

    def losses(self, landmarks: Landmarks, identities: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the weighted terms of Eq. 7 by their names in the log; they sum to the loss."""
        if not torch.is_grad_enabled():
            identities = identities.clamp(min=0)  # PreciseBN's -1; its losses are discarded
        visibility = landmarks.visibility
        if self.detach_visibility:
            visibility = visibility.detach()
        logits = self.classifier(landmarks.normed)  # (S, B, P, I)
        smoothing, terms, others = self.label_smoothing, {}, {}
        for stage, of_stage in zip(STAGES, logits, strict=False):
            loss = visible_identity_loss(of_stage, identities, visibility, smoothing)
            terms[f"loss_identity_{stage}"] = loss
        if "orthogonal" in self.weights:
            compared = landmarks.normed if self.orthogonal_after_neck else landmarks.pooled
            loss = orthogonal_loss(compared[0], self.orthogonal_reduction)
            if self.orthogonal_reduction == "sum":
                loss = loss * comm.get_world_size()  # DDP averages the gradients of the processes
            others["orthogonal"] = loss
        if "overlap" in self.weights:
            others["overlap"] = overlap_loss(normalized_maps(landmarks.responses))
        if "triplet" in self.weights:
            pooled = landmarks.pooled[-1]
            others["triplet"] = landmark_triplet_loss(pooled, identities, self.triplet_margin)
        return terms | {f"loss_{name}": self.weights[name] * loss for name, loss in others.items()}

    def embed(self, landmarks: Landmarks) -> Embedding:
        """Return the landmarks that Eq. 8 compares by cosine, and their weights in it.

        Of both stages, unit vectors are concatenated: their cosine is the mean of two.
        """
        features = landmarks.normed if self.test_after_neck else landmarks.pooled
        stages = F.normalize(features[COMPARED[self.test_feature]], dim=3)
        return Embedding(torch.cat(list(stages), dim=2), landmarks.visibility, stripes=False)


def build_head(aonet: CfgNode, dim: int, grid: tuple[int, int] | None) -> AONetHead:
    """Build the head of ``MODEL.AONET`` for C = ``dim``."""
    memory = None
    if aonet.OCCLUSION_AWARE_FEATURES or aonet.VISIBILITY == "awareness":
        memory = LandmarkMemory(
            num_landmarks=aonet.NUM_LANDMARKS, dim=dim, momentum=aonet.MEMORY_MOMENTUM
        )
    return AONetHead(
        patterns=init_patterns(aonet.NUM_LANDMARKS, dim, aonet.PATTERN_INIT, aonet.PATTERN_SCALE),
        attention=build_attention(
            aonet.SELF_ATTENTION, dim=dim, reduction=aonet.ATTENTION_REDUCTION,
            num_heads=aonet.ATTENTION_HEADS,
        ),
        memory=memory, grid=grid, occlusion_aware=aonet.OCCLUSION_AWARE_FEATURES,
        weighting=aonet.VISIBILITY, neck=aonet.NECK, temperature=aonet.TEMPERATURE,
        detach_average=aonet.DETACH_AVERAGE_RESPONSE,
    )  # fmt: skip


def build_map_backbone(cfg: CfgNode) -> nn.Module:
    """Build the backbone, with stride 1 in the stage ``MODEL.AONET.STRIDE_ONE_STAGE``."""
    if cfg.MODEL.BACKBONE.NAME == "build_vit_backbone":
        raise UserError(
            "MODEL.BACKBONE.NAME build_vit_backbone returns the class token alone; AONet needs the "
            "patch tokens: use build_token_vit_backbone"
        )
    stage = cfg.MODEL.AONET.STRIDE_ONE_STAGE
    if stage == "last":
        return build_backbone(cfg)
    with changed_copy(cfg) as cfg:
        cfg.MODEL.BACKBONE.LAST_STRIDE = 2 if stage == "third" else 1
    backbone = build_backbone(cfg)
    if not remove_stride(backbone, cfg.INPUT.SIZE_TRAIN):
        raise UserError(
            f"MODEL.AONET.STRIDE_ONE_STAGE {stage} needs a network whose stages begin with strided "
            f"convolutions, such as a ResNet; with {cfg.MODEL.BACKBONE.NAME} use last"
        )
    return backbone


def remove_stride(backbone: nn.Module, size: Sequence[int]) -> bool:
    """Set the stride of the convolutions that end at a sixteenth of an image of ``size`` to 1.

    They are found on the meta device. Returns whether that doubles the height of the map.
    """
    probe = copy.deepcopy(backbone).to("meta").eval()
    images, rows = torch.empty(1, 3, *size, device="meta"), -(-size[0] // 16)
    names = []
    for name, module in probe.named_modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.register_forward_hook(
                lambda _, __, out, name=name: names.append(name) if out.shape[2] == rows else None
            )
    before = probe(images).shape
    try:
        for name in names.copy():
            for network in (probe, backbone):
                convolution: Any = network.get_submodule(name)
                convolution.stride = (1, 1)
        return bool(names) and probe(images).shape[2] == 2 * before[2]
    except RuntimeError:  # the parts of a block no longer have one size
        return False

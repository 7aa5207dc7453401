"""FED: two branches, twelve loss terms, two memory banks (Fig. 2).

Shapes: B images in the batch (pairs in training), V = B or 2 B views, P parts, C channels,
D = P * C, I identities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fed_plugin.config import check_values
from fed_plugin.diffusion import CentreAttention, FeatureDiffusion, FeedForward
from fed_plugin.head import FEDHead, PartFeatures
from fed_plugin.losses import (
    Term,
    identity_loss,
    memory_contrast_loss,
    visibility_loss,
    weight_terms,
)
from fed_plugin.memory import IdentityMemory
from occluded_reid.modeling.layers import ImageNormalization, build_neck
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError

BRANCHES = ("holistic", "occluded")


class Views(NamedTuple):
    """The images of both branches as one batch, the holistic ones first.

    Attributes:
        images: (V, 3, H, W) in 0-255.
        identities: (V,).
        visible: (V, P), labels of the parts, 1 = visible.
        branches: names of the one or two branches.
    """

    images: torch.Tensor
    identities: torch.Tensor
    visible: torch.Tensor
    branches: tuple[str, ...]


@META_ARCH_REGISTRY.register()
class FED(nn.Module):
    """Feature Erasing and Diffusion Network (CVPR 2022).

    A batch without ``occluded_images`` has one branch; see :func:`weight_terms` for Eq. 10 then.

    Args:
        normalization: of images in 0-255.
        backbone: returns tokens (B, 1 + T, C) or feature maps (B, C, H, W).
        heads: with the backbone, all that inference needs.
        diffusion: the FDM, or None.
        erased_memory: bank of f', or None.
        diffused_memory: bank of f'_d, or None.
        classifiers: of the ``class_token``, ``erased`` and ``diffused`` features.
        temperature: tau in Eq. 9.
        weights: weight in Eq. 10 by kind of loss; a kind that is left out is not computed.
        concatenate_class_token: compare images by the class token too.
        test_before_neck: compare images by the erased parts before the neck.
    """

    reads_keys = ("MODEL.FED.", "MODEL.HEADS.NUM_CLASSES")  # besides those of every model
    reads_pairs = True  # of INPUT.NPO.MODE pair
    reads_tokens = True  # of a transformer; others get them as a feature map
    # top-level names in the state dict that inference does not need
    training_only = ("classifiers", "diffusion", "erased_memory", "diffused_memory")

    contrast_loss = staticmethod(memory_contrast_loss)
    weight_terms = staticmethod(weight_terms)

    @configurable
    def __init__(
        self,
        *,
        normalization: ImageNormalization,
        backbone: nn.Module,
        heads: FEDHead,
        diffusion: FeatureDiffusion | None,
        erased_memory: IdentityMemory | None,
        diffused_memory: IdentityMemory | None,
        classifiers: nn.ModuleDict,
        temperature: float,
        weights: Mapping[str, float],
        concatenate_class_token: bool,
        test_before_neck: bool,
    ):
        super().__init__()
        self.normalization = normalization
        self.backbone = backbone
        self.heads = heads
        self.classifiers = classifiers
        self.diffusion = diffusion
        self.erased_memory = erased_memory
        self.diffused_memory = diffused_memory
        self.temperature = temperature
        self.weights = dict(weights)
        self.concatenate_class_token = concatenate_class_token
        self.test_before_neck = test_before_neck

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the arguments of ``__init__`` from ``MODEL.FED``."""
        fed, backbone = cfg.MODEL.FED, build_backbone(cfg)
        dim = getattr(backbone, "feature_dim", cfg.MODEL.BACKBONE.FEAT_DIM)
        check_values(fed, dim)
        size = fed.NUM_PARTS * dim
        sizes = {"class_token": dim, "erased": size} | ({"diffused": size} if fed.DIFFUSION else {})
        return {
            "normalization": ImageNormalization(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD),
            "backbone": backbone,
            **cls.build_parts(cfg, dim, getattr(backbone, "grid", None)),
            "classifiers": build_classifiers(sizes, cfg.MODEL.HEADS.NUM_CLASSES),
            "temperature": fed.TEMPERATURE,
            "weights": loss_weights(fed),
            "concatenate_class_token": fed.CONCATENATE_CLASS_TOKEN,
            "test_before_neck": fed.TEST_BEFORE_NECK,
        }

    @classmethod
    def build_parts(
        cls, cfg: CfgNode, dim: int, grid: tuple[int, int] | None
    ) -> dict[str, nn.Module | None]:
        """Build the FDM, the head and the banks for C = ``dim``."""
        fed, size = cfg.MODEL.FED, cfg.MODEL.FED.NUM_PARTS * dim
        diffusion = None
        if fed.DIFFUSION:
            diffusion = FeatureDiffusion(
                num_parts=fed.NUM_PARTS, num_neighbors=fed.NUM_NEIGHBORS,
                normalize_centres=fed.NORMALIZE_CENTRES, neck=build_neck(size, fed.NECK),
                attention=CentreAttention(
                    dim=size, num_heads=fed.NUM_HEADS, scale=fed.ATTENTION_SCALE
                ),
                first_ffn=FeedForward(dim=dim, ratio=fed.FFN_RATIO),
                second_ffn=FeedForward(dim=dim, ratio=fed.FFN_RATIO),
            )  # fmt: skip
        heads = FEDHead(
            dim=dim, num_parts=fed.NUM_PARTS, grid=grid, erasing=fed.ERASING, neck=fed.NECK,
            neck_first=fed.NECK_FIRST, pooling=fed.PART_POOLING, erasing_bias=fed.ERASING_BIAS,
        )  # fmt: skip
        has_memory = {
            "erased_memory": fed.CONTRAST_LOSS or fed.DIFFUSION,
            "diffused_memory": fed.CONTRAST_LOSS and fed.DIFFUSION,
        }
        memory = {
            "num_identities": cfg.MODEL.HEADS.NUM_CLASSES, "dim": size,
            "momentum": fed.MEMORY_MOMENTUM, "normalize": fed.NORMALIZE_MEMORY,
        }  # fmt: skip
        memories = {
            name: IdentityMemory(**memory) if on else None for name, on in has_memory.items()
        }
        return {"diffusion": diffusion, "heads": heads, **memories}

    def training_hooks(self, cfg: CfgNode) -> list[Any]:
        """Return the trainer's hook that fills the banks before the first step."""
        from fed_plugin.hooks import FillMemories  # imports fast-reid's engine

        return [FillMemories()] if self.erased_memory is not None else []

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor] | Embedding:
        """Return the weighted loss terms in training, an :class:`Embedding` in evaluation.

        Args:
            batch: ``images`` (B, 3, H, W) in 0-255; in training ``targets`` (B,), and for the
                occluded branch ``occluded_images`` and ``part_visibility`` (B, P).
        """
        if not self.training:
            return self.embed(self.part_features(batch["images"]))
        views = self.views(batch)
        parts = self.part_features(views.images)  # OEM
        diffused = self.diffuse(parts, views.identities)  # FDM
        losses = self.losses(views, parts, diffused)
        # "The lower branch does not involve in the memory initialization and update" (Sec. 3.3)
        self.update_memories(parts.embedding, diffused, batch["targets"])
        return losses

    def views(self, batch: Mapping[str, Any]) -> Views:
        """Stack the pairs of a batch: both branches share every weight (Fig. 2)."""
        images, identities = batch["images"], batch["targets"]
        if not torch.is_grad_enabled():
            identities = identities.clamp(min=0)  # PreciseBN's -1; its losses are discarded
        all_visible = torch.ones(len(images), self.heads.num_parts, device=images.device)
        visible = batch.get("part_visibility", all_visible).to(all_visible)
        if visible.shape != all_visible.shape:
            raise UserError(
                f"the data labels {visible.shape[1]} stripes per image (INPUT.NPO.NUM_STRIPES), "
                f"the model has {all_visible.shape[1]} parts (MODEL.FED.NUM_PARTS): make them equal"
            )
        if "occluded_images" not in batch:
            return Views(images, identities, visible, BRANCHES[:1])
        both, labels = torch.cat([images, batch["occluded_images"]]), [all_visible, visible]
        return Views(both, identities.repeat(2), torch.cat(labels), BRANCHES)

    def part_features(self, images: torch.Tensor) -> PartFeatures:
        """Return the head's output for ``images`` in 0-255, which are not changed."""
        return self.heads(self.backbone(self.normalization(images)))

    def diffuse(self, parts: PartFeatures, identities: torch.Tensor) -> torch.Tensor | None:
        """Return f'_d (V, D), or None without the FDM (Eq. 4-7)."""
        if self.diffusion is None or self.erased_memory is None:
            return None
        return self.diffusion(
            parts.embedding, parts.visibility, identities, self.erased_memory.centres
        )

    def losses(
        self, views: Views, parts: PartFeatures, diffused: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Return the weighted terms of Eq. 10 by their names in the log; they sum to the loss."""
        features = {"class_token": parts.class_token, "erased": parts.embedding}
        if diffused is not None:
            features["diffused"] = diffused
        logits = {name: self.classifiers[name](feature) for name, feature in features.items()}
        memories = {"erased": self.erased_memory, "diffused": self.diffused_memory}
        terms: dict[Term, torch.Tensor] = {}
        size = len(views.images) // len(views.branches)
        for index, branch in enumerate(views.branches):
            rows = slice(index * size, (index + 1) * size)
            targets = views.identities[rows]
            if "visibility" in self.weights:
                loss = visibility_loss(parts.visibility[rows], views.visible[rows])
                terms[Term("visibility", "", branch)] = loss
            for name, feature in features.items():
                terms[Term("identity", name, branch)] = identity_loss(logits[name][rows], targets)
                memory = memories.get(name)
                if "contrast" in self.weights and memory is not None:
                    terms[Term("contrast", name, branch)] = self.contrast_loss(
                        feature[rows], memory.centres, targets, self.temperature
                    )
        return self.weight_terms(terms, self.weights, num_branches=len(views.branches))

    def update_memories(
        self, embedding: torch.Tensor, diffused: torch.Tensor | None, identities: torch.Tensor
    ) -> None:
        """Move the banks towards f' and f'_d (V, D) of the holistic branch, the first B (Eq. 3)."""
        size = len(identities)
        if self.erased_memory is not None:
            self.erased_memory.update(embedding[:size], identities)
        if self.diffused_memory is not None and diffused is not None:
            self.diffused_memory.update(diffused[:size], identities)

    def embed(self, parts: PartFeatures) -> Embedding:
        """Return the stripes that, flattened, images are compared by: no FDM, no banks (Sec. 3.2).

        With the class token they are one vector.
        """
        features = parts.erased if self.test_before_neck else parts.embedding.view_as(parts.erased)
        if self.concatenate_class_token:
            both = (parts.class_token, features.flatten(1))
            features = torch.cat([F.normalize(each, dim=1) for each in both], dim=1)[:, None]
        return Embedding(features, parts.visibility)


def build_classifiers(dims: Mapping[str, int], num_identities: int) -> nn.ModuleDict:
    """Build W of Eq. 8 for each feature: no bias, small weights, so that it starts undecided."""
    classifiers = nn.ModuleDict()
    for name, dim in dims.items():
        classifiers[name] = classifier = nn.Linear(dim, num_identities, bias=False)
        nn.init.normal_(classifier.weight, std=0.001)
    return classifiers


def loss_weights(fed: CfgNode) -> dict[str, float]:
    """Return the weight of each kind of loss that ``MODEL.FED`` switches on."""
    weights = {"identity": fed.IDENTITY_WEIGHT}
    if fed.VISIBILITY_LOSS and fed.ERASING:
        weights["visibility"] = fed.VISIBILITY_WEIGHT
    if fed.CONTRAST_LOSS:
        weights["contrast"] = fed.CONTRAST_WEIGHT
    return weights

"""FED: two branches, twelve loss terms, two memory banks.

Shapes: B images in the batch (pairs in training), P parts, C channels, D = P * C, I identities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.engine.train_loop import HookBase
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from torch import nn

from fed_plugin.config import check_values
from fed_plugin.diffusion import FeatureDiffusion
from fed_plugin.head import FEDHead, PartFeatures
from fed_plugin.hooks import FillMemories
from fed_plugin.losses import identity_loss, memory_contrast_loss, visibility_loss, weighted_terms
from fed_plugin.memory import IdentityMemory
from occluded_reid.modeling.layers import ImageNormalization
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError

BRANCHES = ("holistic", "occluded")


class Views(NamedTuple):
    """The branches' images as one batch of V = B or 2 B images, the holistic ones first.

    Attributes:
        images: (V, 3, H, W) in 0-255.
        identities: (V,).
        visible: (V, P) labels of the parts, 1 = visible.
        branches: the names of the one or two branches.
    """

    images: torch.Tensor
    identities: torch.Tensor
    visible: torch.Tensor
    branches: tuple[str, ...]


@META_ARCH_REGISTRY.register()
class FED(nn.Module):
    """Feature Erasing and Diffusion Network (CVPR 2022).

    Where a batch has no ``occluded_images``, there is one branch; what that does to Eq. 10 says
    :func:`fed_plugin.losses.weighted_terms`.

    Args:
        normalization: of images in 0-255.
        backbone: gives tokens (B, 1 + T, C) or feature maps (B, C, H, W).
        heads: from there to one vector per image; all that inference needs.
        diffusion: the feature diffusion module, or None.
        dim: C.
        num_identities: I.
        memory_momentum: m of Eq. 3.
        temperature: tau of Eq. 9.
        weights: of the kinds of loss in Eq. 10; ``visibility`` and ``contrast`` may be left out,
            with all that only they need.
        concatenate_class_token: compare images by the class token too.
        test_before_neck: compare images by the erased parts as they are before the neck.
    """

    # It trains on the pairs of INPUT.NPO.MODE pair.
    reads_pairs = True

    # What inference neither reads nor needs to have; top-level names of the state dict.
    training_only = ("classifiers", "diffusion", "erased_memory", "diffused_memory")

    contrast_loss = staticmethod(memory_contrast_loss)

    @configurable
    def __init__(
        self,
        *,
        normalization: ImageNormalization,
        backbone: nn.Module,
        heads: FEDHead,
        diffusion: FeatureDiffusion | None,
        dim: int,
        num_identities: int,
        memory_momentum: float,
        temperature: float,
        weights: Mapping[str, float],
        concatenate_class_token: bool,
        test_before_neck: bool,
    ):
        super().__init__()
        self.normalization = normalization
        self.backbone = backbone
        self.heads = heads
        self.temperature = temperature
        self.weights = dict(weights)
        self.concatenate_class_token = concatenate_class_token
        self.test_before_neck = test_before_neck

        sizes = {"class_token": dim, "erased": heads.num_parts * dim}
        if diffusion is not None:
            sizes["diffused"] = heads.num_parts * dim
        self.classifiers = nn.ModuleDict(
            {name: build_classifier(size, num_identities) for name, size in sizes.items()}
        )
        self.diffusion = diffusion
        contrast = "contrast" in self.weights
        has_memory = {"erased": contrast or diffusion is not None}
        has_memory["diffused"] = contrast and diffusion is not None
        self.erased_memory, self.diffused_memory = (
            IdentityMemory(
                num_identities=num_identities, dim=heads.num_parts * dim, momentum=memory_momentum
            )
            if has_memory[name]
            else None
            for name in ("erased", "diffused")
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``MODEL.FED``; the arguments of ``__init__``.

        Raises:
            UserError: a value out of its range.
        """
        fed, backbone = cfg.MODEL.FED, build_backbone(cfg)
        dim = getattr(backbone, "feature_dim", cfg.MODEL.BACKBONE.FEAT_DIM)
        check_values(fed, dim)
        diffusion = None
        if fed.DIFFUSION:
            diffusion = FeatureDiffusion(
                dim=dim,
                num_parts=fed.NUM_PARTS,
                num_neighbors=fed.NUM_NEIGHBORS,
                num_heads=fed.NUM_HEADS,
                attention_scale=fed.ATTENTION_SCALE,
                normalize_centres=fed.NORMALIZE_CENTRES,
                ffn_ratio=fed.FFN_RATIO,
                neck=fed.NECK,
            )
        return {
            "normalization": ImageNormalization(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD),
            "backbone": backbone,
            "heads": FEDHead(
                dim=dim,
                num_parts=fed.NUM_PARTS,
                grid=getattr(backbone, "grid", None),
                erasing=fed.ERASING,
                neck=fed.NECK,
                neck_first=fed.NECK_FIRST,
            ),
            "diffusion": diffusion,
            "dim": dim,
            "num_identities": cfg.MODEL.HEADS.NUM_CLASSES,
            "memory_momentum": fed.MEMORY_MOMENTUM,
            "temperature": fed.TEMPERATURE,
            "weights": loss_weights(fed),
            "concatenate_class_token": fed.CONCATENATE_CLASS_TOKEN,
            "test_before_neck": fed.TEST_BEFORE_NECK,
        }

    def training_hooks(self, cfg: CfgNode) -> list[HookBase]:
        """What a trainer must run with this model: the banks are filled before the first step."""
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
        parts = self.part_features(views.images)
        diffused = self.diffuse(parts, views.identities)
        losses = self.losses(views, parts, diffused)
        # "The lower branch does not involve in the memory initialization and update" (Sec. 3.3)
        self.update_memories(parts.embedding, diffused, batch["targets"])
        return losses

    def views(self, batch: Mapping[str, Any]) -> Views:
        """Lay the pairs of a batch out as one batch: both branches share every weight (Fig. 2)."""
        images, identities = batch["images"], batch["targets"]
        if not torch.is_grad_enabled():
            identities = identities.clamp(min=0)  # PreciseBN's -1; its losses are thrown away
        all_visible = torch.ones(len(images), self.heads.num_parts, device=images.device)
        visible = batch.get("part_visibility", all_visible).to(all_visible)
        if visible.shape != all_visible.shape:
            raise UserError(
                f"the data labels {visible.shape[1]} stripes per image (INPUT.NPO.NUM_STRIPES), "
                f"the model has {all_visible.shape[1]} parts (MODEL.FED.NUM_PARTS): make them equal"
            )
        if "occluded_images" not in batch:
            return Views(images, identities, visible, BRANCHES[:1])
        return Views(
            torch.cat([images, batch["occluded_images"]]),
            identities.repeat(2),
            torch.cat([all_visible, visible]),
            BRANCHES,
        )

    def part_features(self, images: torch.Tensor) -> PartFeatures:
        """Return the head's features of ``images`` in 0-255, which stay as they are."""
        return self.heads(self.backbone(self.normalization(images)))

    def diffuse(self, parts: PartFeatures, identities: torch.Tensor) -> torch.Tensor | None:
        """Return f'_d (V, D), or None without the module (Eq. 4-7)."""
        if self.diffusion is None or self.erased_memory is None:
            return None
        return self.diffusion(
            parts.embedding, parts.visibility, identities, self.erased_memory.centres
        )

    def losses(
        self, views: Views, parts: PartFeatures, diffused: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Return the terms of Eq. 10, named ``loss_<kind>_<feature>_<branch>``, summing to it."""
        features = {"class_token": parts.class_token, "erased": parts.embedding}
        if diffused is not None:
            features["diffused"] = diffused
        logits = {name: self.classifiers[name](feature) for name, feature in features.items()}
        memories = {"erased": self.erased_memory, "diffused": self.diffused_memory}
        terms = {}
        size = len(views.images) // len(views.branches)
        for place, branch in enumerate(views.branches):
            rows = slice(place * size, (place + 1) * size)
            identities = views.identities[rows]
            if "visibility" in self.weights:
                terms[f"visibility_{branch}"] = visibility_loss(
                    parts.visibility[rows], views.visible[rows]
                )
            for name in features:
                terms[f"identity_{name}_{branch}"] = identity_loss(logits[name][rows], identities)
                memory = memories.get(name)
                if "contrast" in self.weights and memory is not None:
                    terms[f"contrast_{name}_{branch}"] = self.contrast_loss(
                        features[name][rows], memory.centres, identities, self.temperature
                    )
        return self.weighted(terms, views.branches)

    def weighted(
        self, terms: dict[str, torch.Tensor], branches: tuple[str, ...]
    ) -> dict[str, torch.Tensor]:
        """Return the terms as Eq. 10 weights them, under the names of the log."""
        return weighted_terms(terms, self.weights, num_branches=len(branches))

    def update_memories(
        self, embedding: torch.Tensor, diffused: torch.Tensor | None, identities: torch.Tensor
    ) -> None:
        """Move the banks towards the holistic branch's features (Eq. 3).

        Args:
            embedding: (V, D), the B holistic images first.
            diffused: (V, D) likewise, or None.
            identities: (B,).
        """
        size = len(identities)
        if self.erased_memory is not None:
            self.erased_memory.update(embedding[:size], identities)
        if self.diffused_memory is not None and diffused is not None:
            self.diffused_memory.update(diffused[:size], identities)

    def embed(self, parts: PartFeatures) -> Embedding:
        """Return what images are compared by: no diffusion, no banks (Sec. 3.2)."""
        features = parts.erased.flatten(1) if self.test_before_neck else parts.embedding
        if self.concatenate_class_token:
            features = torch.cat(
                [F.normalize(parts.class_token, dim=1), F.normalize(features, dim=1)], dim=1
            )
        return Embedding(features, parts.visibility)


def build_classifier(dim: int, num_identities: int) -> nn.Linear:
    """A linear classifier without bias, W of Eq. 8; small weights, so that it starts undecided."""
    classifier = nn.Linear(dim, num_identities, bias=False)
    nn.init.normal_(classifier.weight, std=0.001)
    return classifier


def loss_weights(fed: CfgNode) -> dict[str, float]:
    """Return the weights of the kinds of loss that ``MODEL.FED`` switches on."""
    weights = {"identity": fed.IDENTITY_WEIGHT}
    if fed.VISIBILITY_LOSS and fed.ERASING:
        weights["visibility"] = fed.VISIBILITY_WEIGHT
    if fed.CONTRAST_LOSS:
        weights["contrast"] = fed.CONTRAST_WEIGHT
    return weights

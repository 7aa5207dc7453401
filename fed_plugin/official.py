"""FEDOfficial: FED as the authors' public code computes it, to compare with their logs.

The differences were found by running that code as a black box. What this file does not change (the
OEM, the memory search, the neck after the erasing) is the same in the paper and in that code.

Shapes: B images in the batch, V = 2 B views, P parts, C channels, D = P * C, I identities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.utils import comm
from torch import nn

from fed_plugin.diffusion import CentreAttention, FeatureDiffusion
from fed_plugin.head import FEDHead, PartFeatures
from fed_plugin.losses import Term
from fed_plugin.memory import IdentityMemory, cosine_to_centres
from fed_plugin.meta_arch import BRANCHES, FED, Views
from occluded_reid.utils.errors import UserError

EPSILON = 1e-6

# Weights of the holistic and of the occluded branch by kind and feature; Eq. 10 has 1/2 everywhere.
WEIGHTS = {
    ("visibility", ""): (1.0, 1.0),
    ("identity", "class_token"): (0.5, 0.5),
    ("identity", "erased"): (0.5, 0.5),
    ("identity", "diffused"): (0.5, 0.5),
    ("contrast", "erased"): (1.0, 0.3),
    ("contrast", "diffused"): (0.5, 0.5),
}


def labels_from_difference(
    images: torch.Tensor, occluded: torch.Tensor, num_parts: int
) -> torch.Tensor:
    """Label the stripes (B, P) by ``|x - x'|``, 1 = visible, as the authors' code does.

    ``images`` (B, 3, H, W) are the holistic views; P divides H. With d_i the mean absolute
    difference in stripe i: if every stripe differs, or none, all are visible. If one does, it is
    occluded. Else, if the largest d_i is more than three times the second, that stripe alone is
    occluded; if not, every stripe that differs.
    """
    difference = (occluded - images).abs().unflatten(2, (num_parts, -1)).mean(dim=(1, 3, 4))
    differs = difference > 0
    first, second = difference.topk(2, dim=1).values.unbind(1)
    largest = F.one_hot(difference.argmax(dim=1), num_parts).bool()
    one_stands_out = (first > 3 * second)[:, None]
    hidden = torch.where(one_stands_out, largest, differs) & ~differs.all(dim=1, keepdim=True)
    return 1.0 - hidden.float()


def contrast_with_epsilon(
    features: torch.Tensor, centres: torch.Tensor, identities: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return L_C as ``-log(p + 1e-6)``: at most 13.8, without a gradient there (for Eq. 9)."""
    exponentials = (cosine_to_centres(features, centres) / temperature).exp()
    shares = exponentials / (exponentials.sum(dim=1, keepdim=True) + EPSILON)
    return -(shares.gather(1, identities[:, None]) + EPSILON).log().mean()


def weight_terms(terms: Mapping[Term, torch.Tensor], *_: Any, **__: Any) -> dict[str, torch.Tensor]:
    """Weight the terms by ``WEIGHTS``, not by the configuration, and name them for the log."""
    return {
        term.name: WEIGHTS[term.kind, term.feature][BRANCHES.index(term.branch)] * value
        for term, value in terms.items()
    }


class OfficialHead(FEDHead):
    """Takes token 1, the first patch, as class token; each branch has its own batch statistics."""

    def forward(self, features: torch.Tensor) -> PartFeatures:
        """Transform tokens (V, 1 + T, C); in training the first half is holistic."""
        branches = features.chunk(2) if self.training else (features,)
        each = [super(OfficialHead, self).forward(branch) for branch in branches]
        parts = PartFeatures(*map(torch.cat, zip(*each, strict=True)))
        return parts._replace(class_token=features[:, 1])


class OfficialAttention(CentreAttention):
    """Mixes images: batch and heads are swapped before the output projection."""

    def forward(
        self, features: torch.Tensor, centres: torch.Tensor, neighbors: torch.Tensor
    ) -> torch.Tensor:
        """Return (B, D); row i holds the i-th run of heads, counted head by head, then image."""
        mixed = self.attend(features, centres, neighbors)  # (B, heads, d)
        return self.output(mixed.transpose(0, 1).reshape(len(features), -1))


class GatedFeedForward(nn.Module):
    """``W_2 (a * GELU(b))`` with ``(a, b) = W_1 LayerNorm(x)``: pre-norm, gated, no residual."""

    def __init__(self, *, dim: int, ratio: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 2 * ratio * dim)
        self.contract = nn.Linear(ratio * dim, dim)

    def forward(self, parts: torch.Tensor) -> torch.Tensor:
        """Transform ``parts`` (..., C)."""
        values, gates = self.expand(self.norm(parts)).chunk(2, dim=-1)
        return self.contract(values * F.gelu(gates))


class SequentialMemory(IdentityMemory):
    """Takes the features of a batch one by one: an identity's last has the largest weight."""

    def _updated_centres(self, features: torch.Tensor, identities: torch.Tensor) -> torch.Tensor:
        """Apply ``c_k = m c_k + (1 - m) f'_i`` for each image in the order of the batch.

        In closed form: a feature followed by n others of its identity has the weight (1 - m) m^n.
        """
        same = (identities[:, None] == identities).to(self.centres.dtype)
        followers = same.triu(diagonal=1).sum(dim=1)
        shares = (1 - self.momentum) * self.momentum**followers
        counts = torch.zeros_like(self.centres[:, 0])
        counts = counts.index_add_(0, identities, torch.ones_like(followers))
        kept = self.centres * (self.momentum**counts)[:, None]
        return kept.index_add_(0, identities, shares[:, None] * features.detach().to(kept.dtype))


@META_ARCH_REGISTRY.register()
class FEDOfficial(FED):
    """FED with the token, labels, neck, attention, bank and weights of the authors' code.

    One bank serves as both, under both names, and one neck before and after diffusion. Like that
    code, it runs in one process.
    """

    contrast_loss = staticmethod(contrast_with_epsilon)
    weight_terms = staticmethod(weight_terms)

    @classmethod
    def build_parts(
        cls, cfg: CfgNode, dim: int, grid: tuple[int, int] | None
    ) -> dict[str, nn.Module | None]:
        """Build the FDM, the head and the bank; everything in ``MODEL.FED`` must be on."""
        fed, size = cfg.MODEL.FED, cfg.MODEL.FED.NUM_PARTS * dim
        on = ("ERASING", "ERASING_BIAS", "VISIBILITY_LOSS", "DIFFUSION", "CONTRAST_LOSS", "NECK")
        off = ("NECK_FIRST", "NORMALIZE_MEMORY")
        required = dict.fromkeys(on, True) | dict.fromkeys(off, False) | {"PART_POOLING": "mean"}
        for key, value in required.items():
            if fed[key] != value:
                raise UserError(f"FEDOfficial has no variants: MODEL.FED.{key} must be {value}")
        if grid is None:
            raise UserError("FEDOfficial needs a backbone of tokens: build_token_vit_backbone")
        if comm.get_world_size() > 1:
            raise UserError(
                "FEDOfficial updates its bank image by image, in one process: use --num-gpus 1, or "
                "MODEL.META_ARCHITECTURE FED"
            )
        heads = OfficialHead(dim=dim, num_parts=fed.NUM_PARTS, grid=grid, erasing=True, neck=True)
        diffusion = FeatureDiffusion(
            num_parts=fed.NUM_PARTS, num_neighbors=fed.NUM_NEIGHBORS,
            normalize_centres=fed.NORMALIZE_CENTRES, neck=heads.neck,
            attention=OfficialAttention(
                dim=size, num_heads=fed.NUM_HEADS, scale=fed.ATTENTION_SCALE, output_bias=True
            ),
            first_ffn=GatedFeedForward(dim=dim, ratio=fed.FFN_RATIO),
            second_ffn=GatedFeedForward(dim=dim, ratio=fed.FFN_RATIO),
        )  # fmt: skip
        memory = SequentialMemory(
            num_identities=cfg.MODEL.HEADS.NUM_CLASSES, dim=size, momentum=fed.MEMORY_MOMENTUM
        )
        parts = {"diffusion": diffusion, "heads": heads}
        return {**parts, "erased_memory": memory, "diffused_memory": memory}

    def views(self, batch: Mapping[str, Any]) -> Views:
        """Stack the pairs, with labels from their difference."""
        if "occluded_images" not in batch:
            raise UserError(
                "FEDOfficial trains on pairs: INPUT.NPO.ENABLED True and INPUT.NPO.MODE pair"
            )
        labels = labels_from_difference(
            batch["images"], batch["occluded_images"], self.heads.num_parts
        )
        return super().views({**batch, "part_visibility": labels})

    def diffuse(self, parts: PartFeatures, identities: torch.Tensor) -> torch.Tensor:
        """Diffuse one branch after the other: each mixes its own images, with its own statistics.

        In evaluation mode, where the banks are filled, there is one branch.
        """
        halves = 2 if self.training else 1
        branches = zip(*(each.chunk(halves) for each in (*parts, identities)), strict=True)
        diffuse: Any = super().diffuse  # never None: there is a FDM
        return torch.cat([diffuse(PartFeatures(*parts), who) for *parts, who in branches])

    def update_memories(
        self, embedding: torch.Tensor, diffused: torch.Tensor | None, identities: torch.Tensor
    ) -> None:
        """Write the diffused features into the one bank, then the erased ones.

        The authors' code writes during the backward pass: what is used last is written first. With
        four images of an identity, what is written last makes up 99.8 % of its centre.
        """
        assert diffused is not None
        super().update_memories(diffused, embedding, identities)

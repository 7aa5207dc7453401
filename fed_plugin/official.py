"""FEDOfficial: the method as the authors' public code computes it, where that is not the paper.

For those who compare with the published logs. Every difference was found by running that code from
outside and is written here in our own way; what the paper says is in the other modules. What this
file does not change (the erasing module, the memory search, the neck's place) is the same in both.

Shapes: B images in the batch, P parts, C channels, D = P * C, I identities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.utils import comm
from torch import nn

from fed_plugin.diffusion import CentreAttention
from fed_plugin.head import FEDHead, PartFeatures
from fed_plugin.memory import IdentityMemory, cosine_to_centres
from fed_plugin.meta_arch import FED, Views
from occluded_reid.utils.errors import UserError

EPSILON = 1e-6

# What a term counts by kind and feature, and by branch; Eq. 10 has 1/2 everywhere.
WEIGHTS = {
    "visibility": {"holistic": 1.0, "occluded": 1.0},
    "identity": {"holistic": 0.5, "occluded": 0.5},
    "contrast_erased": {"holistic": 1.0, "occluded": 0.3},
    "contrast_diffused": {"holistic": 0.5, "occluded": 0.5},
}


def labels_from_difference(
    images: torch.Tensor, occluded: torch.Tensor, num_parts: int
) -> torch.Tensor:
    """Return the labels (B, P) that the authors' code reads off ``|x - x'|``.

    With d_i the mean absolute difference in stripe i: if every stripe differs, or none, all are
    visible. If one does, it is occluded. Else, if the largest d_i is more than three times the
    second, that stripe alone is occluded; if not, every stripe that differs.

    Args:
        images: (B, 3, H, W), the holistic views.
        occluded: their occluded copies.
        num_parts: P, divides H.
    """
    difference = (occluded - images).abs().unflatten(2, (num_parts, -1)).mean(dim=(1, 3, 4))
    differs = difference > 0
    first, second = difference.topk(2, dim=1).values.unbind(1)
    largest = F.one_hot(difference.argmax(dim=1), num_parts).bool()
    one_stands_out = (first > 3 * second)[:, None]
    hidden = torch.where(one_stands_out, largest, differs)
    hidden = hidden & ~differs.all(dim=1, keepdim=True)
    return 1.0 - hidden.float()


def contrast_with_epsilon(
    features: torch.Tensor, centres: torch.Tensor, identities: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return L_C from ``-log(p + 1e-6)``, which ends at 13.8, where the gradient ends too."""
    exponentials = (cosine_to_centres(features, centres) / temperature).exp()
    shares = exponentials / (exponentials.sum(dim=1, keepdim=True) + EPSILON)
    return -(shares.gather(1, identities[:, None]) + EPSILON).log().mean()


class OfficialHead(FEDHead):
    """Takes token 1, the first patch, for the class token; batch statistics are a branch's own."""

    def forward(self, features: torch.Tensor) -> PartFeatures:
        """Read the backbone's tokens (V, 1 + T, C); in training the first half is holistic."""
        branches = features.chunk(2) if self.training else (features,)
        each = [super(OfficialHead, self).forward(branch) for branch in branches]
        parts = PartFeatures(*map(torch.cat, zip(*each, strict=True)))
        return parts._replace(class_token=features[:, 1])


class OfficialAttention(CentreAttention):
    """Output projection with a bias; its input mixes images: batch and heads change places."""

    def __init__(self, *, dim: int, num_heads: int, scale: float):
        super().__init__(dim=dim, num_heads=num_heads, scale=scale)
        self.output = nn.Linear(dim, dim)

    def forward(
        self, features: torch.Tensor, centres: torch.Tensor, neighbors: torch.Tensor
    ) -> torch.Tensor:
        """Return (B, D); row i holds the i-th run of heads, counted head by head, then image."""
        mixed = self.mixed(features, centres, neighbors)  # (B, heads, d)
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
    """Takes the features of a batch one by one: the last of an identity's weighs most."""

    def update(self, features: torch.Tensor, identities: torch.Tensor) -> None:
        """Apply ``c_k = m c_k + (1 - m) f'_i`` for each image in the order of the batch.

        In closed form: a feature that n others of its identity follow ends with (1 - m) m^n.
        """
        if not (self.training and torch.is_grad_enabled()):
            return
        with torch.no_grad():
            same = (identities[:, None] == identities).to(self.centres.dtype)
            followers = same.triu(diagonal=1).sum(dim=1)
            shares = (1 - self.momentum) * self.momentum**followers
            counts = torch.zeros_like(self.centres[:, 0]).index_add_(
                0, identities, torch.ones_like(followers)
            )
            kept = self.centres * (self.momentum**counts)[:, None]
            taken = shares[:, None] * features.detach().to(kept.dtype)
            self.centres.copy_(kept.index_add_(0, identities, taken))


@META_ARCH_REGISTRY.register()
class FEDOfficial(FED):
    """FED with the authors' code's token, labels, neck, attention, bank and weights.

    One tensor stands for both banks, and one neck serves before and after diffusion. The code runs
    in one process, and so does this.
    """

    contrast_loss = staticmethod(contrast_with_epsilon)

    @configurable
    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        if comm.get_world_size() > 1:
            raise UserError(
                "MODEL.META_ARCHITECTURE FEDOfficial updates its bank image by image and runs in "
                "one process; take --num-gpus 1, or FED"
            )
        assert self.erased_memory is not None
        self.erased_memory = self.diffused_memory = SequentialMemory(
            num_identities=len(self.erased_memory.centres),
            dim=self.erased_memory.centres.shape[1],
            momentum=self.erased_memory.momentum,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``MODEL.FED`` as :class:`FED` does; everything must be on."""
        fed = cfg.MODEL.FED
        for key in ("ERASING", "VISIBILITY_LOSS", "DIFFUSION", "CONTRAST_LOSS", "NECK"):
            if not fed[key]:
                raise UserError(f"FEDOfficial is all of FED: MODEL.FED.{key} must be True")
        if fed.NECK_FIRST:
            raise UserError(
                "FEDOfficial normalises after erasing: MODEL.FED.NECK_FIRST must be False"
            )
        arguments = super().from_config(cfg)
        dim, grid = arguments["dim"], arguments["heads"].grid
        if grid is None:
            raise UserError("FEDOfficial needs a backbone of tokens: build_token_vit_backbone")
        heads = OfficialHead(dim=dim, num_parts=fed.NUM_PARTS, grid=grid, erasing=True, neck=True)
        diffusion: Any = arguments["diffusion"]
        diffusion.attention = OfficialAttention(
            dim=fed.NUM_PARTS * dim, num_heads=fed.NUM_HEADS, scale=fed.ATTENTION_SCALE
        )
        diffusion.first_ffn = GatedFeedForward(dim=dim, ratio=fed.FFN_RATIO)
        diffusion.second_ffn = GatedFeedForward(dim=dim, ratio=fed.FFN_RATIO)
        diffusion.neck = heads.neck
        return {**arguments, "heads": heads}

    def views(self, batch: Mapping[str, Any]) -> Views:
        """Lay out the pairs, with labels read off their difference.

        Raises:
            UserError: the data are no pairs.
        """
        if "occluded_images" not in batch:
            raise UserError(
                "FEDOfficial trains on pairs: INPUT.NPO.ENABLED True and INPUT.NPO.MODE pair"
            )
        labels = labels_from_difference(
            batch["images"], batch["occluded_images"], self.heads.num_parts
        )
        return super().views({**batch, "part_visibility": labels})

    def diffuse(self, parts: PartFeatures, identities: torch.Tensor) -> torch.Tensor:
        """Diffuse one branch after the other: each mixes its own images, by its own statistics.

        Where the banks are filled there is one branch.
        """
        halves = 2 if self.training else 1
        diffused = []
        for *of, who in zip(*(each.chunk(halves) for each in (*parts, identities)), strict=True):
            branch = super().diffuse(PartFeatures(*of), who)
            assert branch is not None
            diffused.append(branch)
        return torch.cat(diffused)

    def update_memories(
        self, embedding: torch.Tensor, diffused: torch.Tensor | None, identities: torch.Tensor
    ) -> None:
        """Write the diffused features into the one bank, then the erased ones.

        That code writes while gradients flow back: what was used last is written first. With four
        images of an identity, what is written last makes up 99.8 % of its centre.
        """
        assert diffused is not None
        super().update_memories(diffused, embedding, identities)

    def weighted(
        self, terms: dict[str, torch.Tensor], branches: tuple[str, ...]
    ) -> dict[str, torch.Tensor]:
        """Return the terms as the authors' code weights them."""
        weighted = {}
        for name, value in terms.items():
            kind, branch = name.rsplit("_", 1)
            weights = WEIGHTS.get(kind) or WEIGHTS[kind.split("_")[0]]
            weighted[f"loss_{name}"] = weights[branch] * value
        return weighted

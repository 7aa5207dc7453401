"""fast-reid's Baseline with a camera embedding: TransReID without its jigsaw patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.modeling.meta_arch.baseline import Baseline


@META_ARCH_REGISTRY.register()
class CameraBaseline(Baseline):
    """fast-reid's Baseline whose backbone is told each image's camera (TransReID's SIE).

    It needs a vision transformer of ours with ``MODEL.BACKBONE.CAMERA_EMBEDDING``. What knows no
    cameras, such as an export or a gallery of crops, is refused.
    """

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor] | torch.Tensor:
        """Return the losses in training, the features (B, D) in evaluation.

        ``batch`` holds ``images`` (B, 3, H, W) in 0-255, ``camids`` (B,), in training ``targets``.
        """
        features = self.backbone(self.preprocess_image(batch), batch.get("camids"))
        if not self.training:
            return self.heads(features)
        targets = batch["targets"]
        if not torch.is_grad_enabled():
            targets = targets.clamp(min=0)  # PreciseBN's -1; its losses are discarded
        return self.losses(self.heads(features, targets), targets)

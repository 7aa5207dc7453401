"""Heads that fast-reid lacks, registered by importing this."""

from __future__ import annotations

from typing import Any

from fastreid.modeling.heads import REID_HEADS_REGISTRY, EmbeddingHead
from torch import nn


@REID_HEADS_REGISTRY.register()
class RectifiedHead(EmbeddingHead):
    """fast-reid's EmbeddingHead with a ReLU at the end of its neck, as torchreid's OSNet has it.

    ``MODEL.HEADS`` needs ``EMBEDDING_DIM`` (torchreid's 512) and ``WITH_BNNECK``.
    """

    training_only = ("weight",)  # the classifier

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.bottleneck.append(nn.ReLU())

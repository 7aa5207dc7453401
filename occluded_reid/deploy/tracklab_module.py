"""A model as a module of TrackLab's pipeline; importing this file needs TrackLab."""

from __future__ import annotations

import os
from typing import Any

import pandas as pd
import torch
from tracklab.pipeline import DetectionLevelModule

from occluded_reid.deploy.crops import iterate_crops
from occluded_reid.deploy.trackers import Appearance


class OccludedReID(DetectionLevelModule):
    """Add ``embeddings`` (1, D) and ``visibility_scores`` (1,) to TrackLab's detections.

    The visibility is the mean over the parts, and 1 for a model without it.

    Args:
        weights: what :func:`~occluded_reid.deploy.embedder.load` takes.
        device: likewise.
        batch_size: boxes per forward pass.
    """

    input_columns = ["bbox_ltwh"]
    output_columns = ["embeddings", "visibility_scores"]

    def __init__(
        self, weights: str | os.PathLike[str], device: str = "cpu", batch_size: int = 64, **_: Any
    ):
        super().__init__(batch_size)
        self.model = Appearance(weights, str(device), batch_size=batch_size).model

    def preprocess(self, image: Any, detection: pd.Series, metadata: pd.Series) -> torch.Tensor:
        """Return the model's input (3, H, W) for one detection in an RGB frame."""
        left, top, width, height = detection.bbox_ltwh
        boxes = [[left, top, left + width, top + height]]
        ((_, crop),) = iterate_crops(image, boxes, colour="rgb")
        return self.model.transform(crop)

    def process(
        self, batch: torch.Tensor, detections: pd.DataFrame, metadatas: pd.DataFrame
    ) -> pd.DataFrame:
        """Embed a batch (B, 3, H, W); the rows are those of ``detections``."""
        embedding = self.model.embed_batch(batch)
        visible = embedding.visibility.mean(1) if self.model.num_parts else [1.0] * len(batch)
        columns = {
            "embeddings": list(self.model.make_rows(embedding)[:, None]),
            "visibility_scores": [[float(each)] for each in visible],
        }
        return pd.DataFrame(columns, index=detections.index)

"""A model as a module of TrackLab's pipeline; importing this file needs TrackLab."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pandas as pd
import torch
from tracklab.pipeline import DetectionLevelModule

from occluded_reid.deploy.crops import iterate_crops
from occluded_reid.deploy.trackers import Appearance


class OccludedReID(DetectionLevelModule):
    """Add ``embeddings`` (P, C) and ``visibility_scores`` (P,) to TrackLab's detections.

    Of a model that compares one vector per image they are (1, C) and (1,), the mean visibility, or
    1 without one.

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
        features, visibility, _ = self.model.embed_batch(batch)
        if visibility.shape[1] != features.shape[1]:  # one vector per image
            visible = visibility.mean(1) if self.model.num_parts else np.ones(len(batch))
            visibility = visible[:, None].astype(np.float32)
        columns = {"embeddings": list(features), "visibility_scores": list(visibility)}
        return pd.DataFrame(columns, index=detections.index)

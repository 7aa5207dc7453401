"""A model in other packages' trackers, which compare features by the cosine.

Shapes: N boxes, D feature dimensions, H, W height and width of a frame in pixels.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from occluded_reid.deploy.embedder import Embedder, load
from occluded_reid.utils.errors import UserError


class Appearance:
    """Features of the people in a frame, as trackers ask for them.

    Args:
        model: a loaded model, or what :func:`~occluded_reid.deploy.embedder.load` takes.
        device: for ``load``.
        hide_overlaps: of :meth:`~occluded_reid.deploy.embedder.Embedder.embed`.
        options: for ``load``.

    Attributes:
        model: the loaded model.
        embedding_dim: D.
        input_shape: (height, width) that boxes are resized to.

    Raises:
        UserError: the model compares neither by the cosine nor by ``TEST.SIMILARITY query``.

    >>> tracker = boxmot.BotSort(reid_model=Appearance("fed-lite0-drawn"))  # doctest: +SKIP
    """

    def __init__(
        self, model: Embedder | str | os.PathLike[str], device: str | None = "cpu", *,
        hide_overlaps: bool = False, **options: Any,
    ):  # fmt: skip
        self.model = model if isinstance(model, Embedder) else load(model, device, **options)
        if self.model.metric not in ("cosine", "query"):  # all rows of query have norm 1
            raise UserError(
                f"the model compares by {self.model.metric}, but trackers by the cosine, which "
                "would divide its vectors by their norms: load a model with TEST.METRIC cosine, or "
                "with TEST.SIMILARITY query"
            )
        self.hide_overlaps = hide_overlaps
        self.device = self.model.device
        self.embedding_dim = self.model.dim
        self.input_shape = self.model.input_size

    def get_features(self, boxes: Any, frame: np.ndarray) -> np.ndarray:
        """Return unit vectors (N, D) for boxes (N, 4) in a BGR frame (H, W, 3), as BoxMOT asks.

        Raises:
            UserError: see :meth:`~occluded_reid.deploy.embedder.Embedder.embed`.
        """
        embedding = self.model.embed(frame, boxes=boxes, hide_overlaps=self.hide_overlaps)
        features = self.model.make_rows(embedding)
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

    def extract_embeddings(
        self, detections: Any, frame: np.ndarray, *, batch_size: int | None = None
    ) -> np.ndarray:
        """Return unit vectors (N, D) for detections in a BGR frame, as roboflow's ``reid`` does.

        ``batch_size`` is accepted and not used; it is an option of ``load``.
        """
        return self.get_features(detections, frame)

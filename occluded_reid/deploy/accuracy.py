"""What an exported graph of lower precision loses: in its features, and in the ranking.

Shapes: N images, H, W height and width in pixels, D dimensions of a row, P parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from fastreid.data.transforms import build_transforms
from torch import nn

from occluded_reid.config import CfgNode
from occluded_reid.data.images import read_rgb
from occluded_reid.deploy.feature_file import list_images
from occluded_reid.deploy.formats import Runner
from occluded_reid.evaluation.inference import run_inference
from occluded_reid.evaluation.testing import open_test_sets
from occluded_reid.modeling.outputs import Embedding, as_embedding
from occluded_reid.modeling.similarity import PART_METRICS
from occluded_reid.utils.errors import UserError

MIN_IMAGES, MAX_IMAGES = 10, 375
"""For calibration; every fifth image is held out, so at most 300 calibrate."""
_BATCH_SIZE = 8


class GraphModel(nn.Module):
    """An exported graph, whose features are rows, in the place of a model for the evaluator."""

    def __init__(self, run: Runner, metric: str):
        super().__init__()
        self._run = run
        self._metric = metric

    def forward(self, batch: Mapping[str, Any]) -> Embedding:
        rows, visibility = map(torch.from_numpy, self._run(batch["images"]))
        if self._metric not in PART_METRICS:
            return as_embedding(rows)  # one vector: what visibility does to it is done
        return Embedding(rows.unflatten(1, (visibility.shape[1], -1)), visibility)


def read_calibration_images(source: str, cfg: CfgNode) -> torch.Tensor:
    """Read images of a folder or a list as evaluation does: (N, 3, H, W) in 0-255.

    Of many images, an evenly spaced subset is read; fewer than :data:`MIN_IMAGES` are an error.
    """
    images = list_images(source)
    paths = [f"{images.folder or '.'}/{path}" for path in images.paths]
    if len(paths) < MIN_IMAGES:
        raise UserError(
            f"{source} has {len(paths)} images; calibration needs {MIN_IMAGES}, better 300, of "
            "persons as the deployed cameras see them"
        )
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), MAX_IMAGES)).round().astype(int)
    transform = build_transforms(cfg, is_train=False)
    return torch.stack([transform(read_rgb(paths[index])) for index in chosen])


def split_held_out(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split images into those that calibrate and every fifth, which measures the loss."""
    held_out = torch.arange(len(images)) % 5 == 0
    return images[~held_out], images[held_out]


@torch.no_grad()
def measure_feature_error(graph: nn.Module, run: Runner, images: torch.Tensor) -> dict[str, Any]:
    """Compare the outputs of a runner with those of the float32 model ``graph``, for JSON.

    The images (N, 3, H, W) should not be those that calibrated it.
    """
    pairs = [(graph(batch), run(batch)) for batch in images.split(_BATCH_SIZE)]
    expected, actual = (
        [np.concatenate([np.asarray(pair[side][output]) for pair in pairs]) for output in (0, 1)]
        for side in (0, 1)
    )
    if not np.isfinite(actual[0]).all():
        raise UserError("the graph's features are not finite: nothing was written")
    expected_norms, actual_norms = (np.linalg.norm(each[0], axis=1) for each in (expected, actual))
    products = np.maximum(expected_norms * actual_norms, 1e-12)
    loss = 1 - (expected[0] * actual[0]).sum(axis=1) / products
    ratios = actual_norms / np.maximum(expected_norms, 1e-12)
    return {
        "pictures": len(images),
        "one_minus_cosine": {"mean": float(loss.mean()), "max": float(loss.max())},
        "length_ratio": {"min": float(ratios.min()), "max": float(ratios.max())},
        "max_visibility_difference": float(np.max([0, *np.abs(expected[1] - actual[1]).ravel()])),
    }


def measure_ranking_loss(cfg: CfgNode, model: nn.Module, run: Runner) -> dict[str, Any]:
    """Evaluate model and graph on ``DATASETS.TESTS``; return mAP and Rank-1 of both, for JSON."""
    test_sets, _ = open_test_sets(cfg)
    results: dict[str, Any] = {}
    for name, (loader, evaluator) in test_sets.items():
        of_model, of_graph = (
            run_inference(each, loader, evaluator, name=name, flip=cfg.TEST.FLIP.ENABLED)["metrics"]
            for each in (model, GraphModel(run, evaluator.metric))
        )
        results[name] = {
            metric: {
                "model": of_model[metric]["value"],
                "graph": of_graph[metric]["value"],
                "loss": of_model[metric]["value"] - of_graph[metric]["value"],
            }
            for metric in ("mAP", "Rank-1")
        }
    return results

"""What an exported graph in a lower precision costs: in its features, and in the ranking.

Shapes: N pictures, H, W height and width in pixels, D feature dimensions, P parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.data.transforms import build_transforms
from torch import nn

from occluded_reid.data.images import read_errors_named, read_rgb
from occluded_reid.deploy.feature_file import list_images
from occluded_reid.deploy.formats import Runner
from occluded_reid.evaluation import run_inference
from occluded_reid.evaluation.testing import open_test_sets
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError

LEAST_PICTURES, MOST_PICTURES = 10, 375
"""At most 300 of them calibrate: those that are measured on, every fifth, do not."""
_BATCH = 8


class GraphModel(nn.Module):
    """An exported graph in a model's place, for the evaluator; it tells of no parts."""

    def __init__(self, run: Runner):
        super().__init__()
        self._run = run

    def forward(self, batch: Mapping[str, Any]) -> Embedding:
        features = torch.from_numpy(self._run(batch["images"])[0])
        return Embedding(features, features[:, :0])


def read_pictures(source: str, cfg: CfgNode) -> torch.Tensor:
    """Read pictures as evaluation does: (N, 3, H, W) in 0-255.

    Args:
        source: a folder, or a list of paths; of many, some that are spread evenly.
        cfg: says what they are brought to.

    Raises:
        UserError: fewer than :data:`LEAST_PICTURES`, or one that cannot be read.
    """
    images = list_images(source)
    paths = [f"{images.folder or '.'}/{path}" for path in images.paths]
    if len(paths) < LEAST_PICTURES:
        raise UserError(
            f"{source} has {len(paths)} pictures; calibration needs {LEAST_PICTURES}, better 300, "
            "like those to come: of persons, from the same cameras"
        )
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), MOST_PICTURES)).round().astype(int)
    transform = build_transforms(cfg, is_train=False)
    pictures = []
    for path in (paths[place] for place in chosen):
        with read_errors_named(f"the image {path}", "replace it or take it off the list"):
            pictures.append(transform(read_rgb(path)))
    return torch.stack(pictures)


def split_pictures(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pictures to calibrate by, and every fifth of them, to measure on."""
    held_out = torch.arange(len(pictures)) % 5 == 0
    return pictures[~held_out], pictures[held_out]


@torch.no_grad()
def feature_cost(graph: nn.Module, run: Runner, pictures: torch.Tensor) -> dict[str, Any]:
    """Return how far a graph's outputs are from the model's, for JSON.

    Args:
        graph: the model in float32.
        run: the graph.
        pictures: (N, 3, H, W) that it was not calibrated by.

    Raises:
        UserError: features that are not finite.
    """
    pairs = [(graph(batch), run(batch)) for batch in pictures.split(_BATCH)]
    wanted, found = (
        [np.concatenate([np.asarray(pair[side][output]) for pair in pairs]) for output in (0, 1)]
        for side in (0, 1)
    )
    if not np.isfinite(found[0]).all():
        raise UserError("the graph's features are not finite: nothing was written")
    lengths = [np.linalg.norm(features, axis=1) for features in (wanted[0], found[0])]
    loss = 1 - (wanted[0] * found[0]).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-12)
    return {
        "pictures": len(pictures),
        "one_minus_cosine": {"mean": float(loss.mean()), "max": float(loss.max())},
        "length_ratio": _range(lengths[1] / np.maximum(lengths[0], 1e-12)),
        "max_visibility_difference": float(np.max([0, *np.abs(wanted[1] - found[1]).ravel()])),
    }


def ranking_cost(cfg: CfgNode, model: nn.Module, run: Runner) -> dict[str, Any]:
    """Return mAP and Rank-1 of ``DATASETS.TESTS`` by the model and by the graph, for JSON.

    Args:
        cfg: the configuration.
        model: in float32.
        run: the graph.

    Raises:
        UserError: a test set cannot be used.
    """
    return dict(_ranking_costs(cfg, model, GraphModel(run)))


def _ranking_costs(
    cfg: CfgNode, model: nn.Module, graph: nn.Module
) -> Iterator[tuple[str, dict[str, Any]]]:
    opened, _ = open_test_sets(cfg)
    for name, (loader, evaluator) in opened.items():
        metrics = [
            run_inference(each, loader, evaluator, name=name, flip=cfg.TEST.FLIP.ENABLED)["metrics"]
            for each in (model, graph)
        ]
        yield (
            name,
            {
                metric: {
                    "model": metrics[0][metric]["value"],
                    "graph": metrics[1][metric]["value"],
                    "loss": metrics[0][metric]["value"] - metrics[1][metric]["value"],
                }
                for metric in ("mAP", "Rank-1")
            },
        )


def _range(values: np.ndarray) -> dict[str, float]:
    return {"min": float(values.min()), "max": float(values.max())}

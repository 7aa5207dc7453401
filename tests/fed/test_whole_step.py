"""A whole training step of FED in float64: its gradients against loops, two ranks against one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from reference import (
    batch_norm,
    cross_entropy,
    fed_attention,
    fed_contrast,
    fed_diffusion,
    fed_erasing,
    fed_memory_search,
    fed_part_pooling,
    fed_total,
    fed_visibility_loss,
    matrix_times,
)
from whole_step import check_gradients, check_ranks, prepare

from fed.test_diffusion import ffn_weights, projection_weights
from fed.test_head import scorer_weights
from fed.tiny import PARTS, fed_batch, fed_cfg, fed_model, to_numpy


def build(*overrides: Any) -> Any:
    torch.manual_seed(3)
    return prepare(fed_model(*overrides))


def double_batch(size: int) -> dict[str, Any]:
    batch = fed_batch(size)
    return {n: each.double() if each.is_floating_point() else each for n, each in batch.items()}


def loop_of(model: Any, batch: dict[str, Any]) -> Callable[[], float]:
    """Return a function that computes Eq. 10 of the batch from the backbone's tokens on."""
    banks = [
        to_numpy(memory.centres).copy() for memory in (model.erased_memory, model.diffused_memory)
    ]
    images = torch.cat([batch["images"], batch["occluded_images"]])
    size, labels = len(batch["targets"]), batch["targets"].tolist()
    masks = np.concatenate([np.ones((size, PARTS)), to_numpy(batch["part_visibility"])])

    def neck(layer: Any, rows: np.ndarray) -> np.ndarray:
        return batch_norm(rows, to_numpy(layer.weight), to_numpy(layer.bias))

    def diffuse(feature: np.ndarray, scores: np.ndarray, identity: int) -> np.ndarray:
        fdm, attention = model.diffusion, model.diffusion.attention
        found = fed_memory_search(feature, banks[0], identity, 3)
        nearest = np.stack([banks[0][k] / np.linalg.norm(banks[0][k]) for k in found])
        scale = (len(feature) / 4) ** -0.5
        attended = fed_attention(feature, nearest, projection_weights(attention), 4, scale)
        ffns = (ffn_weights(fdm.first_ffn), ffn_weights(fdm.second_ffn))
        return fed_diffusion(attended, feature, scores, *ffns)

    def total() -> float:
        with torch.no_grad():
            tokens = to_numpy(model.backbone(model.normalization(images)))
        scorers = [scorer_weights(scorer) for scorer in model.heads.erasing.scorers]
        pairs = [fed_erasing(fed_part_pooling(t[1:], 4, 2, PARTS), scorers) for t in tokens]
        scores = np.stack([each for each, _ in pairs])
        erased = neck(model.heads.neck, np.stack([parts.flatten() for _, parts in pairs]))
        diffused = [diffuse(f, scores[v], (labels * 2)[v]) for v, f in enumerate(erased)]
        features = {
            "class_token": tokens[:, 0], "erased": erased,
            "diffused": neck(model.diffusion.neck, np.stack(diffused)),
        }  # fmt: skip
        visibility, identity, contrast = [], [], []
        for rows in (slice(0, size), slice(size, None)):
            visibility.append(fed_visibility_loss(scores[rows], masks[rows]))
            for name, feature in features.items():
                weight = to_numpy(model.classifiers[name].weight)
                logits = np.stack([matrix_times(weight, f) for f in feature[rows]])
                identity.append(cross_entropy(logits, labels))
            for name, bank in zip(("erased", "diffused"), banks, strict=True):
                contrast.append(fed_contrast(features[name][rows], bank, labels, 0.05))
        return fed_total(visibility, identity, contrast)

    return total


def test_gradients_of_a_step_equal_the_slopes_of_the_loops():
    model, batch = build(), double_batch(3)
    loops = loop_of(model, batch)
    check_gradients(model, sum(model(batch).values()), loops)


@pytest.mark.distributed
def test_two_ranks_take_the_step_of_one(tmp_path):
    """Without necks: their batch statistics are each rank's own."""
    words = ("MODEL.FED.NECK", False, "SOLVER.OPT", "SGD")
    check_ranks(tmp_path, fed_cfg(*words), lambda: build(*words), double_batch(8))

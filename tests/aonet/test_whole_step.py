"""A whole training step of AONet in float64: its gradients against loops, two ranks against one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from reference import (
    aonet_algorithm_1,
    aonet_attention,
    aonet_identity,
    aonet_orthogonal,
    aonet_total,
    batch_norm,
)
from tiny_runs import to_numpy
from whole_step import check_gradients, check_ranks, prepare

from aonet.test_meta_arch import block_weights
from aonet.tiny import IDENTITIES, LANDMARKS, aonet_batch, aonet_cfg, aonet_model

TOKENS = ("MODEL.BACKBONE.NAME", "build_tiny_token_backbone")  # without batch normalization


def build(*overrides: Any) -> Any:
    torch.manual_seed(3)
    return prepare(aonet_model(*TOKENS, "MODEL.AONET.ORTHOGONAL_WEIGHT", 0.5, *overrides))


def double_batch(size: int) -> dict[str, Any]:
    batch = aonet_batch(size)
    return batch | {"images": batch["images"].double()}


def loop_of(model: Any, batch: dict[str, Any], *, constant: bool) -> Callable[[], float]:
    """Return a function that computes Eq. 7 of the batch from the feature map on.

    The weights of Eq. 5 are ``constant``: those of the weights at the start.
    """
    labels, memory = batch["targets"].tolist(), to_numpy(model.heads.memory.features).copy()
    first: list[np.ndarray] = []

    def total() -> float:
        with torch.no_grad():
            tokens = to_numpy(model.backbone(model.normalization(batch["images"])))
        maps = tokens[:, 1:].transpose(0, 2, 1).reshape(len(labels), -1, 4, 2)
        patterns = to_numpy(model.heads.patterns)
        beta, _, before, _ = aonet_algorithm_1(maps, patterns, memory, 0.9)
        first.append(beta)
        block, gate = block_weights(model.heads.attention), model.heads.attention.gate.item()
        after = np.stack([aonet_attention(features, block, gate) for features in before])
        rows = np.stack([before, after]).reshape(-1, before.shape[2])
        neck = model.heads.neck
        normed = batch_norm(rows, to_numpy(neck.weight), to_numpy(neck.bias))
        logits = normed @ to_numpy(model.classifier.weight).T
        logits = logits.reshape(2, len(labels), LANDMARKS, IDENTITIES)
        weights = first[0] if constant else beta
        identity = [aonet_identity(stage, labels, weights) for stage in logits]
        return aonet_total(*identity, aonet_orthogonal(before), 0.5)

    return total


@pytest.mark.parametrize("constant", [True, False])
def test_gradients_of_a_step_equal_the_slopes_of_the_loops(constant):
    model, batch = build("MODEL.AONET.DETACH_VISIBILITY", constant), double_batch(4)
    model.backbone.mix.requires_grad_(False)  # of the class token, which AONet does not read
    loops = loop_of(model, batch, constant=constant)
    check_gradients(model, sum(model(batch).values()), loops)


def test_a_detached_average_response_changes_the_patterns_gradient_alone():
    gradients = []
    for detached in (False, True):
        model = build("MODEL.AONET.DETACH_AVERAGE_RESPONSE", detached)
        sum(model(double_batch(4)).values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    changed = [n for n, g in gradients[0].items() if not torch.allclose(g, gradients[1][n])]
    assert changed == ["heads.patterns"]


@pytest.mark.distributed
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_two_ranks_take_the_step_of_one(tmp_path, reduction):
    """Without a neck: its batch statistics are each rank's own."""
    words = (
        "MODEL.AONET.NECK", False, "MODEL.AONET.ORTHOGONAL_REDUCTION", reduction,
        "SOLVER.OPT", "SGD",
    )  # fmt: skip
    check_ranks(tmp_path, aonet_cfg(*TOKENS, *words), lambda: build(*words), double_batch(8))

"""Metrics of trained landmarks: do they differ, and do they notice when they are occluded?

Shapes: N images, P landmarks, C channels, H, W feature-map height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from aonet_plugin.landmarks import normalized_maps
from aonet_plugin.losses import overlap_loss

UNOCCLUDED_FRACTION = 0.9  # from this visible fraction on, an image shows a landmark's usual rows
SEEN_FRACTION = 0.5  # a landmark counts as seen if this share of its usual rows is visible


def mean_cosine(features: torch.Tensor) -> float:
    """Return the mean cosine of two landmarks' features (N, P, C) in one image; P at least 2."""
    unit = F.normalize(features, dim=2)
    landmarks = features.shape[1]
    cosines = (unit @ unit.transpose(1, 2)).sum(dim=(1, 2)) - landmarks
    return float(cosines.mean() / (landmarks * (landmarks - 1)))


def usual_rows(maps: np.ndarray, visible_fraction: np.ndarray) -> np.ndarray:
    """Return the share of each row in a landmark's map (P, H), mean over unoccluded images.

    ``maps`` are the normalized maps of Eq. 2 (N, P, H, W), ``visible_fraction`` is (N,) in [0, 1].
    """
    return maps[visible_fraction >= UNOCCLUDED_FRACTION].sum(axis=3).mean(axis=0)


def visible_share(rows: np.ndarray, person: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Return the visible share (N, P) in [0, 1] of each landmark's usual rows.

    ``sum_h r_k(h) v(h) / sum_h r_k(h)`` over the rows h that contain a part of the person, with v
    the visible share of the person's pixels in the row; NaN if no row contains any.

    Args:
        rows: r (P, H), from :func:`usual_rows`.
        person: (N, H), pixels of the person in each row.
        visible: (N, H), those of them that are visible.
    """
    has_person = person > 0
    share = np.divide(visible, person, out=np.zeros(person.shape), where=has_person)
    weight = has_person @ rows.T
    return np.divide(share @ rows.T, weight, out=np.full(weight.shape, np.nan), where=weight > 0)


def landmark_report(
    responses: torch.Tensor, visibility: torch.Tensor, features: torch.Tensor,
    truth: Sequence[Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the landmarks of N images.

    Args:
        responses: logits (N, P, H, W).
        visibility: beta (N, P).
        features: (N, P, C), before the self-attention block and the neck.
        truth: None, or a record per image with ``visible_fraction``, ``stripe_person_pixels``,
            ``stripe_visible_pixels`` and ``occlusion``.

    Returns:
        ``overlap`` of the maps (see :func:`losses.overlap_loss`: 0 disjoint, 1 - 1/P equal),
        ``mean_cosine`` of the features, ``centre_row`` of each landmark in [0, 1] from the top,
        ``mean_visibility`` of each; with the truth ``visibility_auc`` by kind of occlusion: how
        well a landmark's visibility predicts that its usual rows are visible, over ``all``
        landmarks and for ``each``.
    """
    maps = normalized_maps(responses)
    height = maps.shape[2]
    rows = maps.sum(dim=3).mean(dim=0)  # (P, H)
    row_centres = (torch.arange(height) + 0.5) / height
    report: dict[str, Any] = {
        "images": len(maps),
        "overlap": float(overlap_loss(maps)),
        "overlap_if_all_the_same": 1 - 1 / maps.shape[1],
        "mean_cosine": mean_cosine(features) if maps.shape[1] > 1 else None,
        "centre_row": (rows @ row_centres).tolist(),
        "mean_visibility": visibility.mean(dim=0).tolist(),
    }
    if truth is not None:
        report["visibility_auc"] = _visibility_auc(maps.numpy(), visibility.numpy(), truth)
    return report


def _visibility_auc(
    maps: np.ndarray, visibility: np.ndarray, truth: Sequence[Any]
) -> Mapping[str, Any]:
    shape = (len(truth), maps.shape[2], -1)
    person = np.reshape([record.stripe_person_pixels for record in truth], shape).sum(2)
    visible = np.reshape([record.stripe_visible_pixels for record in truth], shape).sum(2)
    fraction = np.array([record.visible_fraction for record in truth])
    kinds = np.array([record.occlusion for record in truth])
    if not (fraction >= UNOCCLUDED_FRACTION).any():
        return {}
    share = visible_share(usual_rows(maps, fraction), person, visible)
    auc: dict[str, Any] = {}
    for kind in np.unique(kinds[kinds != "none"]):
        members = (kinds == kind) | (kinds == "none")
        scores, shares = visibility[members], share[members]
        each = [_auc(shares[:, k], scores[:, k]) for k in range(maps.shape[1])]
        auc[str(kind)] = {"all": _auc(shares.ravel(), scores.ravel()), "each": each}
    return auc


def _auc(share: np.ndarray, scores: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score

    measured = ~np.isnan(share)
    seen = share[measured] >= SEEN_FRACTION
    return float(roc_auc_score(seen, scores[measured])) if 0 < seen.sum() < len(seen) else None

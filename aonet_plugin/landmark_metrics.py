"""What landmarks have learnt: whether they differ, and whether they know when they are hidden.

Shapes: N images, P landmarks, C channels, H, W feature-map height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from aonet_plugin.landmarks import normalized_maps
from aonet_plugin.losses import overlap_loss

WHOLE = 0.9  # an image shows its person's usual places from this visible fraction on
SEEN = 0.5  # a landmark counts as seen where so much of its usual rows can be seen


def mean_cosine(features: torch.Tensor) -> float:
    """Return the mean cosine in [-1, 1] of two different landmarks' features of one image.

    Args:
        features: (N, P, C); P is 2 or more.
    """
    unit = F.normalize(features, dim=2)
    landmarks = features.shape[1]
    cosines = (unit @ unit.transpose(1, 2)).sum(dim=(1, 2)) - landmarks
    return float(cosines.mean() / (landmarks * (landmarks - 1)))


def usual_rows(maps: np.ndarray, visible_fraction: np.ndarray) -> np.ndarray:
    """Return the share of each row (P, H) in a landmark's map, mean over people who are seen whole.

    Args:
        maps: normalised maps of Eq. 2 (N, P, H, W).
        visible_fraction: (N,) in [0, 1]; images of 0.9 and more are read.
    """
    return maps[visible_fraction >= WHOLE].sum(axis=3).mean(axis=0)


def share_in_sight(rows: np.ndarray, person: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Return how much of each landmark's usual place can be seen (N, P), in [0, 1].

    ``sum_h r_k(h) v(h) / sum_h r_k(h)`` over the rows h that hold a part of the person, where v is
    the visible share of the person's pixels in the row. NaN where no row does.

    Args:
        rows: r (P, H), from :func:`usual_rows`.
        person: (N, H) pixels of the person in each row.
        visible: (N, H), the ones among them that can be seen.
    """
    holds = person > 0
    share = np.divide(visible, person, out=np.zeros(person.shape), where=holds)
    weight = holds @ rows.T
    return np.divide(share @ rows.T, weight, out=np.full(weight.shape, np.nan), where=weight > 0)


def landmark_report(
    responses: torch.Tensor,
    visibility: torch.Tensor,
    features: torch.Tensor,
    truth: Sequence[Any] | None,
) -> dict[str, Any]:
    """Return what is known of the landmarks of N images.

    Args:
        responses: logits (N, P, H, W).
        visibility: beta (N, P).
        features: (N, P, C), before the self-attention block and the neck.
        truth: a record per image with ``visible_fraction``, ``stripe_person_pixels``,
            ``stripe_visible_pixels`` and ``occlusion``, where the truth is known.

    Returns:
        ``overlap`` of the maps (see :func:`losses.overlap_loss`: 0 apart, 1 - 1/P all the same),
        ``mean_cosine`` of the features, ``centre_row`` of each landmark in [0, 1] from the top,
        ``mean_visibility`` of each; with the truth ``visibility_auc``: by kind of occlusion, how
        well a landmark's visibility tells whether its usual rows can be seen, all landmarks
        together and ``each``.
    """
    maps = normalized_maps(responses)
    height = maps.shape[2]
    per_row = maps.sum(dim=3).mean(dim=0)  # (P, H)
    middles = (torch.arange(height) + 0.5) / height
    report: dict[str, Any] = {
        "images": len(maps),
        "overlap": float(overlap_loss(maps)),
        "overlap_if_all_the_same": 1 - 1 / maps.shape[1],
        "mean_cosine": mean_cosine(features) if maps.shape[1] > 1 else None,
        "centre_row": (per_row @ middles).tolist(),
        "mean_visibility": visibility.mean(dim=0).tolist(),
    }
    if truth is not None:
        report["visibility_auc"] = _visibility_auc(maps.numpy(), visibility.numpy(), truth)
    return report


def _visibility_auc(
    maps: np.ndarray, visibility: np.ndarray, truth: Sequence[Any]
) -> Mapping[str, Any]:
    shape = (len(truth), maps.shape[2], -1)
    person = np.reshape([one.stripe_person_pixels for one in truth], shape).sum(2)
    visible = np.reshape([one.stripe_visible_pixels for one in truth], shape).sum(2)
    fraction = np.array([one.visible_fraction for one in truth])
    kinds = np.array([one.occlusion for one in truth])
    if not (fraction >= WHOLE).any():
        return {}
    in_sight = share_in_sight(usual_rows(maps, fraction), person, visible)
    found: dict[str, Any] = {}
    for kind in np.unique(kinds[kinds != "none"]):
        members = (kinds == kind) | (kinds == "none")
        scores, share = visibility[members], in_sight[members]
        each = [_auc(share[:, k], scores[:, k]) for k in range(maps.shape[1])]
        found[str(kind)] = {"all": _auc(share.ravel(), scores.ravel()), "each": each}
    return found


def _auc(share: np.ndarray, scores: np.ndarray) -> float | None:
    known = ~np.isnan(share)
    seen = share[known] >= SEEN
    return float(roc_auc_score(seen, scores[known])) if 0 < seen.sum() < len(seen) else None

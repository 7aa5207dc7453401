"""Thresholds that turn a similarity into a word, from images whose identities are known."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

import numpy as np
import torch

from gallery_search import Filter, Store
from occluded_reid.evaluation.distances import FeatureDistances
from occluded_reid.utils.errors import UserError, explain_read_errors
from occluded_reid.utils.files import read_json

MAX_IMAGES = 5_000  # of the index, at random if there are more
MISTAKEN = 0.01  # share of queries for which somebody else may look certain
FOUND = 0.9  # share of the true matches that are at least possible
_ERRORS = (OSError, ValueError, TypeError, KeyError)


@dataclass(frozen=True)
class Thresholds:
    """Similarities from which an answer is certain or possible.

    >>> Thresholds("", certain=0.8, possible=0.5, queries=100, identities=20).judge(0.6)
    'possible'
    """

    fingerprint: str  # of the model
    certain: float
    possible: float
    queries: int  # images behind them
    identities: int

    def judge(self, similarity: float) -> str:
        """Return ``certain``, ``possible`` or ``unlikely``."""
        if similarity >= self.certain:
            return "certain"
        return "possible" if similarity >= self.possible else "unlikely"


def calibrate(index: Store) -> Thresholds:
    """Choose thresholds on an index of people that are known, such as a validation split.

    Each image asks all others; images of the same person at the same camera do not count. From
    ``certain`` on, somebody else is found for at most ``MISTAKEN`` of the images; ``FOUND`` of the
    true matches reach ``possible``. More people in a gallery are more people to be mistaken for.

    Raises:
        UserError: No person is known at two cameras, or all images show one person.
    """
    info, ids = index.info(), index.select(Filter())
    if len(ids) > MAX_IMAGES:
        ids = np.sort(np.random.default_rng(0).choice(ids, MAX_IMAGES, replace=False))
    hits = [hit for hit in index.look_up(ids.tolist()) if hit.item.identity is not None]
    names = np.array([hit.item.identity for hit in hits], str)
    cameras = np.array([hit.item.camera or "" for hit in hits], str)
    others: list[float] = []
    matches: list[np.ndarray] = []
    if len(set(names.tolist())) > 1:
        rows = torch.from_numpy(np.stack([hit.features for hit in hits]))
        visibility = torch.from_numpy(np.stack([hit.visibility for hit in hits]))
        parts = visibility, visibility
        similarities = -FeatureDistances(rows, rows, info.metric, "cpu", parts)[:, :]
        similarities += info.metric == "cosine"  # whose distance is one minus it
        for position, row in enumerate(similarities):
            same = names == names[position]
            others.append(float(row[~same].max()))
            matches.append(row[same & (cameras != cameras[position])])
    true = np.concatenate([*matches, np.empty(0)])
    if not len(true):
        raise UserError(
            f"{index.address} does not show one person at two cameras, and another person: build "
            "an index of images whose identities and cameras are known"
        )
    certain = float(np.quantile(others, 1 - MISTAKEN, method="higher"))
    certain = float(np.nextafter(np.float32(certain), np.float32(np.inf)))
    possible = min(float(np.quantile(true, 1 - FOUND, method="lower")), certain)
    identities = len(set(names.tolist()))
    return Thresholds(info.fingerprint, certain, possible, len(others), identities)


def read_thresholds(path: str | os.PathLike[str], fingerprint: str) -> Thresholds:
    """Read thresholds; raise a UserError for a broken file, or one of another model."""
    with explain_read_errors(path, "expected a file of 'search calibrate'", _ERRORS):
        values = read_json(path)
        thresholds = Thresholds(**{field.name: values[field.name] for field in fields(Thresholds)})
        if not 0 <= thresholds.certain - thresholds.possible < np.inf:
            raise ValueError("possible is above certain")
    if thresholds.fingerprint != fingerprint:
        raise UserError(
            f"{path} was calibrated for another model; repeat 'search calibrate' with this one"
        )
    return thresholds

"""Which images of a data set are shown, and what is written beside them.

Shapes: Q, G query and gallery images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from occluded_reid.data.images import read_rgb
from occluded_reid.evaluation.gather import Collected
from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.visualization.sheet import BLUE, GREEN, GREY, ORANGE, PURPLE, Section, Tile

OCCLUSIONS = {"none": GREY, "horizontal": BLUE, "vertical": GREEN, "pedestrian": PURPLE}
COLUMNS, RANKS, STRIPES = 8, 8, 4

T = TypeVar("T")


def spread(items: Sequence[T], number: int) -> list[T]:
    """Return ``number`` items at equal distances, the first and the last among them."""
    places = np.unique(np.linspace(0, len(items) - 1, number).astype(int))
    return [items[place] for place in places]


def queries_by_occlusion(dataset: Any, number: int) -> dict[str, list[Any]]:
    """Return ``number`` queries of each kind of occlusion; of ``""`` where the truth is unknown."""
    groups = {"": list(dataset.query)}
    truth = getattr(dataset, "truth", None)
    if truth is not None:
        kinds = [truth[_key(path)].occlusion for path, *_ in dataset.query]
        groups = {
            kind: [item for item, own in zip(dataset.query, kinds, strict=True) if own == kind]
            for kind in OCCLUSIONS
            if kind in kinds
        }
    return {kind: spread(items, number) for kind, items in groups.items()}


def title_of(name: str, kind: str) -> str:
    """The title of a group of :func:`queries_by_occlusion`."""
    return f"Queries of {name}" + (f", occlusion: {kind}" if kind else "")


def image_tile(
    path: str,
    caption: str,
    truth: Mapping[str, Any] | None,
    visibility: Any = None,
    *,
    stripes: bool = True,
) -> Tile:
    """Return a picture with its predicted visibility and, where it is known, the true one.

    Args:
        path: of the picture.
        caption: below it.
        truth: occlusion truth by path, or None; it is of stripes.
        visibility: (P,) of the parts, or None.
        stripes: whether the parts are stripes.
    """
    if truth is None or _key(path) not in truth:  # real galleries have none
        return Tile(_pixels(path), [caption], visibility=visibility, stripes=stripes)
    record = truth[_key(path)]
    parts = STRIPES if visibility is None else len(visibility)
    person = np.reshape(record.stripe_person_pixels, (parts, -1)).sum(1)
    visible = np.reshape(record.stripe_visible_pixels, (parts, -1)).sum(1)
    captions = [caption, f"{100 * record.visible_fraction:.0f} % visible"]
    shares = np.divide(visible, person, out=np.ones(parts), where=person > 0)
    frame = OCCLUSIONS[record.occlusion]
    return Tile(_pixels(path), captions, frame, visibility, shares.tolist())


def occlusion_legend(truth: Mapping[str, Any] | None) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the names of the frames of :func:`image_tile`."""
    return [] if truth is None else [(f"occlusion: {k}", c) for k, c in OCCLUSIONS.items()]


def batch_section(batch: Mapping[str, Any], title: str) -> Section:
    """Return the first images of a training batch, as the model gets them."""
    pixels = batch["images"].permute(0, 2, 3, 1).clamp(0, 255).byte().cpu().numpy()
    labels = zip(batch["targets"].tolist(), batch["camids"].tolist(), strict=True)
    tiles = [
        Tile(image, [f"class {target}  cam {camera}"])
        for image, (target, camera) in zip(pixels, labels, strict=True)
    ]
    return Section(title, tiles[: 2 * COLUMNS], COLUMNS)


def subset_section(name: str, dataset: Any, subset: str) -> Section:
    """Return images of a test set's ``query`` or ``gallery`` with their occlusion truth."""
    truth = getattr(dataset, "truth", None)
    tiles = [
        image_tile(path, f"id {pid}  cam {camera + 1}", truth)
        for path, pid, camera in spread(getattr(dataset, subset), 2 * COLUMNS)
    ]
    kind = {"query": "Queries", "gallery": "Gallery"}[subset]
    return Section(f"{kind} of {name}", tiles, COLUMNS, occlusion_legend(truth))


def ranked_lists(
    found: Collected,
    distances: np.ndarray,
    ranking: Ranking,
    places: Sequence[int],
    name: str,
    *,
    stripes: bool = True,
) -> Section:
    """Return queries, each with its first gallery images.

    Args:
        found: the test set.
        distances: (Q, G).
        ranking: of those queries that have a positive.
        places: in ``ranking``, of the queries to show.
        name: of the test set.
        stripes: whether the parts, of which the visibility is shown, are stripes.
    """
    tiles = []
    for place in places:
        precision = f"AP {100 * ranking.average_precision[place]:.0f} %"
        tiles += _ranked_list(found, int(ranking.query[place]), distances, precision, stripes)
    legend = [("same identity", BLUE), ("another identity", ORANGE), ("query", GREY)]
    title = f"{name}: query, then its first {RANKS} gallery images"
    return Section(title, tiles, 1 + RANKS, legend)


def _ranked_list(
    found: Collected, query: int, distances: np.ndarray, precision: str, stripes: bool
) -> list[Tile]:
    ids, gallery_ids = found.identities[query], found.identities[found.queries :]
    own_camera = found.cameras[found.queries :] == found.cameras[query]
    row = distances[query]
    ignored = (gallery_ids == ids) & own_camera
    order = np.argsort(np.where(ignored, np.inf, row), kind="stable")[:RANKS]
    tiles = [_found_tile(found, query, [f"query id {ids}", precision], GREY, stripes)]
    for rank, image in enumerate(order, start=1):
        hit = gallery_ids[image] == ids
        captions = [f"{rank}: {'hit' if hit else 'miss'}", f"distance {row[image]:.2f}"]
        colour = BLUE if hit else ORANGE
        tiles.append(_found_tile(found, found.queries + image, captions, colour, stripes))
    return tiles


def _found_tile(
    found: Collected, place: int, captions: list[str], colour: tuple[int, int, int], stripes: bool
) -> Tile:
    visibility = found.visibility[place].tolist() or None
    return Tile(_pixels(found.paths[place]), captions, colour, visibility, stripes=stripes)


def _key(path: str) -> str:
    return str(Path(path).absolute())


def _pixels(path: str) -> np.ndarray:
    return np.asarray(read_rgb(path))

"""Figures of training batches, test sets, ranked lists and visibility.

Shapes: Q, G query and gallery images; P parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from occluded_reid.config import CfgNode
from occluded_reid.data.build import build_test_loader, build_train_loader, open_dataset
from occluded_reid.data.images import read_rgb
from occluded_reid.evaluation.evaluator import Evaluator
from occluded_reid.evaluation.gather import FeatureTable
from occluded_reid.evaluation.inference import run_inference
from occluded_reid.evaluation.testing import build_evaluator
from occluded_reid.modeling.outputs import as_embedding
from occluded_reid.utils.errors import UserError
from occluded_reid.visualization import sheet
from occluded_reid.visualization.curves import draw_curves, read_metrics
from occluded_reid.visualization.sheet import Section, Tile, draw_sheet

OCCLUSION_COLORS = {
    "none": sheet.GRAY, "horizontal": sheet.BLUE, "vertical": sheet.GREEN,
    "pedestrian": sheet.PURPLE,
}  # fmt: skip
LEGEND = (
    ("same identity", sheet.BLUE), ("different identity", sheet.ORANGE), ("query", sheet.GRAY),
)  # fmt: skip
COLUMNS, RANKS, STRIPES = 8, 8, 4


def draw_batch(cfg: CfgNode) -> Image.Image:
    """Draw a training batch as the model sees it, and test images with their occlusion truth."""
    sections = show_batch(cfg, next(iter(build_train_loader(cfg))))
    for name in cfg.DATASETS.TESTS:
        dataset = open_dataset(cfg, name)
        sections.append(_show_subset(f"{name} queries", dataset, dataset.query))
    if cfg.DATASETS.TESTS:
        sections.append(_show_subset(f"{name} gallery", dataset, dataset.gallery))
    return draw_sheet(sections)


def show_batch(cfg: CfgNode, batch: Mapping[str, Any]) -> list[Section]:
    """Show images of a training batch, and their occluded copies if there are any."""
    sections = []
    for view, of in (("images", ""), ("occluded_images", ", occluded copies")):
        if view not in batch:
            continue
        pixels = batch[view][: 2 * COLUMNS].permute(0, 2, 3, 1).clamp(0, 255).byte().cpu().numpy()
        tiles = [
            Tile(image, [f"class {target}  cam {camera}"])
            for image, target, camera in zip(
                pixels, batch["targets"], batch["camids"], strict=False
            )
        ]
        title = f"Training batch of {', '.join(cfg.DATASETS.NAMES)} after augmentation{of}"
        sections.append(Section(title, tiles, COLUMNS))
    return sections


def draw_run(cfg: CfgNode) -> Image.Image:
    """Draw losses, learning rate and metrics of the run in OUTPUT_DIR."""
    lines = read_metrics(Path(cfg.OUTPUT_DIR, "metrics.json"))
    return draw_curves(lines, f"{cfg.MODEL.META_ARCHITECTURE}, {cfg.OUTPUT_DIR}")


def draw_ranks(cfg: CfgNode, model: nn.Module, *, worst: bool = False) -> Image.Image:
    """Draw queries from the best to the worst average precision, with their ranked lists.

    ``worst`` draws the twenty queries of the lowest average precision, the lowest first.
    """
    name = cfg.DATASETS.TESTS[0]
    loader, evaluator = build_evaluator(cfg, name)
    run_inference(model, loader, evaluator, name=name, flip=cfg.TEST.FLIP.ENABLED)
    return draw_ranked_lists(name, evaluator, worst=20 if worst else 0)


def draw_ranked_lists(name: str, evaluator: Evaluator, *, worst: int = 0) -> Image.Image:
    """Draw six queries of an evaluated test set, or the ``worst``, with their ranked lists."""
    ranked: Any = evaluator.ranked
    test_set, distances, ranking = ranked
    best_first = np.argsort(-ranking.average_precision, kind="stable")
    tiles = []
    for position in best_first[: -worst - 1 : -1] if worst else choose_evenly(best_first, 6):
        query = int(ranking.query[position])
        precision = f"AP {100 * ranking.average_precision[position]:.0f}%"
        tiles += _show_ranked_list(
            test_set, query, distances[query : query + 1, :][0], precision, evaluator.stripes
        )
    title = f"{name} queries and their top {RANKS} gallery images"
    return draw_sheet([Section(title, tiles, 1 + RANKS, LEGEND)])


def draw_visibility(cfg: CfgNode, model: nn.Module) -> Image.Image:
    """Draw queries with the visibility of each part (FED Fig. 4), by occlusion if it is known."""
    name = cfg.DATASETS.TESTS[0]
    dataset = open_dataset(cfg, name)
    sections = []
    for occlusion, items in group_queries(dataset, 2 * COLUMNS).items():
        tiles = []
        for batch in build_test_loader(cfg, items, [])[0]:
            embedding = as_embedding(model(batch))
            if not embedding.visibility.shape[1]:
                raise UserError(
                    f"{cfg.MODEL.META_ARCHITECTURE} does not predict the visibility of parts; "
                    "FED and AONet do"
                )
            # the truth is of stripes, not of other parts such as landmarks
            truth, stripes = dataset.truth if embedding.stripes else None, embedding.stripes
            scores = embedding.visibility.tolist()
            tiles += [
                make_tile(path, caption, truth, visibility, stripes=stripes)
                for (path, caption), visibility in zip(name_images(batch), scores, strict=True)
            ]
        sections.append(Section(title_queries(name, occlusion), tiles, COLUMNS))
    return draw_sheet(sections)


def group_queries(dataset: Any, number: int) -> dict[str, list[Any]]:
    """Choose up to ``number`` queries of each occlusion; of ``""`` if the truth is unknown."""
    groups: dict[str, list[Any]] = {name: [] for name in ("", *OCCLUSION_COLORS)}
    for item in dataset.query:
        occlusion = "" if dataset.truth is None else dataset.truth[_key(item[0])].occlusion
        groups[occlusion].append(item)
    return {name: choose_evenly(items, number) for name, items in groups.items() if items}


def choose_evenly(items: Any, number: int) -> list[Any]:
    """Choose up to ``number`` items at equal distances, the first and the last among them.

    >>> choose_evenly("abcde", 3)
    ['a', 'c', 'e']
    """
    positions = np.unique(np.linspace(0, len(items) - 1, number).astype(int))
    return [items[position] for position in positions]


def title_queries(name: str, occlusion: str) -> str:
    """Return the title of a group of :func:`group_queries`."""
    endings = {"": "", "none": " without occlusion"}
    return f"{name} queries" + endings.get(occlusion, f", {occlusion} occlusion")


def name_images(batch: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return path and caption of each image of a batch."""
    identities = batch["targets"].tolist()
    return [(p, f"id {pid}") for p, pid in zip(batch["img_paths"], identities, strict=True)]


def make_tile(
    path: str, caption: str, truth: Mapping[str, Any] | None,
    visibility: Sequence[float] | None = None, *, stripes: bool = True,
) -> Tile:  # fmt: skip
    """Make a tile of an image with its predicted and, if it is known, its true visibility.

    ``truth`` is the occlusion truth by path, of stripes; ``visibility`` (P,) is of the parts.
    """
    image = np.asarray(read_rgb(path))
    if truth is None or _key(path) not in truth:  # real galleries have none
        return Tile(image, [caption], visibility=visibility, stripes=stripes)
    record = truth[_key(path)]
    parts = STRIPES if visibility is None else len(visibility)
    person = np.reshape(record.stripe_person_pixels, (parts, -1)).sum(1)
    visible = np.reshape(record.stripe_visible_pixels, (parts, -1)).sum(1)
    captions = [caption, f"{100 * record.visible_fraction:.0f}% visible"]
    fractions = np.divide(visible, person, out=np.ones(parts), where=person > 0)
    color = OCCLUSION_COLORS[record.occlusion]
    return Tile(image, captions, color, visibility, fractions.tolist())


def show_heat_maps(query: Tile, heats: np.ndarray, visibility: np.ndarray) -> list[Tile]:
    """Make one tile per landmark: heats (P, h, w) in [0, 1], visibility (P,)."""
    return [
        Tile(query.image, [f"landmark {number}", f"visibility {score:.2f}"], heat=heat)
        for number, (heat, score) in enumerate(zip(heats, visibility, strict=True), start=1)
    ]


def show_lowest_score(query: Tile, heats: np.ndarray, scores: np.ndarray) -> list[Tile]:
    """Show the landmark of the lowest OAScore (P,), without and with the average response."""
    lowest = int(scores.argmin())
    heat, score = heats[lowest], scores[lowest]
    return [
        Tile(query.image, [f"landmark {lowest + 1}", "without"], heat=heat),
        Tile(query.image, [f"OAScore {score:.2f}", "with"], heat=score * heat),
    ]


def _show_subset(title: str, dataset: Any, items: Sequence[Any]) -> Section:
    tiles = [
        make_tile(path, f"id {pid}  cam {camera + 1}", dataset.truth)
        for path, pid, camera in choose_evenly(items, 2 * COLUMNS)
    ]
    names = {} if dataset.truth is None else OCCLUSION_COLORS
    legend = [(f"occlusion: {name}", color) for name, color in names.items()]
    return Section(title, tiles, COLUMNS, legend)


def _show_ranked_list(
    test_set: FeatureTable, query: int, distances: np.ndarray, precision: str, stripes: bool
) -> list[Tile]:
    def tile(image: int, captions: list[str], color: sheet.RGB) -> Tile:
        visibility = test_set.visibility[image].tolist() or None
        pixels = np.asarray(read_rgb(test_set.paths[image]))
        return Tile(pixels, captions, color, visibility, stripes=stripes)

    own_id, gallery_ids = test_set.identities[query], test_set.identities[test_set.queries :]
    own_camera = test_set.cameras[test_set.queries :] == test_set.cameras[query]
    ignored = (gallery_ids == own_id) & own_camera
    order = np.argsort(np.where(ignored, np.inf, distances), kind="stable")[:RANKS]
    tiles = [tile(query, [f"query id {own_id}", precision], sheet.GRAY)]
    for rank, image in enumerate(order, start=1):
        hit = gallery_ids[image] == own_id
        result, color = ("hit", sheet.BLUE) if hit else ("miss", sheet.ORANGE)
        captions = [f"{rank}: {result}", f"distance {distances[image]:.2f}"]
        tiles.append(tile(test_set.queries + image, captions, color))
    return tiles


def _key(path: str) -> str:
    return str(Path(path).absolute())

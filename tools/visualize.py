#!/usr/bin/env python
"""Look at what the loader yields, at ranked lists, and at the visibility a model predicts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods import ADD_KEYS
from PIL import Image

from occluded_reid.checkpoints import Checkpointer
from occluded_reid.config import CfgNode
from occluded_reid.engine import Trainer, argument_parser, config_of_run
from occluded_reid.engine.loading import open_dataset
from occluded_reid.errors import UserError, run_command
from occluded_reid.evaluation import rank_queries, run_inference
from occluded_reid.files import make_folder, whole_file
from occluded_reid.visualization import BLUE, GREEN, GREY, ORANGE, PURPLE, Section, Tile, sheet

OCCLUSIONS = {"none": GREY, "horizontal": BLUE, "vertical": GREEN, "pedestrian": PURPLE}
COLUMNS, RANKS, STRIPES = 8, 8, 4


def draw_batch(cfg: CfgNode) -> list[Section]:
    """A training batch as the model sees it, and test images with their occlusion truth."""
    loader = Trainer.build_train_loader(cfg)
    batch = next(iter(loader))
    pixels = batch["images"].permute(0, 2, 3, 1).clamp(0, 255).byte().numpy()
    labels = zip(batch["targets"].tolist(), batch["camids"].tolist(), strict=True)
    tiles = [
        Tile(image, [f"class {target}  cam {camera}"])
        for image, (target, camera) in zip(pixels, labels, strict=True)
    ][: 2 * COLUMNS]
    names = ", ".join(cfg.DATASETS.NAMES)
    sections = [Section(f"Training batch of {names}, as augmented", tiles, COLUMNS)]
    for name in cfg.DATASETS.TESTS:
        dataset = open_dataset(cfg, name)
        for kind, items in (("Queries", dataset.query), ("Gallery", dataset.gallery)):
            if kind == "Gallery" and name != cfg.DATASETS.TESTS[-1]:
                continue
            spread = np.unique(np.linspace(0, len(items) - 1, 2 * COLUMNS).astype(int))
            chosen = [items[place] for place in spread]
            truth = getattr(dataset, "truth", None)
            tiles = [
                _tile(path, f"id {pid}  cam {camera + 1}", truth) for path, pid, camera in chosen
            ]
            sections.append(Section(f"{kind} of {name}", tiles, COLUMNS, _legend(truth)))
    return sections


def draw_ranks(cfg: CfgNode) -> list[Section]:
    """Queries from the best to the worst average precision, with their ranked lists."""
    return _ranked_lists(cfg, "ranks", lambda ordered: np.linspace(0, ordered - 1, 6).astype(int))


def draw_worst(cfg: CfgNode) -> list[Section]:
    """The twenty queries of the least average precision, with their ranked lists."""
    return _ranked_lists(cfg, "worst", lambda ordered: np.arange(ordered)[:-21:-1])


def _ranked_lists(cfg: CfgNode, kind: str, choose: Callable[[int], np.ndarray]) -> list[Section]:
    found, distances, ids, cameras, _ = _inference(cfg, kind)
    ranking = rank_queries(distances, *ids, *cameras)
    by_precision = np.argsort(-ranking.average_precision, kind="stable")
    chosen = by_precision[choose(len(by_precision))]
    tiles = []
    for place in chosen:
        query = ranking.query[place]
        precision = 100 * ranking.average_precision[place]
        tiles += _ranked_list(found, query, distances[query], ids, cameras, precision)
    legend = [("same identity", BLUE), ("another identity", ORANGE), ("query", GREY)]
    title = f"{cfg.DATASETS.TESTS[0]}: query, then its first {RANKS} gallery images"
    return [Section(title, tiles, 1 + RANKS, legend)]


def draw_visibility(cfg: CfgNode) -> list[Section]:
    """Queries with the visibility of each part (FED Fig. 4), by kind of occlusion where known."""
    found, _, ids, _, truth = _inference(cfg, "visibility")
    if not found.visibility.shape[1]:
        raise UserError(
            f"{cfg.MODEL.META_ARCHITECTURE} does not tell the visibility of parts: there is "
            "nothing to draw"
        )
    queries = np.arange(found.queries)
    groups = {"": queries}
    if truth is not None:
        kinds = np.array([truth[path].occlusion for path in found.paths[: found.queries]])
        groups = {kind: queries[kinds == kind] for kind in OCCLUSIONS if kind in kinds}
    sections = []
    for kind, members in groups.items():
        chosen = members[np.unique(np.linspace(0, len(members) - 1, 2 * COLUMNS).astype(int))]
        tiles = [
            _tile(found.paths[query], f"id {ids[0][query]}", truth, found.visibility[query])
            for query in chosen
        ]
        title = f"Queries of {cfg.DATASETS.TESTS[0]}" + (f", occlusion: {kind}" if kind else "")
        sections.append(Section(title, tiles, COLUMNS))
    return sections


def _inference(cfg: CfgNode, kind: str) -> tuple[Any, np.ndarray, Any, Any, Any]:
    """Return what the model finds in the first test set, its distances, ids, cameras and truth."""
    if not cfg.MODEL.WEIGHTS:
        raise UserError(f"--kind {kind} needs weights: MODEL.WEIGHTS path/to/model_final.pth")
    if not cfg.DATASETS.TESTS:
        raise UserError(f"--kind {kind} needs a data set: DATASETS.TESTS \"('Name',)\"")
    model = Trainer.build_model(cfg)
    classes = cfg.MODEL.HEADS.NUM_CLASSES
    Checkpointer(model, num_classes=classes).load(cfg.MODEL.WEIGHTS)
    name = cfg.DATASETS.TESTS[0]
    loader, evaluator = Trainer.build_evaluator(cfg, name)
    run_inference(model, loader, evaluator, name=name, flip=cfg.TEST.FLIP.ENABLED)
    found: Any = evaluator.collected()
    distances = evaluator.compared(found)[:, :]
    ids, cameras = (np.split(x, [found.queries]) for x in (found.identities, found.cameras))
    # the truth is of stripes, not of other parts such as landmarks
    truth = open_dataset(cfg, name).truth if evaluator.stripes else None
    return found, distances, ids, cameras, truth


def _ranked_list(
    found: Any, query: int, row: np.ndarray, ids: Any, cameras: Any, precision: float
) -> list[Tile]:
    ignored = (ids[1] == ids[0][query]) & (cameras[1] == cameras[0][query])
    order = np.argsort(np.where(ignored, np.inf, row), kind="stable")[:RANKS]
    captions = [f"query id {ids[0][query]}", f"AP {precision:.0f} %"]
    tiles = [_found_tile(found, query, captions, GREY)]
    for rank, image in enumerate(order, start=1):
        hit = ids[1][image] == ids[0][query]
        captions = [f"{rank}: {'hit' if hit else 'miss'}", f"distance {row[image]:.2f}"]
        tiles.append(_found_tile(found, found.queries + image, captions, BLUE if hit else ORANGE))
    return tiles


def _found_tile(found: Any, place: int, captions: list[str], colour: tuple[int, int, int]) -> Tile:
    visibility = found.visibility[place].tolist() or None
    return Tile(_pixels(found.paths[place]), captions, colour, visibility)


def _tile(path: str, caption: str, truth: Any, visibility: Any = None) -> Tile:
    if truth is None or str(Path(path).absolute()) not in truth:  # real galleries have none
        return Tile(_pixels(path), [caption], visibility=visibility)
    record = truth[str(Path(path).absolute())]
    stripes = STRIPES if visibility is None else len(visibility)
    person = np.reshape(record.stripe_person_pixels, (stripes, -1)).sum(1)
    visible = np.reshape(record.stripe_visible_pixels, (stripes, -1)).sum(1)
    captions = [caption, f"{100 * record.visible_fraction:.0f} % visible"]
    shares = np.divide(visible, person, out=np.ones(stripes), where=person > 0)
    frame = OCCLUSIONS[record.occlusion]
    return Tile(_pixels(path), captions, frame, visibility, shares.tolist())


def _legend(truth: Any) -> list[tuple[str, tuple[int, int, int]]]:
    return [] if truth is None else [(f"occlusion: {k}", c) for k, c in OCCLUSIONS.items()]


def _pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


KINDS = {
    "batch": draw_batch,
    "ranks": draw_ranks,
    "visibility": draw_visibility,
    "worst": draw_worst,
}


def draw(args: argparse.Namespace) -> None:
    """Draw the picture and write it whole."""
    cfg = config_of_run(args, ADD_KEYS)
    path = Path(args.output or Path(cfg.OUTPUT_DIR, f"{args.kind}.png"))
    make_folder(path.parent)
    torch.manual_seed(cfg.SEED)
    picture = sheet(KINDS[args.kind](cfg))
    with whole_file(path) as stream:
        picture.save(stream, format="PNG")
    print(path)


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--kind", choices=list(KINDS), required=True, help="what to draw")
    parser.add_argument(
        "--output", default="", metavar="F.png", help="default: OUTPUT_DIR/KIND.png"
    )
    args = parser.parse_args(words)
    return run_command(lambda: draw(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

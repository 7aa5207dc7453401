#!/usr/bin/env python
"""Look at what the loader yields, at what a model finds, and at how a training went."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods import ADD_KEYS
from PIL import Image
from torch import nn

from aonet_plugin import AONet
from aonet_plugin.landmarks import normalized_maps, visibility_scores
from occluded_reid.config import CfgNode
from occluded_reid.data.build import build_test_loader, build_train_loader, open_dataset
from occluded_reid.engine.defaults import argument_parser, load_run_config
from occluded_reid.evaluation.inference import run_inference
from occluded_reid.evaluation.ranking import rank_queries
from occluded_reid.evaluation.testing import build_evaluator
from occluded_reid.modeling.build import build_inference_model
from occluded_reid.modeling.outputs import as_embedding
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import make_folder, whole_file
from occluded_reid.visualization.curves import draw_curves, read_metrics
from occluded_reid.visualization.figures import (
    COLUMNS,
    batch_section,
    image_tile,
    queries_by_occlusion,
    ranked_lists,
    subset_section,
    title_of,
)
from occluded_reid.visualization.sheet import Section, Tile, sheet

QUERIES = 3  # of each kind of occlusion, with their landmarks
LARGEST = "response of the landmark, 1 = the largest of its map"
WITHOUT_AND_WITH = (
    "response of the landmark, 1 = the largest of its map without the average response"
)


def draw_batch(cfg: CfgNode) -> Image.Image:
    """A training batch as the model sees it, and test images with their occlusion truth."""
    batch = next(iter(build_train_loader(cfg)))
    title = f"Training batch of {', '.join(cfg.DATASETS.NAMES)}, as augmented"
    sections = [batch_section(batch, title)]
    for name in cfg.DATASETS.TESTS:
        dataset = open_dataset(cfg, name)
        subsets = ["query", "gallery"] if name == cfg.DATASETS.TESTS[-1] else ["query"]
        sections += [subset_section(name, dataset, subset) for subset in subsets]
    return sheet(sections)


def draw_run(cfg: CfgNode) -> Image.Image:
    """Losses, learning rate and metrics over the iterations of the run in OUTPUT_DIR."""
    lines = read_metrics(Path(cfg.OUTPUT_DIR, "metrics.json"))
    return draw_curves(lines, f"{cfg.MODEL.META_ARCHITECTURE} in {cfg.OUTPUT_DIR}")


def draw_ranks(cfg: CfgNode, model: nn.Module) -> Image.Image:
    """Queries from the best to the worst average precision, with their ranked lists."""
    return _ranked(cfg, model, lambda count: np.linspace(0, count - 1, 6).astype(int))


def draw_worst(cfg: CfgNode, model: nn.Module) -> Image.Image:
    """The twenty queries of the least average precision, with their ranked lists."""
    return _ranked(cfg, model, lambda count: np.arange(count)[:-21:-1])


def _ranked(cfg: CfgNode, model: nn.Module, choose: Callable[[int], np.ndarray]) -> Image.Image:
    name = cfg.DATASETS.TESTS[0]
    loader, evaluator = build_evaluator(cfg, name)
    run_inference(model, loader, evaluator, name=name, flip=cfg.TEST.FLIP.ENABLED)
    found: Any = evaluator.collected()
    distances = evaluator.compared(found)[:, :]
    ids, cameras = (np.split(x, [found.queries]) for x in (found.identities, found.cameras))
    ranking = rank_queries(distances, *ids, *cameras)
    by_precision = np.argsort(-ranking.average_precision, kind="stable")
    chosen = by_precision[choose(len(by_precision))]
    return sheet([ranked_lists(found, distances, ranking, chosen, name, stripes=evaluator.stripes)])


def draw_visibility(cfg: CfgNode, model: nn.Module) -> Image.Image:
    """Queries with the visibility of each part (FED Fig. 4), by kind of occlusion where known."""
    name = cfg.DATASETS.TESTS[0]
    dataset = open_dataset(cfg, name)
    sections = []
    for kind, items in queries_by_occlusion(dataset, 2 * COLUMNS).items():
        tiles = []
        for batch in build_test_loader(cfg, items, [])[0]:
            said = as_embedding(model(batch))
            if not said.visibility.shape[1]:
                raise UserError(
                    f"{cfg.MODEL.META_ARCHITECTURE} does not tell the visibility of parts: there "
                    "is nothing to draw"
                )
            # the truth is of stripes, not of other parts such as landmarks
            truth = dataset.truth if said.stripes else None
            seen = zip(_named(batch), said.visibility.tolist(), strict=True)
            tiles += [
                image_tile(path, caption, truth, each, stripes=said.stripes)
                for (path, caption), each in seen
            ]
        sections.append(Section(title_of(name, kind), tiles, COLUMNS))
    return sheet(sections)


def draw_landmarks(cfg: CfgNode, model: nn.Module) -> Image.Image:
    """Where each landmark looks (AONet Fig. 4b), and what the average response does (Fig. 3)."""
    if not isinstance(model, AONet):
        raise UserError(
            f"{cfg.MODEL.META_ARCHITECTURE} has no landmarks; AONet has. --kind visibility draws "
            "other parts"
        )
    name = cfg.DATASETS.TESTS[0]
    dataset = open_dataset(cfg, name)
    sections = []
    for kind, items in queries_by_occlusion(dataset, QUERIES).items():
        title = title_of(name, kind)
        tiles: list[Tile] = []
        pairs: list[Tile] = []
        for batch in build_test_loader(cfg, items, [])[0]:
            for query, heats, visibility, referenced in _landmarks(model, batch, dataset.truth):
                tiles += [query, *_heated(query, heats, visibility)]
                if referenced is not None:
                    pairs += [query, *_without_and_with(query, heats, referenced)]
        columns = len(tiles) // len(items)
        sections.append(Section(f"{title}: every landmark", tiles, columns, scale=LARGEST))
        if pairs:
            title += (
                ": the landmark of least awareness (Eq. 4), without and with the average response"
            )
            sections.append(Section(title, pairs, 3 * QUERIES, scale=WITHOUT_AND_WITH))
    return sheet(sections)


def _landmarks(
    model: AONet, batch: Mapping[str, Any], truth: Mapping[str, Any] | None
) -> Iterator[tuple[Tile, np.ndarray, np.ndarray, np.ndarray | None]]:
    """Yield of each image its tile, the maps of Eq. 2, what each landmark weighs, beta of Eq. 4.

    The maps are scaled to a maximum of 1. A map of Eq. 3 is that of Eq. 2 times beta.
    """
    found = model.landmarks(batch["images"])
    maps = normalized_maps(found.responses)
    heats = (maps / maps.amax(dim=(2, 3), keepdim=True)).cpu().numpy()
    memory, scores = model.heads.memory, None
    if memory is not None:
        average = memory.average_responses(model.heads.patterns)
        scores = visibility_scores(found.responses, average).cpu().numpy()
    for place, (path, caption) in enumerate(_named(batch)):
        beta = None if scores is None else scores[place]
        visibility = found.visibility[place].cpu().numpy()
        yield image_tile(path, caption, truth), heats[place], visibility, beta


def _heated(query: Tile, heats: np.ndarray, visibility: np.ndarray) -> list[Tile]:
    return [
        Tile(query.image, [f"landmark {number}", f"visibility {seen:.2f}"], heat=heat)
        for number, (heat, seen) in enumerate(zip(heats, visibility, strict=True), start=1)
    ]


def _without_and_with(query: Tile, heats: np.ndarray, beta: np.ndarray) -> list[Tile]:
    least = int(beta.argmin())
    heat, awareness = heats[least], beta[least]
    return [
        Tile(query.image, [f"landmark {least + 1}", "without"], heat=heat),
        Tile(query.image, [f"awareness {awareness:.2f}", "with"], heat=awareness * heat),
    ]


def _named(batch: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Path and caption of each image of a batch."""
    identities = batch["targets"].tolist()
    return [(p, f"id {pid}") for p, pid in zip(batch["img_paths"], identities, strict=True)]


OF_DATA = {"batch": draw_batch, "curves": draw_run}
OF_MODEL = {
    "landmarks": draw_landmarks,
    "ranks": draw_ranks,
    "visibility": draw_visibility,
    "worst": draw_worst,
}


def trained_model(cfg: CfgNode, args: argparse.Namespace) -> nn.Module:
    """Build the model and load MODEL.WEIGHTS, as for evaluation.

    Raises:
        UserError: no weights or no test set are named.
    """
    if not cfg.MODEL.WEIGHTS:
        raise UserError(f"--kind {args.kind} needs weights: MODEL.WEIGHTS path/to/model_final.pth")
    if not cfg.DATASETS.TESTS:
        raise UserError(f"--kind {args.kind} needs a data set: DATASETS.TESTS \"('Name',)\"")
    return build_inference_model(cfg, cfg.MODEL.WEIGHTS, trust=args.trust_checkpoint)


@torch.inference_mode()
def draw(args: argparse.Namespace) -> None:
    """Draw the picture and write it whole."""
    cfg = load_run_config(args, ADD_KEYS)
    path = Path(args.output or Path(cfg.OUTPUT_DIR, f"{args.kind}.png"))
    make_folder(path.parent)
    torch.manual_seed(cfg.SEED)
    if args.kind in OF_DATA:
        picture = OF_DATA[args.kind](cfg)
    else:
        picture = OF_MODEL[args.kind](cfg, trained_model(cfg, args))
    with whole_file(path) as stream:
        picture.save(stream, format="PNG")
    print(path)


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--kind", choices=sorted([*OF_DATA, *OF_MODEL]), required=True, help="what to draw"
    )
    parser.add_argument(
        "--output", default="", metavar="F.png", help="default: OUTPUT_DIR/KIND.png"
    )
    args = parser.parse_args(words)
    return run_command(lambda: draw(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

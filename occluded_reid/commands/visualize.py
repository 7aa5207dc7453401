"""Draw what the loader yields, what a model sees, or how a training went.

batch       training images after augmentation, and test images with their occlusion truth
curves      losses, learning rate and metrics of the run in OUTPUT_DIR
landmarks   a heat map per landmark, with and without the average response (AONet Fig. 3, 4b)
ranks       ranked lists of queries, from the best to the worst average precision
visibility  predicted visibility of each part (FED Fig. 4)
worst       ranked lists of the twenty worst queries
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from occluded_reid.utils.cli import add_config_options, build_parser, run_command

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

    from aonet_plugin import AONet
    from occluded_reid.config import CfgNode
    from occluded_reid.visualization.sheet import Tile

QUERIES = 3  # of each occlusion, with their landmarks
SCALE = "landmark response; 1 is the maximum of its map"


def draw(args: argparse.Namespace) -> None:
    """Draw one figure and write it to a PNG file."""
    import torch

    from occluded_reid.engine.defaults import load_run_config
    from occluded_reid.modeling.build import build_inference_model
    from occluded_reid.utils.errors import UserError
    from occluded_reid.utils.files import atomic_write, make_folder
    from occluded_reid.visualization import figures

    cfg = load_run_config(args)
    path = Path(args.output or Path(cfg.OUTPUT_DIR, f"{args.kind}.png"))
    make_folder(path.parent)
    torch.manual_seed(cfg.SEED)
    with torch.inference_mode():
        if args.kind == "batch":
            figure = figures.draw_batch(cfg)
        elif args.kind == "curves":
            figure = figures.draw_run(cfg)
        else:
            if not cfg.MODEL.WEIGHTS or not cfg.DATASETS.TESTS:
                advice = "--weights RUN (or MODEL.WEIGHTS FILE) and DATASETS.TESTS \"('Name',)\""
                raise UserError(f"--kind {args.kind} needs weights and a test set: {advice}")
            model = build_inference_model(cfg, cfg.MODEL.WEIGHTS, trust=args.trust_checkpoint)
            if args.kind == "landmarks":
                figure = draw_landmarks(cfg, model)
            elif args.kind == "visibility":
                figure = figures.draw_visibility(cfg, model)
            else:
                figure = figures.draw_ranks(cfg, model, worst=args.kind == "worst")
    with atomic_write(path) as stream:
        figure.save(stream, format="PNG")
    print(path)


def draw_landmarks(cfg: CfgNode, model: nn.Module) -> Image.Image:
    """Draw each landmark's map (AONet Fig. 4b), with and without the average response (Fig. 3)."""
    from aonet_plugin import AONet
    from occluded_reid.data.build import build_test_loader, open_dataset
    from occluded_reid.utils.errors import UserError
    from occluded_reid.visualization import figures
    from occluded_reid.visualization.sheet import Section, draw_sheet

    if not isinstance(model, AONet):
        raise UserError(f"{cfg.MODEL.META_ARCHITECTURE} has no landmarks; AONet has")
    name = cfg.DATASETS.TESTS[0]
    dataset = open_dataset(cfg, name)
    sections = []
    for occlusion, items in figures.group_queries(dataset, QUERIES).items():
        tiles, pairs = [], []
        for batch in build_test_loader(cfg, items, [])[0]:
            for query, heats, visibility, scores in read_landmarks(model, batch, dataset.truth):
                tiles += [query, *figures.show_heat_maps(query, heats, visibility)]
                if scores is not None:
                    pairs += [query, *figures.show_lowest_score(query, heats, scores)]
        title, columns = figures.title_queries(name, occlusion), len(tiles) // len(items)
        sections.append(Section(f"{title}: all landmarks", tiles, columns, scale=SCALE))
        if pairs:
            title += ": lowest OAScore (Eq. 4), without and with the average response"
            scale = f"{SCALE} without the average response"
            sections.append(Section(title, pairs, 3 * QUERIES, scale=scale))
    return draw_sheet(sections)


def read_landmarks(
    model: AONet, batch: Mapping[str, Any], truth: Mapping[str, Any] | None
) -> Iterator[tuple[Tile, Any, Any, Any]]:
    """Yield of each image its tile, the maps of Eq. 2, the landmarks' visibility, their OAScores.

    The maps, (P, h, w), are scaled to a maximum of 1; those of Eq. 3 are these times the OAScore
    (Eq. 4), which is None without average responses. Visibility and OAScores are (P,).
    """
    from aonet_plugin.landmarks import normalized_maps, visibility_scores
    from occluded_reid.visualization.figures import make_tile, name_images

    landmarks = model.landmarks(batch["images"])
    maps = normalized_maps(landmarks.responses)
    heats = (maps / maps.amax(dim=(2, 3), keepdim=True)).cpu().numpy()
    scores: Any = [None] * len(heats)
    if model.heads.memory is not None:
        average = model.heads.memory.average_responses(model.heads.scaled_patterns())
        scores = visibility_scores(landmarks.responses, average).cpu().numpy()
    visibility = landmarks.visibility.cpu().numpy()
    for index, (path, caption) in enumerate(name_images(batch)):
        yield make_tile(path, caption, truth), heats[index], visibility[index], scores[index]


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = build_parser(__doc__)
    kinds = ("batch", "curves", "landmarks", "ranks", "visibility", "worst")
    parser.add_argument("--kind", choices=kinds, required=True, help="what to draw")
    parser.add_argument("--output", metavar="F.png", help="default: OUTPUT_DIR/KIND.png")
    add_config_options(parser)
    args = parser.parse_args(words)
    return run_command(lambda: draw(args), debug=args.debug)

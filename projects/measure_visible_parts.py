#!/usr/bin/env python
"""How much can visibility win? Compare occluded queries by the true visibility of their parts.

    python projects/measure_visible_parts.py --weights RUN --output visible_parts.json \\
        DATASETS.TESTS "('MarketSplit:choose','OccludedMarketSplit:choose')"

DATASETS.TESTS names a data set, and the same with pasted queries. Parts are compared as with
TEST.SIMILARITY shared: by the mean of their cosines over what is visible. Then the occluder's box,
or its own pixels, are painted in the mean color. The last two rows take the features of the
original queries: what the parts are worth that no occluder has touched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn

from occluded_reid.config import changed_copy
from occluded_reid.data.build import open_dataset
from occluded_reid.data.loader import ReidLoader
from occluded_reid.engine.defaults import load_run_config
from occluded_reid.evaluation.distances import FeatureDistances
from occluded_reid.evaluation.evaluator import Evaluator
from occluded_reid.evaluation.gather import FeatureTable
from occluded_reid.evaluation.inference import run_inference
from occluded_reid.evaluation.occlusion_metrics import measure_by_occlusion, read_stripe_truth
from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.evaluation.results import summarize_ranking
from occluded_reid.evaluation.testing import open_test_sets
from occluded_reid.modeling.build import build_untrained, load_trained
from occluded_reid.utils.cli import add_config_options, build_parser, run_command
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import write_json

CHANGED = 24
"""Difference to the original, of 255, above which a pixel is the occluder's; JPEG makes less."""


def main(args: argparse.Namespace) -> None:
    """Print and write Rank-1 and mAP by the features of the queries and the weights of parts."""
    cfg = load_run_config(args)
    names = cfg.DATASETS.TESTS
    if len(names) != 2:
        raise UserError("DATASETS.TESTS must name two sets: original queries, then occluded ones")
    truth = open_dataset(cfg, names[1], training=False).truth
    if truth is None:
        raise UserError(f"{names[1]} has no occlusion truth; a set with pasted queries has")
    model = build_untrained(cfg)
    load_trained(model, cfg, cfg.MODEL.WEIGHTS, trust=args.trust_checkpoint)
    with changed_copy(cfg) as cfg:
        cfg.TEST.SIMILARITY = "shared"
    (originals, first), (images, evaluator) = open_test_sets(cfg)[0].values()
    color = cfg.MODEL.PIXEL_MEAN
    original = collect(model, originals, first, "original queries")
    occluded = collect(model, images, evaluator, "occluded queries")
    boxed, painted = (
        collect(model, Painted(originals, images, color, whole_box), evaluator, "painted queries")
        for whole_box in (True, False)
    )
    paths = occluded.paths[: occluded.queries]
    comparisons = {
        way: {
            "metrics": summarize_ranking(ranking),
            "by_occlusion": measure_by_occlusion(ranking, paths, truth),
        }
        for way, ranking in compare(original, occluded, boxed, painted, truth, evaluator)
    }
    write_json(args.output, {"data_sets": list(names), "comparisons": comparisons})
    rows = [
        [way, *(f"{each['metrics'][metric]['value']:.1f}" for metric in ("Rank-1", "mAP"))]
        for way, each in comparisons.items()
    ]
    print(tabulate(rows, [names[1], "Rank-1", "mAP"], "github", disable_numparse=True))


def collect(model: nn.Module, batches: Any, evaluator: Evaluator, name: str) -> FeatureTable:
    """Return the features of a test set."""
    run_inference(model, batches, evaluator, name=name)
    table = evaluator.gather()
    assert table is not None  # there is one process
    return table


class Painted:
    """The batches of occluded images, with what differs from the originals painted in a color.

    With ``whole_box``, the box around it is painted, as a detector would give it.
    """

    def __init__(
        self, originals: ReidLoader, occluded: ReidLoader, color: Sequence[float], whole_box: bool
    ):
        self.loaders = originals, occluded
        self.color = torch.tensor(color).view(3, 1, 1)
        self.whole_box = whole_box

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for original, occluded in zip(*self.loaders, strict=True):
            before, image = original["images"].float(), occluded["images"].float()
            changed = (image - before).abs().amax(dim=1, keepdim=True) > CHANGED
            near = F.max_pool2d(changed.float(), 5, stride=1, padding=2)  # closes small holes
            closed = -F.max_pool2d(-near, 5, stride=1, padding=2) > 0
            if self.whole_box:
                rows, columns = closed.any(dim=3, keepdim=True), closed.any(dim=2, keepdim=True)
                closed = fill(rows, 2) & fill(columns, 3)
            yield {**occluded, "images": torch.where(closed, self.color, image)}


def fill(marks: torch.Tensor, dim: int) -> torch.Tensor:
    """Return ``marks`` with everything between the first and the last along ``dim`` marked."""
    counts = marks.int()
    return (counts.cumsum(dim) > 0) & (counts.flip(dim).cumsum(dim).flip(dim) > 0)


def compare(
    original: FeatureTable, occluded: FeatureTable, boxed: FeatureTable, painted: FeatureTable,
    truth: Mapping[str, Any], evaluator: Evaluator,
) -> Iterator[tuple[str, Ranking]]:  # fmt: skip
    """Rank the gallery by the queries of one table or another, with several weights of parts."""
    split = [occluded.queries, len(occluded.paths) - occluded.queries]
    everything, hidden_left_out = (np.ones_like(occluded.visibility) for _ in range(2))
    stripes = read_stripe_truth(occluded.paths[: split[0]], truth, everything.shape[1])
    hidden_left_out[: split[0]] = stripes.visible
    ways = {
        "all parts": (occluded, everything),
        "weighted by the model's visibility": (occluded, occluded.visibility),
        "hidden parts left out, by the truth": (occluded, hidden_left_out),
        "all parts, the occluder's box painted in the mean color": (boxed, everything),
        "all parts, the occluder painted in the mean color": (painted, everything),
        "without the occluder, the same parts left out": (original, hidden_left_out),
        "without the occluder, all parts": (original, everything),
    }
    gallery = occluded.features[split[0] :]
    for way, (table, weights) in ways.items():
        parts = torch.from_numpy(weights).split(split)
        distances = FeatureDistances(
            table.features[: split[0]], gallery, "shared", visibility=parts
        )
        yield way, evaluator.rank(distances, occluded)


if __name__ == "__main__":
    parser = build_parser(__doc__)
    add_config_options(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args()
    sys.exit(run_command(lambda: main(args), debug=args.debug))

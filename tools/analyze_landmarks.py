#!/usr/bin/env python
"""What AONet's landmarks have learnt: do they differ, and do they know when they are hidden?

Reads the queries and the gallery of the first of DATASETS.TESTS with MODEL.WEIGHTS, prints a table
and writes OUTPUT_DIR/landmarks.json.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from methods import ADD_KEYS
from tabulate import tabulate

from aonet_plugin.landmark_metrics import landmark_report
from aonet_plugin.meta_arch import AONet
from occluded_reid.config import CfgNode
from occluded_reid.data.build import build_test_loader, open_dataset
from occluded_reid.engine.defaults import argument_parser, load_run_config
from occluded_reid.modeling.build import build_untrained, load_trained
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import write_json
from occluded_reid.utils.progress import progress

logger = logging.getLogger("occluded_reid.landmarks")


def analyze(args: argparse.Namespace) -> None:
    """Print and write what is found."""
    cfg = load_run_config(args, ADD_KEYS)
    if not cfg.MODEL.WEIGHTS or not cfg.DATASETS.TESTS:
        raise UserError("MODEL.WEIGHTS path/to/model_final.pth and DATASETS.TESTS are needed")
    model = build_untrained(cfg)
    if not isinstance(model, AONet):
        raise UserError(f"{cfg.MODEL.META_ARCHITECTURE} has no landmarks: AONet has")
    load_trained(model, cfg, cfg.MODEL.WEIGHTS, trust=args.trust_checkpoint)
    report = report_of(cfg, model.eval())
    path = Path(cfg.OUTPUT_DIR, "landmarks.json")
    write_json(path, report, sort_keys=True)
    print(table(report))
    print(path)


@torch.no_grad()
def report_of(cfg: CfgNode, model: AONet) -> dict[str, Any]:
    """Return :func:`landmark_report` of the first test set, with its name."""
    name = cfg.DATASETS.TESTS[0]
    dataset = open_dataset(cfg, name)
    loader, _ = build_test_loader(cfg, dataset.query, dataset.gallery)
    paths: list[str] = []
    responses, visibility, features = [], [], []
    for batch in progress(
        loader, total=len(loader), description=f"Landmarks in {name}", unit="batches", logger=logger
    ):
        found = model.landmarks(batch["images"])
        paths += batch["img_paths"]
        responses.append(found.responses.cpu())
        visibility.append(found.visibility.cpu())
        features.append(found.pooled[0].cpu())
    truth = getattr(dataset, "truth", None)
    records = None if truth is None else [truth.get(str(Path(path).absolute())) for path in paths]
    if records is not None and None in records:  # a gallery of real images has none
        records = None
    report = landmark_report(
        torch.cat(responses), torch.cat(visibility), torch.cat(features), records
    )
    return {"data_set": name, **report}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    cosine = report["mean_cosine"]
    lines = [
        f"{report['data_set']}: {report['images']} images",
        f"overlap of the maps {report['overlap']:.3f} (0 apart, "
        f"{report['overlap_if_all_the_same']:.3f} all the same)",
        "mean cosine of two landmarks' features " + ("-" if cosine is None else f"{cosine:.3f}"),
    ]
    auc = report.get("visibility_auc", {})
    rows = [
        [k + 1, f"{row:.2f}", f"{seen:.3f}", *(_number(of["each"][k]) for of in auc.values())]
        for k, (row, seen) in enumerate(
            zip(report["centre_row"], report["mean_visibility"], strict=True)
        )
    ]
    rows.append(["all", "", "", *(_number(of["all"]) for of in auc.values())])
    heads = ["landmark", "centre row", "visibility", *(f"AUC {kind}" for kind in auc)]
    return "\n".join([*lines, tabulate(rows, heads, tablefmt="github", disable_numparse=True)])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = argument_parser(__doc__).parse_args(words)
    return run_command(lambda: analyze(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

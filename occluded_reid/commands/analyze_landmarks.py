"""Analyze AONet's landmarks: do they differ, and does their visibility drop when they are hidden?

Reads the queries and the gallery of the first of DATASETS.TESTS, prints a table and writes
OUTPUT_DIR/landmarks.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from occluded_reid.utils.cli import add_config_options, build_parser, run_command


def analyze(args: argparse.Namespace) -> None:
    """Print and write the report of a model."""
    import torch

    from aonet_plugin import AONet
    from aonet_plugin.landmark_metrics import landmark_report
    from occluded_reid.data.build import build_test_loader, open_dataset
    from occluded_reid.engine.defaults import load_run_config
    from occluded_reid.modeling.build import build_untrained, load_trained
    from occluded_reid.utils.errors import UserError
    from occluded_reid.utils.files import write_json
    from occluded_reid.utils.progress import progress

    cfg = load_run_config(args)
    if not cfg.MODEL.WEIGHTS or not cfg.DATASETS.TESTS:
        raise UserError("give --weights RUN (or MODEL.WEIGHTS FILE) and DATASETS.TESTS")
    model = build_untrained(cfg)
    if not isinstance(model, AONet):
        raise UserError(f"{cfg.MODEL.META_ARCHITECTURE} has no landmarks; AONet has")
    load_trained(model, cfg, cfg.MODEL.WEIGHTS, trust=args.trust_checkpoint)
    model.eval()
    name = cfg.DATASETS.TESTS[0]
    dataset = open_dataset(cfg, name)
    loader, _ = build_test_loader(cfg, dataset.query, dataset.gallery)
    count, task = len(loader), f"Landmarks in {name}"
    paths, measured = [], []
    with torch.no_grad():
        for batch in progress(loader, total=count, description=task, unit="batches"):
            landmarks = model.landmarks(batch["images"])
            paths += batch["img_paths"]
            each = landmarks.responses, landmarks.visibility, landmarks.pooled[0]
            measured.append([tensor.cpu() for tensor in each])
    truth = dataset.truth or {}
    records = [truth.get(str(Path(path).absolute())) for path in paths]
    known = None if None in records else records  # a gallery of real images has none
    responses, visibility, pooled = (torch.cat(batches) for batches in zip(*measured, strict=True))
    report = landmark_report(responses, visibility, pooled, known)
    path = Path(cfg.OUTPUT_DIR, "landmarks.json")
    write_json(path, {"data_set": name, **report}, sort_keys=True)
    print(format_report(name, report), path, sep="\n")


def format_report(name: str, report: dict[str, Any]) -> str:
    """Return the report as text with a table."""
    from tabulate import tabulate

    cosine = report["mean_cosine"]
    lines = [
        f"{name}: {report['images']} images",
        f"overlap of the maps: {report['overlap']:.3f} (0 if disjoint, "
        f"{report['overlap_if_all_the_same']:.3f} if equal)",
        "mean cosine of two landmarks' features: " + ("-" if cosine is None else f"{cosine:.3f}"),
    ]
    auc = report.get("visibility_auc", {})
    landmarks = zip(report["centre_row"], report["mean_visibility"], strict=True)
    rows = [
        [k + 1, f"{row:.2f}", f"{score:.3f}", *(_format(kind["each"][k]) for kind in auc.values())]
        for k, (row, score) in enumerate(landmarks)
    ]
    rows.append(["all", "", "", *(_format(kind["all"]) for kind in auc.values())])
    headers = ["landmark", "center row", "visibility", *(f"AUC {kind}" for kind in auc)]
    return "\n".join([*lines, tabulate(rows, headers, tablefmt="github", disable_numparse=True)])


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = build_parser(__doc__)
    add_config_options(parser)
    args = parser.parse_args(words)
    return run_command(lambda: analyze(args), debug=args.debug)

"""results.json: what was measured, on what, how sure it is, and how to get it again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from fastreid.config import CfgNode
from tabulate import tabulate
from torch import nn

from occluded_reid.checkpoint.checkpointer import weights_sha256
from occluded_reid.evaluation.bootstrap import intervals, measures
from occluded_reid.evaluation.per_query import write_per_query
from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.utils.files import write_json

PACKAGES = ("torch", "torchvision", "fastreid", "timm", "numpy", "faiss-cpu")
LESSER = ("Rank-3", "Rank-5", "Rank-10", "mINP")  # metrics whose intervals the table leaves out


def with_intervals(ranking: Ranking) -> dict[str, dict[str, float]]:
    """Return Rank-1/3/5/10, mAP and mINP in per cent, each with its 95 % bootstrap interval."""
    return {name: each._asdict() for name, each in intervals(measures(ranking)).items()}


def results_table(reports: Mapping[str, Any]) -> str:
    """Return the reports of several data sets as one table for people."""
    rows = []
    for name, report in reports.items():
        counts, metrics = report["counts"], report["metrics"]
        rows.append(
            [name, counts["queries"], counts["gallery"]]
            + [
                f"{metrics[key]['value']:.1f} [{metrics[key]['low']:.1f}, "
                f"{metrics[key]['high']:.1f}]"
                for key in ("Rank-1", "mAP")
            ]
            + [f"{metrics[key]['value']:.1f}" for key in LESSER]
        )
    headers = ["Data set", "Queries", "Gallery", "Rank-1 [95 %]", "mAP [95 %]"]
    return tabulate(rows, [*headers, *LESSER], "pipe", disable_numparse=True)


def write_results(
    cfg: CfgNode,
    model: nn.Module,
    reports: Mapping[str, Any],
    *,
    seconds: float,
    epoch: int | None = None,
    missing: Iterable[str] = (),
) -> Path:
    """Write ``OUTPUT_DIR/results.json`` and return its path.

    What the reports hold of each query goes to ``per_query.npz`` beside it.

    Args:
        cfg: the run's configuration.
        model: the unwrapped model that was evaluated.
        reports: the evaluator's report for each data set and protocol.
        seconds: wall time of the evaluation.
        epoch: the last finished epoch, from 0; None outside training.
        missing: the data sets that were asked for and are not on the disk.
    """
    path = Path(cfg.OUTPUT_DIR, "results.json")
    per_query = {name: each["per_query"] for name, each in reports.items() if "per_query" in each}
    content = {
        "data_sets": {
            name: {key: value for key, value in report.items() if key != "per_query"}
            for name, report in reports.items()
        },
        "per_query": write_per_query(path.parent, per_query),
        "missing": sorted(missing),
        "epoch": epoch,
        "seed": cfg.SEED,
        "config_sha256": hashlib.sha256(cfg.dump().encode()).hexdigest(),
        "weights_sha256": weights_sha256(model),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": _machine(cfg.MODEL.DEVICE),
        "wall_time_s": round(seconds, 2),
    }
    write_json(path, content, sort_keys=True)
    return path


def _machine(device: str) -> dict[str, Any]:
    found = {"processor": platform.machine(), "cores": os.cpu_count(), "device": device}
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return found


def _versions() -> dict[str, str]:
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed

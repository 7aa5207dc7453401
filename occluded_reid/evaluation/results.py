"""results.json: what was measured, on what, how sure it is, and how to get it again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from tabulate import tabulate
from torch import nn

from occluded_reid.checkpoints import weights_sha256
from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.files import whole_file

RESAMPLES = 1000
PACKAGES = ("torch", "torchvision", "fastreid", "timm", "numpy", "faiss-cpu")


def with_intervals(ranking: Ranking) -> dict[str, dict[str, float]]:
    """Return Rank-1/3/5/10, mAP and mINP in per cent, each with its 95 % interval.

    The interval is the bootstrap's over queries: the 2.5th and 97.5th percentile of the metric
    over 1,000 resamples of the V valid queries, drawn with replacement from a fixed seed.
    """
    per_query = {f"Rank-{k}": ranking.rank_k(k) for k in (1, 3, 5, 10)}
    per_query |= {
        "mAP": ranking.average_precision,
        "mINP": ranking.inverse_negative_penalty,
    }
    values = 100 * np.stack(list(per_query.values()), axis=1)  # (V, metrics)
    queries = len(values)
    draws = np.random.default_rng(0).multinomial(queries, np.full(queries, 1 / queries), RESAMPLES)
    resampled = draws @ values / queries  # (RESAMPLES, metrics)
    low, high = np.percentile(resampled, (2.5, 97.5), axis=0)
    return {
        name: {"value": float(value), "low": float(lo), "high": float(hi)}
        for name, value, lo, hi in zip(per_query, values.mean(0), low, high, strict=True)
    }


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
            + [f"{metrics[key]['value']:.1f}" for key in ("Rank-5", "Rank-10", "mINP")]
        )
    headers = ["Data set", "Queries", "Gallery", "Rank-1 [95 %]", "mAP [95 %]"]
    return tabulate(rows, [*headers, "Rank-5", "Rank-10", "mINP"], "pipe", disable_numparse=True)


def write_results(
    cfg: CfgNode,
    model: nn.Module,
    reports: Mapping[str, Any],
    *,
    seconds: float,
    epoch: int | None = None,
) -> Path:
    """Write ``OUTPUT_DIR/results.json`` and return its path.

    Args:
        cfg: the run's configuration.
        model: the unwrapped model that was evaluated.
        reports: the evaluator's report for each data set and protocol.
        seconds: wall time of the evaluation.
        epoch: the last finished epoch, from 0; None outside training.
    """
    path = Path(cfg.OUTPUT_DIR, "results.json")
    content = {
        "data_sets": dict(reports),
        "epoch": epoch,
        "seed": cfg.SEED,
        "config_sha256": hashlib.sha256(cfg.dump().encode()).hexdigest(),
        "weights_sha256": weights_sha256(model),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": _machine(cfg.MODEL.DEVICE),
        "wall_time_s": round(seconds, 2),
    }
    with whole_file(path, "w") as stream:
        json.dump(content, stream, indent=2, sort_keys=True)
        stream.write("\n")
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

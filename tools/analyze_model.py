#!/usr/bin/env python
"""Parameters and multiply-adds of a model, module by module, and what of it only training needs.

Needs no data set and no weights.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from methods import ADD_KEYS
from tabulate import tabulate

from occluded_reid.checkpoint.checkpointer import build_untrained
from occluded_reid.config import CfgNode, changed_copy
from occluded_reid.data.datasets import registry as datasets
from occluded_reid.engine.defaults import argument_parser, load_run_config
from occluded_reid.modeling.complexity import Complexity, complexity
from occluded_reid.synthetic.plan import get_size
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.files import write_json

# By meta-architecture: where, of what, FLOPs in G, parameters in M. FED's paper has no such table.
PUBLISHED = {"AONet": ("Table 7", "ResNet-50, 256x128", 6.22, 30.22)}
# Only shapes count: no weights to fetch, and numbers of 32 bits on the CPU.
OVERRIDES = ["MODEL.BACKBONE.PRETRAIN", "False", "SOLVER.AMP.ENABLED", "False"]


def analyze(args: argparse.Namespace) -> None:
    """Print the costs and write them where asked for."""
    args.opts = [*args.opts, *OVERRIDES, "MODEL.DEVICE", "cpu"]
    cfg = load_run_config(args, ADD_KEYS)
    identities, source = identities_of(cfg)
    with changed_copy(cfg) as cfg:
        cfg.MODEL.HEADS.NUM_CLASSES = identities
    found = complexity(build_untrained(cfg), cfg.INPUT.SIZE_TEST)
    print(text_of(cfg, found, f"{identities:,} identities, {source}"))
    if args.json:
        write_json(args.json, content_of(cfg, found, identities, source))


def identities_of(cfg: CfgNode) -> tuple[int, str]:
    """Return the number of identities, and where it is from."""
    if cfg.MODEL.HEADS.NUM_CLASSES:
        return cfg.MODEL.HEADS.NUM_CLASSES, "MODEL.HEADS.NUM_CLASSES"
    names = ", ".join(cfg.DATASETS.NAMES)
    numbers = [published_identities(cfg, name) for name in cfg.DATASETS.NAMES]
    if not all(numbers):
        return 0, f"as none are published for {names}: MODEL.HEADS.NUM_CLASSES sets their number"
    return sum(numbers), f"as published for {names}"


def published_identities(cfg: CfgNode, name: str) -> int:
    """Return how many identities a data set trains on by its description; 0 if it says none."""
    kind: Any = getattr(datasets, name.partition(":")[0], None)
    if kind is datasets.SyntheticOccluded:
        return get_size(cfg.DATASETS.SYNTHETIC.SIZE).train_ids
    train = getattr(kind, "expected", {}).get("train")
    return train.identities if train else 0


def text_of(cfg: CfgNode, found: Complexity, identities: str) -> str:
    """The costs for people."""
    height, width = cfg.INPUT.SIZE_TEST
    rows = [
        [
            each.name if "." not in each.name else f"- {each.name.split('.', 1)[1]}",
            f"{each.parameters:,}",
            f"{each.macs / 1e6:,.1f}" if each.macs else "-",
            "training only" if each.training_only else "",
        ]
        for each in found.modules
    ]
    rows.append(["total", f"{found.params_total:,}", "", ""])
    macs = f"{found.macs_inference / 1e6:,.1f}"
    rows.append(["at inference", f"{found.params_inference:,}", macs, ""])
    heads = ["module", "parameters", "multiply-adds (M)", ""]
    aligned = ("left", "right", "right", "left")
    lines = [
        f"{cfg.MODEL.META_ARCHITECTURE}, one image of {height}x{width}, {identities}",
        "",
        tabulate(rows, heads, "pipe", colalign=aligned, disable_numparse=True),
        "",
        "Parameters include memories. A multiplication with its addition is one multiply-add, as "
        "fvcore counts.",
        f"Not counted: {', '.join(found.not_counted) or 'nothing'}.",
    ]
    return "\n".join([*lines, *_beside_the_paper(cfg, found)])


def _beside_the_paper(cfg: CfgNode, found: Complexity) -> list[str]:
    if cfg.MODEL.META_ARCHITECTURE not in PUBLISHED:
        return []
    table, network, flops, params = PUBLISHED[cfg.MODEL.META_ARCHITECTURE]
    rows = [
        [f"{table} of the paper, {network}", f"{flops:.2f}", f"{params:.2f}"],
        ["here", f"{found.macs_inference / 1e9:.2f}", f"{found.params_total / 1e6:.2f}"],
    ]
    heads = ["", "FLOPs (G)", "parameters (M)"]
    aligned = ("left", "right", "right")
    return ["", tabulate(rows, heads, "pipe", colalign=aligned, disable_numparse=True)]


def content_of(cfg: CfgNode, found: Complexity, identities: int, source: str) -> dict[str, Any]:
    """The costs for programs."""
    content = {
        "meta_architecture": cfg.MODEL.META_ARCHITECTURE,
        "input_size": list(cfg.INPUT.SIZE_TEST),
        "identities": identities,
        "identities_from": source,
        "params_total": found.params_total,
        "params_inference": found.params_inference,
        "gmacs_inference": found.macs_inference / 1e9,
        "not_counted": found.not_counted,
        "modules": [each._asdict() for each in found.modules],
    }
    if cfg.MODEL.META_ARCHITECTURE in PUBLISHED:
        table, _, flops, params = PUBLISHED[cfg.MODEL.META_ARCHITECTURE]
        content["paper"] = {"table": table, "gflops": flops, "params_in_millions": params}
    return content


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--json", default="", metavar="F", help="write the numbers to a file")
    args = parser.parse_args(words)
    return run_command(lambda: analyze(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

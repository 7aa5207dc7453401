#!/usr/bin/env python
"""Print parameters and multiply-adds of a model, by module, and what only training needs.

Needs no data set and no weights: --weights only names a run, whose config.yaml is read.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from occluded_reid.utils.cli import add_config_options, build_parser, run_command

if TYPE_CHECKING:
    from occluded_reid.config import CfgNode
    from occluded_reid.deploy.complexity import Complexity

# By meta-architecture: table, network, FLOPs in G, parameters in M. FED's paper has no such table.
PUBLISHED = {"AONet": ("Table 7", "ResNet-50, 256x128", 6.22, 30.22)}


def analyze(args: argparse.Namespace) -> None:
    """Print the cost; write it to --json."""
    from occluded_reid.config import changed_copy
    from occluded_reid.config.methods import installed_methods
    from occluded_reid.deploy.complexity import measure_complexity
    from occluded_reid.engine.defaults import load_run_config
    from occluded_reid.modeling.build import build_untrained
    from occluded_reid.utils.files import write_json

    args.opts += ["MODEL.BACKBONE.PRETRAIN", "False", "SOLVER.AMP.ENABLED", "False"]
    args.opts += ["MODEL.DEVICE", "cpu"]
    cfg = load_run_config(args, installed_methods())
    identities, source = count_identities(cfg)
    with changed_copy(cfg) as cfg:
        cfg.MODEL.HEADS.NUM_CLASSES = identities
    cost = measure_complexity(build_untrained(cfg), cfg.INPUT.SIZE_TEST)
    print_cost(cfg, cost, f"{identities:,} identities, {source}")
    if args.json:
        write_json(args.json, describe_cost(cfg, cost, identities, source))


def count_identities(cfg: CfgNode) -> tuple[int, str]:
    """Return the number of training identities, and where it comes from."""
    if cfg.MODEL.HEADS.NUM_CLASSES:
        return cfg.MODEL.HEADS.NUM_CLASSES, "MODEL.HEADS.NUM_CLASSES"
    names = ", ".join(cfg.DATASETS.NAMES)
    numbers = [published_identities(cfg, name) for name in cfg.DATASETS.NAMES]
    if not all(numbers):
        return 0, f"as none are published for {names}; set MODEL.HEADS.NUM_CLASSES"
    return sum(numbers), f"as published for {names}"


def published_identities(cfg: CfgNode, name: str) -> int:
    """Return how many identities a data set declares for training; 0 if it declares none."""
    from occluded_reid.data.datasets.registry import find_factory, list_dataset_names
    from occluded_reid.synthetic.plan import get_size

    name = name.partition(":")[0]
    if name == "SyntheticOccluded":
        return get_size(cfg.DATASETS.SYNTHETIC.SIZE).train_ids
    factory = find_factory(name) if name in list_dataset_names() else None
    train = getattr(factory, "expected", {}).get("train")
    return train.identities if train else 0


def print_cost(cfg: CfgNode, cost: Complexity, identities: str) -> None:
    """Print the cost as tables."""
    from tabulate import tabulate

    height, width = cfg.INPUT.SIZE_TEST
    print(
        f"{cfg.MODEL.META_ARCHITECTURE}, one image of {height}x{width}, {identities}\n\n"
        f"{cost.table}\n\n"
        f"{cost.params_total:,} parameters, memories included; {cost.params_inference:,} at "
        f"inference, with {cost.macs_inference / 1e6:,.1f} M multiply-adds.\n"
        "A multiplication and its addition are one multiply-add, which fvcore calls flop.\n"
        f"Not counted: {', '.join(cost.not_counted) or 'nothing'}."
    )
    if cfg.MODEL.META_ARCHITECTURE in PUBLISHED:
        table, network, flops, params = PUBLISHED[cfg.MODEL.META_ARCHITECTURE]
        rows = [
            [f"{table} of the paper, {network}", f"{flops:.2f}", f"{params:.2f}"],
            ["here", f"{cost.macs_inference / 1e9:.2f}", f"{cost.params_total / 1e6:.2f}"],
        ]
        print("\n" + tabulate(rows, ["", "FLOPs (G)", "parameters (M)"], "pipe", "g"))


def describe_cost(cfg: CfgNode, cost: Complexity, identities: int, source: str) -> dict[str, Any]:
    """Return the cost for JSON."""
    content = {
        "meta_architecture": cfg.MODEL.META_ARCHITECTURE,
        "input_size": list(cfg.INPUT.SIZE_TEST),
        "identities": identities,
        "identities_from": source,
        "params_total": cost.params_total,
        "params_inference": cost.params_inference,
        "gmacs_inference": cost.macs_inference / 1e9,
        "not_counted": cost.not_counted,
        "modules": [each._asdict() for each in cost.modules],
    }
    if cfg.MODEL.META_ARCHITECTURE in PUBLISHED:
        table, _, flops, params = PUBLISHED[cfg.MODEL.META_ARCHITECTURE]
        content["paper"] = {"table": table, "gflops": flops, "params_in_millions": params}
    return content


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = build_parser(__doc__)
    options.add_argument("--json", default="", metavar="F", help="write the numbers to a file")
    add_config_options(options)
    return options


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_args(words)
    return run_command(lambda: analyze(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

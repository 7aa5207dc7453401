"""Print parameters and multiply-adds of a model, by module, and what only training needs.

Needs no data set and no weights: --weights only names a run, whose config.yaml is read.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from occluded_reid.utils.cli import add_config_options, build_parser, run_command

if TYPE_CHECKING:
    from occluded_reid.config import CfgNode

# By meta-architecture; AONet with ResNet-50. The paper of FED has no such table.
PUBLISHED = {"AONet": {"table": "Table 7", "gflops": 6.22, "params_in_millions": 30.22}}


def analyze(args: argparse.Namespace) -> None:
    """Print the cost; write it to --json."""
    from occluded_reid.config import changed_copy
    from occluded_reid.deploy.complexity import measure_complexity
    from occluded_reid.engine.defaults import load_run_config
    from occluded_reid.modeling.build import build_untrained
    from occluded_reid.utils.files import write_json

    args.opts += ["MODEL.BACKBONE.PRETRAIN", "False", "SOLVER.AMP.ENABLED", "False"]
    args.opts += ["MODEL.DEVICE", "cpu"]
    cfg = load_run_config(args)
    identities, source = count_identities(cfg)
    with changed_copy(cfg) as cfg:
        cfg.MODEL.HEADS.NUM_CLASSES = identities
    cost = measure_complexity(build_untrained(cfg), cfg.INPUT.SIZE_TEST)
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
        content["paper"] = PUBLISHED[cfg.MODEL.META_ARCHITECTURE]
    print_cost(content, cost.table)
    if args.json:
        write_json(args.json, content)


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


def print_cost(content: dict[str, Any], table: str) -> None:
    """Print the cost, AONet's beside the paper's."""
    from tabulate import tabulate

    height, width = content["input_size"]
    print(
        f"{content['meta_architecture']}, one image of {height}x{width}, "
        f"{content['identities']:,} identities, {content['identities_from']}\n\n{table}\n\n"
        f"{content['params_total']:,} parameters, memories included; "
        f"{content['params_inference']:,} at inference, with "
        f"{1000 * content['gmacs_inference']:,.1f} M multiply-adds.\n"
        "A multiplication and its addition are one multiply-add, which fvcore calls flop.\n"
        f"Not counted: {', '.join(content['not_counted']) or 'nothing'}."
    )
    if paper := content.get("paper"):
        published = f"{paper['table']} of the paper, ResNet-50, 256x128"
        rows = [
            [published, paper["gflops"], paper["params_in_millions"]],
            ["here", content["gmacs_inference"], content["params_total"] / 1e6],
        ]
        heads = ["", "FLOPs (G)", "parameters (M)"]
        print("\n" + tabulate(rows, heads, "pipe", ".2f"))


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    options = build_parser(__doc__)
    options.add_argument("--json", default="", metavar="F", help="write the numbers to a file")
    add_config_options(options)
    args = options.parse_args(words)
    return run_command(lambda: analyze(args), debug=args.debug)

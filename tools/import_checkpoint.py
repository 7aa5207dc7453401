#!/usr/bin/env python
"""Convert weights of other code bases, and report what became of every key.

With --config-file, or for official-fed, the weights are brought to the shapes of that model, and
what does not fit stops the command; without one, they are renamed alone.
"""

from __future__ import annotations

import argparse
import sys

import torch
from methods import ADD_KEYS

from fed_plugin import official_weights
from occluded_reid.checkpoint.checkpointer import load_safely
from occluded_reid.checkpoint.conversion import Conversion, first_of
from occluded_reid.checkpoint.convert import (
    BACKBONES,
    fit_to,
    name_as_ours,
    report_of,
    summary_of,
    write_weights,
)
from occluded_reid.checkpoint.pretrained import read_weights
from occluded_reid.config import CfgNode, load_config
from occluded_reid.engine.defaults import weights_parser
from occluded_reid.modeling.build import build_untrained
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import write_json
from occluded_reid.utils.logs import setup_logging

OFFICIAL = "official-fed"


def convert(args: argparse.Namespace) -> None:
    """Read, rename, fit, report, write."""
    setup_logging()
    if args.memory and (args.source, args.target) != (OFFICIAL, "FEDOfficial"):
        raise UserError("--memory is for --source official-fed --for FEDOfficial")
    conversion = read_weights(args.input, trust=args.trust_checkpoint)
    if args.source == OFFICIAL:
        official_weights.name_as_ours(conversion, args.target)
        if args.target == "FEDOfficial":
            official_weights.add_memory(conversion, memory_of(args))
    else:
        name_as_ours(conversion, args.source)
    faults = []
    if args.config_file or args.opts or args.source == OFFICIAL:
        cfg = config_of(args, conversion)
        faults = fit_to(
            conversion,
            build_untrained(cfg),
            resize=cfg.MODEL.BACKBONE.POSITION_RESIZE,
            trust_own=args.source not in ("timm", "torchvision"),
        )
    report = report_of(conversion, faults, source=args.source, input=args.input, output=args.output)
    if args.report:
        write_json(args.report, report)
    print(summary_of(report))
    if faults:
        raise UserError(
            f"{args.input} does not fit the model: {first_of(faults)}. Does the configuration "
            f"describe these weights? Nothing was written to {args.output}"
        )
    write_weights(args.output, conversion)
    print(args.output)


def config_of(args: argparse.Namespace, conversion: Conversion) -> CfgNode:
    """The configuration of the model that the weights are for, with their number of identities."""
    words = ["MODEL.DEVICE", "cpu"]
    if args.source == OFFICIAL:
        words += ["MODEL.META_ARCHITECTURE", args.target]
        words += () if args.config_file else official_weights.CONFIG
    for name in ("heads.weight", "classifiers.erased.weight"):
        if name in conversion.weights:
            words += ["MODEL.HEADS.NUM_CLASSES", str(len(conversion.weights[name]))]
    return load_config(args.config_file, [*words, *args.opts], add_keys=ADD_KEYS)


def memory_of(args: argparse.Namespace) -> torch.Tensor | None:
    """The authors' memory file, one tensor; None where none is named."""
    if not args.memory:
        return None
    memory = load_safely(args.memory, trust=args.trust_checkpoint)
    if not torch.is_tensor(memory):
        raise UserError(f"{args.memory} holds no tensor: the authors' memory is one (I, 3072)")
    return memory


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = weights_parser(__doc__, "the model that the weights are for")
    add = options.add_argument
    add("--source", required=True, choices=(OFFICIAL, "fastreid", *BACKBONES))
    add("--input", required=True, metavar="A", help="a .pth, .npz or .safetensors file")
    add("--output", required=True, metavar="B", help="what is written, in fast-reid's form")
    add("--report", default="", metavar="R.json", help="what became of every key")
    add(
        "--for",
        dest="target",
        default="FED",
        choices=official_weights.TARGETS,
        help="official-fed: FED (inference) or FEDOfficial (its training parts too)",
    )
    add("--memory", default="", metavar="M", help="official-fed: the file of the memory bank")
    return options


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_args(words)
    return run_command(lambda: convert(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

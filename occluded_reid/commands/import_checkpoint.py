"""Convert weights of other code bases, and report what happened to every key.

With --config-file, or for official-fed, the weights are fitted to the shapes of that model, and
a misfit stops the command; otherwise they are only renamed.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from occluded_reid.utils.cli import add_common_options, build_parser, run_command

if TYPE_CHECKING:
    import torch

    from occluded_reid.checkpoint.conversion import Conversion
    from occluded_reid.config import CfgNode

OFFICIAL = "official-fed"


def convert_checkpoint(args: argparse.Namespace) -> None:
    """Read, rename, fit and write the weights; report every key."""
    from fed_plugin import official_weights
    from occluded_reid.checkpoint import convert
    from occluded_reid.checkpoint.conversion import join_first
    from occluded_reid.checkpoint.pretrained import read_weights
    from occluded_reid.checkpoint.resolve import resolve_weights
    from occluded_reid.modeling.build import build_untrained
    from occluded_reid.utils.errors import UserError
    from occluded_reid.utils.files import write_json
    from occluded_reid.utils.logs import setup_logging

    setup_logging()
    if args.memory and (args.source, args.target) != (OFFICIAL, "FEDOfficial"):
        raise UserError("--memory is for --source official-fed --for FEDOfficial")
    if os.path.isdir(args.input):
        _, args.input = resolve_weights(args.input)
    conversion = read_weights(args.input, trust=args.trust_checkpoint)
    if args.source == OFFICIAL:
        official_weights.translate_names(conversion, args.target)
        if args.target == "FEDOfficial":
            official_weights.add_memory(conversion, read_memory(args))
    else:
        convert.rename_to_ours(conversion, args.source)
    faults = []
    if args.config_file or args.opts or args.source == OFFICIAL:
        cfg = load_target_config(args, conversion)
        faults = convert.fit_to_model(
            conversion, build_untrained(cfg), resize=cfg.MODEL.BACKBONE.POSITION_RESIZE,
            trust_own=args.source not in ("timm", "torchvision"),
        )  # fmt: skip
    about = {"source": args.source, "input": args.input, "output": args.output}
    report = convert.build_report(conversion, faults, **about)
    if args.report:
        write_json(args.report, report)
    print(convert.summarize_report(report))
    if faults:
        raise UserError(
            f"{args.input} does not fit the model: {join_first(faults)}. Does the configuration "
            f"describe these weights? Nothing was written to {args.output}"
        )
    convert.write_weights(args.output, conversion)
    print(args.output)


def load_target_config(args: argparse.Namespace, conversion: Conversion) -> CfgNode:
    """Load the configuration of the target model, with the weights' number of identities."""
    from fed_plugin import official_weights
    from occluded_reid.config import load_config
    from occluded_reid.config.methods import installed_methods

    overrides = ["MODEL.DEVICE", "cpu"]
    if args.source == OFFICIAL:
        overrides += ["MODEL.META_ARCHITECTURE", args.target]
        overrides += () if args.config_file else official_weights.CONFIG
    for name in ("heads.weight", "classifiers.erased.weight"):
        if name in conversion.weights:
            overrides += ["MODEL.HEADS.NUM_CLASSES", str(len(conversion.weights[name]))]
    overrides += args.opts
    return load_config(args.config_file, overrides, add_keys=installed_methods())


def read_memory(args: argparse.Namespace) -> torch.Tensor | None:
    """Read the authors' memory file; None without --memory."""
    import torch

    from occluded_reid.checkpoint.reading import load_safely
    from occluded_reid.utils.errors import UserError

    memory = load_safely(args.memory, trust=args.trust_checkpoint) if args.memory else None
    if not (memory is None or torch.is_tensor(memory)):
        raise UserError(f"{args.memory} holds no tensor; the authors' memory is one of (I, 3072)")
    return memory


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    options = build_parser(__doc__)
    add = options.add_argument
    sources = (OFFICIAL, "fastreid", "torchreid", "transreid", "timm", "torchvision")
    add("--source", required=True, choices=sources)
    add("--input", required=True, metavar="A", help="a .pth, .npz or .safetensors file, or a run")
    add("--output", required=True, metavar="B", help="what is written, in fast-reid's form")
    add("--report", default="", metavar="R.json", help="what happened to every key")
    targets = ("FED", "FEDOfficial")
    target_help = "official-fed: FED (inference) or FEDOfficial (also its training parts)"
    add("--for", dest="target", default="FED", choices=targets, help=target_help)
    add("--memory", default="", metavar="M", help="official-fed: the file of the memory bank")
    add_common_options(options, config_help="the model that the weights are for")
    args = options.parse_args(words)
    return run_command(lambda: convert_checkpoint(args), debug=args.debug)

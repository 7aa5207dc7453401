#!/usr/bin/env python
"""Export a trained model as ONNX or in torch.export's format, and prove that it computes the same.

One input, images (B, 3, H, W) of float32 in 0-255, red first; two outputs, features (not
normalised) and visibility. What else its users must know stands beside it, in F.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from methods import ADD_KEYS

from occluded_reid.checkpoints import build_inference_model
from occluded_reid.config import load_config
from occluded_reid.engine.setup import show_log
from occluded_reid.errors import UserError, run_command
from occluded_reid.export import export


def export_model(args: argparse.Namespace) -> None:
    """Load, export, compare, write."""
    show_log()
    config = args.config_file or str(Path(args.weights).with_name("config.yaml"))
    if not args.config_file and not Path(config).is_file():
        raise UserError(f"there is no {config} beside the weights: name one with --config-file")
    cfg = load_config(config, [*args.opts, "MODEL.DEVICE", "cpu"], add_keys=ADD_KEYS)
    model = build_inference_model(cfg, args.weights, trust=args.trust_checkpoint)
    about = export(model, cfg, args.output, args.format)
    parity = about["parity"]
    print(
        f"{args.output}: features ({about['dim']},) compared by {about['metric']}, visibility "
        f"({about['parts']},); greatest difference from the model "
        f"{parity['max_abs_difference']:.1e} (at most {parity['tolerance']:g})"
    )
    print(f"{args.output}.json")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--weights", required=True, metavar="W", help="such as logs/RUN/model_final.pth")
    add("--format", required=True, choices=("onnx", "torch"))
    add("--output", required=True, metavar="F", help="such as model.onnx or model.pt2")
    add("--config-file", default="", metavar="FILE", help="default: config.yaml beside W")
    add("--trust-checkpoint", action="store_true", help="read Python objects: they can run code")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... of the configuration")
    return options


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_args(words)
    return run_command(lambda: export_model(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

#!/usr/bin/env python
"""Export a trained model: ONNX, OpenVINO or torch.export's format, and prove what it computes.

One input, images (B, 3, H, W) of float32 in 0-255, red first; two outputs, features (not
normalised) and visibility. What else its users must know stands beside it, in F.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from methods import ADD_KEYS

from occluded_reid.checkpoint.checkpointer import build_inference_model
from occluded_reid.config import load_config
from occluded_reid.deploy.export import export
from occluded_reid.deploy.formats import FORMATS, PRECISIONS
from occluded_reid.engine.defaults import setup_logging, weights_parser
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError


def export_model(args: argparse.Namespace) -> None:
    """Load, export, compare, write."""
    setup_logging()
    config = args.config_file or str(Path(args.weights).with_name("config.yaml"))
    if not args.config_file and not Path(config).is_file():
        raise UserError(f"there is no {config} beside the weights: name one with --config-file")
    cfg = load_config(config, [*args.opts, "MODEL.DEVICE", "cpu"], add_keys=ADD_KEYS)
    model = build_inference_model(cfg, args.weights, trust=args.trust_checkpoint)
    about = export(
        model,
        cfg,
        args.output,
        args.format,
        precision=args.precision,
        calibration=args.calibration,
        evaluate=args.evaluate,
    )
    parity = about["parity"]
    print(
        f"{args.output}: features ({about['dim']},) compared by {about['metric']}, visibility "
        f"({about['parts']},); greatest difference from the model "
        f"{parity['max_abs_difference']:.1e} in fp32 (at most {parity['tolerance']:g})"
    )
    if accuracy := about.get("accuracy"):
        loss = accuracy["one_minus_cosine"]
        print(
            f"{args.precision}: 1 - cosine {loss['mean']:.1e} in the mean, {loss['max']:.1e} at "
            f"most, on {accuracy['pictures']} pictures"
        )
    for name, metrics in about.get("results", {}).items():
        compared = (f"{m} {x['model']:.2f} -> {x['graph']:.2f}" for m, x in metrics.items())
        print(f"{name}: {', '.join(compared)}")
    print(f"{args.output}.json")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = weights_parser(__doc__, "default: config.yaml beside W")
    add = options.add_argument
    add("--weights", required=True, metavar="W", help="such as logs/RUN/model_final.pth")
    add("--format", required=True, choices=FORMATS)
    add("--output", required=True, metavar="F", help="such as model.onnx, model.xml or model.pt2")
    add("--precision", default="fp32", choices=PRECISIONS, help="of --format openvino")
    add(
        "--calibration",
        default="",
        metavar="DIR_OR_LIST",
        help="pictures for int8; a fifth of them is kept to measure what it costs",
    )
    add(
        "--evaluate",
        action="store_true",
        help="compare mAP and Rank-1 of model and graph on DATASETS.TESTS",
    )
    return options


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_args(words)
    return run_command(lambda: export_model(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

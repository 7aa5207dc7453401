"""Export a trained model to ONNX, OpenVINO or torch.export, and verify what the graph computes.

The graph has one input, images (B, 3, H, W) of float32 in 0-255, RGB, and two outputs, features
(not normalized) and visibility. F.json beside it describes both.
"""

from __future__ import annotations

import argparse

from occluded_reid.utils.cli import add_common_options, build_parser, run_command


def export_model(args: argparse.Namespace) -> None:
    """Load the model, export it, report how well the graph reproduces it."""
    from occluded_reid.checkpoint.resolve import resolve_run
    from occluded_reid.config import load_config
    from occluded_reid.config.methods import installed_methods
    from occluded_reid.deploy.export import export
    from occluded_reid.modeling.build import build_inference_model
    from occluded_reid.utils.logs import setup_logging

    setup_logging()
    config, weights = resolve_run(args.weights, args.config_file)
    overrides = [*args.opts, "MODEL.DEVICE", "cpu"]
    cfg = load_config(config, overrides, add_keys=installed_methods())
    model = build_inference_model(cfg, weights, trust=args.trust_checkpoint)
    description = export(
        model, cfg, args.output, args.format, precision=args.precision,
        calibration=args.calibration, evaluate=args.evaluate,
    )  # fmt: skip
    parity = description["parity"]
    print(
        f"{args.output}: features ({description['dim']},) compared by {description['metric']}, "
        f"visibility ({description['parts']},); largest difference from the model "
        f"{parity['max_abs_difference']:.1e} in fp32 (at most {parity['tolerance']:g})"
    )
    if accuracy := description.get("accuracy"):
        loss = accuracy["one_minus_cosine"]
        print(
            f"{args.precision}: 1 - cosine {loss['mean']:.1e} on average, at most "
            f"{loss['max']:.1e}, on {accuracy['pictures']} images"
        )
    for name, metrics in description.get("results", {}).items():
        changes = (f"{m} {x['model']:.2f} -> {x['graph']:.2f}" for m, x in metrics.items())
        print(f"{name}: {', '.join(changes)}")
    print(f"{args.output}.json")


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    options = build_parser(__doc__)
    add = options.add_argument
    add("--weights", required=True, metavar="RUN", help="a run's folder, a file, or a model's name")
    add("--format", required=True, choices=("torch", "onnx", "openvino"))
    add("--output", required=True, metavar="F", help="such as model.onnx, model.xml or model.pt2")
    add("--precision", default="fp32", choices=("fp32", "bf16", "int8"), help="of OpenVINO's graph")
    calibration = "images for int8; every fifth is held out to measure the loss"
    add("--calibration", default="", metavar="DIR_OR_LIST", help=calibration)
    evaluate = "compare mAP and Rank-1 of model and graph on DATASETS.TESTS"
    add("--evaluate", action="store_true", help=evaluate)
    add_common_options(options, config_help="default: config.yaml of the run or beside the weights")
    args = options.parse_args(words)
    return run_command(lambda: export_model(args), debug=args.debug)

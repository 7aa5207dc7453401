"""Make a model-zoo entry of a run: weights for inference, configuration, results, card, table row.

The folder appears only if evaluating the published weights gives the numbers of the run. It is an
entry in fast-reid's form (NAME-SHA256.pth, config.yaml, results.json) and a folder for the Hugging
Face Hub (weights.safetensors, reid_config.json, README.md). --package NAME, in a checkout, puts
the model into the package instead, in half precision, and into its registry, for load("NAME").
"""

from __future__ import annotations

import argparse

from occluded_reid.utils.cli import build_parser, run_command


def publish_model(args: argparse.Namespace) -> None:
    """Publish the run; print its rows and add them to the page."""
    from pathlib import Path

    from occluded_reid.deploy.hub import push, require_repository
    from occluded_reid.deploy.publish import add_rows, publish
    from occluded_reid.utils.logs import setup_logging

    setup_logging()
    if args.push:
        require_repository(args.push)
    rows = publish(
        args.weights or args.run, args.output, run=args.run, name=args.package or args.name,
        device=args.device, data_license=args.data_license, notes=args.notes,
        trust_checkpoint=args.trust_checkpoint, overrides=args.opts,
    )  # fmt: skip
    print(f"\nEvaluated from {args.output or args.package}: the numbers of the run\n{rows}")
    if args.zoo:
        add_rows(Path(args.zoo), rows)
    if args.push:
        print(push(Path(args.output), args.push))


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    options = build_parser(__doc__)
    add = options.add_argument
    add("--weights", metavar="RUN", help="an evaluated run's folder, or its weights file")
    add("--run", default="", metavar="DIR", help="of config.yaml and results.json; default: RUN's")
    place = options.add_mutually_exclusive_group(required=True)
    place.add_argument("--output", default="", metavar="DIR", help="folder to make")
    place.add_argument("--package", default="", metavar="NAME", help="put it into the package")
    add("--name", default="", help="of the model; default: the name of the run's folder")
    add("--zoo", default="", metavar="FILE", help="page that the row is added to: MODEL_ZOO.md")
    license_help = "of the training data, for the card; drawn data need none"
    add("--data-license", default="", metavar="TEXT", help=license_help)
    notes_help = "paragraphs for the card: what the model is good and bad at"
    add("--notes", default="", metavar="FILE.md", help=notes_help)
    add("--push", default="", metavar="hf://USER/REPO", help="upload the folder, too")
    add("--device", default="", help="to evaluate on; default: that of the run")
    add("--trust-checkpoint", action="store_true", help="read Python objects: they can run code")
    add("--debug", action="store_true", help="show the traceback of an error")
    overrides = "configuration overrides, such as the DATASETS.TESTS of results.json"
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help=overrides)
    args = options.parse_args(words)
    if not (args.weights or args.run):
        options.error("--weights is required")
    if args.push and args.package:
        options.error("--push needs --output")
    return run_command(lambda: publish_model(args), debug=args.debug)

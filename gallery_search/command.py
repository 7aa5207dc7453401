"""Search a gallery of images for the person in a picture.

build     create an index of the images below a folder, or resume an interrupted build
add       add the images that are new below the gallery's folder
query     print, and draw, the gallery images most similar to a query image
serve     serve a web page to search with
remove    remove images by path, camera or time
optimise  build an approximation for all images, or return to exact search
info      describe an index

Figures, filters, several folders and machines: docs/search.md.
"""

from __future__ import annotations

import argparse
import os
from importlib import import_module
from typing import TYPE_CHECKING

from gallery_search.store import KINDS
from gallery_search.web import MAX_HITS
from occluded_reid.utils.cli import positive_int, run_command

if TYPE_CHECKING:
    from occluded_reid.deploy.embedder import Embedder

# The module and the function behind each command; imported only when it runs.
_FUNCTIONS = {
    "build": ("indexing", "build"),
    "add": ("indexing", "add"),
    "query": ("querying", "query"),
    "serve": ("querying", "serve"),
    "remove": ("indexing", "remove"),
    "optimise": ("indexing", "optimize"),
    "info": ("indexing", "show_info"),
}


def load_model(args: argparse.Namespace, weights: str) -> Embedder:
    """Load the model that the options name."""
    from occluded_reid.deploy.embedder import load

    return load(
        weights,
        args.device,
        config=args.config_file,
        batch_size=getattr(args, "batch_size", 1),
        bf16=args.bf16,
        trust_checkpoint=args.trust_checkpoint,
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    lines = (line.split(maxsplit=1) for line in (__doc__ or "").splitlines() if line)
    descriptions = {name: text for name, text in lines if name in _FUNCTIONS}
    for name in _FUNCTIONS:
        options = commands.add_parser(name, description=descriptions[name])
        options.add_argument("--debug", action="store_true", help="show an error's traceback")
        several = {"action": "append"} if name in ("query", "serve") else {}
        options.add_argument("--index", required=True, metavar="DIR", **several)
        if name in ("build", "add"):
            _add_reading_options(options)
        if name in ("build", "add", "query", "serve"):
            _add_model_options(options, required=name == "build")
        if name in ("query", "remove"):
            _add_filter_options(options)
        if name in ("build", "optimise"):
            options.add_argument("--kind", default="auto", choices=("auto", *KINDS))
        if name == "query":
            _add_query_options(options)
        if name == "serve":
            _add_server_options(options)
        if name == "info":
            options.add_argument("--time", action="store_true", help="time 30 searches")
        if name == "remove":
            options.add_argument("paths", nargs="*", metavar="PATH", help="as 'query' prints them")
    return parser


def _add_reading_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--metadata", metavar="F.csv", help="columns path,camera,time,identity")
    options.add_argument("--batch-size", type=positive_int, default=64, metavar="N", help="64")
    workers = min(4, os.cpu_count() or 1)
    options.add_argument("--workers", type=int, default=workers, metavar="N", help=f"{workers}")


def _add_model_options(options: argparse.ArgumentParser, *, required: bool) -> None:
    default = "" if required else " (default: the index's)"
    options.add_argument(
        "--weights", required=required, metavar="W", help=f"weights, or a run's folder{default}"
    )
    options.add_argument(
        "--gallery", required=required, default="", metavar="DIR", help=f"images{default}"
    )
    options.add_argument("--config-file", default="", metavar="FILE", help="of the weights")
    options.add_argument("--device", metavar="cpu|cuda", help="default: as configured")
    options.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    options.add_argument("--trust-checkpoint", action="store_true", help="it can run code")


def _add_filter_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--camera", action="append", default=[], metavar="NAME", help="repeatable")
    options.add_argument("--since", metavar="TIME", help="a number, or 2024-05-31T16:20:00")
    options.add_argument("--until", metavar="TIME", help="inclusive")


def _add_query_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--image", action="append", required=True, metavar="IMG", help="a crop")
    options.add_argument("--top", type=positive_int, default=10, metavar="N", help="hits (10)")
    options.add_argument("--exact", action="store_true", help="compare every image")
    options.add_argument("--figure", metavar="F.png", help="draw the ranked list")
    options.add_argument("--json", metavar="F.json", help="write the hits")


def _add_server_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    options.add_argument("--port", type=int, default=7860, help="7860; 0 for a free one")
    hits = range(1, MAX_HITS + 1)
    options.add_argument(
        "--top", type=int, default=20, choices=hits, metavar="N", help="images at first (20)"
    )


def run(args: argparse.Namespace) -> None:
    """Run one command."""
    from occluded_reid.utils.logs import setup_logging

    setup_logging()
    module, function = _FUNCTIONS[args.command]
    getattr(import_module(f"gallery_search.{module}"), function)(args)


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = build_parser().parse_args(words)
    return run_command(lambda: run(args), debug=args.debug)

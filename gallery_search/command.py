"""Search a gallery of images for the person in a picture.

build     create an index of the images below a folder, or resume an interrupted build
add       add the images that are new or changed below the gallery's folder
import    create an index of the files of `extract --shard`, or add them
query     print, and draw, the gallery images most similar to a query image
serve     serve a web page to search with; with a folder of crops, index it first
calibrate choose from which similarity an answer is certain, on people who are known
remove    remove images by path, camera or time
optimise  build an approximation for all images, or return to exact search
info      describe an index

Figures, filters, several folders and machines: docs/search.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module

from gallery_search.store import KINDS, MILVUS
from gallery_search.web import MAX_HITS
from occluded_reid.utils.cli import build_parser, positive_int, run_command

# The module and the function behind each command; imported only when it runs.
_FUNCTIONS = {
    "build": ("indexing", "build"), "import": ("importing", "import_shards"),
    "add": ("indexing", "add"), "remove": ("indexing", "remove"),
    "optimise": ("indexing", "optimize"), "info": ("indexing", "show_info"),
    "query": ("querying", "query"), "serve": ("querying", "serve"),
    "calibrate": ("querying", "calibrate"),
}  # fmt: skip


def _add_options(name: str, add: Callable[..., object]) -> None:
    """Add the options of one command."""
    several = {"action": "append"} if name in ("query", "serve") else {}
    add("--debug", action="store_true", help="show an error's traceback")
    required, where = name != "serve", f"a folder, or {MILVUS}"
    add("--index", required=required, metavar="DIR", help=where, **several)
    if name == "import":
        add("--shards", required=True, metavar="DIR", help="the folder that extract wrote")
    if name in ("build", "add", "import", "serve"):
        add("--metadata", metavar="F.csv", help="columns path,camera,time,identity")
        restore = "an image that was removed is added again; repeatable"
        add("--restore", action="append", default=[], metavar="PATH", help=restore)
    if name in ("build", "add", "serve"):
        workers = min(4, os.cpu_count() or 1)
        add("--batch-size", type=positive_int, default=64, metavar="N", help="64")
        add("--workers", type=int, default=workers, metavar="N", help=f"{workers}")
    if name == "build":
        add("--video", default="", metavar="F.mp4", help="cut the gallery out of a video")
        boxes = "its boxes: frame,x0,y0,x1,y1 in a .csv, or MOTChallenge's in a .txt"
        add("--boxes", default="", metavar="FILE", help=boxes)
        add("--start", metavar="TIME", help="of the video's first frame, 2024-05-31T16:20:00")
    if name in ("build", "add", "query", "serve"):
        new = name == "build"
        default = "" if new else " (default: the index's)"
        weights = f"a run's folder, a file, or a model's name{default}"
        add("--weights", required=new, metavar="W", help=weights)
        add("--gallery", required=new, default="", metavar="DIR", help=f"images{default}")
        add("--config-file", default="", metavar="FILE", help="of the weights")
        add("--device", metavar="cpu|cuda", help="default: as configured")
        add("--bf16", action="store_true", help="compute in bfloat16")
        add("--trust-checkpoint", action="store_true", help="it can run code")
    if name in ("query", "remove"):
        add("--camera", action="append", default=[], metavar="NAME", help="repeatable")
        add("--since", metavar="TIME", help="a number, or 2024-05-31T16:20:00")
        add("--until", metavar="TIME", help="inclusive")
    if name in ("build", "import", "optimise"):
        add("--kind", default="auto", choices=("auto", *KINDS))
    if name == "query":
        add("--image", action="append", required=True, metavar="IMG", help="a crop")
        add("--top", type=positive_int, default=10, metavar="N", help="hits (10)")
        add("--exact", action="store_true", help="compare every image")
        add("--figure", metavar="F.png", help="draw the ranked list")
        add("--json", metavar="F.json", help="write the hits")
    if name == "serve":
        add("folder", nargs="?", metavar="FOLDER", help="of crops; or --index")
        add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
        add("--port", type=int, default=7860, help="7860; 0 for a free one")
        hits = range(1, MAX_HITS + 1)
        add("--top", type=int, default=40, choices=hits, metavar="N", help="pictures at first (40)")
        add("--thresholds", default="", metavar="F.json", help="of 'calibrate'")
        add("--no-browser", action="store_true", help="do not open a browser")
    if name == "calibrate":
        add("--output", required=True, metavar="F.json", help="for 'serve --thresholds'")
    if name == "info":
        add("--time", action="store_true", help="time 30 searches")
    if name == "remove":
        add("paths", nargs="*", metavar="PATH", help="as 'query' prints them")


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = build_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for line in (__doc__ or "").splitlines():
        name, _, text = line.partition(" ")
        if name in _FUNCTIONS:
            _add_options(name, commands.add_parser(name, description=text.strip()).add_argument)
    args = parser.parse_args(words)
    module, function = _FUNCTIONS[args.command]

    def run() -> None:
        from occluded_reid.utils.logs import setup_logging

        setup_logging()
        getattr(import_module(f"gallery_search.{module}"), function)(args)

    return run_command(run, debug=args.debug)

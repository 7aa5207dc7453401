"""Write the features of many images to an npz file.

It holds features (N, D) float32, visibility (N, P) float32, paths (N,), the metric to compare the
features by, the model's fingerprint, and as `broken` the paths of images that cannot be read. Those
are named at the end as well; the exit code is 0 unless no image can be read (2), or files or
folders cannot be opened (1).

The work is kept in parts beside the file: repeat the command after an interruption. Under torchrun,
or with RANK and WORLD_SIZE set on each machine, every process does its share of the parts, and the
first one joins them; all of them must see the output's folder.

With --shard or --ray, --output is a folder of Parquet files with id, path, camera, time, identity,
vector and visibility of each image, of a number of images each; `occluded-reid search import` reads
them. A file that is there is kept. See docs/scaling.md.
"""

from __future__ import annotations

import argparse
import os
import re
from functools import partial

from occluded_reid.utils.cli import add_common_options, build_parser, positive_int, run_command


def extract(args: argparse.Namespace) -> None:
    """Load the model and do this process's share."""
    from occluded_reid.deploy.bulk import drop_odd_names, extract_features, join_job
    from occluded_reid.deploy.embedder import load
    from occluded_reid.deploy.feature_file import list_images
    from occluded_reid.utils.logs import setup_logging

    setup_logging()
    rank, world_size = join_job()
    images = list_images(args.input)
    load_model = partial(
        load, args.weights, None, config=args.config_file, overrides=args.opts,
        batch_size=args.batch_size, bf16=args.bf16, trust_checkpoint=args.trust_checkpoint,
    )  # fmt: skip
    if args.shard or args.ray:
        from occluded_reid.deploy.shards import extract_shards

        weights = args.weights
        extract_shards(
            load_model, drop_odd_names(images, "are left out"), args.output,
            weights=os.path.abspath(weights) if os.path.exists(weights) else weights,
            part_size=args.part_size, workers=args.workers, shard=args.shard or (1, 1),
            ray_address=args.ray,
        )  # fmt: skip
        return
    extract_features(
        load_model(), images, args.output, part_size=args.part_size, workers=args.workers,
        rank=rank, world_size=world_size,
    )  # fmt: skip


def parse_shard(text: str) -> tuple[int, int]:
    """Read I/N for argparse.

    >>> parse_shard("2/8")
    (2, 8)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) <= int(match[2]) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 1/8 to 8/8")
    return int(match[1]), int(match[2])


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    options = build_parser(__doc__)
    add = options.add_argument
    add("--weights", required=True, metavar="RUN", help="a run's folder, a file, or a model's name")
    add("--input", required=True, metavar="DIR_OR_LIST", help="images, or a file of their paths")
    add("--output", required=True, metavar="F.npz", help="its parts lie in F.npz.parts")
    add("--batch-size", type=positive_int, default=64, metavar="N", help="images at a time (64)")
    workers = min(4, os.cpu_count() or 1)
    add("--workers", type=int, default=workers, metavar="N", help=f"reader processes ({workers})")
    add("--part-size", type=positive_int, default=2048, metavar="N", help="images in a part (2048)")
    shard = "write every N-th file of a folder of Parquet, from the I-th on; 0/N is N/N"
    add("--shard", type=parse_shard, metavar="I/N", help=shard)
    address = "let a Ray cluster write them: auto, local, or HOST:PORT"
    add("--ray", default="", metavar="ADDRESS", help=address)
    add("--bf16", action="store_true", help="compute in bfloat16; the features stay float32")
    add_common_options(options, config_help="default: config.yaml of the run or beside the weights")
    args = options.parse_args(words)
    return run_command(lambda: extract(args), debug=args.debug)

"""The command that reads the vectors of ``extract --shard`` or ``--ray`` into a gallery."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from gallery_search import Item, Store, Writer, create_store, has_store, open_store
from gallery_search.indexing import print_info
from gallery_search.store.metadata import read_table
from gallery_search.store.similarity import prepare_vectors
from occluded_reid.deploy.shards import ShardInfo, ShardRows, read_info, read_shard
from occluded_reid.utils.errors import IncompleteWork, UserError
from occluded_reid.utils.progress import progress

logger = logging.getLogger(__name__)


def import_shards(args: argparse.Namespace) -> None:
    """Create a gallery from Parquet files, or add them to it; each may be imported again."""
    files, info = list_shards(args.shards)
    if not has_store(args.index):
        create_store(
            args.index, metric=info.metric, dim=info.dim, num_parts=info.num_parts,
            fingerprint=info.model, weights=info.weights, gallery=info.gallery,
        )  # fmt: skip
    store = open_store(args.index, info.model)
    table = read_table(args.metadata, info.gallery) if args.metadata else {}
    left_out = store.withdrawn().difference(args.restore)
    seen = unreadable = 0
    with store.writer() as writer:
        for path in progress(files, total=len(files), description="Importing", unit="files"):
            for rows in read_shard(path, info):
                seen += len(rows.vectors) + rows.unreadable
                unreadable += rows.unreadable
                add_rows(store, writer, rows, table, left_out)
        if store.is_outdated(args.kind):
            writer.optimize(args.kind)
    print_info(store)
    if left_out:
        logger.info(f"{len(left_out)} images were removed before; --restore PATH adds one")
    if unreadable:
        logger.warning(f"{unreadable} images could not be read and have no vector")
    if seen < info.total:
        raise IncompleteWork(
            f"{args.shards} holds {seen} of the {info.total} images of its job; repeat 'extract', "
            "then this command"
        )


def list_shards(folder: str) -> tuple[list[Path], ShardInfo]:
    """Return the Parquet files of a folder and what their job is, which they must share."""
    files = sorted(Path(folder).glob("*.parquet"))
    if not files:
        raise UserError(f"there are no .parquet files in {folder}")
    info = read_info(files[0])
    for path in files[1:]:
        if read_info(path) != info:
            raise UserError(
                f"{path} is of another job than {files[0]}; they do not belong together"
            )
    return files, info


def add_rows(
    store: Store, writer: Writer, rows: ShardRows, table: dict[str, Item], left_out: set[str]
) -> None:
    """Add images, unless they were removed or are there with the same vector and metadata."""
    names = ("path", "camera", "time", "identity")
    items = [Item(*values) for values in zip(*(rows.table[name] for name in names), strict=True)]
    items = [table.get(item.path, item) for item in items]
    info = store.info()
    vectors = prepare_vectors(rows.vectors, info.metric, info.dim, rows.table["path"])
    present = {hit.id: hit for hit in store.look_up(rows.table["id"])}

    def is_new(number: int, item: Item) -> bool:
        hit = present.get(rows.table["id"][number])
        return (
            hit is None
            or hit.item != item
            or bool(np.abs(hit.features - vectors[number]).max() > 1e-6)
        )

    new = [n for n, item in enumerate(items) if item.path not in left_out and is_new(n, item)]
    if new:
        writer.add([items[n] for n in new], rows.vectors[new], rows.visibility[new], overwrite=True)

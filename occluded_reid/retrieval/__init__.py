"""Gallery search: vectors on the disk, faiss, and what is known of each image in SQLite."""

from occluded_reid.retrieval.gallery import GalleryIndex, Hit, Known
from occluded_reid.retrieval.metadata import Filter, Item
from occluded_reid.retrieval.shards import merged, search_shards
from occluded_reid.retrieval.writer import Writer

__all__ = ["Filter", "GalleryIndex", "Hit", "Item", "Known", "Writer", "merged", "search_shards"]

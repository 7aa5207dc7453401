"""Gallery search: vectors on the disk, faiss, and what is known of each image in SQLite."""

from gallery_search.gallery import GalleryIndex, Hit, Known
from gallery_search.metadata import Filter, Item
from gallery_search.shards import merged, search_shards
from gallery_search.writer import Writer

__all__ = ["Filter", "GalleryIndex", "Hit", "Item", "Known", "Writer", "merged", "search_shards"]

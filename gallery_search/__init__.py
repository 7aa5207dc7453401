"""Gallery search: ``open_store`` opens a folder (faiss and SQLite) or a Milvus collection."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gallery_search.store.index import GalleryIndex
    from gallery_search.store.metadata import Filter, Hit, Item
    from gallery_search.store.protocol import (
        Store,
        Writer,
        create_store,
        has_store,
        open_store,
        search_indexes,
    )

__all__ = [
    "Filter", "GalleryIndex", "Hit", "Item", "Store", "Writer", "create_store", "has_store",
    "open_store", "search_indexes",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what ``__all__`` names on first use (PEP 562), so that ``--help`` stays fast."""
    for module in ("metadata", "protocol", "index") if name in __all__ else ():
        found = import_module(f"gallery_search.store.{module}")
        if hasattr(found, name):
            return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

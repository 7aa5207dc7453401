"""Gallery search: vectors lie in a file, metadata in SQLite; faiss searches."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gallery_search.store.index import GalleryIndex, search_indexes
    from gallery_search.store.metadata import Filter, Hit, Item
    from gallery_search.store.writer import Writer

__all__ = ["Filter", "GalleryIndex", "Hit", "Item", "Writer", "search_indexes"]


def __getattr__(name: str) -> Any:
    """Import what ``__all__`` names on first use (PEP 562), so that ``--help`` stays fast."""
    for module in ("metadata", "index", "writer") if name in __all__ else ():
        found = import_module(f"gallery_search.store.{module}")
        if hasattr(found, name):
            return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

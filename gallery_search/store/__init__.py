"""Where a gallery is kept: a folder, or Milvus."""

from occluded_reid.utils.errors import UserError

MILVUS = "milvus://HOST:PORT/NAME or milvus:///FILE.db"  # addresses
KINDS = ("exact", "hnsw", "ivf", "ivfpq")


def explain_damage(path: object, reason: str) -> UserError:
    """Return the error for a file of an index that cannot be used."""
    return UserError(f"{path} {reason}; is the disk full? If not, restore a copy or build it anew")

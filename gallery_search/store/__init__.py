"""An index in a folder: vectors, metadata, and an optional approximation."""

from occluded_reid.utils.errors import UserError

KINDS = ("exact", "hnsw", "ivf", "ivfpq")


def explain_damage(path: object, reason: str) -> UserError:
    """Return the error for a file of an index that cannot be used."""
    return UserError(f"{path} {reason}; is the disk full? If not, restore a copy or build it anew")

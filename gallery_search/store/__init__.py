"""An index in a folder: vectors, metadata, and an optional approximation."""

KINDS = ("exact", "hnsw", "ivf", "ivfpq")

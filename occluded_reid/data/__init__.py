"""From image files to batches."""

import occluded_reid.compat  # noqa: F401

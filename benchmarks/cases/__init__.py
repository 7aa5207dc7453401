"""Models, batches and steps at the papers' sizes."""

import occluded_reid.compat  # noqa: F401  # before fast-reid

"""Plain implementations of what a user would run instead."""

import occluded_reid.compat  # noqa: F401  # before fast-reid

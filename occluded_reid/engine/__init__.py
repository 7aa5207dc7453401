"""Training and evaluation on fast-reid's engine."""

import occluded_reid.compat  # noqa: F401

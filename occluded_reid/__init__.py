"""Occluded person re-identification on fast-reid: what FED and AONet share.

Importing this package makes fast-reid 1.4.0 run on current Python and PyTorch
(:mod:`occluded_reid.compat`) and registers our backbones and data sets.
"""

from typing import TYPE_CHECKING, Any

from occluded_reid import compat as _compat

_compat.apply()

from occluded_reid import backbones as _backbones  # noqa: E402, F401  (registers)
from occluded_reid import datasets as _datasets  # noqa: E402, F401  (registers)
from occluded_reid.config import add_occluded_reid_config, get_cfg, load_config  # noqa: E402

if TYPE_CHECKING:
    from occluded_reid.embedding import load

__all__ = ["add_occluded_reid_config", "get_cfg", "load", "load_config"]
__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    """Import :func:`load`, and what it needs, when it is first asked for."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from occluded_reid.embedding import load

    return load

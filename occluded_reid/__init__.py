"""Occluded person re-identification on fast-reid: what FED and AONet share.

Importing this package imports nothing else; what it names is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from occluded_reid.config import get_cfg, load_config
    from occluded_reid.deploy.embedder import load

__all__ = ["get_cfg", "load", "load_config"]
__version__ = "0.1.0"

_HOMES = {
    "get_cfg": "occluded_reid.config",
    "load": "occluded_reid.deploy.embedder",
    "load_config": "occluded_reid.config",
}


def __getattr__(name: str) -> Any:
    """Import what ``__all__`` names when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

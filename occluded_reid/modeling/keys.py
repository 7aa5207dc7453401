"""Which keys a method reads: the others change nothing, and are kept out of a run's config.yaml."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import yaml
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from occluded_reid.config import get_cfg, leaves
from occluded_reid.config.methods import installed_methods

logger = logging.getLogger(__name__)

OF_EVERY_MODEL = (
    "MODEL.BACKBONE.", "MODEL.CHANNELS_LAST", "MODEL.COMPILE", "MODEL.DEVICE", "MODEL.EMA.",
    "MODEL.FREEZE_LAYERS", "MODEL.META_ARCHITECTURE", "MODEL.PIXEL_", "MODEL.WEIGHTS",
)  # fmt: skip


def list_unread_keys(cfg: CfgNode) -> list[str]:
    """List the keys below ``MODEL`` that nothing reads.

    A meta-architecture declares those it reads, or how they begin, in ``reads_keys``, besides
    :data:`OF_EVERY_MODEL`. One that declares nothing, such as fast-reid's, may read any.

    >>> "MODEL.LOSSES.NAME" in list_unread_keys(load_config("projects/FED/configs/synthetic.yml"))
    True
    """
    model = META_ARCH_REGISTRY._obj_map.get(cfg.MODEL.META_ARCHITECTURE)  # None: refused later
    read = (*OF_EVERY_MODEL, *getattr(model, "reads_keys", ("MODEL.",)))
    return [key for key, _ in leaves(cfg) if key.startswith("MODEL.") and not key.startswith(read)]


def warn_of_unread_keys(cfg: CfgNode) -> None:
    """Name in one warning the keys that are set and that nothing reads."""
    defaults, values = dict(leaves(get_cfg(installed_methods()))), dict(leaves(cfg))
    unread = [key for key in list_unread_keys(cfg) if values[key] != defaults.get(key)]
    if unread:
        logger.warning(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} does not read "
            f"{', '.join(unread)}: what is set there changes nothing"
        )


def dump_config(cfg: CfgNode) -> str:
    """Return the YAML of ``cfg`` without the keys that nothing reads."""
    content = _leave_out(yaml.safe_load(cfg.dump()), set(list_unread_keys(cfg)))
    return str(yaml.safe_dump(content))


def _leave_out(node: dict[str, Any], keys: Collection[str], prefix: str = "") -> dict[str, Any]:
    kept = {}
    for name, value in node.items():
        if isinstance(value, dict) and value:
            if below := _leave_out(value, keys, f"{prefix}{name}."):
                kept[name] = below
        elif f"{prefix}{name}" not in keys:
            kept[name] = value
    return kept

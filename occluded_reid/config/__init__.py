"""Every key of the configuration, and how it is read."""

import occluded_reid.compat  # noqa: F401
from occluded_reid.config.config import (
    AddKeys,
    CfgNode,
    changed_copy,
    check_ranges,
    get_cfg,
    leaves,
    load_config,
    replays_cuda_graphs,
)
from occluded_reid.config.defaults import add_occluded_reid_config

__all__ = [
    "AddKeys",
    "CfgNode",
    "add_occluded_reid_config",
    "changed_copy",
    "check_ranges",
    "get_cfg",
    "leaves",
    "load_config",
    "replays_cuda_graphs",
]

"""Every key of the configuration, and how it is read."""

from occluded_reid import compat

compat.apply()

from occluded_reid.config.config import (  # noqa: E402
    AddKeys,
    CfgNode,
    changed_copy,
    check_ranges,
    get_cfg,
    leaves,
    load_config,
    replays_cuda_graphs,
)
from occluded_reid.config.defaults import add_occluded_reid_config  # noqa: E402

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

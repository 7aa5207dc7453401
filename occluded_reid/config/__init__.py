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
    parse_yaml,
    read_yaml,
    replays_cuda_graphs,
)

__all__ = [
    "AddKeys", "CfgNode", "changed_copy", "check_ranges", "get_cfg", "leaves", "load_config",
    "parse_yaml", "read_yaml", "replays_cuda_graphs",
]  # fmt: skip

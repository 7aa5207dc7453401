"""Occluded person re-identification on fast-reid: what FED and AONet share.

Importing this package makes fast-reid 1.4.0 run on current Python and PyTorch
(:mod:`occluded_reid.compat`) and registers our backbones and data sets.
"""

from occluded_reid import compat as _compat

_compat.apply()

from occluded_reid import backbones as _backbones  # noqa: E402, F401  (registers)
from occluded_reid import datasets as _datasets  # noqa: E402, F401  (registers)
from occluded_reid.config import add_occluded_reid_config, get_cfg, load_config  # noqa: E402

__all__ = ["add_occluded_reid_config", "get_cfg", "load_config"]
__version__ = "0.1.0.dev0"

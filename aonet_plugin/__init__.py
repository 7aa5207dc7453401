"""AONet: Attentional Occlusion-aware Network for occluded person re-identification, Gao et al.

Importing this package registers the meta-architecture ``AONet``; its keys come with
``load_config(..., add_keys=[add_aonet_config])``.
"""

import occluded_reid.compat  # noqa: F401  (first: makes fast-reid importable)
import occluded_reid.modeling.backbones  # noqa: F401  (registers the ViT)
from aonet_plugin.config import add_aonet_config
from aonet_plugin.meta_arch import AONet

__all__ = ["AONet", "add_aonet_config"]

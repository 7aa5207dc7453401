"""FED: Feature Erasing and Diffusion Network for occluded person re-identification (CVPR 2022).

Importing this package registers the meta-architectures ``FED`` and ``FEDOfficial``; their keys come
with ``load_config(..., add_keys=[add_fed_config])``.
"""

import occluded_reid.compat  # noqa: F401  (first: makes fast-reid importable)
import occluded_reid.modeling.backbones  # noqa: F401  (registers the ViT)
from fed_plugin.config import add_fed_config
from fed_plugin.meta_arch import FED
from fed_plugin.official import FEDOfficial

__all__ = ["FED", "FEDOfficial", "add_fed_config"]

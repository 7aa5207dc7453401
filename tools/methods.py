"""The methods that the commands know: importing this registers them with fast-reid.

Ours are named here, so that a source tree works without an installation; others are found by their
entry points.
"""

from aonet_plugin import add_aonet_config
from fed_plugin import add_fed_config
from occluded_reid.config.methods import installed_methods

ADD_KEYS = tuple(dict.fromkeys((add_aonet_config, add_fed_config, *installed_methods())))

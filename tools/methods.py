"""The methods that the commands know: importing this registers them with fast-reid."""

from aonet_plugin import add_aonet_config
from fed_plugin import add_fed_config

ADD_KEYS = (add_aonet_config, add_fed_config)

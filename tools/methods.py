"""The methods that the commands know: importing this registers them with fast-reid."""

from fed_plugin import add_fed_config

ADD_KEYS = (add_fed_config,)

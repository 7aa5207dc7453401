"""The keys of the installed methods; use occluded_reid.config.methods.installed_methods()."""

from occluded_reid.config.methods import installed_methods

ADD_KEYS = installed_methods()

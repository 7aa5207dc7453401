"""The methods that are installed, found by their entry points.

A method is a package that registers a meta-architecture with fast-reid and adds its keys to the
configuration. It names the function that adds them in the group ``occluded_reid.methods`` of its
pyproject.toml; so this package reads every method's runs without importing one by name.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from occluded_reid.config.config import AddKeys
from occluded_reid.utils.errors import UserError

GROUP = "occluded_reid.methods"

# So that a source tree works without an installation.
_OURS = (
    EntryPoint("aonet", "aonet_plugin:add_aonet_config", GROUP),
    EntryPoint("fed", "fed_plugin:add_fed_config", GROUP),
)


def installed_methods() -> tuple[AddKeys, ...]:
    """Import the installed methods; return the functions that add their keys, by name.

    >>> cfg = load_config("projects/FED/configs/market1501.yml", add_keys=installed_methods())
    """
    methods = {entry.name: entry for entry in _OURS if find_spec(entry.module) is not None}
    methods |= {entry.name: entry for entry in entry_points(group=GROUP)}
    add_keys: list[AddKeys] = []
    for name, entry in sorted(methods.items()):
        try:
            add_keys.append(entry.load())
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"the method {name} ({entry.value}) cannot be imported: {error}; "
                "install it again or remove it"
            ) from error
    return tuple(add_keys)

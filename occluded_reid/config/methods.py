"""The methods that are installed, found by their entry points.

A method is a package that registers a meta-architecture with fast-reid and adds its keys to the
configuration. It names the function that adds them in the group ``occluded_reid.methods`` of its
pyproject.toml; so this package reads every method's runs without importing one by name.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from occluded_reid.config import AddKeys
from occluded_reid.utils.errors import UserError

GROUP = "occluded_reid.methods"


def installed_methods() -> tuple[AddKeys, ...]:
    """Import the installed methods; return the functions that add their keys, by name.

    Raises:
        UserError: a method cannot be imported.
    """
    found: list[AddKeys] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            found.append(entry.load())
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"the method {entry.name} ({entry.value}) cannot be imported: {error}; "
                "install it again or remove it"
            ) from error
    return tuple(found)

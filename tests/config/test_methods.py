"""Methods are found by their entry points, ours also in a source tree that is not installed."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from aonet_plugin import add_aonet_config
from fed_plugin import add_fed_config
from occluded_reid.config import methods
from occluded_reid.utils.errors import UserError


def test_methods_are_found_by_entry_point_and_ours_by_name(monkeypatch) -> None:
    installed: list[EntryPoint] = []
    monkeypatch.setattr(methods, "entry_points", lambda group: installed)
    assert methods.installed_methods() == (add_aonet_config, add_fed_config)
    installed.append(EntryPoint("fed", "fed_plugin.config:add_fed_config", methods.GROUP))
    installed.append(EntryPoint("other", "builtins:print", methods.GROUP))
    assert methods.installed_methods() == (add_aonet_config, add_fed_config, print)
    installed.append(EntryPoint("gone", "no_such_package:add_config", methods.GROUP))
    with pytest.raises(UserError, match="the method gone .* cannot be imported"):
        methods.installed_methods()

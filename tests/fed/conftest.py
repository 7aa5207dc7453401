"""What FED's tests share."""

from __future__ import annotations

import pytest
from tiny_runs import drawn_market, market_as_data, same_chance_in_any_order

__all__ = ["drawn_market", "market_as_data", "same_chance_in_any_order"]


@pytest.fixture(autouse=True)
def chance(same_chance_in_any_order: None) -> None:
    """For every test of this folder."""

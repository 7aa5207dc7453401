"""Fixtures of FED's tests."""

from __future__ import annotations

import pytest
from tiny_runs import fixed_seed, market_dataset, market_root

__all__ = ["market_root", "market_dataset", "fixed_seed"]


@pytest.fixture(autouse=True)
def seed(fixed_seed: None) -> None:
    """Seed every test in this folder."""

"""What FED's tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def same_chance_in_any_order() -> None:
    torch.manual_seed(0)

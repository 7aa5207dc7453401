"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # it asks the address for more than files

import occluded_reid.compat  # noqa: E402, F401


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a tiny Market-1501 for the tests of a file."""
    from runs import draw_market

    return draw_market(tmp_path_factory.mktemp("market"))


@pytest.fixture
def data_root(market: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the data sets be read from ``market``."""
    monkeypatch.setenv("FASTREID_DATASETS", str(market))

"""Freed memory stays with the process."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from occluded_reid.deploy import bulk
from occluded_reid.deploy.feature_file import ImageList

COUNT_FAULTS = """
import resource, sys
import numpy as np
from occluded_reid.utils.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_blocks_are_not_fetched_again() -> None:
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", COUNT_FAULTS, mode], text=True))
        for mode in ("return", "keep")
    }
    assert faults["keep"] < faults["return"] / 10


def test_bulk_embedding_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(bulk, "keep_freed_memory", lambda: kept.append(True))
    embedder: Any = SimpleNamespace(transform=None, device=torch.device("cpu"))
    options = {"workers": 0, "description": "", "show_progress": False}
    assert list(bulk.load_batches(ImageList("", np.array([])), [], embedder, **options)) == []
    assert kept == [True]

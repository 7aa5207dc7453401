"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

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

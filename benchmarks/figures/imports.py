"""Processor time of fresh interpreters, each in turn with ``import torch``."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from cases.training import THIN
from harness.comparison import Figure, make_figure

from occluded_reid.checkpoint.checkpointer import Checkpointer

ROOT = Path(__file__).parents[2]
EMBED = """
import sys
import numpy
from occluded_reid import load
load(sys.argv[1]).embed([numpy.zeros((64, 32, 3), numpy.uint8)])
"""


def measure_imports(rounds: int = 5) -> dict[str, Figure]:
    """Compare processor seconds; a ratio above 1 means less time than ``import torch``."""
    tools = sorted(str(path) for path in (ROOT / "tools").glob("*.py"))
    with tempfile.TemporaryDirectory() as folder:
        case = THIN.smaller(blocks=1, identities=8)  # a small run
        Checkpointer(case.build_model(), folder).save("model_final")
        Path(folder, "config.yaml").write_text(case.build_cfg().dump(), encoding="utf-8")
        works = {
            "torch": ("-c", "import torch"),
            "import": ("-c", "import occluded_reid"),
            "import_embed": ("-c", EMBED, folder),
            **{tool: (tool, "--help") for tool in tools},
        }
        # the first round writes bytecode and fills the page cache
        measured = [
            {name: run_interpreter(words) for name, words in works.items()}
            for _ in range(rounds + 1)
        ][1:]
    seconds = {name: [each[name] for each in measured] for name in works}
    slowest = max(tools, key=lambda tool: sorted(seconds[tool])[rounds // 2])
    figures = {}
    for name, key, text in (
        ("import", "import", "import occluded_reid"),
        ("import_embed", "import_embed", "load a small run and embed one image"),
        ("import_help", slowest, f"--help of {Path(slowest).name}, the slowest of {len(tools)}"),
    ):
        unit = f"processor s, {text}, against import torch"
        figures[name] = make_figure((seconds[key], seconds["torch"]), unit)
    return figures


def run_interpreter(words: tuple[str, ...]) -> float:
    """Return the processor seconds of a fresh interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

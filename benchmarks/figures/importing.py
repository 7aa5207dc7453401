"""``import*``: processor time of imports and ``--help``, each against ``import torch``.

Fresh interpreters run in turn; a ratio above 1 means less time than ``import torch`` takes.

``import``: ``import occluded_reid``.
``import_embed``: also load a small run and embed one image.
``import_help``: ``--help`` of the slowest command in ``tools/``.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from cases.fed_case import THIN, build_fed, build_fed_cfg
from harness.comparison import Figure, make_figure

from occluded_reid.checkpoint.checkpointer import Checkpointer

NAMES = ("import", "import_embed", "import_help")
ROOT = Path(__file__).parents[2]
TORCH = ("-c", "import torch")
EMBED = """
import sys
import numpy
from occluded_reid import load
load(sys.argv[1]).embed([numpy.zeros((64, 32, 3), numpy.uint8)])
"""


def measure(rounds: int = 5) -> dict[str, Figure]:
    """Compare processor seconds."""
    tools = sorted(str(path) for path in (ROOT / "tools").glob("*.py"))
    with tempfile.TemporaryDirectory() as folder:
        save_run(Path(folder))
        works = {
            "import": ("-c", "import occluded_reid"),
            "import_embed": ("-c", EMBED, folder),
            **{tool: (tool, "--help") for tool in tools},
        }
        for words in (TORCH, *works.values()):
            run_interpreter(words)  # writes bytecode and fills the page cache
        seconds: dict[str, list[float]] = {name: [] for name in works}
        reference = []
        for _ in range(rounds):
            reference.append(run_interpreter(TORCH))
            for name, words in works.items():
                seconds[name].append(run_interpreter(words))
    slowest = max(tools, key=lambda tool: sorted(seconds[tool])[rounds // 2])
    rows = {
        "import": ("import", "import occluded_reid"),
        "import_embed": ("import_embed", "load a small run and embed one image"),
        "import_help": (slowest, f"--help of {Path(slowest).name}, the slowest of {len(tools)}"),
    }
    return {
        name: make_figure((seconds[key], reference), f"processor s, {text}, against import torch")
        for name, (key, text) in rows.items()
    }


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


def save_run(folder: Path) -> None:
    """Write the weights and configuration of a small FED model."""
    case = THIN.smaller(blocks=1, identities=8)
    Checkpointer(build_fed(case), str(folder)).save("model_final")
    (folder / "config.yaml").write_text(build_fed_cfg(case).dump(), encoding="utf-8")

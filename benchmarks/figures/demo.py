"""What ``make demo`` runs, command by command, in a folder of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.comparison import Figures, make_figure

from figures.imports import ROOT
from occluded_reid.commands.demo import list_commands

DRAW = "import sys; from occluded_reid.synthetic import generate; generate(*sys.argv[1:])"
MAIN = ("-m", "occluded_reid.commands.main")


def measure_demo(size: str = "small", options: tuple[str, ...] = ()) -> Figures:
    """Measure the wall seconds of each stage, against its processor seconds, workers included.

    ``demo_evaluation`` repeats as a command what training ends with; ``demo`` does not count it.
    """
    with tempfile.TemporaryDirectory() as home:
        train, *figures = list_commands(Path(home, "run"))
        stages = {
            "drawing": [["-c", DRAW, home, size]],
            "training": [[*MAIN, *train, *options]],
            "figures": [[*MAIN, *words] for words in figures],
            "evaluation": [[*MAIN, "evaluate", "--weights", f"{home}/run"]],
        }
        walls, processors = [], []
        for stage, commands in stages.items():
            start, before = time.perf_counter(), read_processor_time()
            for words in commands:
                run_python(words, home)
            walls.append(time.perf_counter() - start)
            processors.append(read_processor_time() - before)
            unit = f"wall s of the demo's {stage}, against processor s"
            yield f"demo_{stage}", make_figure(([walls[-1]], [processors[-1]]), unit)
        unit = "wall s of the demo, against processor s"
        yield "demo", make_figure(([sum(walls[:3])], [sum(processors[:3])]), unit)


def read_processor_time() -> float:
    """Return the seconds of all ended children of this process and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_python(words: list[str], datasets: str) -> None:
    """Run a fresh interpreter as the demo does, with other data sets."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FASTREID_DATASETS": datasets}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, *words]
    subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=True)

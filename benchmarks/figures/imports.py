"""Processor time of fresh interpreters, in turn with what a user would run without this toolbox."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
import torch
from harness.comparison import Figure, make_figure

ROOT = Path(__file__).parents[2]
EMBED = """
import numpy, occluded_reid
occluded_reid.load("fed-lite0-drawn").embed([numpy.zeros((96, 40, 3), numpy.uint8)])
"""
BARE = """
import sys, numpy, timm, torch
from PIL import Image
network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
network.load_state_dict(torch.load(sys.argv[1], weights_only=True))
crop = Image.fromarray(numpy.zeros((96, 40, 3), numpy.uint8)).resize((64, 128))
pixels = torch.from_numpy(numpy.array(crop)).permute(2, 0, 1)[None]
with torch.inference_mode():
    network((pixels.float() - 127) / 128)
"""


def measure_imports(rounds: int = 5) -> dict[str, Figure]:
    """Compare processor seconds; a ratio above 1 means less time than the reference."""
    tools = sorted(str(path) for path in (ROOT / "tools").glob("*.py"))
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/network.pth"
        torch.save(timm.create_model("tf_efficientnet_lite0", num_classes=0).state_dict(), weights)
        works = {
            "torch": ("-c", "import torch"),
            "bare": ("-c", BARE, weights),
            "import": ("-c", "import occluded_reid"),
            "import_embed": ("-c", EMBED),
            **{tool: (tool, "--help") for tool in tools},
        }
        # the first round writes bytecode and fills the page cache
        measured = [
            {name: measure_interpreter(words) for name, words in works.items()}
            for _ in range(rounds + 1)
        ][1:]
    seconds = {name: [each[name] for each in measured] for name in works}
    slowest = max(tools, key=lambda tool: sorted(seconds[tool])[rounds // 2])
    bare = "the same network in bare PyTorch and timm"
    figures = {}
    for name, key, text, reference, of in (
        ("import", "import", "import occluded_reid", "torch", "import torch"),
        ("import_embed", "import_embed", "load a model and embed one image", "bare", bare),
        (
            "import_help", slowest, f"--help of {Path(slowest).name}, the slowest of {len(tools)}",
            "torch", "import torch",
        ),
    ):  # fmt: skip
        unit = f"processor s, {text}, against {of}"
        figures[name] = make_figure((seconds[key], seconds[reference]), unit)
    return figures


def measure_interpreter(words: tuple[str, ...]) -> float:
    """Return the processor seconds of a fresh interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_interpreter(words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_interpreter(words: tuple[str, ...], **variables: str) -> str:
    """Return what a fresh interpreter with one thread prints."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.check_output([sys.executable, *words], cwd=ROOT, env=environment, text=True)

"""Imports stay light: what a command or an inference does not use, it does not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
LIGHT = (
    "occluded_reid",
    "occluded_reid.utils.cli",
    "occluded_reid.utils.errors",
    "occluded_reid.utils.files",
)
UNUSED_IN_INFERENCE = (
    "faiss", "fastreid.engine", "fastreid.evaluation", "matplotlib", "pandas", "scipy", "sklearn",
    "tensorboard", "timm",
)  # fmt: skip

EMBED = """
import numpy as np, occluded_reid
from occluded_reid.config import get_cfg, methods
cfg = get_cfg(methods.installed_methods())
cfg.merge_from_list([
    "MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.FEAT_DIM", 512, "MODEL.DEVICE", "cpu",
    "MODEL.BACKBONE.PRETRAIN", False, "INPUT.SIZE_TEST", [64, 32], "MODEL.HEADS.NUM_CLASSES", 2,
])
open("config.yaml", "w").write(cfg.dump())
import torch
from occluded_reid.modeling.build import build_model
torch.save({"model": build_model(cfg).state_dict()}, "model_final.pth")
embedder = occluded_reid.load(".")
assert embedder.embed([np.zeros((64, 32, 3), np.uint8)]).features.shape == (1, 512)
"""


def list_imported(code: str, names: tuple[str, ...], folder: Path) -> str:
    """Run ``code`` in a process of its own; return which of ``names`` it has imported."""
    report = f"import sys; print('imported:', sorted(set({names}) & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.rpartition("imported: ")[2].strip()


@pytest.mark.parametrize("module", LIGHT)
def test_import_needs_neither_torch_nor_fastreid(module: str, tmp_path: Path) -> None:
    assert list_imported(f"import {module}", ("fastreid", "numpy", "torch"), tmp_path) == "[]"


@pytest.mark.parametrize("tool", TOOLS)
def test_help_needs_neither_torch_nor_fastreid(tool: str, tmp_path: Path) -> None:
    path = str(ROOT / "tools" / f"{tool}.py")
    code = (
        f"import contextlib, runpy, sys\nsys.argv = [{path!r}, '--help']\n"
        f"with contextlib.suppress(SystemExit):\n    runpy.run_path({path!r}, run_name='__main__')"
    )
    assert list_imported(code, ("fastreid", "torch"), tmp_path) == "[]"


def test_inference_imports_nothing_of_training_or_evaluation(tmp_path: Path) -> None:
    assert list_imported(EMBED, UNUSED_IN_INFERENCE, tmp_path) == "[]"

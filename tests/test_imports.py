"""Imports stay light: neither the package nor a command's --help imports PyTorch."""

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
HEAVY = ("cv2", "fastreid", "matplotlib", "numpy", "torch")


def list_imported(code: str, folder: Path) -> str:
    """Run ``code`` in a process of its own; return which of ``HEAVY`` it has imported."""
    report = f"import sys; print('imported:', sorted(set({HEAVY}) & set(sys.modules)))"
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
def test_import_needs_nothing_heavy(module: str, tmp_path: Path) -> None:
    assert list_imported(f"import {module}", tmp_path) == "[]"


@pytest.mark.parametrize("words", [[], ["evaluate", "--help"]])
def test_console_command_needs_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    code = (
        "import contextlib\nfrom occluded_reid.commands.main import main\n"
        f"with contextlib.suppress(SystemExit):\n    main({words!r})"
    )
    assert list_imported(code, tmp_path) == "[]"


@pytest.mark.parametrize("tool", TOOLS)
def test_help_needs_nothing_heavy(tool: str, tmp_path: Path) -> None:
    path = str(ROOT / "tools" / f"{tool}.py")
    code = (
        f"import contextlib, runpy, sys\nsys.argv = [{path!r}, '--help']\n"
        f"with contextlib.suppress(SystemExit):\n    runpy.run_path({path!r}, run_name='__main__')"
    )
    assert list_imported(code, tmp_path) == "[]"

"""The wheel, installed and used from another folder; .ci/run calls this file by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTENT = ("occluded_reid", "fed_plugin", "aonet_plugin", "gallery_search", "configs", "projects")

pytestmark = pytest.mark.slow


def run(folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, words)), cwd=folder, env={**kept, **environment}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what ``pip install .`` installs of our own; nothing is built in the tree."""
    home = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in CONTENT:
        shutil.copytree(ROOT / name, home / "tree" / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, home / "tree")
    pip = (sys.executable, "-m", "pip", "-q", "--disable-pip-version-check")
    options = ("--no-deps", "--no-build-isolation", "--no-index")
    done = run(home, *pip, "wheel", *options, "-w", home, home / "tree")
    assert done.returncode == 0, done.stderr
    done = run(home, *pip, "install", *options, "--target", home / "site", *home.glob("*.whl"))
    assert done.returncode == 0, done.stderr
    return home / "site"


def start(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the console command from another folder."""
    program = site / "bin" / "occluded-reid"
    return run(folder, sys.executable, program, *words, PYTHONPATH=str(site))


def test_console_command_reads_what_is_shipped(installed: Path, tmp_path: Path) -> None:
    assert "\n  train " in start(installed, tmp_path, "--help").stdout
    config = "projects/FED/configs/synthetic.yml"  # two _BASE_ files above it
    done = start(installed, tmp_path, "train", "--config-file", config, "SEEED", "1")
    assert done.returncode == 2, done.stderr
    assert "there is no configuration key SEEED; did you mean SEED?" in done.stderr


def test_metadata_requires_no_opencv(installed: Path) -> None:
    (path,) = installed.glob("occluded_reid-*.dist-info/METADATA")
    required = [line for line in path.read_text().splitlines() if line.startswith("Requires-Dist")]
    assert any("torch" in line for line in required)
    assert [line for line in required if "opencv" in line and "extra ==" not in line] == []

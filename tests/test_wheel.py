"""The wheel, installed and used from another folder; .ci/run calls this file by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from saved_runs import draw_crops, save_hub_folder

from occluded_reid.checkpoint.zoo import ZooModel, add_model

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
    zoo = home / "tree" / "occluded_reid" / "zoo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("occluded_reid.checkpoint.zoo.HOME", zoo)
        save_hub_folder(zoo / "tiny")
        about = {"license": "", "data_license": "", "input_size": [], "metric": "", "results": {}}
        files = {"file": "tiny/weights.safetensors", "config": "tiny/config.yaml", "card": ""}
        add_model(ZooModel(name="tiny", sha256="", size=0, **files, **about))
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


def test_three_lines_by_name(installed: Path, tmp_path: Path) -> None:
    draw_crops(tmp_path / "crops", 10)
    code = (
        "import cv2, glob, occluded_reid\n"
        "model = occluded_reid.load('tiny')\n"
        "embedding = model.embed(map(cv2.imread, sorted(glob.glob('crops/*'))))\n"
        "print(occluded_reid.__file__, embedding.features.shape)"
    )
    done = run(tmp_path, sys.executable, "-c", code, PYTHONPATH=str(installed))
    assert done.stdout.split(maxsplit=1) == [
        str(installed / "occluded_reid" / "__init__.py"), "(10, 1, 96)\n"
    ], done.stderr  # fmt: skip


def test_type_checkers_see_the_types(installed: Path) -> None:
    packages = ("occluded_reid", "fed_plugin", "aonet_plugin", "gallery_search")
    assert [name for name in packages if not (installed / name / "py.typed").is_file()] == []


def test_metadata_requires_no_opencv(installed: Path) -> None:
    (path,) = installed.glob("occluded_reid-*.dist-info/METADATA")
    required = [line for line in path.read_text().splitlines() if line.startswith("Requires-Dist")]
    assert any("torch" in line for line in required)
    assert [line for line in required if "opencv" in line and "extra ==" not in line] == []

"""What all commands share: one way to name a run's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import load_tool
from saved_runs import MODELS, draw_crops, save_run

# The options that a command needs besides --weights; FOLDER has two images, NEW does not exist.
COMMANDS = {
    "analyze_landmarks": "",
    "analyze_model": "",
    "export_model": "--format torch --output NEW",
    "extract_features": "--input FOLDER --output NEW",
    "publish_model": "--output NEW",
    "search": "build --gallery FOLDER --index NEW",
    "train_net": "--eval-only",
    "visualize": "--kind ranks",
}


def run_command(name: str, weights: Path, folder: Path) -> int:
    draw_crops(folder / "images", 2)
    words = COMMANDS[name].replace("FOLDER", str(folder / "images"))
    words = words.replace("NEW", str(folder / "new"))
    return load_tool(name).command([*words.split(), "--weights", str(weights)])


@pytest.mark.parametrize("name", COMMANDS)
def test_missing_weights_or_configuration_are_one_message(name, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for content, message in (("", "model_final.pth"), ("weights", "config.yaml")):
        if content:
            (run / "model_final.pth").write_text(content)
        assert run_command(name, run, tmp_path) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert str(run) in error and message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "run"]


@pytest.mark.parametrize("name", ["analyze_model", "extract_features"])
@pytest.mark.parametrize("file", ["", "model_final.pth"])
def test_weights_are_a_run_or_a_file(name, file, tmp_path) -> None:
    run = save_run(MODELS["FED"](tmp_path / "run"))
    assert run_command(name, run / file, tmp_path) == 0

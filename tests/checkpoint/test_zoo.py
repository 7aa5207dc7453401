"""Models by name: the registry, and what a name stands for."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest
from runs import load_tool
from saved_runs import make_zoo

from occluded_reid.checkpoint import resolve, zoo
from occluded_reid.checkpoint.resolve import resolve_run, resolve_weights
from occluded_reid.deploy.publish import format_rows
from occluded_reid.utils.errors import UserError

ROOT = Path(__file__).parents[2]
ENTRY = {
    "name": "lite-drawn", "file": "lite-drawn/weights.safetensors", "sha256": "0" * 64, "size": 7,
    "config": "lite-drawn/config.yaml", "card": "lite-drawn/README.md", "license": "Apache-2.0",
    "data_license": "Apache-2.0", "input_size": [64, 32], "metric": "cosine",
    "results": {"MarketSplit:report": {"Rank-1": 50.0, "mAP": 40.04, "mINP": 9.0}},
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one model, seen from an empty working directory."""
    folder = make_zoo(tmp_path, monkeypatch)
    zoo.add_model(zoo.ZooModel(**ENTRY))
    (folder / "lite-drawn").mkdir()
    for name, text in (("README.md", "# Card"), ("config.yaml", ""), ("weights.safetensors", "x")):
        (folder / "lite-drawn" / name).write_text(text)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_a_name_stands_for_configuration_and_weights(home: Path) -> None:
    folder = home / "lite-drawn"
    expected = str(folder / "config.yaml"), str(folder / "weights.safetensors")
    assert resolve_weights("lite-drawn") == resolve_run("lite-drawn") == expected
    assert resolve_weights(folder) == expected  # as a folder that was downloaded
    assert resolve_run("lite-drawn", "other.yml") == ("other.yml", expected[1])


def test_what_is_here_comes_before_the_zoo(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("lite-drawn").mkdir()
    Path("lite-drawn", "model_final.pth").touch()
    with caplog.at_level(logging.WARNING):
        assert resolve_weights("lite-drawn")[1] == "lite-drawn/model_final.pth"
    assert "not the zoo's model of that name" in caplog.text


def test_unknown_name_suggests_the_nearest(home: Path) -> None:
    with pytest.raises(UserError, match=r"no weights lite-drown; .*; did you mean lite-drawn\?"):
        resolve_weights("lite-drown")
    with pytest.raises(UserError, match="there are no weights logs/run; .*occluded-reid zoo list"):
        resolve_weights("logs/run")
    with pytest.raises(UserError, match="^the zoo has no model xyzzy; there is lite-drawn$"):
        zoo.get_model("xyzzy")


def test_weights_may_be_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for module in (zoo, resolve):
        monkeypatch.setattr(module, "resolve_source", lambda text: asked.append(text) or text)
    zoo.add_model(zoo.ZooModel(**{**ENTRY, "file": "https://host/w.pth"}))
    config, weights = resolve_weights("lite-drawn")
    assert config == str(home / "lite-drawn" / "config.yaml")
    assert weights == f"https://host/w.pth#sha256={'0' * 64}"
    assert resolve_weights("hf://me/model") == ("hf://me/model/config.yaml", "hf://me/model")
    assert asked == [weights, "hf://me/model/config.yaml", "hf://me/model"]


def test_zoo_command_lists_gets_and_shows(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = load_tool("zoo").command
    assert command(["list"]) == 0
    heads, _, row = capsys.readouterr().out.splitlines()
    cells = [each.strip() for each in row.strip("|").split("|")]
    assert cells[:4] == ["lite-drawn", "0.0 MB", "64x32", "cosine"] and cells[-3:] == [
        "50.0",
        "40.0",
        "9.0",
    ]
    assert command(["get", "lite-drawn"]) == 0
    assert capsys.readouterr().out == f"{home}/lite-drawn/weights.safetensors\n"
    assert command(["card", "lite-drawn"]) == 0
    assert capsys.readouterr().out == "# Card\n"
    assert command(["get", "lite-drown"]) == 2
    assert "did you mean lite-drawn?" in capsys.readouterr().err


def test_registry_of_the_package_is_whole() -> None:
    page = (ROOT / "MODEL_ZOO.md").read_text(encoding="utf-8")
    for name, model in zoo.list_models().items():
        assert model.name == name and model.read_card()
        assert format_rows(name, name, model.results) in page
        if "://" not in model.file:
            weights = (zoo.HOME / model.file).read_bytes()
            assert len(weights) == model.size <= 8_000_000
            assert hashlib.sha256(weights).hexdigest() == model.sha256
    assert json.loads((zoo.HOME / "models.json").read_text()).keys() == {"models"}

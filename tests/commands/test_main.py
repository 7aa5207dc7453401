"""occluded-reid COMMAND: the same functions as tools/*.py."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from runs import load_tool

from occluded_reid.commands.main import COMMANDS, main

ROOT = Path(__file__).parents[2]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and text.startswith("usage: occluded-reid")
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert listed[: len(COMMANDS)] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_name_themselves(name: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["python"])  # put back what main() changes
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: occluded-reid {name} [-h]")


def test_tools_are_the_same_functions() -> None:
    behind = {load_tool(path.stem) for path in (ROOT / "tools").glob("*.py")}
    assert behind <= {import_module(module) for module in COMMANDS.values()}


def test_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "error: there is no command trian; did you mean train?\n"
    assert main(["xyzzy", "--debug"]) == 2
    assert "; there is train, evaluate, extract," in capsys.readouterr().err

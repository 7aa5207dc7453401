"""tools/publish_model.py: the published weights give the run's numbers, or nothing is published."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from fed.tiny import fed_run_cfg
from runs import draw_market, load_tool, train

from occluded_reid.deploy.publish import add_rows
from occluded_reid.utils.errors import UserError

publish_model = load_tool("publish_model")
train_net = load_tool("train_net")
ZOO = Path(__file__).parents[2] / "MODEL_ZOO.md"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of FED with averaged weights, which its evaluation uses."""
    root = draw_market(tmp_path_factory.mktemp("market"))
    folder = tmp_path_factory.mktemp("runs") / "fed_tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(root))
        train(fed_run_cfg(folder, "SOLVER.MAX_EPOCH", 1, "MODEL.EMA.ENABLED", True,
                          "MODEL.EMA.DECAY", 0.5))  # fmt: skip
    (folder / "root").write_text(str(root))
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FASTREID_DATASETS", (trained / "root").read_text())
    return Path(shutil.copytree(trained, tmp_path / "fed_tiny"))


def test_the_published_file_gives_the_same_numbers(run, tmp_path, capsys):
    zoo = tmp_path / "MODEL_ZOO.md"
    shutil.copyfile(ZOO, zoo)
    words = ["--run", str(run), "--output", str(tmp_path / "zoo" / "fed"), "--zoo", str(zoo)]
    assert publish_model.command(words) == 0
    folder = tmp_path / "zoo" / "fed"
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == "config.yaml" and names[-1] == "results.json" and len(names) == 4
    (weights,) = folder.glob("*.pth")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.name == f"fed_tiny-{digest[:8]}.pth"
    state = torch.load(weights)["model"]
    assert {key.split(".")[0] for key in state} == {"backbone", "heads"}
    averaged = torch.load(run / "model_final.pth")["ema"]
    assert all(torch.equal(value, averaged[f"module.{key}"]) for key, value in state.items())
    # as somebody who has downloaded the folder alone
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    shutil.rmtree(run)
    command = ["--eval-only", "--config-file", str(moved / "config.yaml")]
    command += ["MODEL.WEIGHTS", str(moved / weights.name), "OUTPUT_DIR", str(tmp_path / "out")]
    assert train_net.command(command) == 0
    ours, theirs = (
        json.loads((folder / "results.json").read_text())["data_sets"]
        for folder in (moved, tmp_path / "out")
    )
    assert ours == theirs
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("only needed in training: classifiers, diffused_memory, diffusion, era") == 1
    row = f"| fed_tiny | Market1501 | {ours['Market1501']['metrics']['Rank-1']['value']:.1f} |"
    assert row in capsys.readouterr().out
    lines = zoo.read_text().splitlines()
    rule = lines.index("|---|---|---|---|---|---|")
    assert lines[rule + 1].startswith(row) and lines[rule + 1].endswith(f"`fed/{weights.name}` |")
    assert lines[rule + 2] == "" and len(lines) == len(ZOO.read_text().splitlines()) + 1
    # training needs more weights
    more = ["--config-file", str(moved / "config.yaml"), "MODEL.WEIGHTS", str(moved / weights.name)]
    assert train_net.command([*more, "OUTPUT_DIR", str(tmp_path / "new")]) == 2
    assert "training cannot start from them" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["numbers", "weights", "data set", "missing", "taken"])
def test_other_weights_or_numbers_are_not_published(run, tmp_path, capsys, change):
    results = json.loads((run / "results.json").read_text())
    expected = "do not give the numbers of the run"
    if change == "numbers":
        results["data_sets"]["Market1501"]["metrics"]["mAP"]["value"] += 0.2
        expected = "mAP on Market1501 is "
    elif change == "data set":
        results["data_sets"]["Market1502"] = results["data_sets"].pop("Market1501")
        expected = "Market1501 was tested only now; Market1502 was tested only before"
    elif change == "weights":
        content = torch.load(run / "model_final.pth")
        content["ema"]["module.backbone.patches.weight"].zero_()
        torch.save(content, run / "model_final.pth")
    elif change == "missing":
        (run / "model_final.pth").unlink()
        expected = "there is no .*model_final.pth; publish a run that is finished and evaluated"
    else:
        (tmp_path / "zoo").mkdir()
        (tmp_path / "zoo" / "file").write_text("")
        expected = "zoo exists already"
    (run / "results.json").write_text(json.dumps(results))
    assert publish_model.command(["--weights", str(run), "--output", str(tmp_path / "zoo")]) == 2
    assert re.search(expected, capsys.readouterr().err)
    left = [path.name for path in tmp_path.iterdir()]
    assert sorted(left) == sorted(["fed_tiny"] + ["zoo"] * (change == "taken"))


def test_rows_need_a_table(tmp_path):
    (tmp_path / "page.md").write_text("no table\n")
    with pytest.raises(UserError, match=r"page.md has no table"):
        add_rows(tmp_path / "page.md", "| a |")

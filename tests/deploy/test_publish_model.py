"""tools/publish_model.py: the published weights give the run's numbers, or nothing is published."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fed.tiny import fed_run_cfg
from runs import draw_market, load_tool, train
from safetensors.torch import load_file
from saved_runs import draw_crops, make_zoo

from gallery_search import GalleryIndex
from occluded_reid import load
from occluded_reid.checkpoint import zoo
from occluded_reid.deploy import publish
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
    (weights,) = folder.glob("*.pth")
    hub = {"README.md", "reid_config.json", "weights.safetensors"}
    ours = {"config.yaml", "results.json", weights.name}
    assert {path.name for path in folder.iterdir()} == hub | ours
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.name == f"fed_tiny-{digest[:8]}.pth"
    state = torch.load(weights)["model"]
    assert {key.split(".")[0] for key in state} == {"backbone", "heads"}
    averaged = torch.load(run / "model_final.pth")["ema"]
    assert all(torch.equal(value, averaged[f"module.{key}"]) for key, value in state.items())
    same = load_file(folder / "weights.safetensors")
    assert all(torch.equal(value, same[key]) for key, value in state.items())
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
    (added,) = set(lines) - set(ZOO.read_text().splitlines())
    assert added.startswith(row) and added.endswith(f"`fed/{weights.name}` |")
    place = lines.index(added)
    assert lines[place - 1].startswith("| fed-lite0-drawn ") and lines[place + 1] == ""
    # a training makes anew what it needs beside them
    more = ["--config-file", str(moved / "config.yaml"), "MODEL.WEIGHTS", str(moved / weights.name)]
    assert train_net.command([*more, "OUTPUT_DIR", str(tmp_path / "new")]) == 0
    log = (tmp_path / "new" / "log.txt").read_text()
    assert "made anew: classifiers, diffused_memory, diffusion, erased_memory" in log


def test_a_model_of_the_package_is_found_by_its_name(run, tmp_path, monkeypatch, capsys):
    home, notes = make_zoo(tmp_path, monkeypatch), tmp_path / "notes.md"
    words = ["--weights", str(run), "--package", "tiny", "--notes", str(notes), "SEED", "9"]
    assert publish_model.command(words) == 2
    assert "notes.md (No such file or directory)" in capsys.readouterr().err
    notes.write_text("It knows drawn clothes alone.\n")
    assert publish_model.command(words) == 0
    assert "| tiny | Market1501 | " in capsys.readouterr().out
    folder = home / "tiny"
    names = {"README.md", "config.yaml", "reid_config.json", "weights.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    card = (folder / "README.md").read_text()
    assert "\n\nIt knows drawn clothes alone.\n\nLicence of" in card
    assert "\nSEED: 9\n" in (folder / "config.yaml").read_text()
    kinds = {
        (value.ndim > 1, value.dtype)
        for value in load_file(folder / "weights.safetensors").values()
        if value.is_floating_point()
    }
    assert kinds == {(True, torch.float16), (False, torch.float32)}
    model = zoo.get_model("tiny")
    weights = (folder / "weights.safetensors").read_bytes()
    assert (model.sha256, model.size) == (hashlib.sha256(weights).hexdigest(), len(weights))
    assert model.results["Market1501"].keys() == {"Rank-1", "mAP", "mINP"}
    assert (model.input_size, model.metric) == ([32, 16], "cosine")
    assert model.data_license == "the terms of its data sets"
    monkeypatch.chdir(tmp_path)
    crops = [np.full((64, 32, 3), level, np.uint8) for level in (50, 200)]
    ours, theirs = (load(name).embed(crops).features for name in ("tiny", run))
    assert ours.dtype == np.float32 and np.allclose(ours, theirs, atol=0.02)
    draw_crops(tmp_path / "crops", 2)
    words = ["--weights", "tiny", "--gallery", "crops", "--index", "index"]
    assert load_tool("search").command(["build", *words]) == 0
    assert GalleryIndex("index").info().weights == "tiny"  # found from any folder
    # evaluated by name: nothing is written into the package
    assert train_net.command(["--eval-only", "--weights", "tiny"]) == 0
    assert (tmp_path / "logs" / "tiny" / "results.json").is_file()
    assert {path.name for path in folder.iterdir()} == names
    assert publish_model.command(["--weights", str(run), "--package", "tiny"]) == 2
    monkeypatch.setattr(publish, "PACKAGED_SIZE", 1000)
    assert publish_model.command(["--weights", str(run), "--package", "tiny2"]) == 2
    assert "bytes in half precision; 1,000 fit" in capsys.readouterr().err
    assert list(zoo.list_models()) == ["tiny"]


@pytest.mark.parametrize(
    "change",
    ["numbers", "weights", "data set", "no data set", "missing", "taken", "cut short", "mINP"],
)
def test_other_weights_or_numbers_are_not_published(run, tmp_path, capsys, change):
    results = json.loads((run / "results.json").read_text())
    expected = "do not give the numbers of the run"
    if change == "numbers":
        results["data_sets"]["Market1501"]["metrics"]["mAP"]["value"] -= 0.2
        expected = "mAP on Market1501 is "
    elif change == "data set":
        results["data_sets"]["Market1502"] = results["data_sets"].pop("Market1501")
        expected = "has results of Market1502, but DATASETS.TESTS are Market1501"
    elif change == "no data set":
        results["data_sets"] = {}
        expected = "has results of none, but DATASETS.TESTS are Market1501"
    elif change == "mINP":
        del results["data_sets"]["Market1501"]["metrics"]["mINP"]
        expected = "results.json lacks mINP of Market1501"
    elif change == "weights":
        content = torch.load(run / "model_final.pth")
        content["ema"]["module.backbone.patches.weight"].zero_()
        torch.save(content, run / "model_final.pth")
    elif change == "missing":
        (run / "model_final.pth").unlink()
        expected = "there is no .*model_final.pth; publish a run that is finished and evaluated"
    elif change == "cut short":
        expected = "results.json"
    else:
        (tmp_path / "zoo").mkdir()
        (tmp_path / "zoo" / "file").write_text("")
        expected = "zoo exists already"
    text = json.dumps(results)
    (run / "results.json").write_text(text[:99] if change == "cut short" else text)
    assert publish_model.command(["--weights", str(run), "--output", str(tmp_path / "zoo")]) == 2
    assert re.search(expected, capsys.readouterr().err)
    left = [path.name for path in tmp_path.iterdir()]
    assert sorted(left) == sorted(["fed_tiny"] + ["zoo"] * (change == "taken"))


def test_rows_need_a_table(tmp_path):
    (tmp_path / "page.md").write_text("no table\n")
    with pytest.raises(UserError, match=r"page.md has no table"):
        add_rows(tmp_path / "page.md", "| a |")

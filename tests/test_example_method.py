"""docs/example: a third method as a plugin in one file, actual by its entry point alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from documented import blocks
from runs import draw_market, load_tool

from occluded_reid.checkpoint.fitting import list_training_parts
from occluded_reid.config import load_config
from occluded_reid.modeling.build import build_untrained

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
EXAMPLE = Path(__file__).parents[1] / "docs" / "example"
CONFIG = str(EXAMPLE / "stripes.yml")
SMALL = [
    "MODEL.DEVICE", "cpu", "INPUT.SIZE_TRAIN", "[64,32]", "INPUT.SIZE_TEST", "[64,32]",
    "SOLVER.AMP.ENABLED", "False", "DATALOADER.NUM_WORKERS", "0",
]  # fmt: skip


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load the training command with the example installed as pip would install it."""
    project = (EXAMPLE / "pyproject.toml").read_text()
    entry = re.search(r'^\[project\.entry-points\."(.*)"\]\n(.*)\n', project, re.MULTILINE)
    dist_info = tmp_path / "site" / "stripe_method-0.1.dist-info"
    dist_info.mkdir(parents=True)
    (dist_info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: stripe-method\nVersion: 0.1\n"
    )
    point = entry[2].replace('"', "")
    (dist_info / "entry_points.txt").write_text(f"[{entry[1]}]\n{point}\n")
    monkeypatch.syspath_prepend(str(dist_info.parent))
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setitem(sys.modules, "train_net", sys.modules.get("train_net"))
    return load_tool("train_net")


def test_dry_run_by_entry_point(tools, capsys) -> None:
    assert tools.command(["--config-file", CONFIG, "--dry-run", *SMALL]) == 0
    output = capsys.readouterr().out
    assert re.search(r"losses:.* loss_identity \d", output) and "loss_visibility" in output
    assert "features: (8, 320)" in output and "visibility: (8, 4)" in output
    assert tools.command(["--config-file", CONFIG, "--dry-run", *SMALL, "MODEL.STRIPE.X", "1"]) == 2
    words = [*SMALL, "MODEL.STRIPES.NUM_PARTS", "0"]
    assert tools.command(["--config-file", CONFIG, "--dry-run", *words]) == 2
    assert "MODEL.STRIPES.NUM_PARTS is 0; it must be at least 1" in capsys.readouterr().err


def test_the_parts_of_the_page_run(capsys, monkeypatch) -> None:
    monkeypatch.chdir(PAGE.parents[1])  # its configuration is named from here
    space: dict = {"__name__": "parts"}
    *parts, start = blocks(PAGE.read_text(), "python")
    assert len(parts) == 3 and all(len(part.strip().splitlines()) < 14 for part in parts)
    for part in parts:
        exec(part, space)
    exec(start.replace("words.split()", f"[*words.split(), *{SMALL}]"), space)
    output = capsys.readouterr().out
    assert re.search(r"losses:.* loss_spread \d", output) and "features: (" in output
    words = space["words"].split()
    words = words[words.index("MODEL.META_ARCHITECTURE") :]
    model = build_untrained(load_config("", [*words, *SMALL]))
    assert list_training_parts(model) == ("heads.weight",)
    assert isinstance(model.heads.bottleneck[-1], torch.nn.Dropout)


@pytest.mark.slow
def test_example_trains_and_evaluates(tools, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FASTREID_DATASETS", str(draw_market(tmp_path / "data")))
    words = [
        *SMALL, "OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_EPOCH", "2",
        "DATASETS.SYNTHETIC.SIZE", "tiny", "SOLVER.IMS_PER_BATCH", "16",
        "DATALOADER.NUM_INSTANCE", "2", "SOLVER.WARMUP_ITERS", "1",
    ]  # fmt: skip
    assert tools.command(["--config-file", CONFIG, *words]) == 0
    results = (tmp_path / "run" / "results.json").read_text()
    assert '"visibility_auc": {\n' in results  # the synthetic set has the truth
    weights = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    assert "classifier.weight" in weights

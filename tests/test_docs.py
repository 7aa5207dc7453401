"""Every command that the pages show can be parsed (here) and runs (slow, `make test-docs`)."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from documented import (
    NOT_RUN,
    PAGES,
    ROOT,
    blocks,
    commands,
    overrides_of,
    reason_not_to_run,
    tool_of,
)
from PIL import Image
from runs import draw_market, load_tool

from occluded_reid import load
from occluded_reid.config import load_config
from occluded_reid.config.methods import installed_methods

ADD_KEYS = installed_methods()
PLACEHOLDERS = {
    "CONFIG": "projects/FED/configs/synthetic.yml",
    "PART": "INDEX",
    "ivfpq": "exact",  # twelve pictures are too few for an approximation
}
EXTRAS = {"onnx": "onnxscript", "openvino": "nncf"}
# Where Python blocks of the pages are run.
PYTHON_RUN_BY = {
    "docs/deploying.md": "deploy/test_export_model.py",
    "docs/embedding.md": "deploy/test_embedder.py",
    "docs/extending.md": "test_example_method.py",
    "docs/search.md": "test_docs.py",
    "docs/threshold.md": "deploy/test_embedder.py",
    "docs/trackers.md": "deploy/test_trackers.py",
    "README.md": "test_docs.py",
}
SMALL = [
    "MODEL.DEVICE", "cpu", "DATASETS.SYNTHETIC.SIZE", "tiny", "SOLVER.MAX_EPOCH", "2",
    "SOLVER.IMS_PER_BATCH", "16", "DATALOADER.NUM_INSTANCE", "2", "SOLVER.WARMUP_ITERS", "1",
    "DATALOADER.NUM_WORKERS", "0", "INPUT.SIZE_TRAIN", "[128,32]", "INPUT.SIZE_TEST", "[128,32]",
    "SOLVER.AMP.ENABLED", "False",
]  # fmt: skip


def page_commands(page: str) -> list[list[str]]:
    return commands((ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES)
def test_commands_can_be_parsed(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in page_commands(page):
        if (started := tool_of(words)) is None:
            assert reason_not_to_run(words), f"{page}: {words} is neither run nor listed"
            continue
        name, arguments = started
        arguments = [PLACEHOLDERS.get(word, word) for word in arguments]
        tool = load_tool(name)
        module = sys.modules[tool.command.__module__]  # the tool itself, or the package behind it
        monkeypatch.setattr(module, "run_command", lambda *_, **__: 0)  # parse, and no more
        try:
            assert tool.command(arguments) == 0
        except SystemExit as error:
            pytest.fail(f"{page}: {words} cannot be parsed: exit code {error.code}")
        check_configuration(arguments)


def check_configuration(arguments: list[str]) -> None:
    """Configurations that are named exist, and so do the keys."""
    files = [word for word in arguments if word.endswith((".yml", ".yaml"))]
    places = [file for file in files if file.startswith(("configs/", "projects/"))]
    ours = [file for file in places if (ROOT / file).is_file()]
    others = ("logs/", "zoo/", "configs/Market1501/")  # a run's, a model's, fast-reid's own
    assert all((ROOT / file).is_file() for file in files if not file.startswith(others))
    overrides = [*overrides_of(arguments), "MODEL.DEVICE", "cpu"]
    load_config(ours[0] if ours else "", overrides, add_keys=ADD_KEYS, also=ours[1:])


def test_every_tool_has_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in sorted({path.stem for path in (ROOT / "tools").glob("*.py")}):
        with pytest.raises(SystemExit) as ended:
            load_tool(name).command(["--help"])
        assert ended.value.code == 0 and "usage:" in capsys.readouterr().out, name


def test_what_is_not_run_is_still_documented() -> None:
    shown = [words for page in PAGES for words in page_commands(page)]
    texts = [" ".join(["python" if "python" in w[0] else w[0], *w[1:]]) for w in shown]
    assert [start for start in NOT_RUN if not any(text.startswith(start) for text in texts)] == []


def test_python_blocks_are_run_somewhere() -> None:
    for page in PAGES:
        found = blocks((ROOT / page).read_text(encoding="utf-8"), "python")
        assert bool(found) == (page in PYTHON_RUN_BY), page
        for block in found:
            compile(block, page, "exec")
    for page, test in PYTHON_RUN_BY.items():
        assert Path(page).name in (ROOT / "tests" / test).read_text(encoding="utf-8"), page


def test_every_row_has_a_configuration() -> None:
    page = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    named = {path for path in re.findall(r"`(projects/[\w/]+\.yml)", page) if "/ROW" not in path}
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
    rows = {str(path.relative_to(ROOT)) for path in ROOT.glob("projects/*/configs/ablation/*.yml")}
    assert rows - named == set()


def test_pages_link_to_what_is_there() -> None:
    for page in [*PAGES, "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[\w-]+)?\)", text):
            path = (ROOT / page).parent / target if target else ROOT / page
            assert path.exists(), f"{page}: {target}"
            if anchor and path.suffix == ".md":
                assert anchor[1:] in anchors(path), f"{page}: {target}{anchor}"
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in index} == set()


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_checks_see_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (
        "```\nimage ─ it's drawn\n```\n```\nmake x  # why\npython tools/a.py \\\n    --b c\n```\n"
    )
    assert commands(page) == [["make", "x"], ["python", "tools/a.py", "--b", "c"]]
    with pytest.raises(ValueError, match="no program .*mkae"):
        commands("```\nmkae x\nmake y\n```\n")
    assert tool_of(["python", "tools/a.py", "--b"]) == ("a", ["--b"])
    assert reason_not_to_run([".venv/bin/python", "tools/train_net.py", "--resume"]) == ""
    assert overrides_of(["--input", "DIR", "SEED", "1", "MODEL.DEVICE", "cpu"]) == [
        "SEED", "1", "MODEL.DEVICE", "cpu"
    ]  # fmt: skip


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def draw_shop(home: Path) -> None:
    """Data of one's own: docs/own_data.md."""
    rows = ["path,identity,camera,split"]
    for person in range(8):
        for place, split in enumerate(("train", "train", "query", "gallery", "gallery")):
            name = f"{person}_{place}.jpg"
            draw(home / name, 10 * person + place)
            who = person if split == "train" else 100 + person
            rows.append(f"{name},{who},camera {place % 2},{split}")
    (home / "images.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has all that the commands name: runs, pictures, lists, data sets."""
    home = tmp_path_factory.mktemp("docs")
    for name in ("configs", "docs", "projects", "tools"):
        (home / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "MODEL_ZOO.md", home)
    draw_market(home / "data")
    draw_shop(home / "data" / "shop")
    for folder in ("CROPS", "DIR", "crops"):
        for number in range(1, 13):
            draw(home / folder / f"camera{1 + number % 2}" / f"{number:04d}.jpg", number)
    draw(home / "PERSON.jpg", 2)
    crops = sorted(path.relative_to(home) for path in (home / "crops").rglob("*.jpg"))
    (home / "list.txt").write_text("".join(f"{path}\n" for path in crops))
    (home / "boxes.csv").write_text(f"image,x0,y0,x1,y1\n{crops[0]},2,4,20,50\n")
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch, home)
        for project, run in (("FED", "demo"), ("AONet", "RUN")):
            config = f"projects/{project}/configs/synthetic.yml"
            words = ["--config-file", config, *SMALL, "OUTPUT_DIR", f"logs/{run}"]
            assert load_tool("train_net").command(words) == 0
    for name in ("ANOTHER", "RUN_A", "RUN_B", "RUN_S1", "RUN_S2", "RUN_S3"):
        shutil.copytree(home / "logs" / "RUN", home / "logs" / name)
        results = home / "logs" / name / "results.json"
        seed = name[-1] if name[-1].isdecimal() else "1"
        text = re.sub(r'"seed": 1\b', f'"seed": {seed}', results.read_text())
        results.write_text(re.sub(r'("weights_sha256": ").', rf"\g<1>{seed}", text))
    return home


def prepare(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("FASTREID_DATASETS", str(home / "data"))
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page_commands(page)])
def test_commands_run(page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(monkeypatch, workplace)
    for name in ("zoo", "INDEX"):  # another page's, by another model: never written over
        shutil.rmtree(name, ignore_errors=True)
    for words in page_commands(page):
        started = tool_of(words)
        if started is None or reason_not_to_run(words) or not is_installed(words):
            continue
        print("$", *words, file=sys.stderr)
        assert load_tool(started[0]).command(on_tiny_data(*started)) == 0, words
    if page == "docs/search.md":
        run_the_blocks(page)
    if page == "README.md":
        run_the_three_lines(page)


def run_the_three_lines(page: str) -> None:
    """Run the Python of README.md on two drawn crops."""
    for seed, name in enumerate(("a.png", "b.png")):
        draw(Path(name), seed)
    (block,) = blocks((ROOT / page).read_text(encoding="utf-8"), "python")
    space: dict = {}
    exec(block, space)
    assert space["embedding"].features.shape[0] == 2
    assert space["embedding"].visibility.shape == (2, 4)


def run_the_blocks(page: str) -> None:
    """Run a page's Python on what its commands have left."""
    rows = [f"{path.relative_to('CROPS')},3,," for path in Path("CROPS").rglob("*.jpg")]
    Path("cameras.csv").write_text("\n".join(["path,camera,time,identity", *rows]))
    shutil.rmtree("INDEX")  # for one with cameras
    again = "build --weights logs/demo --gallery CROPS --index INDEX --metadata cameras.csv"
    assert load_tool("search").command(again.split()) == 0
    model = load("logs/demo", "cpu")
    space = {"model": model, "crops": [np.zeros((64, 32, 3), np.uint8)]}
    for block in blocks((ROOT / page).read_text(encoding="utf-8"), "python"):
        exec(block, space)
    assert len(space["hits"][0]) == 10


def is_installed(words: list[str]) -> bool:
    """Whether the packages of a command's optional extra are there."""
    needed = [module for extra, module in EXTRAS.items() if f"--format {extra}" in " ".join(words)]
    return all(importlib.util.find_spec(module) for module in needed)


def on_tiny_data(name: str, arguments: list[str]) -> list[str]:
    """Return a tool's arguments with those that make it quick."""
    words = [PLACEHOLDERS.get(word, word) for word in arguments]
    config = words[words.index("--config-file") + 1] if "--config-file" in words else ""
    if name in ("train", "train_net", "visualize") and config.startswith(("configs/", "projects/")):
        words += SMALL
    if name in ("train", "train_net") and not {"--resume", "--eval-only", "--dry-run"} & set(words):
        words.insert(0, "--overwrite")  # two pages may train in one folder
    if "configs/test_all.yml" in words:
        words += ["DATASETS.ALLOW_PARTIAL", "True"]
    return words


def test_troubleshooting_names_messages_that_exist() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE)
    folders = ("occluded_reid", "fed_plugin", "aonet_plugin", "gallery_search")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    texts = (path.read_text(encoding="utf-8") for path in files)
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts))  # messages over several lines
    of_python = {"No module named 'cv2'"}
    assert len(messages) > 30
    assert [text for text in messages if text not in source and text not in of_python] == []


def test_the_page_of_keys_is_current() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == script["write_page"](), "make configuration"
    for key in ("SEED", "INPUT.NPO.CROP", "MODEL.FED.TEMPERATURE", "MODEL.AONET.VISIBILITY"):
        (row,) = re.findall(rf"^\| `{key}` \|.*$", page, re.MULTILINE)
        assert len(row.split("|")[4]) > 10, row
    assert '| `MODEL.AONET.VISIBILITY` | `"awareness"` | `awareness`, `maximum`, `none` |' in page


def read_notebook() -> list[dict[str, Any]]:
    return json.loads((ROOT / "docs" / "first_steps.ipynb").read_text(encoding="utf-8"))["cells"]


def test_the_notebook_holds_no_outputs() -> None:
    code = [cell for cell in read_notebook() if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    space: dict[str, Any] = {}
    for cell in read_notebook():
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "first_steps.ipynb", "exec"), space)
    assert space["similarity"].shape == (4, 40) and space["query"].visibility.shape == (4, 4)
    assert space["people"].features.shape[0] == 2 and len(space["index"]) == 40

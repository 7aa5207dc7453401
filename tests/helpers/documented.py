"""The commands that the pages show, and why some of them are not run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md", "MODEL_ZOO.md",
    *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")),
    *sorted(f"projects/{path.parent.name}/README.md" for path in ROOT.glob("projects/*/README.md")),
]  # fmt: skip
PYTHONS = (".venv/bin/python", "python")
PROGRAMS = (*PYTHONS, "make", "occluded-reid", "pip", "sh", "torchrun", "trtexec", "uv")

# Beginnings of commands. Everything else is run by `make test-docs`.
NOT_RUN = {
    "make demo": "takes minutes; its commands are run one by one",
    "make test": "runs this test",
    "make venv": "installs packages",
    "make PYTHON=python3.12 venv": "installs packages",
    "pip install": "installs packages",
    "python -m pip install": "installs packages",
    "uv sync": "installs packages",
    "uv pip install": "installs packages",
    "torchrun --nproc-per-node 8": "starts eight processes; test_extract_features.py starts two",
    "torchrun --nnodes": "needs several machines",
    "python tools/search.py build --weights logs/demo --gallery CROPS --index milvus": "needs the "
    "extra milvus; run by test_stores.py",
    "python tools/search.py query --index milvus": "likewise",
    "python tools/extract_features.py --weights logs/demo --input CROPS --output SHARDS": "needs "
    "the extras parquet and ray; run by test_shards.py",
    "python tools/search.py import": "likewise",
    "trtexec": "needs TensorRT",
    "python tools/train_net.py --config-file configs/market1501_baseline.yml": "needs four GPUs",
    "python tools/train_net.py --config-file docs/example": "run by test_example_method.py",
    "python tools/train_net.py --dry-run --config-file docs/example": "likewise",
    "python tools/check_dataset.py MarketSplit": "needs Market-1501",
    "python tools/check_dataset.py OccludedDuke": "needs Occluded-Duke",
    "python tools/check_dataset.py PartialREID": "needs Partial-REID",
    "python tools/check_dataset.py OccludedMarketSplit": "needs Market-1501",
    "python tools/build_occluded_duke.py": "needs DukeMTMC-reID; run by test_check_dataset.py",
    "python tools/make_occluders.py masks": "needs street scenes; run by test_make_occluders.py",
    "python tools/make_occluders.py window": "needs a display",
    "python tools/search.py build --weights logs/demo --gallery CROPS --index VIDEO_INDEX": "needs "
    "the extra video; run by test_video.py",
    "python docs/example/associate.py": "takes minutes, and needs motmetrics; run by "
    "test_trackers.py",
    "python tools/search.py calibrate": "needs people who are known; run by test_page.py",
    "python tools/search.py serve": "serves until it is stopped, and needs the extra web",
    "python tools/train_net.py --dry-run --config-file configs/Market1501": "needs fast-reid's",
    "python tools/train_net.py --eval-only --config-file configs/Market1501": "likewise",
    "python tools/import_checkpoint.py --source fastreid": "needs a download; run by "
    "test_import_checkpoint.py",
    "python tools/train_net.py --config-file configs/Market1501": "needs fast-reid's",
    "python tools/import_checkpoint.py --source torchreid": "needs torchreid's weights; run by "
    "test_import_checkpoint.py",
    "python tools/train_net.py --eval-only --config-file configs/Base-OSNet.yml": "likewise",
    "python tools/import_checkpoint.py --source timm": "needs timm's weights; run by "
    "test_import_checkpoint.py",
}


def blocks(page: str, language: str = "") -> list[str]:
    """The fenced blocks of a page in a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [text for named, text in fenced if named == language]


def commands(page: str) -> list[list[str]]:
    """The words of each command of a page, without comments.

    Raises:
        ValueError: a block of commands has a line that begins with no program that we know.
    """
    found = []
    for block in blocks(page):
        lines = [
            words
            for line in block.replace("\\\n", " ").splitlines()
            if line.strip() and (words := _words(line))
        ]
        unknown = [words for words in lines if words[0] not in PROGRAMS]
        if len(unknown) == len(lines):
            continue  # a drawing
        if unknown:
            raise ValueError(f"no program that tests/helpers/documented.py knows: {unknown[0]}")
        found += lines
    return found


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an apostrophe in a drawing
        return line.split()


def reason_not_to_run(words: list[str]) -> str:
    """Why a command is not run; ``""`` for those that are."""
    text = " ".join(["python" if words[0] in PYTHONS else words[0], *words[1:]])
    return next((why for start, why in NOT_RUN.items() if text.startswith(start)), "")


def tool_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The name of the tool that a command starts, and its arguments; None for other commands."""
    if words[0] == "occluded-reid":
        return words[1], words[2:]
    for place, word in enumerate(words):
        if found := re.fullmatch(r"tools/(\w+)\.py", word):
            return found[1], words[place + 1 :]
    return None


def overrides_of(arguments: list[str]) -> list[str]:
    """The ``KEY VALUE`` pairs among a tool's arguments."""
    keys = [
        place for place, word in enumerate(arguments) if re.fullmatch(r"[A-Z]+(\.[A-Z_]+)+", word)
        or word in ("OUTPUT_DIR", "SEED")
    ]  # fmt: skip
    return [word for place in keys for word in arguments[place : place + 2]]

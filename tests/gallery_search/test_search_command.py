"""The search command: build, interrupted and resumed; query, with filters and a figure; remove."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import draw_market, forked, kill_self, load_tool, status_of
from saved_runs import two_runs

import occluded_reid
from gallery_search import Filter, GalleryIndex, Item, querying
from gallery_search.store import database as databases
from gallery_search.store.writer import FolderWriter
from occluded_reid.data.image_names import make_id
from occluded_reid.visualization.sheet import BLUE, ORANGE

tool = load_tool("search")
IMAGES = 48


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of 48 images with Market's names, two of them broken, and queries."""
    home = draw_market(tmp_path_factory.mktemp("market")) / "Market-1501-v15.09.15"
    broken = home / "bounding_box_test" / "sub" / "0009_c1s1_000000_00.jpg"
    broken.parent.mkdir()
    broken.write_bytes(b"no image")
    (home / "bounding_box_test" / "empty.png").touch()
    return home


@pytest.fixture(scope="module")
def built(runs, market, tmp_path_factory) -> Path:
    """An index that the tests copy."""
    folder = tmp_path_factory.mktemp("built") / "index"
    assert tool.command(build_words(runs, market, folder)) == 0
    return folder


@pytest.fixture
def index(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "index"))


def build_words(runs: Path, market: Path, folder: Path, *more: str) -> list[str]:
    words = ["--weights", runs / "run", "--gallery", market / "bounding_box_test"]
    words += ["--index", folder, "--batch-size", "10", "--workers", "0"]
    return ["build", *map(str, words), *more]


def query_words(market: Path, index: Path, *more: str) -> list[str]:
    image = market / "query" / "0003_c2s1_000000_01.jpg"
    return ["query", "--index", str(index), "--image", str(image), *more]


def test_build_reads_all_images_and_names_the_broken_ones(runs, market, tmp_path, capsys):
    assert tool.command(build_words(runs, market, tmp_path / "index")) == 0
    printed = capsys.readouterr().out
    assert f"{IMAGES} images" in printed and "search: exact" in printed
    assert f"2 of {IMAGES + 2} images cannot be read; they are not in the index" in printed
    assert "sub/0009_c1s1_000000_00.jpg" in printed
    index = GalleryIndex(tmp_path / "index")
    model = occluded_reid.load(runs / "run")
    assert (index.info().fingerprint, index.info().metric) == (model.fingerprint, "cosine")
    paths = sorted(path.name for path in (market / "bounding_box_test").glob("*.jpg"))
    found = model.embed([market / "bounding_box_test" / path for path in paths])
    lists = index.search(found, 1)
    assert [hits[0].item.path for hits in lists] == paths
    assert lists[0][0].item == Item("0001_c1s1_000000_01.jpg", "1", 0.0, "1")
    seen = [hits[0].visibility for hits in lists]
    np.testing.assert_allclose(seen, found.visibility, atol=1e-5)
    assert tool.command(build_words(runs, market, tmp_path / "index")) == 0  # nothing to do
    assert len(index) == IMAGES == index.info().rows


def test_a_killed_build_goes_on(runs, market, tmp_path, monkeypatch):
    add = FolderWriter.add
    done: list[int] = []

    def add_until_killed(self, items, *arrays, **options):
        if len(done) == 3:
            kill_self()
        done.append(len(items))
        return add(self, items, *arrays, **options)

    words = build_words(runs, market, tmp_path / "index")
    with monkeypatch.context() as patch:
        patch.setattr(FolderWriter, "add", add_until_killed)
        assert status_of(forked(lambda: tool.command(words))) == -signal.SIGKILL
    index = GalleryIndex(tmp_path / "index")
    assert len(index) == 30
    assert tool.command(words) == 0
    assert len(index) == IMAGES == index.info().rows


def test_a_query_prints_and_draws_the_ranked_list(runs, market, index, tmp_path, capsys):
    figure, listed = tmp_path / "new" / "F.png", tmp_path / "hits.json"
    words = query_words(market, index, "--figure", str(figure), "--json", str(listed))
    assert tool.command([*words, "--top", "7"]) == 0
    printed = capsys.readouterr().out
    model = occluded_reid.load(runs / "run")
    image = words[words.index("--image") + 1]
    found = model.embed(image)
    hits = GalleryIndex(index).search(found, 7)[0]
    table = json.loads(listed.read_text())[image]
    assert [line["path"] for line in table] == [hit.item.path for hit in hits]
    for hit in hits:
        assert f"{hit.similarity:.4f}" in printed and hit.item.path in printed
    colours = dict((c, n) for n, c in Image.open(figure).getcolors(2**24))
    same = sum(hit.item.identity == "3" for hit in hits)
    assert (BLUE in colours) and (ORANGE in colours) == (same < 7)
    assert str(figure) in printed


def test_landmarks_are_not_drawn_as_stripes(market, index, tmp_path, monkeypatch):
    drawn, load, draw_sheet = [], querying.load_model, querying.draw_sheet

    def load_with_landmarks(*args, **options):
        model = load(*args, **options)
        assert model.stripes
        model.stripes = False
        return model

    monkeypatch.setattr(querying, "load_model", load_with_landmarks)

    def draw(sections):
        drawn.extend(sections)
        return draw_sheet(sections)

    monkeypatch.setattr(querying, "draw_sheet", draw)
    words = query_words(market, index, "--figure", str(tmp_path / "F.png"), "--top", "2")
    assert tool.command(words) == 0
    query, *hits = drawn[0].tiles
    assert len(hits) == 2 and [len(query.lines), *(len(hit.lines) for hit in hits)] == [3, 4, 4]


def test_filters_and_several_folders(runs, market, index, tmp_path, capsys):
    listed = tmp_path / "hits.json"

    def hits(*more: str) -> list[dict]:
        words = query_words(market, index, "--top", "99", "--json", str(listed), *more)
        assert tool.command(words) == 0
        return next(iter(json.loads(listed.read_text()).values()))

    assert len(hits()) == IMAGES
    assert {line["camera"] for line in hits("--camera", "1", "--camera", "3")} == {"1", "3"}
    assert {line["time"] for line in hits("--since", "1")} == {1}
    assert {line["time"] for line in hits("--until", "0.5")} == {0}
    assert hits("--since", "2") == []
    assert "no image found" in capsys.readouterr().out
    assert len(hits("--index", str(index), "--exact")) == 2 * IMAGES


def test_metadata_from_a_table(runs, market, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text(
        "path,camera,time,identity\n0001_c1s1_000000_01.jpg,gate,2024-05-31,anna\nnone.jpg,,,\n"
    )
    words = build_words(runs, market, tmp_path / "index", "--metadata", str(table))
    assert tool.command(words) == 0
    assert "1 lines of" in capsys.readouterr().out
    words = query_words(market, tmp_path / "index", "--camera", "gate")
    assert tool.command(words) == 0
    assert "anna" in capsys.readouterr().out


def test_remove_and_add(runs, market, index, tmp_path, capsys):
    gone = ["0001_c1s1_000000_01.jpg", "0002_c1s1_000000_01.jpg"]
    assert tool.command(["remove", "--index", str(index), *gone]) == 0
    assert "2 images removed" in capsys.readouterr().out
    opened = GalleryIndex(index)
    assert len(opened) == IMAGES - 2 and opened.info().generation == 0
    assert tool.command(["remove", "--index", str(index), "--camera", "2"]) == 0
    assert len(opened) == opened.info().rows == 30 and opened.info().generation == 1
    assert not len(opened.select(Filter(("2",))))
    for words, message in (
        ([*gone], "2 paths are not in"),
        ([], "give either paths, or --camera"),
        ([*gone, "--camera", "1"], "give either paths, or --camera"),
    ):
        assert tool.command(["remove", "--index", str(index), *words]) == 2
        assert message in capsys.readouterr().err
    moved = shutil.copytree(market / "bounding_box_test", tmp_path / "moved")
    shutil.copy(moved / gone[0], moved / "0099_c9s1_000007_01.jpg")
    words = ["add", "--index", str(index), "--gallery", str(moved), "--workers", "0"]
    assert tool.command([*words, "--restore", "other.jpg"]) == 2
    assert "other.jpg was not removed from" in capsys.readouterr().err
    assert tool.command([*words, "--restore", gone[0]]) == 0
    printed = capsys.readouterr().out
    assert len(opened) == 30 + 2 and "32 images" in printed
    assert "17 images were removed before" in printed
    assert tool.command(["info", "--index", str(index)]) == 0


def test_add_notices_what_has_changed(runs, market, index, tmp_path, capsys):
    gallery = shutil.copytree(market / "bounding_box_test", tmp_path / "gallery")
    words = ["add", "--index", str(index), "--workers", "0", "--gallery", str(gallery)]
    names = sorted(path.name for path in gallery.glob("*.jpg"))
    (gallery / names[0]).touch()  # another time, the same content
    assert tool.command(words) == 0
    assert "have changed" not in capsys.readouterr().out
    shutil.copy(gallery / names[40], gallery / names[0])
    assert tool.command(words) == 2
    assert f"1 of its images are others there, such as {names[0]}" in capsys.readouterr().err
    with databases.transaction(index, write=True) as database:
        database.write_info(replace(database.read_info(), gallery=str(gallery)))
    (gallery / names[1]).write_bytes(b"broken")
    Path(os.fsdecode(os.fsencode(gallery) + b"/caf\xe9.jpg")).write_bytes(b"")
    table = tmp_path / "table.csv"
    table.write_text(f"path;camera;split\n{names[2]};gate;query\n")
    assert tool.command([*words[:-2], "--metadata", str(table)]) == 1
    printed, error = capsys.readouterr()
    for text in ("2 of them have changed", "1 images in the index get other", r"UTF-8: caf\udce9"):
        assert text in printed
    assert r"1 files or folders of" in error and r"the first is caf\udce9.jpg" in error
    opened = GalleryIndex(index)
    assert len(opened) == IMAGES - 1 and not opened.versions_of([names[1]])
    one, other = opened.look_up([make_id(names[0]), make_id(names[40])])
    np.testing.assert_allclose(one.features, other.features, atol=1e-5)
    assert opened.look_up(opened.select(Filter("gate")).tolist())[0].item.path == names[2]


def test_filters_that_no_image_passes_are_named(market, index, capsys):
    for words, message in (
        (["--camera", "33"], "there is no camera '33'; there are 1, 2, 3"),
        (["--until", "2024-05-31"], "no image has a time like 2024-05-31: they are 0 to 1"),
    ):
        assert tool.command(query_words(market, index, *words)) == 2
        assert message in capsys.readouterr().err
        assert tool.command(["remove", "--index", str(index), *words]) == 2
    assert len(GalleryIndex(index)) == IMAGES


def test_an_approximation_by_name(runs, market, index, monkeypatch, capsys):
    monkeypatch.setattr("gallery_search.store.approximation.MIN_ITEMS", 10)
    assert tool.command(["optimise", "--index", str(index), "--kind", "hnsw"]) == 0
    assert "search: hnsw, recall@10 " in capsys.readouterr().out
    assert tool.command(["info", "--index", str(index), "--time"]) == 0
    printed = capsys.readouterr().out
    assert "search: hnsw" in printed and printed.count(" ms for a query") == 2
    assert tool.command(query_words(market, index)) == 0
    assert tool.command(["optimise", "--index", str(index)]) == 0
    assert "search: exact" in capsys.readouterr().out
    assert tool.command(build_words(runs, market, index, "--kind", "ivf")) == 0
    assert "search: ivf, recall@10 " in capsys.readouterr().out


def test_mistakes_end_in_one_message(runs, market, index, tmp_path, capsys):
    other = str(runs / "other")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").touch()
    for words, message in (
        (query_words(market, index, "--weights", other), "was built by another model"),
        (query_words(market, tmp_path / "none"), "is not a gallery index"),
        (query_words(market, index, "--since", "soon"), "'soon' is not a time"),
        (["query", "--index", str(index), "--image", "none.jpg"], "the image none.jpg"),
        (build_words(runs, market, tmp_path / "new", "--weights", other + "s"), "no weights"),
        (build_words(runs, market, index, "--weights", other), "was built by another model"),
        (build_words(runs, market, index, "--gallery", str(market)), "is an index of"),
        (build_words(runs, market, tmp_path / "nothing" / "x", "--gallery", "n"), "cannot read n"),
        (
            build_words(runs, market, tmp_path / "b", "--gallery", str(tmp_path / "broken")),
            "none of the images",
        ),
    ):
        assert tool.command(words) == 2, words
        assert message in capsys.readouterr().err


def test_a_picture_that_is_gone_is_drawn_white(market, index, tmp_path, capsys):
    words = query_words(market, index, "--gallery", str(tmp_path), "--top", "2")
    assert tool.command([*words, "--figure", str(tmp_path / "F.png")]) == 0
    assert "Cannot draw" in capsys.readouterr().out
    assert Image.open(tmp_path / "F.png").size[0] > 300

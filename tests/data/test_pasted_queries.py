"""Queries that are pasted over: exact truth, reproducible, created once and atomically."""

from __future__ import annotations

import csv
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastreid.data.datasets import DATASET_REGISTRY
from PIL import Image
from runs import load_tool

from occluded_reid.config import load_config
from occluded_reid.data.build import open_dataset
from occluded_reid.data.datasets import pasted_queries as module
from occluded_reid.data.datasets.base import FolderDataset
from occluded_reid.data.datasets.market1501 import MarketSplit
from occluded_reid.data.datasets.pasted_queries import PastedQueries
from occluded_reid.data.datasets.registry import build_dataset
from occluded_reid.data.transforms import occluder_cutouts as cutouts
from occluded_reid.data.transforms import paste
from occluded_reid.data.transforms.occluder_cutouts import Cutout, read_cutouts, render_cutouts
from occluded_reid.evaluation.occlusion_metrics import measure_by_occlusion, measure_visibility_auc
from occluded_reid.evaluation.ranking import rank_queries
from occluded_reid.synthetic.occluders.styles import STYLES
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_folder, make_folder_once

GRAY = 110
RED, BLUE, YELLOW, GREEN = (200, 0, 0), (0, 0, 200), (200, 200, 0), (0, 200, 0)
SIZE = (48, 96)  # width, height
# class, color, height, width, split
OCCLUDERS = (
    ("car", RED, 40, 80, "test"),
    ("pole", BLUE, 120, 16, "test"),
    ("pedestrian", YELLOW, 90, 30, "test"),
    ("car", GREEN, 40, 80, "train"),
)


def write_market(root: Path, pids: tuple[int, ...] = (2, 7, 10, 100, 1500, 1501)) -> Path:
    """Gray PNG images, so that every pasted pixel is known."""
    folder = root / "bounding_box_train"
    folder.mkdir(parents=True, exist_ok=True)
    for pid in pids:
        for camera, frame in ((1, 451), (1, 876), (3, 151), (6, 42)):
            name = f"{pid:04d}_c{camera}s1_{frame:06d}_01.png"
            Image.new("RGB", SIZE, (GRAY,) * 3).save(folder / name)
    return root


def write_occluders(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for number, (kind, color, height, width, split) in enumerate(OCCLUDERS):
        Image.new("RGBA", (width, height), (*color, 255)).save(folder / f"{number}.png")
        rows.append((f"{number}.png", kind, split))
    write_list(folder, rows)
    return folder


def write_list(folder: Path, rows: list, columns: tuple = ("file", "class", "split")) -> None:
    with open(folder / "occluders.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_market(tmp_path / "data")


@pytest.fixture
def occluders(tmp_path: Path) -> str:
    return str(write_occluders(tmp_path / "occluders"))


def read(root: Path, occluders: str, name: str = "OccludedMarketSplit", **options):
    arguments = {"root": str(root), "occluders": occluders, "allow_partial": True, **options}
    return build_dataset(name, verbose=False, **arguments)


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def names(items: list) -> list[str]:
    return [Path(item[0]).name for item in items]


def test_only_the_pixels_of_the_queries_differ_from_the_base(root: Path, occluders: str) -> None:
    base = build_dataset("MarketSplit", root=str(root), allow_partial=True, verbose=False)
    ours = read(root, occluders)
    assert (ours.train, ours.gallery) == (base.train, base.gallery)
    assert names(ours.query) == names(base.query)
    assert [item[1:] for item in ours.query] == [item[1:] for item in base.query]
    assert not {item[0] for item in ours.query} & {item[0] for item in base.query}
    assert all(pixels(item[0]).shape == (SIZE[1], SIZE[0], 3) for item in ours.query)


def test_truth_is_what_the_pixels_show(root: Path, occluders: str) -> None:
    dataset = read(root, occluders)
    assert set(dataset.truth) == {item[0] for item in dataset.query}
    zone = slice(round(0.2 * SIZE[0]), round(0.8 * SIZE[0]))
    for path, pid, camera in dataset.query:
        record = dataset.truth[path]
        covered = (pixels(path) != GRAY).any(axis=2)
        rows, columns = np.nonzero(covered)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert (record.identity, record.camera, record.size) == (pid, camera + 1, SIZE)
        assert record.occluders[0].box == box
        assert record.visible_fraction == pytest.approx(1 - covered[:, zone].mean(), abs=1e-4)
        visible = (~covered[:, zone]).reshape(16, -1).sum(axis=1)
        assert record.stripe_visible_pixels == tuple(visible)
        assert record.stripe_person_pixels == (6 * (zone.stop - zone.start),) * 16
        area = covered.reshape(4, -1).mean(axis=1)
        assert record.stripe_coverage == pytest.approx(area, abs=1e-4)
        assert 0.45 <= record.visible_fraction <= 0.75
        color = tuple(pixels(path)[covered].mean(axis=0) > 50)
        kinds = {(True, False, False): "car", (False, False, True): "pole"}
        assert record.occluders[0].kind == kinds.get(color, "pedestrian")


def test_held_out_occluders_only_and_each_occlusion(tmp_path: Path, occluders: str) -> None:
    root = write_market(tmp_path / "many", tuple(range(2, 40)))
    dataset = read(root, occluders)
    records = [dataset.truth[item[0]] for item in dataset.query]
    assert {r.occlusion for r in records} == {"horizontal", "vertical", "pedestrian"}
    for path, _, _ in dataset.query:
        red, green, blue = np.moveaxis(pixels(path), 2, 0)
        assert not ((green > 50) & (red < 50) & (blue < 50)).any()


def test_same_seed_same_images_other_seed_others(
    tmp_path: Path, root: Path, occluders: str
) -> None:
    def content(dataset) -> dict[str, bytes]:
        return {Path(item[0]).name: Path(item[0]).read_bytes() for item in dataset.query}

    first = content(read(root, occluders))
    elsewhere = content(read(root, occluders, occluded_root=str(tmp_path / "elsewhere")))
    other = content(read(root, occluders, occluded_seed=1))
    more = content(
        read(write_market(tmp_path / "more", (2, 7, 10, 100, 1499, 1500, 1501)), occluders)
    )
    assert first == elsewhere
    assert first != other
    assert {name: more[name] for name in first} == first  # whatever else is in the set


def test_pasted_once_and_again_for_other_occluders(
    root: Path, occluders: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(read(root, occluders).query)
    places = list((root / "Occluded").glob("Occluded*"))
    with monkeypatch.context() as patched:
        patched.setattr(module, "paste_cutout", None)  # cannot be called
        assert names(read(root, occluders).query) == before
    Image.new("RGBA", (80, 40), (*BLUE, 255)).save(Path(occluders, "0.png"))
    read(root, occluders)
    assert len(list((root / "Occluded").glob("Occluded*"))) == len(places) + 1


def test_an_interrupted_pasting_leaves_nothing(
    root: Path, occluders: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return paste.paste_cutout(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "paste_cutout", interrupted)
        read(root, occluders)
    left = [path.name for path in (root / "Occluded").iterdir()]
    assert [name for name in left if not name.endswith(".lock")] == []
    assert len(read(root, occluders).query) == 6


def test_make_folder_once_fills_once_and_clears_what_a_killed_process_left(tmp_path: Path) -> None:
    leftover = tmp_path / ".made.tmp-killed"
    leftover.mkdir()
    calls, together = [], threading.Barrier(4)

    def fill(folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.1)
        (folder / "file").write_text("whole")

    def ask(_: int) -> str:
        together.wait()
        return (make_folder_once(tmp_path / "made", fill) / "file").read_text()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == ["whole"] * 4
    assert len(calls) == 1
    assert not leftover.exists()


def test_atomic_folder_writes_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with (
        pytest.raises(UserError, match="full exists already; delete it"),
        atomic_folder(tmp_path / "full"),
    ):
        raise AssertionError("not reached")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_holistic_protocol_asks_the_same_gallery_with_the_queries_as_they_are(
    root: Path, occluders: str
) -> None:
    ours, pasted = read(root, "", "OccludedMarketSplit:holistic"), read(root, occluders)
    base = build_dataset("MarketSplit", root=str(root), allow_partial=True, verbose=False)
    assert (ours.query, ours.truth) == (base.query, None)
    assert ours.gallery == pasted.gallery
    assert pasted.protocol == "occluded"


def test_a_half_of_the_split_asks_with_the_same_pasted_pixels(root: Path, occluders: str) -> None:
    whole = {Path(item[0]).name: item for item in read(root, occluders).query}
    halves = [read(root, occluders, f"OccludedMarketSplit:{half}") for half in ("choose", "report")]
    asked = [item for half in halves for item in half.query]
    assert sorted(names(asked)) == sorted(whole)
    assert all((pixels(item[0]) == pixels(whole[Path(item[0]).name][0])).all() for item in asked)
    assert all(set(half.truth) == {item[0] for item in half.query} for half in halves)


def test_market1501_keeps_the_folders_of_its_queries(tmp_path: Path, occluders: str) -> None:
    home = write_market(tmp_path)
    for folder in ("query", "bounding_box_test"):
        (home / folder).mkdir()
        for camera in (1, 2):
            image = Image.new("RGB", SIZE, (GRAY,) * 3)
            image.save(home / folder / f"0001_c{camera}s1_000001_00.jpg")
    dataset = read(home, occluders, "OccludedMarket1501")
    assert [Path(item[0]).parent.name for item in dataset.query] == ["query"] * 2
    assert set(dataset.truth) == {item[0] for item in dataset.query}


def test_any_set_of_named_images_can_have_its_occluded_version(
    root: Path, occluders: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plain(FolderDataset):
        folders = {name: "bounding_box_train" for name in ("train", "query", "gallery")}
        num_cameras = 6

    class OccludedPlain(PastedQueries, Plain):
        pass

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "OccludedPlain", OccludedPlain)
    dataset = read(root, occluders, "OccludedPlain")
    assert len(dataset.query) == 24
    assert all("OccludedPlain-seed0" in item[0] for item in dataset.query)


def test_counts_are_the_base_s_and_refused_before_anything_is_pasted(
    root: Path, occluders: str
) -> None:
    with pytest.raises(UserError, match=r"^OccludedMarketSplit in .*query has 6 .* expected 1122"):
        read(root, occluders, allow_partial=False)
    assert not (root / "Occluded").exists()


def test_the_configuration_reaches_the_pasting(tmp_path: Path, root: Path, occluders: str) -> None:
    where = tmp_path / "kept"
    words = ["DATASETS.ALLOW_PARTIAL", "True", "DATASETS.OCCLUDED.SEED", "3"]
    words += ["DATASETS.OCCLUDED.ROOT", str(where), "DATASETS.OCCLUDED.OCCLUDERS", occluders]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FASTREID_DATASETS", str(root))
        dataset = open_dataset(load_config("", words), "OccludedMarketSplit")
    assert re.fullmatch(r"OccludedMarketSplit-seed3-[0-9a-f]{10}-v\d+", dataset.pasted.name)
    assert dataset.pasted.parent.parent == where
    assert {r.occluders[0].kind for r in dataset.truth.values()} <= {"car", "pole", "pedestrian"}


def test_evaluation_reads_the_truth(root: Path, occluders: str) -> None:
    dataset = read(root, occluders)
    paths = np.array([item[0] for item in dataset.query])
    seen = [(pixels(path)[:, 10:38] == GRAY).all(axis=2).reshape(4, -1).mean(1) for path in paths]
    assert measure_visibility_auc(np.array(seen), paths, dataset.truth)["all"] == 1
    ids = np.array([item[1] for item in dataset.query])
    cameras = np.zeros(len(ids), int)
    ranking = rank_queries(np.zeros((len(ids), len(ids))), ids, ids, cameras, cameras + 1)
    groups = measure_by_occlusion(ranking, paths, dataset.truth)
    occlusions = {record.occlusion for record in dataset.truth.values()}
    assert sum(groups[name]["queries"] for name in occlusions) == len(paths)


def test_synthetic_occluders_have_styles_that_npo_never_shows(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutouts, "_CUTOUTS_PER_KIND", 1)
    monkeypatch.setattr(module, "render_cutouts", render_cutouts.__wrapped__)  # keeps none of these
    with caplog.at_level(logging.INFO):
        dataset = read(root, "")
    assert "synthetic occluders over queries (the test styles" in caplog.text
    assert {r.occluders[0].kind for r in dataset.truth.values()} <= set(STYLES) - {"umbrella"}
    for kind, styles in STYLES.items():
        trained_with = [None] * (len(styles) - 1)  # cannot be rendered
        monkeypatch.setitem(STYLES, kind, (*trained_with, styles[-1]))
    again = render_cutouts.__wrapped__()
    assert {c.occlusion for c in again} == {"horizontal", "vertical"}
    assert all(len(np.unique(c.pixels[..., 3])) > 1 for c in again if c.kind == "bicycle")


@pytest.mark.parametrize(
    ("kind", "height", "width", "occlusion"),
    [
        ("car", 40, 80, "horizontal"),
        ("sign", 40, 40, "horizontal"),
        ("pole", 120, 16, "vertical"),
        ("pedestrian", 90, 30, "pedestrian"),
        ("bicyclist", 60, 60, "pedestrian"),
    ],
)
def test_cutouts_are_placed_as_in_the_wild(
    kind: str, height: int, width: int, occlusion: str
) -> None:
    cutout = Cutout(np.full((height, width, 4), 255, np.uint8), kind)
    assert cutout.occlusion == occlusion
    image = np.zeros((128, 64, 3), np.uint8)
    for seed in range(25):
        rng = np.random.default_rng(seed)
        pasted = paste.paste_cutout(image, {occlusion: [cutout]}, rng)
        rows = pasted.covered.max(axis=1)
        assert rows[-1]  # all stand on the ground
        assert pasted.covered[:, 13:51].mean() == pytest.approx(0.4, abs=0.15)
        if occlusion == "horizontal":
            assert not rows[: 128 // 4].any()
        if occlusion == "vertical":
            assert rows.all()


def test_small_cutouts_are_not_enlarged_much() -> None:
    cutout = Cutout(np.full((5, 5, 4), 255, np.uint8), "sign")
    image = np.zeros((128, 64, 3), np.uint8)
    for seed in range(10):
        pasted = paste.paste_cutout(image, {"horizontal": [cutout]}, np.random.default_rng(seed))
        assert pasted.covered.sum() <= 10 * 10


def test_transparent_pixels_and_the_image_outside_stay() -> None:
    pixels = np.full((40, 40, 4), 255, np.uint8)
    pixels[:, ::2, 3] = 0  # half of each pixel once it is shrunk
    pixels[:20, :, 3] = 0
    image = np.full((32, 32, 3), 100, np.uint8)
    pasted = paste.paste_cutout(
        image, {"horizontal": [Cutout(pixels, "fence")]}, np.random.default_rng(0)
    )
    assert (pasted.pixels[:6] == 100).all()
    assert 100 < pasted.pixels[-1].max() < 255
    assert (image == 100).all()


def test_dark_cutouts_are_brightened_in_a_bright_image() -> None:
    dark = Cutout(np.full((40, 80, 4), (50, 50, 50, 255), np.uint8), "car")
    image = np.full((96, 48, 3), 100, np.uint8)
    pasted = paste.paste_cutout(image, {"horizontal": [dark]}, np.random.default_rng(0))
    assert pasted.pixels[pasted.covered].mean() == pytest.approx(50 * 2**0.5, abs=1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "occluders.csv").unlink(),
            r"cannot read the occluder set .*make_occluders",
        ),
        (lambda f: write_list(f, [("0.png", "car", "train")]), "no occluder of the split 'test'"),
        (lambda f: write_list(f, []), "and 0 rows; it needs rows with file, class, split"),
        (
            lambda f: write_list(f, [("0.png", "car")], ("file", "class")),
            "class and 1 rows; it needs",
        ),
        (lambda f: (f / "1.png").write_bytes(b"no image"), r"cannot read the image .*1\.png"),
        (lambda f: (f / "1.png").unlink(), r"cannot read the image .*1\.png"),
        (lambda f: Image.new("RGBA", (9, 9)).save(f / "1.png"), r"1\.png is fully transparent"),
    ],
)
def test_invalid_occluder_sets_are_named(root: Path, occluders: str, spoil, message: str) -> None:
    spoil(Path(occluders))
    with pytest.raises(UserError, match=message):
        read(root, occluders)


def test_surrounding_transparency_does_not_make_a_cutout_smaller(tmp_path: Path) -> None:
    pixels = np.zeros((50, 60, 4), np.uint8)
    pixels[10:40, 20:30] = 255
    Image.fromarray(pixels).save(tmp_path / "0.png")
    write_list(tmp_path, [("0.png", "pole", "test")])
    (cutout,) = read_cutouts(tmp_path, "test")
    assert cutout.pixels.shape == (30, 10, 4)
    assert cutout.orientation == "vertical"


def test_a_broken_query_and_a_missing_image_are_named(root: Path, occluders: str) -> None:
    broken = root / "bounding_box_train" / "1500_c1s1_000451_01.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    with pytest.raises(UserError, match=f"cannot read the image {broken}"):
        read(root, occluders)
    broken.unlink()
    broken.symlink_to("gone")
    with pytest.raises(UserError, match=f"cannot read the image {broken} [(]No such file"):
        read(root, occluders)
    broken.unlink()
    broken.write_bytes(whole)
    with pytest.MonkeyPatch.context() as patched, pytest.raises(UserError, match="million pixels"):
        patched.setattr(Image, "MAX_IMAGE_PIXELS", 1)
        read(root, "")
    dataset = read(root, occluders)
    Path(dataset.query[0][0]).unlink()
    with pytest.raises(UserError, match="lacks 1 of its 6 images, such as 1500_.*delete"):
        read(root, occluders)


def test_a_negative_seed_is_refused(root: Path, occluders: str) -> None:
    with pytest.raises(UserError, match="DATASETS.OCCLUDED.SEED is -1"):
        read(root, occluders, occluded_seed=-1)


def test_the_doctor_checks_base_and_pasted_queries_and_writes_nothing(
    root: Path, occluders: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MarketSplit, "expected", {})
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        Image.new("RGB", SIZE, (number, 0, 0)).save(path)  # no two are alike
    words = ["OccludedMarketSplit", "--root", str(root), "DATASETS.OCCLUDED.OCCLUDERS"]

    def examine(code: int, *messages: str) -> None:
        assert load_tool("check_dataset").command([*words, occluders]) == code
        printed = capsys.readouterr().out
        assert all(text in printed for text in messages), printed

    before = sorted(root.rglob("*"))
    examine(0, "not pasted yet; the first use does it, in ", "The data set is sound")
    assert sorted(root.rglob("*")) == before
    dataset = read(root, occluders)
    examine(0, f"6 queries are pasted, in {dataset.pasted}", "The data set is sound")
    query, truth = Path(dataset.query[0][0]), dataset.pasted / "truth.jsonl"
    query.write_bytes(b"")
    truth.write_text("".join(truth.read_text().splitlines(keepends=True)[1:]))
    examine(1, f"{query} cannot be read: ", "1 pasted queries are not in truth.jsonl")
    truth.write_text("{")
    examine(1, f"cannot read {truth} ", "delete the folder to paste the queries again")
    (Path(occluders) / "occluders.csv").unlink()
    examine(1, "FAULT: cannot read the occluder set")

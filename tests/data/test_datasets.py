"""The loaders read names, count, sort, and refuse in words; on generated trees of tiny JPEGs."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
from fastreid.data.datasets import DATASET_REGISTRY
from PIL import Image
from runs import draw_market

from occluded_reid.data.datasets import synthetic
from occluded_reid.data.datasets.base import (
    OWN_DATA,
    Counts,
    DatasetNotFound,
    FolderDataset,
    LabeledImage,
    label_training_items,
)
from occluded_reid.data.datasets.market1501 import MarketSplit
from occluded_reid.data.datasets.registry import (
    build_dataset,
    format_summary,
    get_dataset_root,
    summarize,
)
from occluded_reid.utils.errors import UserError

MARKET = "Market-1501-v15.09.15"


def write_images(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 8), (90, 120, 30)).save(folder / name, format="JPEG")
    return folder


def market_name(pid: int, camera: int, frame: int) -> str:
    return f"{pid:04d}_c{camera}s1_{frame:06d}_01.jpg"


def training_names(pids: list[int]) -> list[str]:
    """Two images of each identity at camera 1, one each at cameras 3 and 6."""
    places = ((1, 451), (1, 876), (3, 151), (6, 42))
    return [market_name(pid, camera, frame) for pid in pids for camera, frame in places]


@pytest.fixture
def market(tmp_path: Path) -> Path:
    """A root with a small Market-1501 that also holds what real copies hold besides images."""
    home = tmp_path / MARKET
    train = write_images(home / "bounding_box_train", training_names([2, 7, 10, 100, 1500, 1501]))
    write_images(train, ["-1_c1s1_000401_03.jpg", "0000_c1s1_000151_01.jpg", "cover.jpg"])
    (train / "Thumbs.db").write_bytes(b"\0")
    (train / ".DS_Store").write_bytes(b"\0")
    (train / "._0002_c1s1_000451_01.jpg").write_bytes(b"\0")
    (train / "0002_c1s1_000451_01.txt").write_text("no image")
    (train / "__MACOSX").mkdir()
    write_images(home / "query", [market_name(1, 1, 5), market_name(3, 2, 5)])
    gallery = [market_name(1, 4, 9), market_name(3, 1, 9), "0000_c1s1_000151_02.jpg"]
    write_images(home / "bounding_box_test", [*gallery, "-1_c2s1_000401_03.jpg"])
    return tmp_path


def names(items: list) -> list[str]:
    return [os.path.basename(item[0]) for item in items]


def test_split_divides_identities_and_takes_the_first_image_per_camera(market: Path) -> None:
    dataset = build_dataset("MarketSplit", root=str(market), allow_partial=True)
    assert names(dataset.train) == sorted(training_names([2, 7, 10, 100]))
    assert names(dataset.query) == [
        market_name(pid, camera, frame)
        for pid in (1500, 1501)
        for camera, frame in ((1, 451), (3, 151), (6, 42))
    ]
    assert names(dataset.gallery) == [market_name(1500, 1, 876), market_name(1501, 1, 876)]


def test_halves_of_the_split_ask_about_other_identities_in_the_same_gallery(market: Path) -> None:
    whole, choose, report = (
        build_dataset(name, root=str(market), allow_partial=True)
        for name in ("MarketSplit", "MarketSplit:choose", "MarketSplit:report")
    )
    assert {query.pid for query in choose.query} == {1500}
    assert {query.pid for query in report.query} == {1501}
    assert sorted([*choose.query, *report.query]) == sorted(whole.query)
    assert choose.gallery == report.gallery == whole.gallery
    assert choose.train == report.train == whole.train


def test_training_labels_are_strings_that_sort_like_numbers(market: Path) -> None:
    dataset = build_dataset("MarketSplit", root=str(market), allow_partial=True)
    path, pid, camid = dataset.train[0]
    assert (pid, camid) == ("market1501_0002", "market1501_00")
    assert Path(path).is_absolute() and Path(path).is_file()
    labels = [pid for _, pid, _ in dataset.train]
    assert labels == sorted(labels)
    assert [int(label.split("_")[-1]) for label in labels] == sorted(
        int(label.split("_")[-1]) for label in labels
    )


def test_long_identities_widen_all_labels() -> None:
    images = [LabeledImage("a", 9, 0), LabeledImage("b", 123456, 11)]
    assert label_training_items(images, "m") == [
        ("a", "m_000009", "m_00"),
        ("b", "m_123456", "m_11"),
    ]


def test_test_items_are_raw_numbers_with_cameras_from_zero(market: Path) -> None:
    dataset = build_dataset("Market1501", root=str(market), allow_partial=True)
    assert [tuple(item[1:]) for item in dataset.query] == [(1, 0), (3, 1)]
    assert [tuple(item[1:]) for item in dataset.gallery] == [(0, 0), (1, 3), (3, 0)]
    assert all(type(value) is int for item in dataset.gallery for value in item[1:])


def test_summary_counts_no_distractor_as_identity(market: Path) -> None:
    dataset = build_dataset("Market1501", root=str(market), allow_partial=True)
    assert summarize(dataset) == {
        "train": {"images": 24, "identities": 6, "cameras": 3},
        "query": {"images": 2, "identities": 2, "cameras": 2},
        "gallery": {"images": 3, "identities": 2, "cameras": 2},
    }
    row = format_summary(dataset).splitlines()[2]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["train", "24", "6", "3"]


def test_wrong_counts_are_refused_with_both_numbers(market: Path) -> None:
    with pytest.raises(UserError) as refusal:
        build_dataset("MarketSplit", root=str(market))
    folder = market / MARKET / "bounding_box_train"
    assert str(refusal.value) == (
        f"MarketSplit in {folder}: train has 16 images of 4 identities, expected 9173 images of "
        "500 identities; query has 6 images of 2 identities, expected 1122 images of 251 "
        "identities; gallery has 2 images of 2 identities, expected 2641 images of 249 identities. "
        "Get the complete data set (tools/check_dataset.py shows what is missing), or continue "
        f"without it: DATASETS.ALLOW_PARTIAL True. {OWN_DATA}"
    )


def test_one_missing_image_is_noticed(market: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = {"train": Counts(16, 4), "query": Counts(6, 2), "gallery": Counts(2, 2)}
    monkeypatch.setattr(MarketSplit, "expected", complete)
    build_dataset("MarketSplit", root=str(market))
    (market / MARKET / "bounding_box_train" / market_name(7, 6, 42)).unlink()
    with pytest.raises(UserError, match="train has 15 images of 4 .*, expected 16 images of 4"):
        build_dataset("MarketSplit", root=str(market))


def test_partial_sets_warn(market: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build_dataset("MarketSplit", root=str(market), allow_partial=True)
    assert "train has 16 images of 4 identities, expected 9173" in caplog.text
    assert "not comparable" in caplog.text


@pytest.mark.parametrize(
    "layout",
    [
        "Market-1501-v15.09.15/bounding_box_train",
        "Market-1501/bounding_box_train",
        "market1501/bounding_box_train",
        "market1501/train",
        "MarketSplit",
        "bounding_box_train",
        "train",
        ".",
    ],
)
def test_split_is_found_in_each_layout(tmp_path: Path, layout: str) -> None:
    write_images(tmp_path / layout, training_names([2, 7, 10]))
    dataset = build_dataset("MarketSplit", root=str(tmp_path), allow_partial=True)
    assert [len(dataset.train), len(dataset.query), len(dataset.gallery)] == [8, 3, 1]


@pytest.mark.parametrize("name", ["MarketSplit", "Market1501"])
def test_folders_above_the_images_are_not_parsed(tmp_path: Path, name: str) -> None:
    root = tmp_path / "2024_c9_x" / "0007_c2s1_y"
    names_and_pids = {"bounding_box_train": [2, 7, 10], "query": [1], "bounding_box_test": [1, 3]}
    for folder, pids in names_and_pids.items():
        write_images(root / MARKET / folder, training_names(pids))
    dataset = build_dataset(name, root=str(root), allow_partial=True)
    assert {pid for _, pid, _ in dataset.train} <= {f"market1501_{n:04d}" for n in (2, 7, 10)}
    assert {camid for _, _, camid in dataset.query} == {0, 2, 5}


def test_lists_do_not_depend_on_the_order_of_the_disk(
    market: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = build_dataset("Market1501", root=str(market), allow_partial=True)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: sorted(listdir(folder), reverse=True))
    dataset = build_dataset("Market1501", root=str(market), allow_partial=True)
    for subset in ("train", "query", "gallery"):
        assert getattr(dataset, subset) == getattr(expected, subset)


def test_host_lists_are_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import glob

    for folder in ("image_train", "image_query", "image_test"):
        names_of_veri = [f"{pid:04d}_c002_00046985_0.jpg" for pid in (5, 3, 20)]
        write_images(tmp_path / "veri" / folder, names_of_veri)
    unsorted = glob.glob
    monkeypatch.setattr(glob, "glob", lambda path: sorted(unsorted(path), reverse=True))
    dataset = build_dataset("VeRi", root=str(tmp_path))
    for items in (dataset.train, dataset.query, dataset.gallery):
        assert names(items) == sorted(names(items))
    assert dataset.truth is None


def test_impossible_camera_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "train", [*training_names([2]), market_name(2, 7, 1)])
    with pytest.raises(
        UserError, match=r"0002_c7s1_000001_01.jpg: .* camera 7, .* 1 to 6.*CSV:FOLDER"
    ):
        build_dataset("MarketSplit", root=str(tmp_path), allow_partial=True)


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("MarketSplit", ["0002_c1s1_000451_03.jpg", f"{MARKET}/bounding_box_train", "authors"]),
        ("Market1501", ["bounding_box_train, query, bounding_box_test", MARKET, "authors"]),
        ("VeRi", ["veri", "is not found"]),
    ],
)
def test_missing_folders_are_named(tmp_path: Path, name: str, looked_for: list[str]) -> None:
    with pytest.raises(DatasetNotFound) as refusal:
        build_dataset(name, root=str(tmp_path))
    for words in [name, str(tmp_path), "FASTREID_DATASETS", *looked_for]:
        assert words in str(refusal.value)


def test_other_host_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FolderDataset):
        def read_subsets(self):
            raise RuntimeError("out of memory")

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Broken", Broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        build_dataset("Broken", root="nowhere")


def test_files_that_fast_reid_does_not_understand_are_named(tmp_path: Path) -> None:
    lists = tmp_path / "VERI-Wild" / "train_test_split"
    lists.mkdir(parents=True)
    (lists.parent / "images").mkdir()
    for name in ("train_list.txt", "test_3000_query.txt", "test_3000.txt", "vehicle_info.txt"):
        (lists / name).write_text("00001/000002\n")
    with pytest.raises(UserError, match=r"SmallVeRiWild: .*train_list.txt', line '00001/000002'"):
        build_dataset("SmallVeRiWild", root=str(tmp_path))
    (lists / "train_list.txt").unlink()
    with pytest.raises(DatasetNotFound, match=r"train_list.txt. is not found"):
        build_dataset("SmallVeRiWild", root=str(tmp_path))


def test_identities_that_no_set_has_are_named(tmp_path: Path) -> None:
    name = market_name(2, 1, 1).replace("0002", "2" * 30)
    write_images(tmp_path / "train", [*training_names([2]), name])
    with pytest.raises(UserError, match="222222222222... has more than nine digits.*CSV:FOLDER"):
        build_dataset("MarketSplit", root=str(tmp_path), allow_partial=True)


@pytest.mark.parametrize("name", ["marketsplit", "MarketSplitt", "Market-Split"])
def test_unknown_names_suggest_the_nearest(name: str) -> None:
    with pytest.raises(UserError, match=f"no data set '{name}'; did you mean MarketSplit"):
        build_dataset(name, root="nowhere")


def test_names_like_no_other_list_all() -> None:
    with pytest.raises(UserError, match="there are .*MarketSplit.*SyntheticOccluded"):
        build_dataset("xyzzy", root="nowhere")


def test_protocols_are_checked() -> None:
    with pytest.raises(UserError, match="MarketSplit has no protocol 'crop'"):
        build_dataset("MarketSplit:crop", root="nowhere")
    with pytest.raises(UserError, match="VeRi has no protocol 'crop'"):
        build_dataset("VeRi:crop", root="nowhere")
    with pytest.raises(UserError, match="no protocol 'crop'; it has occluded and holistic"):
        build_dataset("SyntheticOccluded", root="nowhere", protocol="crop")


def test_general_protocol_leaves_sets_without_protocols_alone(market: Path) -> None:
    dataset = build_dataset("Market1501", root=str(market), protocol="crop", allow_partial=True)
    assert dataset.protocol == ""


def test_root_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTREID_DATASETS", "one")
    assert get_dataset_root() == "one"
    monkeypatch.setenv("FASTREID_DATASETS", "")
    assert get_dataset_root() == "datasets"
    monkeypatch.delenv("FASTREID_DATASETS")
    assert get_dataset_root() == "datasets"


@pytest.fixture
def generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Stand-in for the generator: the right tree, five images; returns the calls made."""
    calls: list[tuple] = []

    def generate(root: str, size: str, seed: int) -> str:
        calls.append((root, size, seed))
        home = Path(root) / "SyntheticOccluded" / f"{size}-seed{seed}-v1"
        write_images(home / "bounding_box_train", ["0000_c1_000000.jpg", "0001_c12_000001.jpg"])
        write_images(home / "query", ["0002_c1_000002.jpg"])
        write_images(home / "query_holistic", ["0002_c1_000003.jpg"])
        write_images(home / "bounding_box_test", ["0002_c2_000004.jpg"])
        return str(home)

    monkeypatch.setattr(synthetic, "generate", generate)
    monkeypatch.setattr(synthetic, "read_truth", lambda home: {"query/0002_c1_000002.jpg": 0.4})
    return calls


def test_synthetic_set_and_its_protocols(tmp_path: Path, generated: list[tuple]) -> None:
    root = str(tmp_path)
    occluded = build_dataset("SyntheticOccluded", root=root, synthetic_size="tiny")
    holistic = build_dataset("SyntheticOccluded:holistic", root=root, protocol="occluded")
    assert generated == [(root, "tiny", 0), (root, "small", 0)]
    assert (occluded.protocol, holistic.protocol) == ("occluded", "holistic")
    assert names(occluded.query) == ["0002_c1_000002.jpg"]
    assert names(holistic.query) == ["0002_c1_000003.jpg"]
    assert [item[1:] for item in occluded.train] == [
        ("synthetic-tiny-seed0-v1_0000", "synthetic-tiny-seed0-v1_00"),
        ("synthetic-tiny-seed0-v1_0001", "synthetic-tiny-seed0-v1_11"),
    ]
    assert tuple(occluded.gallery[0][1:]) == (2, 1)


def test_another_seed_has_other_people(tmp_path: Path, generated: list[tuple]) -> None:
    """Their numbers are the same; a bank of one must not pass for that of the other."""
    draws = [
        build_dataset("SyntheticOccluded", root=str(tmp_path), synthetic_size=size, **seed)
        for size, seed in (("tiny", {}), ("small", {}), ("tiny", {"synthetic_seed": 1}))
    ]
    people = [frozenset(item[1] for item in dataset.train) for dataset in draws]
    assert len(frozenset.union(*people)) == 3 * len(people[0])


def test_synthetic_set_may_be_elsewhere(tmp_path: Path, generated: list[tuple]) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    build_dataset("SyntheticOccluded", root="nowhere", synthetic_seed=3, synthetic_root=elsewhere)
    assert generated == [(elsewhere, "small", 3)]


def test_truth_is_keyed_by_the_path_of_an_item(tmp_path: Path, generated: list[tuple]) -> None:
    dataset = build_dataset("SyntheticOccluded", root=str(tmp_path))
    assert dataset.truth == {dataset.query[0][0]: 0.4}


def test_sets_without_truth_say_so(market: Path) -> None:
    assert build_dataset("MarketSplit", root=str(market), allow_partial=True).truth is None


def test_an_evaluation_needs_no_training_images(tmp_path: Path) -> None:
    home = draw_market(tmp_path) / "Market-1501-v15.09.15"
    options = {"root": str(tmp_path), "allow_partial": True}
    whole = build_dataset("Market1501", **options)
    shutil.rmtree(home / "bounding_box_train")
    with pytest.raises(UserError, match="bounding_box_train"):
        build_dataset("Market1501", **options)
    part = build_dataset("Market1501", training=False, **options)
    assert (part.query, part.gallery, part.train) == (whole.query, whole.gallery, [])


@pytest.mark.real_data
def test_split_of_the_real_images() -> None:
    """The published figures, where FASTREID_DATASETS holds Market-1501's training images."""
    try:
        dataset = build_dataset("MarketSplit", root=get_dataset_root())
    except UserError as error:
        if "found no images" in str(error):
            pytest.skip(str(error).splitlines()[0])
        raise
    counts = summarize(dataset)
    assert [counts[subset]["images"] for subset in counts] == [9173, 1122, 2641]
    assert [counts[subset]["identities"] for subset in counts] == [500, 251, 249]
    assert {pid for _, pid, _ in dataset.train}.isdisjoint(
        f"market1501_{item[1]:04d}" for item in dataset.query
    )

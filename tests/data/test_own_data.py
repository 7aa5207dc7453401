"""A folder of crops with a table: reading, training, the doctor, and mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import load_tool, tiny_cfg, train

from occluded_reid.data.build import build_train_loader
from occluded_reid.data.datasets.csv_table import TABLE
from occluded_reid.data.datasets.registry import build_dataset, summarize
from occluded_reid.data.prepare.doctor import diagnose
from occluded_reid.evaluation.testing import open_test_sets
from occluded_reid.utils.errors import UserError

check_dataset = load_tool("check_dataset")

ROWS = """\
path,identity,camera,split,note
a/1.jpg,anna,gate,train,
a/2.jpg,anna,yard,train,seen twice
b 3.png,bob,gate,train,
q.jpg,10,gate,query,
g1.jpg,10,yard,gallery,
g2.jpg,9,yard,gallery,
g3.jpg,,hall,gallery,nobody
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return write_shop(tmp_path / "data" / "shop", ROWS)


def write_shop(home: Path, text: str) -> Path:
    rng = np.random.default_rng(0)
    for line in text.splitlines()[1:]:
        path = home / line.split(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 32, 3), np.uint8)).save(path)
    (home / TABLE).write_text(text)
    return home


def open_shop(shop: Path, **options: bool):
    return build_dataset("CSV:shop", root=str(shop.parent), verbose=False, **options)


def test_rows_become_images_with_identities_and_cameras(shop: Path) -> None:
    dataset = open_shop(shop)
    # cameras by name: gate, hall, yard; identities: the numbers first, in their order
    assert dataset.query == [(f"{shop}/q.jpg", 2, 0)]
    assert dataset.gallery == [
        (f"{shop}/g1.jpg", 2, 2), (f"{shop}/g2.jpg", 1, 2), (f"{shop}/g3.jpg", 0, 1)
    ]  # fmt: skip
    assert dataset.train == [
        (f"{shop}/a/1.jpg", "shop_0003", "shop_00"),
        (f"{shop}/a/2.jpg", "shop_0003", "shop_02"),
        (f"{shop}/b 3.png", "shop_0004", "shop_00"),
    ]
    assert summarize(dataset)["gallery"] == {"images": 3, "identities": 2, "cameras": 2}


def test_without_cameras_every_match_is_scored(tmp_path: Path) -> None:
    shop = write_shop(tmp_path / "shop", "path,identity,split\nq.jpg,a,query\ng.jpg,a,gallery\n")
    dataset = open_shop(shop)
    assert (dataset.query[0].camid, dataset.gallery[0].camid) == (0, 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("q.jpg,10,gate,query", "q.jpg,10,gate,test", "line 5: this row has the split 'test'"),
        ("b 3.png,bob", "b 3.png,", "line 4: this row has no identity; only gallery images may"),
        ("q.jpg,10,gate", "q.jpg,10,", "line 5: this row has no camera; give one to all rows"),
        ("a/2.jpg", "a/1.jpg", "line 3: this row repeats a/1.jpg in train"),
        ("q.jpg", "../q.jpg", "names '../q.jpg', which lies outside"),
        ("anna,gate,train", "-1,gate,train", "line 2: this row has no identity"),
        ("q.jpg", "C:\\q.jpg", "names 'C:.*q.jpg', which lies outside its own folder; move the"),
        ("b 3.png", "x" * 5000, "names 1 missing images"),
        ("gallery,nobody", "gallery,no,body", "line 8: there are more cells than columns"),
        ("b 3.png", "gone.png", "names 1 missing images, such as gone.png in line 4"),
        ("path,identity", "file,identity", "needs rows with path, identity, split"),
        (ROWS[ROWS.index("\n") :], "\n", "and 0 rows"),
    ],
)
def test_an_invalid_row_is_named(shop: Path, old: str, new: str, message: str) -> None:
    (shop / TABLE).write_text(ROWS.replace(old, new))
    with pytest.raises(UserError, match=message):
        open_shop(shop)


def test_names_are_odd_and_numbers_long(tmp_path: Path) -> None:
    long = "9" * 5000
    rows = f"a:1.jpg;{long};7;query\n./a:1.jpg;007;7;gallery\nb\\2.jpg;0{long};8;gallery\n"
    rows += "c.jpg;-1;8;gallery\nd.jpg;0000;9;gallery\n"
    (tmp_path / "shop" / "b").mkdir(parents=True)
    for name in ("a:1.jpg", "b/2.jpg", "c.jpg", "d.jpg"):
        (tmp_path / "shop" / name).touch()
    (tmp_path / "shop" / TABLE).write_text(f"path;identity;camera;split\n{rows}", "utf-16")
    dataset = open_shop(tmp_path / "shop")
    assert dataset.query == [(f"{tmp_path}/shop/a:1.jpg", 3, 0)]
    names = {Path(path).name: pid for path, pid, _ in dataset.gallery}
    assert names == {"a:1.jpg": 1, "2.jpg": 2, "c.jpg": 0, "d.jpg": 0}


def test_missing_parts_are_named(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="CSV needs the folder of your data, CSV:FOLDER"):
        build_dataset("CSV", root=str(tmp_path))
    (shop / "a" / "2.jpg").unlink()
    assert len(open_shop(shop, allow_partial=True).train) == 2
    (shop / TABLE).unlink()
    with pytest.raises(UserError, match=f"CSV:shop: found no {TABLE} in any of\n  {shop}"):
        open_shop(shop)
    (shop / TABLE).write_bytes(b"path,identity,split\n\xff\xfe")
    with pytest.raises(UserError, match=r"cannot read the table .*CSV in UTF-8"):
        open_shop(shop)


def test_the_doctor_looks_at_it(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["CSV:shop", "--root", str(shop.parent), "--decode"]
    assert check_dataset.command(words) == 0
    assert "The data set is sound." in capsys.readouterr().out
    (shop / "g1.jpg").write_bytes(b"")
    assert check_dataset.command(words) == 1
    output = capsys.readouterr().out
    assert "g1.jpg cannot be read: it is no" in output and "docs/own_data.md" in output
    assert check_dataset.command(["CSV"]) == 2
    write_shop(shop, ROWS)
    (shop / "a" / "2.jpg").unlink()
    (shop / "a" / "2.jpg").symlink_to("2.jpg")
    assert check_dataset.command(words) == 1
    assert "FAULT: 1 images of the table are not on the disk (2.jpg)" in capsys.readouterr().out


PEOPLE = "path,identity,camera,split\n" + "".join(
    f"{split}{person}{camera}.png,{person},{camera},{split}\n"
    for split, people in (("train", "ab"), ("query", "cd"), ("gallery", "cd"))
    for person in people
    for camera in "12"
)


def keep(condition: Callable[[str], bool]) -> str:
    head, *rows = PEOPLE.splitlines(keepends=True)
    return head + "".join(row for row in rows if condition(row))


@pytest.mark.parametrize(
    ("table", "fault", "refusal"),
    [
        (
            keep(lambda row: ",b," not in row),
            "train has one identity",
            "the training set has 1 identity",
        ),
        (keep(lambda row: "query" not in row), "there are 0 queries and 4", "0 queries and 4 gal"),
        (keep(lambda row: "gallery" not in row), "there are 4 queries and 0", "4 queries and 0 ga"),
        (keep(lambda row: ",1," in row), "no query has an image of its ident", "nothing can be sc"),
    ],
)
def test_what_cannot_be_learned_or_scored_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, fault: str, refusal: str
) -> None:
    shop = write_shop(tmp_path / "shop", table)
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    (found,) = diagnose(open_shop(shop)).faults
    assert found.startswith(fault)
    names = ("DATASETS.NAMES", "('CSV:shop',)", "DATASETS.TESTS", "('CSV:shop',)")
    cfg = tiny_cfg(
        tmp_path / "run", *names, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_INSTANCE", 1
    )
    with pytest.raises(UserError, match=refusal):
        build_train_loader(cfg)
        open_test_sets(cfg)


def test_people_in_training_and_test_are_named_as_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = PEOPLE.replace("traina1.png,a", "traina1.png,d")
    shop = write_shop(tmp_path / "shop", text)
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    dataset = open_shop(shop)
    (fault,) = diagnose(dataset).faults
    assert fault == "1 identities are in training and test (d); split by person, not by image"
    cfg = tiny_cfg(tmp_path / "run", "DATASETS.TESTS", "('CSV:shop',)")
    open_test_sets(cfg, {item[1] for item in dataset.train})
    assert "1 identities of CSV:shop are in the training set too, such as d:" in caplog.text
    caplog.clear()
    open_test_sets(cfg, ["market1501_0003", "shop_0001"])  # people of other sets, and of training
    assert "training set too" not in caplog.text


def test_copies_under_other_names_are_found_by_their_pixels(tmp_path: Path) -> None:
    shop = write_shop(tmp_path / "shop", PEOPLE)
    Image.open(shop / "queryc1.png").save(shop / "galleryc2.png", compress_level=0)
    (fault,) = diagnose(open_shop(shop)).faults
    assert fault.startswith("1 queries are in the gallery too, under another camera; a query's own")
    assert fault.endswith("(galleryc2.png = queryc1.png)")
    Image.open(shop / "queryc1.png").save(shop / "galleryd2.png")
    (fault,) = diagnose(open_shop(shop)).faults
    assert fault.startswith("1 images are there under several identities")
    Image.open(shop / "queryc1.png").save(shop / "traina1.png")  # equal bytes, not decoded
    (fault,) = diagnose(open_shop(shop)).faults
    assert fault.endswith("= galleryd2.png = queryc1.png = traina1.png)")
    text = "path,identity,split\na.png,a,query\na.png,a,gallery\nb.png,a,gallery\n"
    (fault,) = diagnose(open_shop(write_shop(tmp_path / "shop", text))).faults
    assert "under another camera" in fault and fault.endswith("(a.png)")


def test_a_training_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        f"{split}{person}{camera}.png,{person},{camera},{split}\n"
        for person in "abcd"
        for camera in "12"
        for split in ("train", "query", "gallery")
    ]
    write_shop(tmp_path / "data" / "shop", "path,identity,camera,split\n" + "".join(rows))
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "data"))
    names = ("DATASETS.NAMES", "('CSV:shop',)", "DATASETS.TESTS", "('CSV:shop',)")
    trainer = train(tiny_cfg(tmp_path / "run", *names, "SOLVER.MAX_EPOCH", 1))
    assert trainer.cfg.MODEL.HEADS.NUM_CLASSES == 4
    assert trainer._last_eval_results["CSV:shop"]["counts"]["queries"] == 8

"""The doctor finds every kind of fault; the builder makes Occluded-Duke."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import load_tool

from occluded_reid.data.datasets.base import Counts
from occluded_reid.data.datasets.dukemtmc import OccludedDuke
from occluded_reid.data.datasets.registry import build_dataset, get_dataset_root
from occluded_reid.data.images import read_rgb
from occluded_reid.data.prepare.doctor import Diagnosis, diagnose
from occluded_reid.data.prepare.image_files import inspect_file
from occluded_reid.data.prepare.occluded_duke import build_occluded_duke
from occluded_reid.utils.errors import UserError

check_dataset = load_tool("check_dataset")
build_tool = load_tool("build_occluded_duke")

# DukeMTMC-reID, and what Occluded-Duke takes of it
DUKE = {
    "bounding_box_train": ["0001_c2_f0046182.jpg", "0001_c3_f0046182.jpg", "0009_c1_f0000001.jpg"],
    "query": ["0020_c1_f0051230.jpg"],
    "bounding_box_test": ["0019_c1_f0051230.jpg", "0019_c2_f0051350.jpg", "0020_c3_f0051350.jpg"],
}
LISTS = {
    "train": DUKE["bounding_box_train"],
    "query": ["0019_c1_f0051230.jpg", "0020_c1_f0051230.jpg"],
    "gallery": DUKE["bounding_box_test"],
}
COUNTS = {"train": Counts(3, 2), "query": Counts(2, 2), "gallery": Counts(3, 2)}


def write_image(path: Path, seed: int = 0, mode: str = "RGB", **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.name.encode()]).integers(0, 256, (32, 16, 3))
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path, **options)


@pytest.fixture
def duke(tmp_path: Path) -> Path:
    for folder, names in DUKE.items():
        for name in names:
            write_image(tmp_path / "old" / "DukeMTMC-reID" / folder / name)
    for subset, names in LISTS.items():
        path = tmp_path / "lists" / f"{subset}.list"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names))
    return tmp_path / "old" / "DukeMTMC-reID"


@pytest.fixture
def occluded(tmp_path: Path, duke: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Occluded-Duke whose counts are taken for the published ones."""
    monkeypatch.setattr(OccludedDuke, "expected", COUNTS)
    return build_occluded_duke(duke, tmp_path / "lists", tmp_path / "sets" / "Occluded_Duke")


def examine(home: Path, **options: bool) -> Diagnosis:
    dataset = build_dataset("OccludedDuke", root=str(home), allow_partial=True, verbose=False)
    return diagnose(dataset, **options)


def parse_table(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_sound_set(occluded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diagnosis = examine(occluded)
    assert diagnosis.faults == []
    assert any(note.startswith("1 queries are in the gallery too") for note in diagnosis.notes)
    subsets, folders = map(parse_table, diagnosis.tables)
    assert subsets[2] == ["train", *["3 images of 2 identities"] * 2, "ok", "1: 1  2: 1  3: 1"]
    assert subsets[4][3:] == ["ok", "1: 1  2: 1  3: 1"]
    assert [row[:2] for row in folders[2:]] == [
        ["bounding_box_test", "3"],
        ["bounding_box_train", "3"],
        ["query", "2"],
    ]
    assert check_dataset.command(["OccludedDuke", "--root", str(occluded.parent)]) == 0
    assert "The data set is sound." in capsys.readouterr().out


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read: it is no image; it is empty"),
        (truncate, "cannot be read: OSError: image file is truncated"),
        (
            lambda path: path.write_text("<html>404 Not found"),
            "cannot be read: it is no image; it starts with b'<htm",
        ),
        (lambda path: (path.unlink(), path.symlink_to("gone")), "cannot be read: No such file"),
    ],
)
def test_broken_images_are_named(occluded: Path, harm, fault: str) -> None:
    path = occluded / "bounding_box_test" / "0019_c2_f0051350.jpg"
    harm(path)
    diagnosis = examine(occluded)
    assert [text for text in diagnosis.faults if f"{path} {fault}" in text]
    assert len(diagnosis.faults) == 1
    folder = parse_table(diagnosis.tables[1])[2]
    assert folder[-2:] == ["1", "BROKEN"]


def test_pixels_are_decoded_where_asked(occluded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = occluded / "bounding_box_train" / "0001_c3_f0046182.jpg"
    write_image(path, format="PNG")
    content = bytearray(path.read_bytes())
    content[60:100] = bytes(40)  # header and end are whole
    path.write_bytes(content)
    assert examine(occluded).faults == []
    (fault,) = examine(occluded, decode=True).faults
    assert f"{path} cannot be read" in fault
    assert check_dataset.command(["OccludedDuke", "--root", str(occluded), "--decode"]) == 1
    assert (
        "images are your own, list them in a table instead: CSV:FOLDER" in capsys.readouterr().out
    )


def test_half_a_tiff_is_found_without_decode(tmp_path: Path) -> None:
    path = tmp_path / "001_01.tif"
    write_image(path)
    assert inspect_file(str(path)).fault == ""
    path.write_bytes(path.read_bytes()[:700])
    assert "cannot be" in inspect_file(str(path)).fault


def test_counts_are_compared(occluded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (occluded / "bounding_box_train" / "0001_c3_f0046182.jpg").unlink()
    assert check_dataset.command(["OccludedDuke", "--root", str(occluded.parent)]) == 1
    printed = capsys.readouterr().out
    assert "FAULT: train has 2 images of 2 identities, expected 3 images of 2 identities" in printed
    assert re.search(r"\| train +\| 2 images of 2 .*\| WRONG", printed)
    assert "What to do: Build it from DukeMTMC-reID" in printed
    places = [f"  {occluded.parent / layout}\n" for layout in OccludedDuke.layouts]
    assert f"It is in {occluded}. These folders are tried, in this order:" in printed
    assert "".join(places) in printed


def test_identities_in_training_and_test(occluded: Path) -> None:
    write_image(occluded / "bounding_box_train" / "0019_c4_f0000001.jpg")
    faults = examine(occluded).faults
    assert any(text.startswith("1 identities are in training and test (19)") for text in faults)


def test_copies(occluded: Path) -> None:
    gallery = occluded / "bounding_box_test"
    content = (gallery / "0019_c2_f0051350.jpg").read_bytes()
    (gallery / "0019_c2_f0099999.jpg").write_bytes(content)
    assert any("1 images are there more than once" in note for note in examine(occluded).notes)
    (gallery / "0020_c5_f0099999.jpg").write_bytes(content)
    assert any("under several identities" in text for text in examine(occluded).faults)
    query = (occluded / "query" / "0020_c1_f0051230.jpg").read_bytes()
    (gallery / "0020_c5_f0099999.jpg").write_bytes(query)
    assert any(
        "1 queries are in the gallery too, under another camera" in t
        for t in examine(occluded).faults
    )


def test_files_that_are_not_read_are_noted(occluded: Path) -> None:
    folder = occluded / "bounding_box_test"
    write_image(folder / "cover.jpg")
    write_image(folder / "-2_c1_f0000001.jpg")
    (folder / "Thumbs.db").write_bytes(b"\0")
    write_image(folder / "0019_c2_f0051350.jpg", mode="CMYK")
    write_image(folder / "0020_c3_f0051350.jpg", mode="L")
    (occluded / "query" / "0020_c1_f0051230.jpg").rename(folder / "0021_c1_f0051230.jpg")
    write_image(occluded / "query" / "0021_c1_f0051230.jpg", seed=1)
    diagnosis = examine(occluded)
    notes = "\n".join(diagnosis.notes)
    assert "1 images are not read: their names or the lists exclude them (cover.jpg)" in notes
    assert "1 files are no images (Thumbs.db)" in notes
    assert "1 images are CMYK" in notes and "1 images are gray" in notes
    assert "1 queries have no match in another camera" in notes
    assert parse_table(diagnosis.tables[1])[2] == [
        "bounding_box_test", "4", "1", "1", "1", "0", "ok"
    ]  # fmt: skip


def test_a_missing_set_and_an_unknown_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_dataset.command(["PartialREID", "--root", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert f"{tmp_path}/Partial-REID_Dataset" in printed and "unpack it" in printed
    assert check_dataset.command(["PartialRED", "--root", str(tmp_path)]) == 2
    assert "did you mean PartialREID" in capsys.readouterr().err
    assert check_dataset.command(["PartialREID:crop"]) == 2
    options = ["PartialREID", "--root", str(tmp_path), "DATASETS.PROTOCOL"]
    assert check_dataset.command([*options, "partial"]) == 1
    assert "PartialREID (protocol partial)" in capsys.readouterr().out
    assert check_dataset.command([*options, "crop"]) == 2
    assert "it has occluded and partial" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        check_dataset.command(["PartialREID", "--rot", "x"])
    assert usage.value.code == 2


def test_invalid_lists_are_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("train", "test"):
        (tmp_path / "MSMT17_V1" / folder).mkdir(parents=True)
    for name in ("train", "val", "query", "gallery"):
        (tmp_path / "MSMT17_V1" / f"list_{name}.txt").write_text("nothing\n")
    assert check_dataset.command(["MSMT17", "--root", str(tmp_path)]) == 1
    assert "list_train.txt, line 1: 'nothing' is not of the form" in capsys.readouterr().out


def test_many_broken_images_are_ten_faults_and_a_count(tmp_path: Path) -> None:
    """VIPeR's training labels do not end in numbers."""
    (tmp_path / "VIPeR" / "cam_a").mkdir(parents=True)
    for number in range(12):
        (tmp_path / "VIPeR" / "cam_a" / f"{number:03d}_0.bmp").write_bytes(b"no image")
    diagnosis = diagnose(build_dataset("VIPeR", root=str(tmp_path), verbose=False))
    broken = [fault for fault in diagnosis.faults if "is no image" in fault]
    assert len(broken) == 10 and "cam_a/009_0.bmp cannot be read: it is no image" in broken[-1]
    assert "2 more images are broken, 12 in all" in diagnosis.faults
    assert "viper_cam_a: 12" in diagnosis.tables[0]


def zip_duke(duke: Path, *, above: str = "", extra: str = "") -> Path:
    archive = duke.parent / "DukeMTMC-reID.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        for path in sorted(duke.rglob("*.jpg")):
            members.write(path, f"{above}{path.relative_to(duke.parent).as_posix()}")
            members.writestr(f"__MACOSX/{path.relative_to(duke.parent).as_posix()}", b"no image")
        if extra:
            members.writestr(extra, b"harm")
    return archive


def read_files(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*.jpg")}


def test_occluded_duke_from_a_folder_and_from_a_zip(
    tmp_path: Path, duke: Path, occluded: Path
) -> None:
    expected = {
        f"{OccludedDuke.folders[subset]}/{name}"
        for subset, names in LISTS.items()
        for name in names
    }
    assert read_files(occluded).keys() == expected
    query = occluded / "query" / "0019_c1_f0051230.jpg"
    assert query.read_bytes() == (duke / "bounding_box_test" / query.name).read_bytes()
    for above in ("", "Desktop/my data/"):
        other = tmp_path / f"other{len(above)}"
        words = [str(zip_duke(duke, above=above)), str(tmp_path / "lists"), "--root", str(other)]
        assert build_tool.command(words) == 0
        assert read_files(other / "Occluded_Duke") == read_files(occluded)
    outer = build_occluded_duke(duke.parent, tmp_path / "lists", tmp_path / "outer")
    assert read_files(outer) == read_files(occluded)


@pytest.mark.parametrize("name", ["../../evil.jpg", "/evil.jpg", "C:\\evil.jpg", "a\\..\\..\\b"])
def test_archives_that_climb_out_are_refused(
    tmp_path: Path, duke: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OccludedDuke, "expected", COUNTS)
    with pytest.raises(UserError, match="which lies outside its own folder"):
        build_occluded_duke(zip_duke(duke, extra=name), tmp_path / "lists", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_the_builder_refuses_wrong_input(
    tmp_path: Path, duke: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists, made = tmp_path / "lists", tmp_path / "sets" / "Occluded_Duke"
    with pytest.raises(UserError, match="train names 3 images of 2 identities, expected 15618 im"):
        build_occluded_duke(duke, lists, made)
    monkeypatch.setattr(OccludedDuke, "expected", COUNTS)
    with pytest.raises(UserError, match=r"there is no list .*nowhere/train.list"):
        build_occluded_duke(duke, tmp_path / "nowhere", made)
    with pytest.raises(UserError, match="there is no folder or archive"):
        build_occluded_duke(tmp_path / "gone.zip", lists, made)
    with pytest.raises(UserError, match="holds no folders bounding_box_train"):
        build_occluded_duke(lists, lists, made)
    with pytest.raises(UserError, match="move them elsewhere"):
        build_occluded_duke(duke, lists, lists)
    (tmp_path / "half.zip").write_bytes(zip_duke(duke).read_bytes()[:-50])
    with pytest.raises(UserError, match=r"half.zip .* a complete zip"):
        build_occluded_duke(tmp_path / "half.zip", lists, made)
    (duke / "bounding_box_test" / "0019_c2_f0051350.jpg").unlink()
    with pytest.raises(UserError, match="lacks 1 of the listed images, such as 0019_c2_f0051350"):
        build_occluded_duke(duke, lists, made)
    for text, message in (
        ("0019_c1_f0051230.jpg\n0", "query.list, line 2: '0' is no image name"),
        ("../0019_c1_f0051230.jpg\n", "is no image name"),
        ("0019_c1_f0051230.jpg\r\n\r\n0019_c1_f0051230.jpg", "repeats images"),
    ):
        (lists / "query.list").write_text(text)
        with pytest.raises(UserError, match=message):
            build_occluded_duke(duke, lists, made)
    assert not made.exists() and list(tmp_path.glob("sets/.*")) == []


def test_damaged_members_leave_nothing(
    tmp_path: Path, duke: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OccludedDuke, "expected", COUNTS)
    archive = zip_duke(duke)
    with zipfile.ZipFile(archive) as members:
        start = members.getinfo("DukeMTMC-reID/query/0020_c1_f0051230.jpg").header_offset + 120
    content = bytearray(archive.read_bytes())
    content[start : start + 40] = bytes(40)
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*DukeMTMC-reID.zip"):
        build_occluded_duke(archive, tmp_path / "lists", tmp_path / "sets" / "Occluded_Duke")
    assert list((tmp_path / "sets").iterdir()) == []


GRAY = np.linspace(0, 255, 32 * 16).reshape(32, 16).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"gray.{suffix}"
    Image.fromarray(GRAY.astype(np.uint16) * 257).save(path)
    image = read_rgb(path)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.repeat(GRAY[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "jpg"), ("CMYK", "jpg"), ("CMYK", "tif"), ("P", "png"), ("LA", "png"), ("RGBA", "png")],
)
def test_other_kinds_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    gray = Image.fromarray(GRAY)
    (gray.quantize(64) if mode == "P" else gray.convert("RGB").convert(mode)).save(path)
    image = read_rgb(path)
    assert (image.mode, image.size) == ("RGB", (16, 32))
    assert np.abs(np.asarray(image).astype(int) - GRAY[..., None]).mean() < 6


def test_images_are_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(GRAY).save(path, exif=exif)
    assert read_rgb(path).size == (32, 16)


@pytest.mark.real_data
def test_the_real_training_images_are_sound(capsys: pytest.CaptureFixture[str]) -> None:
    code = check_dataset.command(["MarketSplit", "--root", get_dataset_root(), "--decode"])
    printed = capsys.readouterr().out
    if "found no images" in printed:
        pytest.skip("no Market-1501 in FASTREID_DATASETS")
    assert code == 0 and printed.count("| ok ") == 4

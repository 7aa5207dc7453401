"""The tool that makes occluder sets, on synthetic frames and label masks."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from runs import load_tool

from occluded_reid.data.prepare import occluder_sets
from occluded_reid.data.transforms.occluder_cutouts import (
    find_components,
    measure_thickness,
    read_cutouts,
)
from occluded_reid.data.transforms.occluder_patches import Patch, load_patches

tool = load_tool("make_occluders")
CAR, PERSON, POLE = 8, 9, 2
CLASSES = ("car=8", "pedestrian=9", "pole=2")
SEQUENCES = ("Seq1", "Seq2", "Seq3")


def draw_labels() -> np.ndarray:
    """A disc of a car, a person, a sliver of a pole, and a car of few pixels."""
    labels = np.zeros((90, 120), np.uint8)
    cv2.circle(labels, (40, 45), 20, CAR, -1)
    labels[20:80, 70:85] = PERSON
    labels[5:85, 100:102] = POLE
    labels[2:6, 2:6] = CAR
    return labels


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Two frames of each of three sequences, in ``frames`` and ``labels``."""
    random = np.random.default_rng(0)
    for folder in ("frames", "labels"):
        (tmp_path / folder).mkdir()
    for sequence in SEQUENCES:
        for number in range(2):
            name = f"{sequence}_{number:04d}.png"
            frame = random.integers(0, 256, (90, 120, 3), np.uint8)
            Image.fromarray(frame).save(tmp_path / "frames" / name)
            Image.fromarray(draw_labels()).save(tmp_path / "labels" / name)
    return tmp_path


def run_masks(street: Path, *words: str, output: str = "set") -> int:
    folders = ["--frames", str(street / "frames"), "--labels", str(street / "labels")]
    options = ["masks", *folders, "--output", str(street / output), "--min-area", "300"]
    return tool.command([*options, *(words or ("--classes", *CLASSES))])


def read_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "occluders.csv", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def read_pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_cutouts_are_the_frame_where_the_mask_is(street: Path) -> None:
    assert run_masks(street) == 0
    rows = read_rows(street / "set")
    assert len(rows) == 6 * 2
    for row in rows:
        x0, y0, x1, y1 = (int(row[key]) for key in ("x0", "y0", "x1", "y1"))
        index = {"car": CAR, "pedestrian": PERSON}[row["class"]]
        cutout = read_pixels(street / "set" / row["file"])
        labels = read_pixels(street / "labels" / row["source"])[y0:y1, x0:x1]
        frame = read_pixels(street / "frames" / row["source"])[y0:y1, x0:x1]
        assert np.array_equal(cutout[..., 3], 255 * (labels == index))
        assert np.array_equal(cutout[..., :3], frame)
        assert (labels == index).any(axis=1)[[0, -1]].all()  # the box is tight
        assert row["source"].removesuffix(".png") in row["file"]


def test_splits_are_of_different_sequences(street: Path) -> None:
    assert run_masks(street) == 0
    of: dict[str, set[str]] = {"train": set(), "test": set()}
    for row in read_rows(street / "set"):
        assert row["file"].startswith(row["split"] + "/")
        of[row["split"]].add(row["source"].split("_")[0])
    assert of == {"train": {"Seq1", "Seq3"}, "test": {"Seq2"}}
    held_out = read_cutouts(street / "set", "test")
    assert sorted(cutout.kind for cutout in held_out) == ["car", "car", "pedestrian", "pedestrian"]


def test_sequences_by_name_and_by_pattern(street: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--classes", *CLASSES)
    assert run_masks(street, *words, "--test", "Seq1", "Seq3", output="a") == 0
    assert {row["source"][:4] for row in read_rows(street / "a") if row["split"] == "train"} == {
        "Seq2"
    }
    assert run_masks(street, *words, "--sequence", r".*_(\d+)", "--test", "0001", output="b") == 0
    assert "test: sequences 0001\n" in capsys.readouterr().out
    for row in read_rows(street / "b"):
        assert ("_0001." in row["source"]) == (row["split"] == "test")


def test_training_patches_are_opaque_boxes_without_persons(street: Path) -> None:
    assert run_masks(street) == 0
    patches = load_patches(street / "set" / "train_patches")  # what INPUT.NPO.OCCLUDERS reads
    cars = [r for r in read_rows(street / "set") if (r["class"], r["split"]) == ("car", "train")]
    assert len(patches) == len(cars) == 4
    for patch, row in zip(patches, cars, strict=True):
        x0, y0, x1, y1 = (int(row[key]) for key in ("x0", "y0", "x1", "y1"))
        frame = read_pixels(street / "frames" / row["source"])[y0:y1, x0:x1]
        assert np.array_equal(patch.pixels, frame)


def test_classes_are_thinned_out_evenly(street: Path) -> None:
    assert run_masks(street, "--classes", "8", "9", "--per-class", "2", "--test", "Seq3") == 0
    rows = read_rows(street / "set")
    for name in ("class8", "class9"):
        train = [r["source"] for r in rows if (r["class"], r["split"]) == (name, "train")]
        assert train == ["Seq1_0000.png", "Seq2_0001.png"]


def test_components_touching_at_a_corner_are_one() -> None:
    labels = np.zeros((60, 60), np.uint8)
    labels[0:20, 0:20] = labels[20:40, 20:40] = 1
    labels[45:60, 45:60] = 1
    boxes = [box for _, box, _ in find_components(labels, {1: "car"}, 1, 0)]
    assert boxes == [(0, 0, 40, 40), (45, 45, 60, 60)]


def test_thickness_is_the_width_of_a_bar_whatever_its_shape() -> None:
    bar = np.ones((300, 10), bool)
    assert measure_thickness(bar) == pytest.approx(10, rel=0.06)
    frame = np.ones((100, 100), bool)
    frame[4:-4, 4:-4] = False
    assert measure_thickness(frame) == pytest.approx(4, rel=0.06)
    assert measure_thickness(np.ones((1, 1), bool)) >= 0


def test_labels_with_a_palette_give_their_indices(street: Path) -> None:
    for path in (street / "labels").iterdir():
        image = Image.fromarray(read_pixels(path)).convert("P")
        image.putpalette([255, 0, 0] * 256)
        image.save(path)
    assert run_masks(street) == 0
    assert len(read_rows(street / "set")) == 12


def spoil_frame(street: Path) -> None:
    (street / "frames" / "Seq1_0000.png").write_bytes(b"no image")


def lose_label(street: Path) -> None:
    (street / "labels" / "Seq1_0000.png").unlink()


def color_label(street: Path) -> None:
    Image.new("RGB", (120, 90)).save(street / "labels" / "Seq1_0000.png")


def shrink_frame(street: Path) -> None:
    Image.new("RGB", (30, 30)).save(street / "frames" / "Seq1_0000.png")


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (spoil_frame, CLASSES, "cannot read"),
        (lose_label, CLASSES, "1 of 6 frames have no label image of the same name"),
        (color_label, CLASSES, "is no label image: one channel of 8 bits"),
        (shrink_frame, CLASSES, "is smaller than its label image"),
        (None, (*CLASSES, "--test", "Seq9"), "--test names Seq9, but occluders are in Seq1, Seq2"),
        (None, (*CLASSES, "--test", *SEQUENCES), "--test names all sequences"),
        (None, (*CLASSES, "--sequence", "("), "is no regular expression"),
        (None, (*CLASSES, "--sequence", "(x)?.*"), "does not match the frame"),
        (None, (*CLASSES, "--sequence", "(Seq)"), "are of one sequence, Seq, so none can be held"),
        (None, (*CLASSES, "--sequence", "(Cam)"), "does not match the frame Seq1_0000.png"),
        (None, ("car=red",), "--classes has 'car=red'"),
        (None, ("a/b=8",), "--classes has 'a/b=8'"),
        (None, ("car=300",), "--classes has 'car=300'"),
        (None, ("car=77",), "no occluder of car in 6 frames"),
        (None, (*CLASSES, "--per-class", "-1"), "--per-class is -1; it must be a number from 0"),
        (None, (*CLASSES, "--min-area", "-1"), "--min-area is -1"),
        (None, (*CLASSES, "--min-thickness", "nan"), "--min-thickness is nan"),
        (None, (*CLASSES, "--labels", "a", "b"), "1 folders of frames, but 2 of labels"),
        (None, (*CLASSES, "--frames", "nowhere"), "cannot read nowhere"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    street: Path, capsys: pytest.CaptureFixture, spoil, words: tuple, message: str
) -> None:
    if spoil:
        spoil(street)
    assert run_masks(street, "--classes", *words) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ") and message in output
    assert sorted(path.name for path in street.iterdir()) == ["frames", "labels"]


def test_an_existing_set_is_left_alone(street: Path, capsys: pytest.CaptureFixture) -> None:
    (street / "set").mkdir()
    (street / "set" / "mine.png").write_bytes(b"")
    assert run_masks(street) == 2
    assert "set exists already; delete it or choose another folder" in capsys.readouterr().err
    assert [path.name for path in (street / "set").iterdir()] == ["mine.png"]


def write_boxes(street: Path, *lines: str) -> str:
    path = street / "boxes.csv"
    path.write_text("image,x0,y0,x1,y1\n" + "".join(line + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("mark", ["", "\ufeff"])  # as spreadsheets write UTF-8
def test_boxes_become_opaque_patches(street: Path, mark: str) -> None:
    boxes = write_boxes(
        street, "frames/Seq1_0000.png,10,20,40,80", "frames/Seq2_0001.png,0,0,120,90"
    )
    Path(boxes).write_text(mark + Path(boxes).read_text(), encoding="utf-8")
    assert tool.command(["boxes", "--csv", boxes, "--output", str(street / "set")]) == 0
    patches = load_patches(street / "set")
    assert np.array_equal(
        patches[0].pixels, read_pixels(street / "frames/Seq1_0000.png")[20:80, 10:40]
    )
    assert np.array_equal(patches[1].pixels, read_pixels(street / "frames/Seq2_0001.png"))
    assert [row["source"] for row in read_rows(street / "set")] == [
        "Seq1_0000.png",
        "Seq2_0001.png",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "and 0 rows; it needs rows with image, x0, y0, x1, y1"),
        (("frames/Seq1_0000.png,10,20,40",), "line 2: expected whole numbers in x0, y0, x1, y1"),
        (("frames/Seq1_0000.png,10,20,40,x",), "line 2: expected whole numbers"),
        (("frames/Seq1_0000.png,0,0,121,90",), "reaches out of"),
        (("frames/Seq1_0000.png,5,5,5,9",), "is empty or reaches out of"),
        (("frames/none.png,0,0,5,9",), "cannot read"),
        (("../none.png,0,0,5,9",), "'../none.png', which lies outside its own folder"),
    ],
)
def test_wrong_boxes_are_named(
    street: Path, capsys: pytest.CaptureFixture, lines: tuple, message: str
) -> None:
    words = ["boxes", "--csv", write_boxes(street, *lines), "--output", str(street / "set")]
    assert tool.command(words) == 2
    assert message in capsys.readouterr().err
    assert not (street / "set").exists()


def test_a_missing_csv_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["boxes", "--csv", str(tmp_path / "none.csv"), "--output", str(tmp_path / "set")]
    assert tool.command(words) == 2
    assert "cannot read the boxes" in capsys.readouterr().err


def test_the_synthetic_set_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = [Patch(np.full((9, n, 3), n, np.uint8), 9 / n) for n in range(10, 22)]
    monkeypatch.setattr(occluder_sets, "render_patches", lambda: patches)
    assert tool.command(["draw", "--output", str(tmp_path / "set")]) == 0
    written = load_patches(tmp_path / "set")
    assert len(written) == len(patches) == len(read_rows(tmp_path / "set"))
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(written, patches, strict=True))


def run_window(street: Path) -> int:
    images = str(street / "frames")
    return tool.command(["window", "--images", images, "--output", str(street / "set")])


def test_boxes_drawn_with_the_mouse(street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = iter([[(10, 20, 30, 60)], *[()] * 5])
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "selectROIs", lambda name, image: next(boxes), raising=False)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None, raising=False)
    assert run_window(street) == 0
    (patch,) = load_patches(street / "set")
    assert np.array_equal(patch.pixels, read_pixels(street / "frames/Seq1_0000.png")[20:80, 10:40])


def test_without_a_window_the_message_says_so(
    street: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert run_window(street) == 2
    assert "there is no display for a window; use `make_occluders.py boxes`" in (
        capsys.readouterr().err
    )

    def headless(name: str, image: np.ndarray) -> None:
        raise cv2.error("The function is not implemented")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "selectROIs", headless, raising=False)
    assert run_window(street) == 2
    assert "has no windows (opencv-python-headless)" in capsys.readouterr().err
    assert not (street / "set").exists()

"""A video and its boxes become a gallery whose items know their frame and time."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import load_tool
from saved_runs import two_runs

from gallery_search import Filter, GalleryIndex
from gallery_search.video import Box, cut_crops, find_frame, read_boxes, read_frame
from occluded_reid.data.image_names import make_id
from occluded_reid.utils.errors import UserError

tool = load_tool("search")
MOT = """\
2,7,11,6,20,40,0.9,-1,-1,-1
1,7,1.0,1.0,20,40,0.9,-1,-1,-1

1,-1,41,21,20,40,0.8,-1,-1,-1
"""
TRUTH = "1,3,1,1,9,9,1,1,0.5\n1,4,1,1,9,9,0,1,0.5\n1,5,1,1,9,9,1,3,0.5\n"
FRAMES, RATE = 4, 10


def test_boxes_are_read_from_both_kinds_of_file(tmp_path):
    (tmp_path / "mot.txt").write_text(MOT)
    boxes = read_boxes(tmp_path / "mot.txt")
    assert boxes[0] == Box(2, 1, (0.0, 0.0, 20.0, 40.0), "7")
    assert [(box.frame, box.identity) for box in boxes] == [(1, "7"), (1, ""), (2, "7")]
    (tmp_path / "gt.txt").write_text(TRUTH)
    assert [box.identity for box in read_boxes(tmp_path / "gt.txt")] == ["3"]
    rows = "frame;x0;y0;x1;y1;identity\n2;1;2;3;4;anna\n1;5.5;6;7;8;\n"
    (tmp_path / "boxes.csv").write_text(rows)
    assert read_boxes(tmp_path / "boxes.csv") == [
        Box(3, 1, (5.5, 6.0, 7.0, 8.0), ""), Box(2, 2, (1.0, 2.0, 3.0, 4.0), "anna")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "1,2,3\n", "cannot read .*a.txt, line 1 .*expected numbers: frame, id, left"),
        ("a.txt", "one,1,1,1,2,2\n", "a.txt, line 1"),
        ("a.txt", "0,1,1,1,2,2\n", "a.txt, line 1: frame 0; frames count from 1"),
        ("a.txt", "\n", "a.txt holds no boxes"),
        ("a.csv", "frame,x0,y0,x1\n1,2,3,4\n", "it needs rows with frame, x0, y0, x1, y1"),
        ("a.csv", "frame,x0,y0,x1,y1\n1,2,3,4,x\n", "a.csv, line 2"),
    ],
)
def test_bad_boxes_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_boxes(tmp_path / name)


def test_options_that_belong_together(tmp_path, capsys):
    words = ["build", "--weights", "W", "--gallery", str(tmp_path), "--index", str(tmp_path / "i")]
    assert tool.command([*words, "--video", "a.mp4"]) == 2
    assert "--video and --boxes go together, without --metadata" in capsys.readouterr().err
    assert tool.command([*words, "--video", "a.mp4", "--boxes", "b.txt", "--start", "12"]) == 2
    assert "--start 12 is no date" in capsys.readouterr().err
    assert tool.command([*words, "--video", "a.mp4", "--boxes", "b.txt"]) == 2
    assert "there is no video a.mp4" in capsys.readouterr().err


@pytest.fixture
def frames() -> np.ndarray:
    """Two coloured people on gray, one of them walking."""
    frames = np.full((FRAMES, 96, 128, 3), 90, np.uint8)
    for number, frame in enumerate(frames):
        frame[5:45, 10 * number : 10 * number + 20] = (200, 40 + number, 30)
        frame[20:60, 90:110] = (20, 60, 210)
    return frames


@pytest.fixture
def video(frames, tmp_path) -> Path:
    """A video without loss, of ten frames a second."""
    av = pytest.importorskip("av")
    path = tmp_path / "street.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "rgb24"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    rows = ["frame,x0,y0,x1,y1,identity"]
    for number in range(FRAMES):
        rows.append(f"{number + 1},{10 * number},5,{10 * number + 20},45,walker")
        rows.append(f"{number + 1},90,20,110,60,")
    rows.append("2,200,0,220,40,")  # outside
    path.with_suffix(".csv").write_text("\n".join(rows))
    return path


@pytest.mark.extras
def test_an_index_of_a_video_knows_frames_and_times(video, frames, tmp_path, capsys):
    runs = two_runs(tmp_path)
    gallery, index = tmp_path / "crops", tmp_path / "index"
    words = [
        "build",
        "--weights",
        str(runs / "run"),
        "--gallery",
        str(gallery),
        "--index",
        str(index),
    ]
    words += ["--workers", "0", "--video", str(video), "--boxes", str(video.with_suffix(".csv"))]
    words += ["--start", "2024-05-31T16:20:00"]
    assert tool.command(words) == 0
    printed = "".join(capsys.readouterr())
    assert (
        "1 boxes show nothing of their frame and are left out; the first is in line 10" in printed
    )
    found = GalleryIndex(index)
    assert len(found) == 2 * FRAMES and found.cameras() == ["street"]
    number = make_id("street/000003-0.jpg")
    (hit,) = found.look_up([number])
    assert (hit.item.identity, hit.item.time) == ("walker", 1717172400 + 2 / RATE)
    crop = np.asarray(Image.open(hit.image))
    assert crop.shape == (40, 20, 3)
    np.testing.assert_allclose(crop, frames[2, 5:45, 20:40], atol=6)
    since = 1717172400 + 2.5 / RATE
    assert len(found.select(Filter(cameras=("street",), since=since))) == 2
    with open(gallery / "street" / ".crops.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["frame"] for row in rows} == {"1", "2", "3", "4"}
    assert [rows[-1][key] for key in ("seconds", "x0", "y0", "x1", "y1")] == [
        "0.300", "90", "20", "110", "60"
    ]  # fmt: skip
    assert tool.command(words) == 0  # nothing to do
    assert len(GalleryIndex(index)) == 2 * FRAMES
    assert tool.command([*words[:-2]]) == 2
    assert "holds crops of another video, other boxes or another --start" in capsys.readouterr().err


@pytest.mark.extras
def test_a_video_that_does_not_fit_is_refused_and_leaves_nothing(video, tmp_path):
    boxes = tmp_path / "late.csv"
    boxes.write_text("frame,x0,y0,x1,y1\n1,0,0,9,9\n9,0,0,9,9\n")
    with pytest.raises(UserError, match="has 4 frames, but line 3 of the boxes is of frame 9"):
        cut_crops(video, boxes, tmp_path / "crops")
    assert not any(path.is_file() for path in (tmp_path / "crops").rglob("*"))
    boxes.write_text("frame,x0,y0,x1,y1\n1,500,0,509,9\n")
    with pytest.raises(UserError, match="no box shows anything of the frames"):
        cut_crops(video, boxes, tmp_path / "crops")
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"no video" * 100)
    with pytest.raises(UserError, match="cannot read .*damaged.mp4 .*expected a video"):
        cut_crops(damaged, boxes, tmp_path / "crops")


@pytest.mark.extras
def test_a_detector_of_torchvision_gives_boxes(video, tmp_path):
    detect = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "example" / "detect.py"))
    torch.manual_seed(0)
    model = detect["fasterrcnn_mobilenet_v3_large_320_fpn"](weights=None, weights_backbone=None)
    model.roi_heads.box_predictor.cls_score.bias.data[1] = 20  # all that it finds are people
    torch.save(model.state_dict(), tmp_path / "random.pth")
    words = ["--video", video, "--weights", tmp_path / "random.pth", "--boxes", tmp_path / "b.csv"]
    count = detect["main"]([*map(str, words), "--score", "0.1"])
    boxes = read_boxes(tmp_path / "b.csv")
    assert len(boxes) == count > 0 and {box.frame for box in boxes} <= {1, 2, 3, 4}


@pytest.mark.extras
def test_a_crop_leads_back_to_its_frame(video, frames, tmp_path):
    """The frame is read from the video, if that is still there and the same."""
    gallery = tmp_path / "crops"
    cut_crops(video, video.with_suffix(".csv"), gallery)
    frame = find_frame(gallery, "street/000003-1.jpg")
    assert frame is not None and (frame.number, frame.corners) == (3, (90, 20, 110, 60))
    assert abs(frame.seconds - 0.2) < 1e-3 and frame.video == video
    for number in range(FRAMES):
        found = find_frame(gallery, f"street/{number + 1:06d}-0.jpg")
        np.testing.assert_array_equal(np.asarray(read_frame(found)), frames[number])
    assert find_frame(gallery, "street/none.jpg") is find_frame(gallery, "no/a.jpg") is None
    video.rename(tmp_path / "elsewhere.mp4")
    with pytest.raises(UserError, match="there is no video"):
        read_frame(frame)

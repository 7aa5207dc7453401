"""Cut people out of a video, by a file of boxes, into a gallery of images.

Boxes come as MOTChallenge's text (``frame, id, left, top, width, height, score, ...`` without a
header) or as a CSV file with the columns frame, x0, y0, x1, y1 and perhaps identity. Frames count
from 1, pixels from 0.
"""

from __future__ import annotations

import csv
import functools
import io
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from occluded_reid.deploy.crops import clip_boxes
from occluded_reid.utils.errors import UserError, explain_read_errors
from occluded_reid.utils.files import atomic_folder, hash_file, read_json, write_json
from occluded_reid.utils.progress import progress
from occluded_reid.utils.tables import read_csv, read_list

logger = logging.getLogger(__name__)

TABLE, SOURCE = ".crops.csv", ".source.json"  # hidden: they are no images of the gallery
COLUMNS = ("path", "camera", "time", "identity", "frame", "seconds", "x0", "y0", "x1", "y1")
MOT_COLUMNS = 6  # that a line needs
PEDESTRIAN = (1, -1)  # class of a line of MOTChallenge's truth; -1 is none
QUALITY = 95  # of the JPEGs


class Box(NamedTuple):
    """A person in a frame."""

    line: int  # of the file
    frame: int  # from 1
    corners: tuple[float, float, float, float]  # x0, y0, x1, y1
    identity: str  # "" is unknown


class Frame(NamedTuple):
    """Where a crop was cut out."""

    video: Path  # as it was named then; it may be gone
    number: int  # from 1
    seconds: float  # since the first frame
    corners: tuple[int, int, int, int]  # x0, y0, x1, y1


def cut_crops(
    video: str | os.PathLike[str], boxes: str | os.PathLike[str], gallery: str | os.PathLike[str],
    *, start: float | None = None,
) -> str:  # fmt: skip
    """Write each box of a video as an image below ``gallery``; return the table of their metadata.

    The images of street.mp4 lie in ``gallery/street``: box 4 of frame 123 is ``000123-4.jpg``. The
    folder is written whole or not at all. If it is there already, from the same video and boxes,
    nothing is done. The camera is called ``street``.

    Args:
        video: any file that PyAV reads, of which the first video stream is taken.
        boxes: see the module; MOTChallenge's if the name ends in ``.txt``.
        gallery: folder of the images.
        start: time of the first frame in seconds since 1970. Without it, times are seconds from the
            first frame.

    Raises:
        UserError: a file that cannot be read, boxes of frames that the video does not have, or a
            folder of another video or other boxes.
    """
    folder = Path(gallery, Path(video).stem)
    table = folder / TABLE
    if not Path(video).is_file():
        raise UserError(f"there is no video {video}")
    wanted = read_boxes(boxes)
    source = {"video": hash_file(video), "boxes": hash_file(boxes), "start": start}
    if table.is_file():
        if {**source, "path": ""} != {**read_json(folder / SOURCE), "path": ""}:
            raise UserError(
                f"{folder} holds crops of another video, other boxes or another --start; delete "
                "it, or choose another --gallery"
            )
        logger.info(f"The crops of {video} are in {folder} already")
        return str(table)
    with atomic_folder(folder) as temporary:
        rows = _cut(video, wanted, temporary, folder.name, start)
        text = io.StringIO(newline="")
        csv.writer(text).writerows([COLUMNS, *rows])
        (temporary / TABLE).write_text(text.getvalue(), encoding="utf-8", newline="")
        write_json(temporary / SOURCE, {**source, "path": os.path.abspath(video)})
    return str(table)


def read_boxes(path: str | os.PathLike[str]) -> list[Box]:
    """Read the boxes of a file, in order of their frames.

    Of MOTChallenge's truth, which has nine columns, other classes than pedestrians are left out,
    and so are lines with the mark 0.
    """
    boxes = list(_read_mot(path) if str(path).endswith(".txt") else _read_csv_boxes(path))
    if not boxes:
        raise UserError(f"{path} holds no boxes")
    for box in boxes:
        if box.frame < 1:
            raise UserError(f"{path}, line {box.line}: frame {box.frame}; frames count from 1")
    return sorted(boxes, key=lambda box: box.frame)


def _read_mot(path: str | os.PathLike[str]) -> Iterator[Box]:
    for line, text in enumerate(read_list(path), start=1):
        cells = [cell.strip() for cell in text.split(",")]
        with _explain(path, line):
            if len(cells) == 9 and (float(cells[6]) == 0 or float(cells[7]) not in PEDESTRIAN):
                continue
            frame, identity = int(float(cells[0])), int(float(cells[1]))
            left, top, width, height = map(float, cells[2:MOT_COLUMNS])
            corners = (left - 1, top - 1, left - 1 + width, top - 1 + height)
            yield Box(line, frame, corners, str(identity) if identity > 0 else "")


def _read_csv_boxes(path: str | os.PathLike[str]) -> Iterator[Box]:
    table = read_csv(path, f"the boxes {path}", "expected a CSV file")
    table.require("frame", "x0", "y0", "x1", "y1")
    for row in table.rows:
        with _explain(path, row.line):
            x0, y0, x1, y1 = (float(row.cells[name]) for name in ("x0", "y0", "x1", "y1"))
            frame, identity = int(row.cells["frame"]), row.cells.get("identity", "")
            yield Box(row.line, frame, (x0, y0, x1, y1), identity)


def _explain(path: str | os.PathLike[str], line: int) -> Any:
    advice = "expected numbers: frame, id, left, top, width, height in a .txt, as MOTChallenge's"
    return explain_read_errors(f"{path}, line {line}", advice, (ValueError, OverflowError))


def _cut(
    video: str | os.PathLike[str], boxes: Sequence[Box], folder: Path, name: str,
    start: float | None,
) -> list[list[Any]]:  # fmt: skip
    """Write the crops into ``folder``; return a row of the table for each."""
    rows: list[list[Any]] = []
    left_out: list[int] = []
    following = iter(progress(boxes, description="Cutting", unit="boxes"))
    box = next(following, None)
    number = 0
    for number, (seconds, pixels) in enumerate(read_frames(video), start=1):
        count = 0
        while box is not None and box.frame == number:
            ((x0, y0, x1, y1),), (is_empty,) = clip_boxes(np.array([box.corners]), pixels.shape[:2])
            if is_empty:
                left_out.append(box.line)
            else:
                file = f"{number:06d}-{count}.jpg"
                crop = Image.fromarray(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
                crop.save(folder / file, quality=QUALITY, subsampling=0)
                time = seconds if start is None else start + seconds
                cells = [f"{name}/{file}", name, f"{time:.3f}", box.identity, number]
                rows.append([*cells, f"{seconds:.3f}", *map(int, (x0, y0, x1, y1))])
            count, box = count + 1, next(following, None)
        if box is None:
            break
    if box is not None:
        raise UserError(
            f"{video} has {number} frames, but line {box.line} of the boxes is of frame "
            f"{box.frame}: are they of another video?"
        )
    if left_out:
        logger.warning(
            f"{len(left_out)} boxes show nothing of their frame and are left out; the first is in "
            f"line {left_out[0]}"
        )
    if not rows:
        raise UserError(f"no box shows anything of the frames of {video}")
    return rows


def read_frames(
    video: str | os.PathLike[str], *, since: float = 0.0
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the seconds since the first frame, and (H, W, 3) uint8 in RGB order, of each frame.

    With ``since``, it starts at the last key frame that is not later.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError("--video needs PyAV: pip install '.[video]'") from error
    try:
        with av.open(os.fspath(video)) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise UserError(f"{video} has no pictures")
            stream.thread_type = "AUTO"
            frames = container.decode(stream)
            head = list(islice(frames, 1))
            first = head[0].time or 0.0 if head else 0.0
            if since:
                container.seek(int((first + since) / stream.time_base), stream=stream)
                head, frames = [], container.decode(stream)
            for frame in chain(head, frames):
                yield (frame.time or 0.0) - first, frame.to_ndarray(format="rgb24")
    except av.error.FFmpegError as error:
        raise UserError(f"cannot read {video} ({error}); expected a video") from error


def find_frame(gallery: Path, path: str) -> Frame | None:
    """Return the frame of an image of a gallery; None if it was not cut by :func:`cut_crops`."""
    table = Path(gallery, path).parent / TABLE
    try:
        frames = _read_frames_of(table, table.stat().st_mtime_ns)
    except (OSError, UserError):
        return None
    return frames.get(path)


@functools.lru_cache(maxsize=64)
def _read_frames_of(table: Path, version: int) -> dict[str, Frame]:
    video = Path(str(read_json(table.with_name(SOURCE)).get("path", "")))
    found = {}
    for row in read_csv(table, str(table), "expected a table of crops").rows:
        with explain_read_errors(table, "expected a table of crops", (KeyError, ValueError)):
            x0, y0, x1, y1 = (int(row.cells[name]) for name in ("x0", "y0", "x1", "y1"))
            number, seconds = int(row.cells["frame"]), float(row.cells["seconds"])
            found[row.cells["path"]] = Frame(video, number, seconds, (x0, y0, x1, y1))
    return found


def read_frame(frame: Frame) -> Image.Image:
    """Read a frame from its video, or raise a UserError if that is gone."""
    if not frame.video.is_file():
        raise UserError(f"there is no video {frame.video}")
    for seconds, pixels in read_frames(frame.video, since=frame.seconds):
        if seconds > frame.seconds - 1e-3:  # they are rounded in the table
            return Image.fromarray(pixels)
    raise UserError(f"{frame.video} has no frame at {frame.seconds} s")

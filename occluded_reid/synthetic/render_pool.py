"""Drawing and storing the pictures, in this process or in several others.

The other processes are fresh interpreters that run this module. Unlike a process pool they never
import the caller's script again, so that a notebook or a script without ``if __name__ ==
"__main__"`` works too. They report each picture with a line of JSON, and end when nobody reads them
any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import cv2

from occluded_reid.synthetic.plan import Picture, plan_pictures
from occluded_reid.synthetic.scene.composition import render
from occluded_reid.synthetic.sizes import size_named
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import write_errors_named

_PACKAGE = Path(__file__).resolve().parents[1]
# What a worker process runs. It stands in a bare package for ours: to import the whole of it, with
# PyTorch and fast-reid, would take each worker ten seconds longer than it takes to draw `tiny`.
_BOOT = """
import json, sys, types
sys.path[:] = json.loads(sys.argv[1])
package = types.ModuleType("occluded_reid")
package.__path__ = [sys.argv[2]]
sys.modules["occluded_reid"] = package
from occluded_reid.synthetic.render_pool import main
main(sys.argv[3:])
"""


class Report(TypedDict, total=False):
    """What is told about one stored picture, or else an error that ends the work."""

    number: int
    bytes: int
    digest: str
    truth: str
    error: str


def store_picture(folder: Path, picture: Picture, seed: int) -> Report:
    """Draw one picture and write its file.

    Args:
        folder: holds a folder for each split.
        picture: what to draw.
        seed: of the data set.

    Raises:
        UserError: the disk is full, or the like.
    """
    rendering = render(picture, seed)
    quality = [cv2.IMWRITE_JPEG_QUALITY, rendering.quality]
    encoded = cv2.imencode(".jpg", rendering.image[:, :, ::-1], quality)[1].tobytes()
    path = folder / picture.path
    with write_errors_named(path):
        path.write_bytes(encoded)
    return {
        "number": picture.number,
        "bytes": len(encoded),
        "digest": hashlib.sha256(encoded).hexdigest(),
        "truth": rendering.truth.to_json(),
    }


def store_pictures(folder: Path, size: str, seed: int, workers: int) -> Iterator[Report]:
    """Draw and write all pictures of a data set, in any order.

    Args:
        folder: holds a folder for each split.
        size: name of the size.
        seed: of the data set.
        workers: 1 works in this process, more in as many others.

    Raises:
        UserError: the disk is full, or the like.
        RuntimeError: a process died.
    """
    if workers > 1:
        yield from _store_in_processes(folder, size, seed, workers)
        return
    for picture in plan_pictures(size_named(size), seed):
        yield store_picture(folder, picture, seed)


def _store_in_processes(folder: Path, size: str, seed: int, workers: int) -> Iterator[Report]:
    reports: queue.Queue[Report | None] = queue.Queue()
    processes = [_start(folder, size, seed, part, workers) for part in range(workers)]
    for process in processes:
        threading.Thread(target=_read_reports, args=(process, reports), daemon=True).start()
    try:
        running = workers
        while running:
            report = reports.get()
            if report is None:
                running -= 1
            elif "error" in report:
                raise UserError(report["error"])
            else:
                yield report
        codes = [process.wait() for process in processes]
        if any(codes):
            raise RuntimeError(f"a process that draws the synthetic set died (exit codes {codes})")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(folder: Path, size: str, seed: int, part: int, parts: int) -> subprocess.Popen[str]:
    task = [str(folder), size, str(seed), str(part), str(parts)]
    command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(_PACKAGE), *task]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _read_reports(process: subprocess.Popen[str], reports: queue.Queue[Report | None]) -> None:
    """Pass on what a process says; None once it has ended."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            reports.put(json.loads(line))
    process.wait()
    reports.put(None)


def main(arguments: list[str]) -> None:
    """Store every ``parts``-th picture and report on stdout.

    Args:
        arguments: folder, size, seed, part, parts.
    """
    folder, size, seed, part, parts = arguments
    cv2.setNumThreads(1)
    pictures = plan_pictures(size_named(size), int(seed))
    try:
        for picture in pictures[int(part) :: int(parts)]:
            print(json.dumps(store_picture(Path(folder), picture, int(seed))), flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)
    except BrokenPipeError:
        # Nobody reads: the parent was killed. Leave quietly, without flushing stdout again.
        os._exit(1)

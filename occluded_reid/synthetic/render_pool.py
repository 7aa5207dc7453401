"""Draw and store the images, in this process or in several workers.

A worker is a fresh interpreter that runs :func:`main`. Unlike a process pool it never imports the
caller's script again, so a notebook or a script without ``if __name__ == "__main__"`` works too. It
reports each image as a line of JSON on stdout, and ends when nobody reads it any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from occluded_reid.synthetic.plan import PlannedImage, get_size, plan_images
from occluded_reid.synthetic.scene.composition import render
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import explain_write_errors

# The working folder, which comes first in a new interpreter's path, may hold other modules.
_WORKER = """
import sys
sys.path[:] = {path}
from occluded_reid.synthetic.render_pool import main
main()
"""


Report = dict[str, Any]
"""A stored image: its size in "bytes", SHA-256 "digest" and "truth"; or the final "error"."""


def store_images(folder: Path, size: str, seed: int, workers: int) -> Iterator[Report]:
    """Draw and write all images of a data set; report them in the order of their numbers.

    ``folder`` holds a folder for each split; one worker is this process.
    """
    if workers > 1:
        return _store_in_workers(folder, size, seed, workers)
    return (_store_image(folder, image, seed) for image in plan_images(get_size(size), seed))


def _store_image(folder: Path, planned: PlannedImage, seed: int) -> Report:
    rendering = render(planned, seed)
    quality = [cv2.IMWRITE_JPEG_QUALITY, rendering.quality]
    encoded = cv2.imencode(".jpg", rendering.image[:, :, ::-1], quality)[1].tobytes()
    path = folder / planned.path
    with explain_write_errors(path):
        path.write_bytes(encoded)
    digest = hashlib.sha256(encoded).hexdigest()
    return {"bytes": len(encoded), "digest": digest, "truth": rendering.truth.to_json()}


def _store_in_workers(folder: Path, size: str, seed: int, workers: int) -> Iterator[Report]:
    """Start the workers and read a line of each in turn, as they share out the images."""
    processes = [_start_worker(folder, size, seed, part, workers) for part in range(workers)]
    try:
        for number in range(get_size(size).num_images):
            process = processes[number % workers]
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise UserError(
                    f"a worker that draws the synthetic set has ended (exit code {process.wait()})"
                    ". If nobody stopped it, the machine may have run out of memory; start again"
                )
            report = json.loads(line)
            if "error" in report:
                raise UserError(report["error"])
            yield report
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def _start_worker(folder: Path, size: str, *seed_part_parts: int) -> subprocess.Popen[str]:
    code = _WORKER.format(path=[str(entry) for entry in sys.path])
    command = [sys.executable, "-c", code, str(folder), size, *map(str, seed_part_parts)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def main() -> None:
    """Store every ``parts``-th image; the command line holds folder, size, seed, part, parts."""
    folder, size, seed, part, parts = sys.argv[1:]
    cv2.setNumThreads(1)
    try:
        for planned in plan_images(get_size(size), int(seed))[int(part) :: int(parts)]:
            print(json.dumps(_store_image(Path(folder), planned, int(seed))), flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)
    except BrokenPipeError:
        # Nobody reads: the parent was killed. Exit without flushing stdout again.
        os._exit(1)

#!/usr/bin/env python
"""Query an index and its web page from many clients at once while a writer adds images.

Every result is compared with exact search over the images whose batches were complete at that time.
The page needs the extra `web`; `--only index` does not.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import faiss
import numpy as np
from PIL import Image

_TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_TESTS / "helpers"), str(_TESTS), str(_TESTS.parent)]

from gallery_search import Filter, GalleryIndex, Item  # noqa: E402
from gallery_search.web.search import GallerySearch  # noqa: E402
from occluded_reid.modeling.outputs import Embedding  # noqa: E402

DIM, PARTS, CAMERAS, TOP = 96, 4, 4, 10
BATCH = 20  # images that the writer adds at a time
TIMEOUT = 60  # seconds until a client gives up
TOLERANCE = {"index": 1e-5, "page": 6e-5}  # the page shows four decimals
fork = multiprocessing.get_context("fork")

Hits = list[tuple[int, float]]  # index of the image, similarity


def make_image(number: int) -> np.ndarray:
    """Return a small image, (8, 4, 3) uint8, whose values are a query."""
    return np.random.default_rng(number).integers(0, 256, (8, 4, 3), np.uint8)


def compute_feature(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(-1).astype(np.float32) / 255 - 0.5


def make_gallery_features(numbers: range) -> np.ndarray:
    """Return the images' features (N, DIM), the same at every call."""
    return np.stack([np.random.default_rng((1, n)).normal(size=DIM) for n in numbers])


class FakeEmbedder:
    """Stands in for a model: an image is its own feature."""

    stripes = True

    def embed(self, image: Image.Image) -> Embedding:
        features = compute_feature(np.asarray(image))[None]
        return Embedding(features, np.full((len(features), PARTS), 0.5, np.float32))

    def concatenate(self, batches: Sequence[Embedding]) -> Embedding:
        return self.embed(Image.new("RGB", (64, 128)))

    def similarity(self, a: Embedding, b: Embedding) -> np.ndarray:
        rows = [each.features / np.linalg.norm(each.features, axis=1)[:, None] for each in (a, b)]
        return rows[0] @ rows[1].T


class Progress:
    """Counts the images that the writer has started to add, and has added."""

    def __init__(self, count: int):
        self.begun, self.done = fork.Value("q", count), fork.Value("q", count)


def add_batch(index: GalleryIndex, writer: Any, first: int) -> None:
    gallery = Path(index.info().gallery)
    items = [Item(f"{n}.jpg", str(n % CAMERAS), float(n)) for n in range(first, first + BATCH)]
    for number, item in enumerate(items, first):
        os.link(gallery / f"drawn{number % 8}", gallery / item.path)
    features = make_gallery_features(range(first, first + BATCH))
    writer.add(items, features, np.full((BATCH, PARTS), 0.5))


def make_index(folder: Path, count: int) -> GalleryIndex:
    gallery = folder / "gallery"
    gallery.mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 4, 3), np.uint8)
        drawn = Image.fromarray(pixels).resize((64, 128))
        drawn.save(gallery / f"drawn{number}", format="JPEG")
    index = GalleryIndex.create(
        folder / "index", metric="cosine", dim=DIM, num_parts=PARTS, fingerprint="drawn",
        gallery=str(gallery),
    )  # fmt: skip
    with index.writer() as writer:
        for first in range(0, count, BATCH):
            add_batch(index, writer, first)
    return index


def keep_adding(index: GalleryIndex, progress: Progress) -> None:
    """Add batch after batch until the process is terminated."""
    with index.writer() as writer:
        while True:
            first = progress.done.value
            progress.begun.value = first + BATCH
            add_batch(index, writer, first)
            progress.done.value = first + BATCH
            time.sleep(0.2)


@contextmanager
def process(work: Callable[..., object], *args: Any) -> Iterator[Any]:
    started = fork.Process(target=work, args=args)  # no daemon: the page starts processes
    started.start()
    try:
        yield started
    finally:
        started.terminate()
        started.join(20)
        started.kill()


class IndexClient:
    """Queries the index itself."""

    def __init__(self, index: GalleryIndex):
        self._index = index

    def search(self, pixels: np.ndarray, cameras: list[str]) -> Hits:
        hits = self._index.search(compute_feature(pixels)[None], TOP, Filter(tuple(cameras)))[0]
        return [(int(Path(hit.item.path).stem), hit.similarity) for hit in hits]


class PageClient:
    """Queries as the page in a browser does."""

    def __init__(self, address: str):
        self._address = address
        self._open("/").read()

    def search(self, pixels: np.ndarray, cameras: list[str]) -> Hits:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="PNG")
        key = json.load(self._open("/upload", stream.getvalue()))["key"]
        pairs = [("q", key), ("top", str(TOP)), *(("camera", name) for name in cameras)]
        table = self._open(f"/report.csv?{urlencode(pairs)}").read().decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(table))
        return [(int(Path(row["file"]).stem), float(row["likeness"])) for row in rows]

    def _open(self, path: str, body: bytes | None = None) -> Any:
        """Return the response; an OSError if the request is refused or times out."""
        return urllib.request.urlopen(f"{self._address}{path}", body, timeout=TIMEOUT)


class SearchRecord(NamedTuple):
    """A query and its hits, with the least and the most images that the index could hold."""

    seed: int
    cameras: list[str]
    least: int
    most: int
    seconds: float
    hits: Hits


def is_wrong(record: SearchRecord, features: np.ndarray, tolerance: float) -> bool:
    """Whether no number of complete batches gives these hits under exact search."""
    query = compute_feature(make_image(record.seed))
    truth = features @ (query / np.linalg.norm(query))
    truth /= np.linalg.norm(features, axis=1)
    seen = np.array(
        [not record.cameras or str(n % CAMERAS) in record.cameras for n in range(len(truth))]
    )
    numbers = [number for number, _ in record.hits]
    for count in range(record.least, record.most + 1, BATCH):
        allowed = np.flatnonzero(seen[:count])
        best = np.sort(truth[allowed])[::-1][:TOP]
        if len(numbers) == len(best) == len(set(numbers)) and set(numbers) <= set(allowed.tolist()):
            own = truth[numbers]
            shown = np.array([similarity for _, similarity in record.hits])
            if max(abs(own - best).max(), abs(shown - own).max()) < tolerance:
                return False
    return True


@dataclass
class Result:
    """What many clients saw: times in milliseconds, and how many results were wrong or failed."""

    clients: int
    answers: int
    wrong: int
    failed: int
    added: int
    per_second: float
    p50: float
    p95: float
    p99: float
    failures: list[str] = field(default_factory=list)


def run(kind: str, clients: list[Any], progress: Progress, seconds: float) -> Result:
    """Let each client send query after query until the time is up."""
    records: list[SearchRecord] = []
    failures: list[str] = []
    before, end = progress.done.value, time.monotonic() + seconds

    def keep_querying(number: int, client: Any) -> None:
        turn = 0
        while time.monotonic() < end:
            seed = number * 10**6 + turn
            cameras = [str(seed % CAMERAS)] if turn % 2 else []
            least, start = progress.done.value, time.monotonic()
            try:
                hits = client.search(make_image(seed), cameras)
                took = time.monotonic() - start
                records.append(SearchRecord(seed, cameras, least, progress.begun.value, took, hits))
            except Exception as error:  # counted, whatever they are
                failures.append(f"{type(error).__name__}: {error}")
            turn += 1

    threads = [threading.Thread(target=keep_querying, args=each) for each in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    features = make_gallery_features(range(max([one.most for one in records], default=1)))
    bad = sum(is_wrong(one, features, TOLERANCE[kind]) for one in records)
    times = np.percentile([1000 * one.seconds for one in records] or [np.nan], [50, 95, 99])
    return Result(
        len(clients), len(records), bad, len(failures), progress.done.value - before,
        len(records) / seconds, *times.round(1).tolist(), sorted(set(failures))[:5],
    )  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def serve(index: GalleryIndex, port: int) -> None:
    from gallery_search.web import server

    embedder: Any = FakeEmbedder()
    with server.open_socket("127.0.0.1", port) as listening:
        server.serve(GallerySearch([index], embedder), listening, "127.0.0.1", TOP)


def page_clients(address: str, count: int, started: Any) -> list[PageClient]:
    for _ in range(1500):
        try:
            return [PageClient(address) for _ in range(count)]
        except OSError:
            if not started.is_alive():
                raise
            time.sleep(0.2)
    raise TimeoutError("the page does not start")


def measure_usage(pid: int) -> tuple[float, float]:
    """Return a process's processor time in seconds and its peak memory in MiB."""
    times = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    status = Path(f"/proc/{pid}/status").read_text()
    peak = status.split("VmHWM:")[1].split()[0]
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"), int(peak) / 1024


def load(kinds: list[str], clients: int, seconds: float, items: int) -> dict[str, Any]:
    """Query the page, then the index; return the :class:`Result` of each as a dict."""
    faiss.omp_set_num_threads(1)  # a forked process would wait for the threads of its parent
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        index, progress, port = make_index(Path(folder), items), Progress(items), free_port()
        with process(keep_adding, index, progress):
            if "page" in kinds:
                with process(serve, index, port) as started:
                    users = page_clients(f"http://127.0.0.1:{port}", clients, started)
                    before, _ = measure_usage(started.pid)
                    result = asdict(run("page", list(users), progress, seconds))
                    after, peak = measure_usage(started.pid)
                    each = round(1000 * (after - before) / max(1, result["answers"]), 1)
                    result |= {"server_cpu_ms_each": each, "server_peak_mib": round(peak)}
                    results["page"] = result
            if "index" in kinds:
                one = IndexClient(index)
                results["index"] = asdict(run("index", [one] * clients, progress, seconds))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("index", "page"), help="default: both")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30, help="for each of the two")
    parser.add_argument("--items", type=int, default=2000, help="in the index at the start")
    parser.add_argument("--json", metavar="F.json", help="write the figures")
    args = parser.parse_args()
    kinds = [args.only] if args.only else ["page", "index"]
    results = load(kinds, args.clients, args.seconds, args.items)
    for kind, result in results.items():
        print(f"{kind}: " + ", ".join(f"{name} {value}" for name, value in result.items()))
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))
    return int(any(result["wrong"] or result["failed"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())

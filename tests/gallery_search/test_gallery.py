"""The gallery index finds what brute force finds, loses nothing, and refuses what is not sound."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import settings
from indexes import DIM, add, brute, clustered, create, some_items
from runs import forked, kill_self, status_of

from gallery_search import Filter, GalleryIndex, Item
from gallery_search.store import approximation as approximations
from gallery_search.store import database as databases
from gallery_search.store import similarity
from gallery_search.store import vectors as vector_files
from gallery_search.store.metadata import check_path, parse_name, parse_time, read_table
from occluded_reid.data.image_names import make_id
from occluded_reid.modeling.similarity import (
    VECTOR_METRICS,
)
from occluded_reid.utils.errors import UserError

quick = settings(deadline=None, database=None, max_examples=12)
made = iter(range(10**6))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Forked processes must not wait for the threads of their parent."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
@pytest.mark.parametrize("metric", VECTOR_METRICS)
def test_approximate_search(kind, metric, tmp_path, monkeypatch):
    monkeypatch.setattr(approximations, "CODES", 2)
    monkeypatch.setattr(approximations, "EXACT_UP_TO", 100)
    features = clustered(1400, 16)
    index = create(tmp_path / "index", metric, 16, 0)
    ids = np.array([make_id(item.path) for item in some_items(1400)])
    add(index, features[:1100])
    with index.writer() as writer:
        writer.remove(ids[7:50].tolist())
        writer.optimize(kind)
    built = index.info()
    assert (built.kind, built.covered) == (kind, 1100)
    add(index, features[1100:], 1100)  # found without being in it
    queries = clustered(60, 16, seed=1)
    truth = brute(queries, features, metric)
    truth[:, 7:50] = -np.inf
    lists = index.search(queries, 10)
    found = [[hit.id for hit in hits] for hits in lists]
    best = ids[np.argsort(-truth, 1)[:, :10]]
    shared = [len(set(one) & set(other)) for one, other in zip(found, best, strict=True)]
    assert np.mean(shared) / 10 >= 0.9 and abs(np.mean(shared) / 10 - built.recall) < 0.1
    for hits, row in zip(lists, truth, strict=True):  # no number is an approximation
        assert [h.similarity for h in hits] == pytest.approx(
            [row[ids.tolist().index(h.id)] for h in hits], abs=1e-4
        )
    exact = [[hit.id for hit in hits] for hits in index.search(queries, 10, exact=True)]
    assert exact == best.tolist()
    later = truth.copy()
    later[:, :1340] = -np.inf
    narrow = index.search(queries, 5, Filter(since=60 * 1340))  # exact
    allowed = np.array([item.time is not None for item in some_items(1400)])
    expected = ids[np.argsort(-np.where(allowed, later, -np.inf), 1)[:, :5]]
    assert [[hit.id for hit in hits] for hits in narrow] == expected.tolist()
    wide = index.search(queries, 10, Filter(("1", "2")))
    assert all(len(hits) == 10 and {h.item.camera for h in hits} <= {"1", "2"} for hits in wide)


def test_too_few_proposals_end_in_exact_search(tmp_path, monkeypatch):
    features = clustered(1000, 8)
    index = create(tmp_path / "index", "euclidean", 8, 0)
    add(index, features)
    with index.writer() as writer:
        writer.optimize("ivf")
    monkeypatch.setattr(approximations, "propose_rows", lambda *_: np.full((1, 100), -1))
    assert [hit.item.path for hit in index.search(features[:1], 3)[0]][0] == "0.jpg"


def test_the_kind_goes_by_size_and_small_indexes_are_exact(tmp_path):
    sizes = (0, 100_000, 100_001, 1_000_000, 1_000_001, 4_000_000, 4_000_001)
    kinds = ["exact", "exact", "hnsw", "hnsw", "ivf", "ivf", "ivfpq"]
    assert [approximations.choose_kind(size) for size in sizes] == kinds
    index = create(tmp_path / "index")
    add(index, np.eye(4, dtype=np.float32))
    with index.writer() as writer:
        writer.optimize()
        assert index.describe() == "exact"
        with pytest.raises(UserError, match="4 vectors are too few for ivf"):
            writer.optimize("ivf")
        with pytest.raises(UserError, match="no kind 'lsh'; there are auto, exact, hnsw"):
            writer.optimize("lsh")


def test_recall_tells_of_a_bad_approximation(tmp_path, monkeypatch):
    real = approximations.propose_rows

    def half(*words: Any) -> np.ndarray:
        found = real(*words)
        return np.where(found % 2, found, -1)

    monkeypatch.setattr(approximations, "propose_rows", half)
    index = create(tmp_path / "index", "dot", 8, 0)
    add(index, clustered(1000, 8))
    with index.writer() as writer:
        writer.optimize("ivf")
    built = index.info()
    assert 0.4 < built.recall < 0.6 and built.effort == approximations.MAX_EFFORT


def test_an_id_is_that_of_its_path(tmp_path):
    index = create(tmp_path / "index")
    features = np.diag([1, 2, 3, 4]).astype(np.float32)
    ids = add(index, features)
    other = GalleryIndex(tmp_path / "index")
    other.search(features)  # holds the files that are deleted below
    with index.writer() as writer:
        writer.remove([ids[1], ids[3]])
        writer.compact()
    (new,) = add(index, features[1:2], 20)
    assert [*ids, new] == [make_id(f"{n}.jpg") for n in (0, 1, 2, 3, 20)]
    for each in (index, other, GalleryIndex(tmp_path / "index")):
        assert len(each) == 3 and each.info().rows == 3
        assert [hits[0].id for hits in each.search(features[:3])] == [ids[0], new, ids[2]]
    assert [p.name for p in (tmp_path / "index").glob("vectors-*")] == ["vectors-1.f32"]
    with index.writer() as writer:
        writer.remove(index.select(Filter()).tolist())
        writer.compact()
    assert len(index) == 0 and index.search(features) == [[], [], [], []]
    add(index, features)
    assert len(index) == 4


def test_a_compaction_waits_for_the_searches_that_began(tmp_path, monkeypatch):
    index = create(tmp_path / "index")
    ids = add(index, np.eye(4, dtype=np.float32))
    rank = GalleryIndex._rank

    def compact() -> None:
        with GalleryIndex(tmp_path / "index").writer() as writer:
            writer.remove(ids[:1])
            writer.compact()

    def compact_meanwhile(*words):
        compaction.start()
        time.sleep(0.1)
        assert compaction.is_alive()
        return rank(*words)

    compaction = threading.Thread(target=compact)
    reader = GalleryIndex(tmp_path / "index")
    with monkeypatch.context() as patch:
        patch.setattr(GalleryIndex, "_rank", compact_meanwhile)
        assert {hit.id for hit in reader.search(np.ones((1, 4)))[0]} == set(ids)
    compaction.join()
    assert {hit.id for hit in reader.search(np.ones((1, 4)))[0]} == set(ids[1:])


def test_readers_see_whole_batches_while_a_writer_adds(tmp_path):
    index = create(tmp_path / "index")
    add(index, np.ones((5, 4), np.float32))

    def write() -> None:
        with GalleryIndex(tmp_path / "index").writer() as writer:
            for batch in range(1, 25):
                features = np.full((5, 4), batch + 1, np.float32)
                writer.add(some_items(5, 5 * batch), features, np.zeros((5, 2)))

    writer = forked(write)
    seen = []
    while not seen or seen[-1] < 125:
        hits = index.search(np.ones((1, 4)), top=200)[0]
        assert len(hits) % 5 == 0
        assert {hit.similarity for hit in hits} == {4.0 * n for n in range(1, len(hits) // 5 + 1)}
        seen.append(len(hits))
    assert status_of(writer) == 0
    assert seen == sorted(seen) and len(set(seen)) > 3


def test_kill_while_adding_keeps_all_complete_batches(tmp_path):
    """At a random moment, again and again, into the same index."""
    index = create(tmp_path / "index")
    log = tmp_path / "log"
    log.touch()
    rng = random.Random(0)
    for trial in range(6):
        first = len(index)

        def write(first: int = first) -> None:
            with GalleryIndex(tmp_path / "index").writer() as writer, log.open("a") as stream:
                for number in range(first, first + 2000, 4):
                    features = np.float32([[n, 1, 0, 0] for n in range(number, number + 4)])
                    writer.add(some_items(4, number), features, np.zeros((4, 2)))
                    print(number + 4, file=stream, flush=True)

        lines = log.read_text().count("\n")
        child = forked(write)
        while log.read_text().count("\n") == lines:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert status_of(child) == -signal.SIGKILL
        done = int(log.read_text().split()[-1])
        assert len(index) in (done, done + 4), trial  # the last may not have been noted any more
        hits = index.search(np.array([[1, 0, 0, 0]]), top=len(index))[0]
        assert [hit.item.path for hit in hits] == [f"{n}.jpg" for n in reversed(range(len(index)))]
        assert [hit.similarity for hit in hits] == list(reversed(range(len(index))))


@pytest.mark.parametrize("place", ["write_info", "renumber_rows"])
def test_kill_between_the_files_and_the_database(place, tmp_path, monkeypatch):
    index = create(tmp_path / "index")
    ids = add(index, np.eye(4, dtype=np.float32))

    def work() -> None:
        with index.writer() as writer:
            if place == "renumber_rows":
                writer.remove(ids[:1])
            monkeypatch.setattr(databases.Database, place, lambda *_: kill_self())
            if place == "renumber_rows":
                writer.compact()
            writer.add(some_items(3, 9), np.full((3, 4), 7), np.zeros((3, 2)))

    assert status_of(forked(work)) == -signal.SIGKILL
    half = tmp_path / "index" / ".approximation-1.faiss.0.unfinished"
    half.touch()
    left = ids[1:] if place == "renumber_rows" else ids
    assert {hit.id for hit in index.search(np.ones((1, 4)))[0]} == set(left)
    add(index, np.full((1, 4), 5, np.float32), 30)
    assert index.search(np.ones((1, 4)))[0][0].similarity == 20
    assert len(index) == len(left) + 1
    assert not (tmp_path / "index" / "vectors-1.f32").exists() and not half.exists()


@pytest.mark.parametrize("metric", VECTOR_METRICS)
@pytest.mark.parametrize("factor", [1e25, 1e-25])
def test_features_of_extreme_sizes_are_compared_truly_or_refused(metric, factor):
    """Their squares overflow float32, or vanish; the cosine has no length."""
    features = clustered(3, 5)
    expected = similarity.prepare_vectors(features, metric, 5)
    if metric == "cosine":
        scaled = similarity.prepare_vectors(features * np.float32(factor), metric, 5)
        np.testing.assert_allclose(scaled, expected, rtol=1e-6)
        return
    with pytest.raises(UserError, match=r"features of b.png have the norm .*e[+-]2\d, with which"):
        features[1] *= factor
        similarity.prepare_vectors(features, metric, 5, ["a.png", "b.png", "c.png"])


def test_a_cosine_is_at_most_one(tmp_path):
    features = np.random.default_rng(0).normal(size=(200, 40)).astype(np.float32)
    index = GalleryIndex.create(
        tmp_path / "index", metric="cosine", dim=40, num_parts=0, fingerprint="f"
    )
    with index.writer() as writer:
        writer.add(some_items(200), features)
    assert max(hits[0].similarity for hits in index.search(features, 1)) <= 1


def test_a_second_writer_is_refused(tmp_path):
    index = create(tmp_path / "index")
    with index.writer(), pytest.raises(UserError, match="another process is writing to"):
        add(index, np.eye(4, dtype=np.float32))
    add(index, np.eye(4, dtype=np.float32))


def test_a_full_disk_leaves_the_index_as_it_was(tmp_path, monkeypatch):
    index = create(tmp_path / "index")
    add(index, np.eye(4, dtype=np.float32))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(vector_files.os, "fsync", full)
        with pytest.raises(UserError, match="the disk is full"):
            add(index, np.eye(4, dtype=np.float32), 9)
    assert len(index) == 4 == len(index.search(np.ones((1, 4)))[0])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with an approximation."""
    index = create(tmp_path_factory.mktemp("sound") / "index", "cosine")
    add(index, clustered(1000, DIM))
    with index.writer() as writer:
        writer.optimize("ivf")
    return index.folder


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def sql(folder: Path, statement: str) -> None:
    """Change the database and make the checksums right again, as an attacker would."""
    connection = sqlite3.connect(folder / "gallery.sqlite")
    with connection:
        connection.execute(statement)
        for (text,) in connection.execute("SELECT value FROM facts").fetchall():
            connection.execute("UPDATE facts SET checksum = ?", (zlib.crc32(text.encode()),))
        for number, row, *fields, seen, version, parity, _ in connection.execute(
            "SELECT * FROM items"
        ).fetchall():
            record = databases.Record(number, row, Item(*fields), seen, version, parity)
            values = record.to_row()[-1], number
            connection.execute("UPDATE items SET checksum = ? WHERE id = ?", values)
    connection.close()


def facts_with(word: str, other: str) -> Any:
    return lambda f: sql(f, f"UPDATE facts SET value = replace(value, '{word}', '{other}')")


TAMPERED: dict[str, tuple[Any, str]] = {
    "vector": (lambda f: flip(f / "vectors-0.f32", 15), "damaged at row 0"),
    "parity": (lambda f: sql(f, "UPDATE items SET parity = 0 WHERE row = 0"), "damaged at row 0"),
    "shorter": (lambda f: os.truncate(f / "vectors-0.f32", 15_999), "15999 bytes long instead"),
    "no vectors": (lambda f: (f / "vectors-0.f32").unlink(), "vectors-0.f32 is missing"),
    "faiss flipped": (lambda f: flip(f / "approximation-1.faiss", 99), "its checksum is wrong"),
    "faiss cut": (lambda f: os.truncate(f / "approximation-1.faiss", 50), "its checksum"),
    "no faiss": (lambda f: (f / "approximation-1.faiss").unlink(), "faiss is missing"),
    "no database": (lambda f: (f / "gallery.sqlite").unlink(), "is not a gallery index"),
    "garbage": (lambda f: (f / "gallery.sqlite").write_bytes(b"x" * 9999), "cannot be used"),
    "empty": (lambda f: (f / "gallery.sqlite").write_bytes(b""), "another program wrote"),
    "foreign": (lambda f: sql(f, "PRAGMA application_id = 1"), "another program wrote"),
    "version": (
        lambda f: sql(f, "PRAGMA user_version = 2"),
        "format 2.* build it anew: tools/search.py",
    ),
    "trigger": (
        lambda f: sql(f, "CREATE TRIGGER t AFTER DELETE ON items BEGIN SELECT 1; END"),
        "has other tables than expected",
    ),
    "no facts": (lambda f: sql(f, "DELETE FROM facts"), "cannot be used"),
    "no json": (lambda f: sql(f, "UPDATE facts SET value = '{'"), "cannot be used"),
    "list": (lambda f: sql(f, "UPDATE facts SET value = '[]'"), "cannot be used"),
    "negative": (facts_with('"rows": 1000, "serial"', '"rows": -1, "serial"'), "rows is -1"),
    "text": (facts_with('"generation": 0', '"generation": "../0"'), "generation is '../0'"),
    "metric": (facts_with("cosine", "manhattan"), "metric 'manhattan'"),
    "unknown": (facts_with('"dim"', '"code"'), "code"),
    "more rows": (facts_with('"rows": 1000, "serial"', '"rows": 900, "serial"'), "more rows than"),
    "many rows": (
        facts_with('"rows": 1000, "serial"', '"rows": 1001, "serial"'),
        "no item for row 1000",
    ),
    "other dim": (facts_with('"dim": 4', '"dim": 2'), "do not fit"),
    "path": (lambda f: sql(f, "UPDATE items SET path = '/etc/' || id"), "not a path below"),
    "up": (lambda f: sql(f, "UPDATE items SET path = 'a/../../' || id"), "not a path below"),
    "blob": (lambda f: sql(f, "UPDATE items SET visibility = x'00'"), "cannot be used"),
    "item": (lambda f: sql(f, "DELETE FROM items"), "has no item for row"),
    "type": (lambda f: sql(f, "UPDATE items SET path = CAST(path AS BLOB)"), "cannot be used"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_folder_that_is_not_sound_is_refused(name, sound, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(sound, folder)
    tamper, message = TAMPERED[name]
    tamper(folder)
    queries = clustered(1000, DIM)[:1]
    with pytest.raises(UserError, match=message):
        GalleryIndex(folder).search(queries)


def test_a_valid_checksum_does_not_make_a_faiss_index(sound, tmp_path):
    from dataclasses import replace
    from hashlib import sha256

    folder = tmp_path / "index"
    shutil.copytree(sound, folder)
    path = folder / "approximation-1.faiss"
    flat = faiss.serialize_index(faiss.IndexFlatIP(DIM)).tobytes()
    for content, message in (
        (b"nonsense", "is not a faiss index"),
        (flat, "belongs to another index"),
    ):
        path.write_bytes(content)
        with databases.transaction(folder, write=True) as database:
            facts = database.read_info()
            database.write_info(replace(facts, sha256=sha256(content).hexdigest()))
        with pytest.raises(UserError, match=message):
            GalleryIndex(folder).search(np.ones((1, DIM)))


def test_a_flipped_byte_of_the_database_ends_in_a_message_or_in_nothing(sound, tmp_path):
    """Sixty places; what is found is what was found before, or there is one message."""
    query = np.ones((1, DIM))
    hits = GalleryIndex(sound).search(query)[0]
    truth = [(hit.id, hit.item, hit.similarity) for hit in hits]
    folder = tmp_path / "index"
    shutil.copytree(sound, folder)
    content = (folder / "gallery.sqlite").read_bytes()
    rng, refused = random.Random(1), 0
    for _ in range(60):
        changed = bytearray(content)
        changed[rng.choice([rng.randrange(4096), rng.randrange(len(content))])] ^= rng.randrange(
            1, 256
        )
        (folder / "gallery.sqlite").write_bytes(changed)
        try:
            hits = GalleryIndex(folder).search(query)[0]
        except UserError:
            refused += 1
        else:
            assert [(hit.id, hit.item, hit.similarity) for hit in hits] == truth
    assert refused > 5


def test_a_folder_that_may_only_be_read(sound, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    shutil.copytree(sound, folder)
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda name, **more: connect(name.replace("=rw", "=ro"), **more)
    )
    before = sorted(path.name for path in folder.iterdir())
    assert len(GalleryIndex(folder).search(np.ones((1, DIM)))[0]) == 10
    assert sorted(path.name for path in folder.iterdir()) == before
    journal = bytes.fromhex("d9d505f920a163d7ffffffff") + bytes(500)
    (folder / "gallery.sqlite-journal").write_bytes(journal)
    with pytest.raises(UserError, match="its last writer was interrupted"):
        GalleryIndex(folder)


@pytest.mark.parametrize(
    ("path", "camera", "time", "identity"),
    [
        ("a/0002_c1s1_000451_03.jpg", "1", 451, "2"),
        ("0001_c2_f0046182.jpg", "2", 46182, "1"),
        ("-1_c3s2_000001_00.jpg", "3", 1, None),
        ("0000_c3s2_000001_00.jpg", "3", 1, None),
        ("0002_c1/door.jpg", None, None, None),
        ("0007_c4.png", "4", None, "7"),
    ],
)
def test_names(path, camera, time, identity):
    assert parse_name(path) == Item(path, camera, time, identity)


@pytest.fixture
def far_away(monkeypatch) -> Iterator[None]:
    """A zone in which local time is not UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


def test_times_and_tables(far_away, tmp_path):
    assert parse_time("12.5") == 12.5
    assert parse_time("1970-01-02") == parse_time("1970-01-02T00:00:00Z") == 86400
    assert parse_time("1970-01-01T01:00:00+01:00") == 0
    table = tmp_path / "table.csv"
    table.write_text(
        'path,split,camera,time,identity\na/b.jpg,query,gate,1970-01-02,\n"c,d.jpg",,,,5\n'
        ".\\\\a\\\\b.jpg,gallery,gate,1970-01-02,\n/srv/shop/e.jpg,,gate,,0000\n"
    )
    assert list(read_table(table, "/srv/shop").values()) == [
        Item("a/b.jpg", "gate", 86400.0), Item("c,d.jpg", identity="5"), Item("e.jpg", "gate"),
    ]  # fmt: skip
    for text, message in (
        ("camera\n1\n", "needs rows with path"),
        ("path,time\na.jpg,soon\n", "line 2: 'soon' is not a time"),
        ("path,time\na.jpg,nan\n", "line 2: 'nan' is not a time"),
        ("path,camera\na.jpg,1\nb/../a.jpg,2\n", "line 3: a.jpg is there twice, with other values"),
        ("path\n../a.jpg\n", "line 2: '../a.jpg' is not a path below"),
        ("path\na.jpg,1\n", "line 2: there are more cells"),
        ("", "has the columns .none. and 0 rows"),
        ("path\n\x00\n", "table.csv"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            read_table(table)
    with pytest.raises(UserError, match="cannot read"):
        read_table(tmp_path / "none.csv")


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "a//b", "./a", "a\0", "a/", "\udcff"])
def test_paths_that_lead_elsewhere(path):
    with pytest.raises(UserError, match="not a path below"):
        check_path(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
def test_a_hundred_thousand_items(kind, tmp_path):
    faiss.omp_set_num_threads(2)
    features = clustered(100_000, 128)
    index = create(tmp_path / "index", "cosine", 128, 0)
    with index.writer() as writer:
        for first in range(0, 100_000, 5000):
            writer.add(some_items(5000, first), features[first : first + 5000])
        writer.optimize(kind)
    built = index.info()
    queries = clustered(100, 128, seed=1)
    truth = np.sort(brute(queries, features, "cosine"), 1)[:, -10:]
    start = time.perf_counter()
    lists = index.search(queries, 10)
    approximate = time.perf_counter() - start
    start = time.perf_counter()
    exact = [hit.similarity for hits in index.search(queries, 10, exact=True) for hit in hits]
    slow = time.perf_counter() - start
    assert exact == pytest.approx(truth[:, ::-1].ravel().tolist(), abs=1e-5)
    found = np.array([[hit.similarity for hit in hits] for hits in lists])
    recall = (found >= truth[:, :1] - 1e-6).mean()
    print(f"{kind}: recall {recall:.3f}, {approximate:.2f} s; exact {slow:.2f} s")
    assert recall >= (0.85 if kind == "ivfpq" else 0.96) and abs(recall - built.recall) < 0.07

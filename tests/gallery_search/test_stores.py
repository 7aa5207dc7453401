"""What both stores do: a folder, and Milvus. Search finds what brute force finds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import DIM, add, brute, clustered, create, some_items

from gallery_search import Filter, Item, create_store, has_store, open_store, search_indexes
from gallery_search.store import similarity, vectors
from gallery_search.store.metadata import parse_time
from occluded_reid.data.image_names import make_id
from occluded_reid.evaluation.distances import distance_matrix
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.modeling.similarity import METRICS, PART_METRICS, VECTOR_METRICS, make_rows
from occluded_reid.utils.errors import UserError

quick = settings(deadline=None, database=None, max_examples=12)
made = iter(range(10**6))
STORES = {"folder": "{}/{}", "milvus": "milvus:///{}/{}.db"}


@pytest.fixture(params=["folder", pytest.param("milvus", marks=pytest.mark.extras)], scope="module")
def place(request, tmp_path_factory) -> Callable[[], str]:
    """Return new addresses."""
    if request.param == "milvus":
        pytest.importorskip("pymilvus")
    folder = tmp_path_factory.mktemp("stores")
    return lambda: STORES[request.param].format(folder, f"store{next(made)}")


@pytest.mark.parametrize("metric", VECTOR_METRICS)
@quick
@given(data=st.data())
def test_exact_search_is_brute_force(metric, place, data):
    """Whole numbers: many ties, and no rounding but in the cosine."""
    count = data.draw(st.integers(1, 1 + similarity.SPARE))  # more equal ones have no order
    values = st.lists(st.integers(-2, 2), min_size=DIM, max_size=DIM).filter(any)
    gallery = np.array([data.draw(values) for _ in range(count)], np.float32)
    queries = np.array([data.draw(values) for _ in range(2)], np.float32)
    address = place()
    index = create(address, metric)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "BLOCK", 5 * DIM)  # five rows at a time
        cut = data.draw(st.integers(0, count))
        ids = add(index, gallery[:cut]) + add(index, gallery[cut:], cut)
        gone = data.draw(st.sets(st.sampled_from(ids)))
        with index.writer() as writer:
            assert writer.remove([*gone, 999]) == len(gone)
            if data.draw(st.booleans()):
                writer.compact()
        index = open_store(address)
        assert len(index) == count - len(gone)
        for _ in range(3):
            cameras = tuple(data.draw(st.sets(st.sampled_from(["1", "2", "9"]))))
            since, until = (data.draw(st.none() | st.integers(0, 1500)) for _ in range(2))
            top = data.draw(st.integers(1, 8))
            filter = Filter(cameras, since, until)
            lists = index.search(queries, top, filter)
            truth = brute(queries, gallery, metric)
            if metric != "cosine":
                truth = truth.round()  # the evaluation rounds
            for hits, row in zip(lists, truth, strict=True):
                known = {
                    number: (row[place], item)
                    for place, (number, item) in enumerate(zip(ids, some_items(count), strict=True))
                    if number not in gone
                    and (not cameras or item.camera in cameras)
                    and (since is None or (item.time is not None and item.time >= since))
                    and (until is None or (item.time is not None and item.time <= until))
                }
                assert index.select(filter).tolist() == sorted(known)
                best = sorted(known, key=lambda n: (-known[n][0], ids.index(n)))[:top]
                expected = [known[number][0] for number in best]
                assert [h.similarity for h in hits] == pytest.approx(expected, abs=1e-6)
                for hit in hits:
                    assert hit.similarity == pytest.approx(known[hit.id][0], abs=1e-6)
                    assert hit.item == known[hit.id][1] and hit.visibility.tolist() == [0.5, 0.5]
                if metric != "cosine" and "milvus" not in address:  # equal ones in their order
                    assert [hit.id for hit in hits] == best


@pytest.mark.parametrize("metric", METRICS)
def test_what_embed_gives_is_compared_as_in_evaluation(metric, place):
    """AONet's rows (`dot`) have unequal norms; of `shared`, the nearest by `query` are compared."""
    rng = np.random.default_rng(0)
    sets = []
    for count in (150, 5):
        features = clustered(count, 16, seed=count).reshape(count, 4, 4)
        visibility = rng.uniform(0.05, 1, (count, 4)).astype(np.float32)
        sets.append(Embedding(torch.from_numpy(features), torch.from_numpy(visibility)))
    gallery, queries = sets
    rows, query = (make_rows(each, metric) for each in sets)
    seen = (queries.visibility, gallery.visibility) if metric in PART_METRICS else ()
    truth = -distance_matrix(query, rows, metric, *([seen] if seen else []))
    truth = truth + 1 if metric == "cosine" else truth
    index = create(place(), metric, 16, 4)
    items = [Item(f"{number}.jpg") for number in range(150)]
    with index.writer() as writer:
        ids = writer.add(items, gallery.numpy())
    for exact in (True, False):
        for hits, row in zip(index.search(queries.numpy(), 10, exact=exact), truth, strict=True):
            found = [ids.index(hit.id) for hit in hits]
            assert [h.similarity for h in hits] == pytest.approx(row[found].tolist(), 1e-6, 1e-5)
            if exact or metric != "shared":
                assert found == np.argsort(-row)[:10].tolist()


def test_another_models_query_is_refused(place):
    address = place()
    assert not has_store(address)
    with pytest.raises(UserError, match="is not a gallery index"):
        open_store(address)
    create(address)
    assert has_store(address)
    open_store(address, "0123abcd")
    with pytest.raises(UserError, match=r"another model \(0123abcd, weights W.pth\).*\(77ff\)"):
        open_store(address, "77ff")
    with pytest.raises(UserError, match="exists already"):
        create(address)
    index = open_store(address)
    with pytest.raises(UserError, match="do not fit"):
        index.search(np.ones((1, 5)))
    with pytest.raises(UserError, match="number of hits is 0"):
        index.search(np.ones((1, 4)), top=0)


def test_what_does_not_fit_is_not_added(place):
    index = create(place())
    add(index, np.eye(4, dtype=np.float32))
    bad, zero = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    bad[2, 1], zero[1] = np.nan, 0
    for features, first, message in (
        (np.eye(4), 3, "3.jpg is in the index .* already"),
        (np.eye(3), 9, r"shape \(3, 3\) do not fit: expected \(N, 4\)"),
        (bad, 9, "the features of 11.jpg have the norm nan"),
        (zero, 9, "the features of 10.jpg have the norm 0, "),
    ):
        with pytest.raises(UserError, match=message):
            add(index, np.float32(features), first)
    with index.writer() as writer:
        for items, seen, message in (
            ([Item("../a.jpg")] * 4, np.zeros((4, 2)), "not a path below"),
            ([Item("a.jpg")] * 4, np.zeros((4, 2)), "a.jpg is added twice"),
            (some_items(4, 9), np.zeros((4, 3)), "do not fit"),
            (some_items(3, 9), np.zeros((3, 2)), "do not fit"),
            (some_items(4, 9), None, "do not fit"),
        ):
            with pytest.raises(UserError, match=message):
                writer.add(items, np.eye(4), seen)
        assert writer.add([], np.empty((0, 4)), np.empty((0, 2))) == []
    assert len(index) == 4


def test_filters_cameras_and_times(place):
    """A filter takes one name, and times of one kind; any text is a camera's name."""
    index = create(place())
    assert index.cameras() == [] and index.time_span() is None and len(index) == 0
    assert index.search(np.eye(4)) == [[]] * 4
    day = parse_time("2024-05-31")
    odd = 'c"1\\\n] or é'
    items = [Item("a", "cam10", 5), Item("b", odd, day), Item("d", "cam10", day + 9), Item("e")]
    with index.writer() as writer:
        writer.add([*items, Item("f", "cam9")], np.eye(5, 4) + 1, np.zeros((5, 2)))
    assert index.cameras() == [odd, "cam9", "cam10"] and index.time_span() == (5, day + 9)
    for filter, expected in (
        (Filter("cam10"), "ad"),
        (Filter([odd, "cam10"]), "abd"),
        (Filter('" or id > 0 or camera == "'), ""),
        (Filter(until=day), "b"),
        (Filter(since=3), "a"),
        (Filter(since=day + 1), "d"),
        (Filter(until=day - 1), ""),
    ):
        found = index.look_up(index.select(filter).tolist())
        assert "".join(sorted(hit.item.path for hit in found)) == expected, filter
        hits = index.search(np.ones((1, 4)), 10, filter)[0]
        assert "".join(sorted(hit.item.path for hit in hits)) == expected, filter
    assert [hit.item for hit in index.look_up([make_id("d"), 7, make_id("a")])] == items[2::-2]
    assert len(index.select(Filter(), 2)) == 2


def test_new_metadata_versions_and_what_was_removed(place):
    index = create(place())
    ids = add(index, np.eye(4, dtype=np.float32))
    with index.writer() as writer:
        assert writer.update([Item("1.jpg", "gate", 7, "anna"), Item("none.jpg")]) == 1
        assert writer.update([Item("1.jpg", "gate", 7, "anna")]) == 0
        assert index.look_up(ids[1:2])[0].item == Item("1.jpg", "gate", 7, "anna")
        assert len(index) == 4 and "gate" in index.cameras()
        assert writer.remove(ids[2:]) == 2 and writer.remove(ids[:1], remember=False) == 1
    assert index.withdrawn() == {"2.jpg", "3.jpg"}
    with index.writer() as writer:
        writer.compact()
        again = [Item("1.jpg"), Item("3.jpg")]
        new = writer.add(again, np.eye(4)[2:], np.zeros((2, 2)), versions="ab", overwrite=True)
    assert index.withdrawn() == {"2.jpg"}
    assert index.versions_of(["1.jpg", "2.jpg", "3.jpg"]) == {"1.jpg": "a", "3.jpg": "b"}
    hits = index.search(np.array([[0, 0, 2, 1]]))[0]
    assert [(hit.id, hit.item) for hit in hits] == list(zip(new, again, strict=True))


def test_shards_are_one_index(place):
    features = clustered(90, DIM)
    whole = create(place())
    add(whole, features)
    shards = [create(place()) for _ in range(3)]
    for number, shard in enumerate(shards):
        add(shard, features[30 * number : 30 * (number + 1)], 30 * number)
    for filter in (Filter(), Filter(("1",), since=600)):
        one = whole.search(features[:5], 12, filter)
        other = search_indexes(shards, features[:5], 12, filter)
        assert [[h.id for h in hits] for hits in one] == [[h.id for h in hits] for hits in other]


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_another_kind_of_index_finds_the_same(kind, place):
    index = create(place(), "cosine", 16, 0)
    features = clustered(1000, 16)
    add(index, features)
    assert not index.is_outdated() and index.is_outdated(kind)
    with index.writer() as writer:
        with pytest.raises(UserError, match="no kind 'lsh'; there are auto, exact, hnsw"):
            writer.optimize("lsh")
        writer.optimize(kind)
    assert index.describe().startswith(kind) and not index.is_outdated(kind)
    queries = clustered(20, 16, seed=1)
    truth = np.sort(brute(queries, features, "cosine"), 1)[:, :-11:-1]
    found = np.array([[hit.similarity for hit in hits] for hits in index.search(queries, 10)])
    assert (found >= truth[:, -1:] - 1e-6).mean() > 0.95


@pytest.mark.extras
def test_milvus_lite_keeps_what_a_killed_process_added_and_is_for_one_process(tmp_path):
    pytest.importorskip("pymilvus")
    address = f"milvus:///{tmp_path}/store.db"
    script = f"""
import os, sys
from indexes import *
from gallery_search import open_store
if sys.argv[1] == "add":
    add(create({address!r}), clustered(30, DIM))
    writer = open_store({address!r}).writer().__enter__()
    writer.add(some_items(10, 30), clustered(10, DIM), np.zeros((10, 2)))
    os.kill(os.getpid(), 9)
try:
    open_store({address!r})
except Exception as error:
    print(error)
"""
    path = os.pathsep.join([*sys.path, str(Path(__file__).parents[1] / "helpers")])
    environment = {**os.environ, "PYTHONPATH": path}

    def run(word: str) -> str:
        words = [sys.executable, "-c", script, word]
        return subprocess.run(words, env=environment, capture_output=True, text=True).stdout

    run("add")
    assert len(open_store(address)) == 40
    assert "another process has" in run("open")


@pytest.mark.parametrize(
    "address", ["milvus://host/a", "milvus:///a", "milvus://h:1/a-b", "s3://a"]
)
def test_odd_addresses(address):
    with pytest.raises(UserError, match="is no gallery; expected"):
        create_store(address, metric="dot", dim=1, num_parts=0, fingerprint="f")


@pytest.mark.extras
def test_a_server_that_does_not_answer_is_one_message():
    pytest.importorskip("pymilvus")
    with pytest.raises(UserError, match="milvus://127.0.0.1:1/a: Fail connecting"):
        open_store("milvus://127.0.0.1:1/a")

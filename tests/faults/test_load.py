"""A short run of load.py, and a check that it detects wrong results."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from faults.load import (
    BATCH,
    CAMERAS,
    DIM,
    TOP,
    SearchRecord,
    compute_feature,
    is_wrong,
    load,
    make_gallery_features,
    make_image,
)


def test_a_wrong_result_is_detected():
    features = make_gallery_features(range(2 * BATCH))
    query = compute_feature(make_image(3))
    truth = features @ query / np.linalg.norm(features, axis=1) / np.linalg.norm(query)
    order = [int(n) for n in np.argsort(-truth[:BATCH])[:TOP]]
    hits = [(number, float(truth[number])) for number in order]

    def is_rejected(hits, cameras=(), least=BATCH, most=BATCH):
        return is_wrong(SearchRecord(3, list(cameras), least, most, 0.1, hits), features, 1e-5)

    assert not is_rejected(hits) and not is_rejected(hits, most=2 * BATCH)
    assert (
        is_rejected(hits[:-1])
        and is_rejected(hits[1:] + hits[:1])
        and is_rejected([hits[0], *hits[:-1]])
    )
    assert is_rejected([(hits[0][0], 0.0), *hits[1:]])
    assert is_rejected(hits, cameras=[str(order[0] % CAMERAS)])
    late = int(BATCH + np.argmax(truth[BATCH:]))
    assert is_rejected([(late, float(truth[late])), *hits[:-1]])  # its batch had not started
    assert features.shape == (2 * BATCH, DIM)


@pytest.mark.slow
def test_many_threads_search_while_a_writer_adds():
    result = load(["index"], clients=10, seconds=5, items=200)["index"]
    assert result["answers"] > 10 and result["added"] >= BATCH
    assert (result["wrong"], result["failures"]) == (0, [])


@pytest.mark.slow
@pytest.mark.extras
def test_many_browsers_search_while_a_writer_adds():
    if importlib.util.find_spec("starlette") is None:
        pytest.skip("Starlette is not installed: pip install '.[web]'")
    result = load(["page"], clients=10, seconds=5, items=200)["page"]
    assert result["answers"] >= 10 and result["added"] >= BATCH
    assert (result["wrong"], result["failures"]) == (0, [])

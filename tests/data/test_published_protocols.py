"""Data sets of the published size, on empty files with names of the true form: every protocol is
read with its counts checked, and ranked as fast-reid's own Python evaluation ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastreid.evaluation.rank import eval_market1501

from occluded_reid.data.datasets.registry import build_dataset
from occluded_reid.evaluation.ranking import rank_queries

Name = Callable[[int, int, int], str]  # of an identity, a camera, a number


def duke(identity: int, camera: int, number: int) -> str:
    return f"{identity:04d}_c{camera}_f{number:07d}.jpg"


def market(identity: int, camera: int, number: int) -> str:
    return f"{identity:04d}_c{camera}s1_{number:06d}_01.jpg"


def of_five(identity: int, camera: int, number: int) -> str:
    return f"{identity:03d}_{number % 5 + 1:03d}.jpg"


def probe(identity: int, camera: int, number: int) -> str:
    return f"{identity:03d}.jpg"


TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"

# folder of the set; folder, images and identities of each side; cameras; the form of a name
TREES: dict[str, tuple[str, list[tuple[str, int, int]], int, Name]] = {
    "OccludedDuke": (
        "Occluded_Duke",
        [(TRAIN, 15618, 702), (QUERY, 2210, 519), (GALLERY, 17661, 1110)],
        8, duke,
    ),
    "DukeMTMC": (
        "DukeMTMC-reID",
        [(TRAIN, 16522, 702), (QUERY, 2228, 702), (GALLERY, 17661, 1110)],
        8, duke,
    ),
    "Market1501": (
        "Market-1501-v15.09.15",
        [(TRAIN, 12936, 751), (QUERY, 3368, 750), (GALLERY, 15913, 750)],
        6, market,
    ),
    "OccludedREID": (
        "Occluded_REID",
        [("occluded_body_images", 1000, 200), ("whole_body_images", 1000, 200)],
        1, of_five,
    ),
    "PartialREID": (
        "Partial_REID",
        [
            ("occluded_body_images", 300, 60), ("partial_body_images", 300, 60),
            ("whole_body_images", 300, 60),
        ],
        1, of_five,
    ),
    "PartialiLIDS": (
        "Partial_iLIDS",
        [
            ("partial_iLIDS_Probe_nocrop", 119, 119), ("Probe", 119, 119), ("Gallery", 119, 119),
        ],
        1, probe,
    ),
}  # fmt: skip
PROTOCOLS = [
    "OccludedDuke", "DukeMTMC", "Market1501", "OccludedREID", "PartialREID:occluded",
    "PartialREID:partial", "PartialiLIDS:whole", "PartialiLIDS:crop",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("published")
    for home, sides, cameras, name in TREES.values():
        for folder, images, identities in sides:
            (made / home / folder).mkdir(parents=True)
            for number in range(images):
                identity, turn = number % identities + 1, number // identities
                # query and gallery share cameras, so that images of the query's own are ignored
                (made / home / folder / name(identity, turn % cameras + 1, turn)).touch()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_ranking_of_a_published_protocol_is_fastreids(root: Path, name: str, ties: bool) -> None:
    dataset = build_dataset(name, root=str(root), verbose=False)  # refuses other counts
    random = np.random.default_rng(0)
    chosen = random.choice(len(dataset.query), 12, replace=False)
    queries, gallery = [dataset.query[index] for index in chosen], dataset.gallery
    distances = random.random((len(queries), len(gallery))).astype(np.float32)
    if ties:
        distances = np.round(distances * 50) / 50
    ids = [np.array([item[1] for item in items]) for items in (queries, gallery)]
    cameras = [np.array([item[2] for item in items]) for items in (queries, gallery)]
    ranking = rank_queries(distances, *ids, *cameras)
    # equal distances made different in the gallery's order: what a stable sort does
    order = np.argsort(np.argsort(distances, axis=1, kind="stable"), axis=1).astype(np.float64)
    cmc, precision, penalty = eval_market1501(order, *ids, *cameras, max_rank=50)
    assert len(ranking.query) == len(queries)
    np.testing.assert_allclose(ranking.average_precision, precision, atol=1e-12)
    np.testing.assert_allclose(ranking.inverse_negative_penalty, penalty, atol=1e-12)
    own_cmc = [ranking.rank_k(k + 1).mean() for k in range(len(cmc))]
    np.testing.assert_allclose(own_cmc, cmc, atol=1e-6)

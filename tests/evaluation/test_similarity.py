"""The similarity of parts by their visibility, in all that compares images, against a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import part_similarity
from runs import tiny_cfg
from test_reranking import rerank_with_sets

from occluded_reid.evaluation import distances as module
from occluded_reid.evaluation import query_expansion
from occluded_reid.evaluation.distances import FeatureDistances, distance_matrix
from occluded_reid.evaluation.evaluator import Evaluator
from occluded_reid.evaluation.query_expansion import expand_features
from occluded_reid.evaluation.reranking import RerankedDistances
from occluded_reid.modeling.outputs import Embedding, as_embedding
from occluded_reid.modeling.similarity import PART_METRICS, make_rows, weight_parts
from occluded_reid.utils.errors import UserError

FORMS = ("dot", *PART_METRICS)


def draw(count: int, parts: int = 3, dim: int = 4, seed: int = 0) -> Embedding:
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(count, parts, dim, generator=rng, dtype=torch.float64)
    return Embedding(features, torch.rand(count, parts, generator=rng, dtype=torch.float64))


def loop(one: Embedding, other: Embedding, metric: str) -> np.ndarray:
    pairs = [[(q, g) for g in range(len(other.features))] for q in range(len(one.features))]
    return np.array(
        [
            [
                part_similarity(
                    (one.features[q].numpy(), other.features[g].numpy()),
                    (one.visibility[q].numpy(), other.visibility[g].numpy()), metric,
                )
                for q, g in row
            ]
            for row in pairs
        ]
    )  # fmt: skip


@pytest.mark.parametrize("metric", FORMS)
@pytest.mark.parametrize(("parts", "dim"), [(1, 1), (1, 5), (6, 4), (3, 2)])
def test_distances_equal_the_loop(metric, parts, dim, monkeypatch):
    query, gallery = draw(4, parts, dim), draw(7, parts, dim, seed=1)
    expected = -loop(query, gallery, metric)
    rows = make_rows(query, metric), make_rows(gallery, metric)
    seen = query.visibility, gallery.visibility
    np.testing.assert_allclose(distance_matrix(*rows, metric, seen), expected, rtol=1e-6)
    monkeypatch.setattr(module, "TILE", 200)
    distances = FeatureDistances(*rows, metric, visibility=seen)
    for columns in (slice(0, 3), slice(3, 7), slice(0, 3)):
        np.testing.assert_allclose(distances[1:3, columns], expected[1:3, columns], rtol=1e-6)
    pairs = torch.randint(4, (30,)), torch.randint(7, (30,))
    np.testing.assert_allclose(distances.compute_pairs(*pairs), expected[pairs], rtol=1e-10)
    rounded = [each.bfloat16() for each in rows]
    np.testing.assert_allclose(distance_matrix(*rounded, metric, seen), expected, atol=0.02)


def test_an_index_of_vectors_can_hold_the_gallery_of_query():
    """Its rows have norm 1, and the order of cosines is that of the similarity."""
    query, gallery = draw(4), draw(9, seed=1)
    rows = make_rows(gallery, "query")
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(9).double())
    weighted = weight_parts(make_rows(query, "query"), query.visibility)
    expected = loop(query, gallery, "query")
    torch.testing.assert_close(weighted @ rows.T, torch.from_numpy(expected))
    cosines = torch.nn.functional.normalize(weighted) @ rows.T
    np.testing.assert_array_equal(cosines.argsort(1), expected.argsort(1))


def test_the_gallerys_visibility_is_a_bias_of_eq_8_alone():
    """The second gallery image is another person of whom twice as much is visible."""
    angles = torch.tensor([0.0, 0.3, 0.6]).double()
    features = torch.stack([angles.cos(), angles.sin()], 1)[:, None].repeat(1, 3, 1)
    visibility = torch.tensor([1.0, 0.4, 0.8]).double()[:, None].repeat(1, 3)
    ranked = {}
    for metric in FORMS:
        rows = make_rows(Embedding(features, visibility), metric)
        seen = visibility[:1], visibility[1:]
        ranked[metric] = int(distance_matrix(rows[:1], rows[1:], metric, seen).argmin())
    assert ranked == {"dot": 1, "shared": 0, "query": 0}


def test_unit_norm_changes_the_ranking_of_eq_8():
    """Scaled to unit norm, a gallery image gains from hiding a part.

    The query shows its first part and little of its second. The first gallery image shows both, at
    cosine 0.8; of the second only the first part is seen, at cosine 0.9.
    """
    angles = torch.tensor([[1.0, 1.0], [0.8, 0.8], [0.9, 0.9]]).acos()
    features = torch.stack([angles.cos(), angles.sin()], dim=2)
    visibility = torch.tensor([[1.0, 0.2], [1.0, 1.0], [1.0, 0.0]])
    rows = make_rows(Embedding(features, visibility), "dot")
    dot, cosine, euclidean = (
        distance_matrix(rows[:1], rows[1:], metric)[0] for metric in ("dot", "cosine", "euclidean")
    )
    np.testing.assert_allclose(dot, [-0.48, -0.45], rtol=1e-5)
    assert [each.argmin() for each in (dot, cosine, euclidean)] == [0, 1, 1]


def test_nothing_visible_and_zero_features_have_zero_similarity():
    embedding = draw(3)
    embedding.visibility[0] = 0
    embedding.features[1] = 0
    for metric in FORMS:
        rows = make_rows(embedding, metric)
        distances = distance_matrix(rows, rows, metric, (embedding.visibility,) * 2)
        assert (distances[0] == 0).all() and (distances[:, 1] == 0).all(), metric
        assert np.isfinite(distances).all()


def test_one_vector_has_no_parts_to_weight():
    features, visibility = torch.randn(5, 8), torch.rand(5, 4)
    vector = as_embedding(Embedding(features, visibility))
    assert vector.features.shape == (5, 1, 8)
    for metric in ("cosine", "euclidean", "dot"):
        assert torch.equal(make_rows(vector, metric), features)
        assert torch.equal(make_rows(as_embedding(features), metric), features)
    with pytest.raises(UserError, match="SIMILARITY shared needs a visibility for each part"):
        make_rows(vector, "shared")


def test_parts_are_one_vector_by_the_cosine():
    """FED's: the visibility of a stripe is its norm."""
    embedding = draw(5)
    assert torch.equal(make_rows(embedding, "cosine"), embedding.features.flatten(1))


@pytest.mark.parametrize("metric", PART_METRICS)
def test_reranking_equals_the_published_description(metric):
    embedding = draw(30)
    similarity = loop(embedding, embedding, metric)
    largest, smallest = similarity.max(1, keepdims=True), similarity.min(1, keepdims=True)
    original = (largest - similarity) / (largest - smallest)
    np.fill_diagonal(original, 0)
    expected = rerank_with_sets(original, 10, 6, 3, 0.3)
    reranked = RerankedDistances(
        make_rows(embedding, metric), 10, metric, k1=6, k2=3, weight=0.3,
        visibility=embedding.visibility,
    )  # fmt: skip
    np.testing.assert_allclose(reranked[:, :], expected, atol=2e-6)


def expand_in_a_loop(embedding: Embedding, metric: str, count: int, alpha: float) -> Embedding:
    similarity = loop(embedding, embedding, metric)
    np.fill_diagonal(similarity, np.inf)
    nearest = np.argsort(-similarity, axis=1)[:, :count]
    own = loop(embedding, embedding, metric)
    features, visibility = (torch.zeros_like(each) for each in embedding[:2])
    for image, neighbors in enumerate(nearest):
        weights = [max(own[image, other], 0) ** alpha for other in neighbors]
        for weight, other in zip(weights, neighbors, strict=True):
            for k, part in enumerate(embedding.features[other]):
                shown = embedding.visibility[other, k]
                features[image, k] += weight * shown * part / part.norm()
                visibility[image, k] += weight * shown / sum(weights)
    return Embedding(features, visibility)


@pytest.mark.parametrize("metric", PART_METRICS)
@pytest.mark.parametrize("tile", [2**23, 100])
def test_expansion_equals_the_loop(metric, tile, monkeypatch):
    monkeypatch.setattr(module, "TILE", tile)
    monkeypatch.setattr(query_expansion, "TILE", tile)
    embedding = draw(24)
    before = embedding.features.clone(), embedding.visibility.clone()
    rows, visibility = expand_features(
        make_rows(embedding, metric), metric, times=2, count=4, alpha=3.0,
        visibility=embedding.visibility,
    )  # fmt: skip
    expected = embedding
    for _ in range(2):
        expected = expand_in_a_loop(expected, metric, 4, 3.0)
    torch.testing.assert_close(visibility, expected.visibility)
    torch.testing.assert_close(rows, make_rows(expected, metric))
    assert torch.equal(embedding.features, before[0])
    assert torch.equal(embedding.visibility, before[1])


@pytest.mark.parametrize("similarity", ["paper", *PART_METRICS])
def test_the_evaluator_compares_by_the_key(tmp_path, similarity):
    embedding = draw(30)
    words = ("TEST.METRIC", "dot", "TEST.SIMILARITY", similarity)
    evaluator = Evaluator(tiny_cfg(tmp_path / "run", *words), num_query=6)
    for part in torch.arange(30).split(7):
        batch = {
            "targets": part % 6, "camids": part // 6, "index": part,
            "img_paths": [str(number) for number in part.tolist()],
        }  # fmt: skip
        evaluator.process(batch, Embedding(embedding.features[part], embedding.visibility[part]))
    metric = "dot" if similarity == "paper" else similarity
    assert evaluator.metric == metric
    distances = evaluator.compute_distances(evaluator.gather())[:, :]
    np.testing.assert_allclose(-distances, loop(embedding, embedding, metric)[:6, 6:], atol=1e-6)
    report = evaluator.evaluate()
    assert report["metric"] == metric and 0 < report["metrics"]["mAP"]["value"] < 100
    for option in ("AQE", "RERANK"):
        words += (f"TEST.{option}.ENABLED", True, "TEST.AQE.QE_K", 3, "TEST.RERANK.K1", 6)
        other = Evaluator(tiny_cfg(tmp_path / "run", *words), num_query=6)
        other._batches = evaluator._batches
        changed = other.compute_distances(other.gather())[:, :]
        assert np.isfinite(changed).all() and np.abs(changed - distances).max() > 0.01

"""Which entries of a test set are one image, and which gallery images are a query's own."""

from __future__ import annotations

import numpy as np

from occluded_reid.evaluation.duplicates import assign_images, find_copies, list_redundant


def test_entries_of_equal_pixels_are_one_image():
    """Queries 0 and 2 are one image, which the gallery has twice; gallery images may be equal."""
    digests = np.array([5, 6, 5, 7, 5, 8, 5, 8, 6])
    images = assign_images(digests, queries=4)
    assert images.tolist() == [0, 1, 0, 3, 0, 5, 0, 7, 1]
    assert list_redundant(images).tolist() == [2, 4, 6, 8]
    copies = {query: own.tolist() for query, own in find_copies(images, queries=4).items()}
    assert copies == {0: [0, 2], 2: [0, 2], 1: [4]}

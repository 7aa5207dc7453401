"""The digest of a list of images."""

from __future__ import annotations

import pytest

from occluded_reid.data.digest import digest_items

ITEMS = [("/data/shop/a.jpg", "anna", 0), ("/data/shop/b.jpg", "bob", 1)]


def test_digest_does_not_depend_on_where_the_data_lies() -> None:
    moved = [(path.replace("/data", "/mnt/disk"), *rest) for path, *rest in ITEMS]
    assert digest_items(moved) == digest_items(ITEMS)


@pytest.mark.parametrize(
    "other",
    [
        ITEMS[::-1],
        ITEMS[:1],
        [("/data/shop/c.jpg", "anna", 0), ITEMS[1]],
        [("/data/shop/a.jpg", "aaron", 0), ITEMS[1]],
        [("/data/shop/a.jpg", "anna", 2), ITEMS[1]],
    ],
    ids=["order", "fewer", "file", "identity", "camera"],
)
def test_digest_covers_order_paths_identities_and_cameras(
    other: list[tuple[str, str, int]],
) -> None:
    assert digest_items(other) != digest_items(ITEMS)

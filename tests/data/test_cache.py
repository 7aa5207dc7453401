"""The cache of decoded images: built once, atomically, and rebuilt when images change."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from occluded_reid.data import cache
from occluded_reid.data.cache import DecodedImages, open_cache
from occluded_reid.utils.errors import UserError

SIZE = (6, 4)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    random = np.random.default_rng(0)
    cached = []
    for number in range(5):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (9, 5, 3), np.uint8)).save(path)
        cached.append(str(path))
    return cached


class Counting(DecodedImages):
    """Counts decoded images."""

    def __init__(self, paths: list[str]):
        super().__init__(paths, lambda image: image.resize(SIZE[::-1]))
        self.count = 0

    def __getitem__(self, index: int) -> np.ndarray | str:
        self.count += 1
        return super().__getitem__(index)


def read(images, number: int = 5):
    return [images[index] for index in range(number)]


def read_warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_cache_holds_the_decoded_images_and_is_built_once(tmp_path, paths, monkeypatch):
    monkeypatch.setattr(cache, "_BLOCK", 2)
    images = Counting(paths)
    expected = read(images)
    cached = open_cache(images, SIZE, str(tmp_path / "cache"), threads=2)
    assert images.count == 10
    again = open_cache(images, SIZE, str(tmp_path / "cache"))
    copy = pickle.loads(pickle.dumps(again))
    assert images.count == 10 and len(pickle.dumps(again)) < 1000
    for of in (cached, again, copy):
        np.testing.assert_array_equal(read(of), expected)


@pytest.mark.parametrize("change", ["date", "size", "gone", "pillow"])
def test_a_cache_is_rebuilt_when_its_images_change(tmp_path, paths, monkeypatch, caplog, change):
    open_cache(Counting(paths), SIZE, str(tmp_path / "cache"))
    if change == "date":
        os.utime(paths[2], ns=(1, 1))
    elif change == "size":
        stat = os.stat(paths[2])
        Image.new("RGB", (5, 9)).save(paths[2])
        os.utime(paths[2], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "gone":
        os.unlink(paths[2])
    else:
        monkeypatch.setattr(cache, "version", lambda _: "0.1")
    images = Counting(paths)
    cached = open_cache(images, SIZE, str(tmp_path / "cache"))
    assert images.count == 5
    (warning,) = read_warnings(caplog)
    assert "the images or the version of Pillow have changed" in warning
    if change == "gone":
        assert cached[2].startswith("No such file")
    else:
        np.testing.assert_array_equal(cached[2], images[2])
    assert len(list((tmp_path / "cache").glob("6x4_*"))) == 1


def test_other_images_and_sizes_have_their_own_cache(tmp_path, paths):
    folder = str(tmp_path / "cache")
    open_cache(Counting(paths), SIZE, folder)
    open_cache(Counting(paths[:3]), SIZE, folder)
    larger = DecodedImages(paths, lambda image: image.resize((5, 7)))
    open_cache(larger, (7, 5), folder)
    assert len(list((tmp_path / "cache").glob("[67]x*"))) == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("cut", "pixels.bin is damaged"), ("about", "damaged (TypeError"), ("bit", "its checksum")],
)
def test_a_damaged_cache_is_rebuilt_and_named(tmp_path, paths, caplog, fault, reason):
    open_cache(Counting(paths), SIZE, str(tmp_path / "cache"))
    (home,) = (tmp_path / "cache").glob("6x4_*")
    if fault == "cut":
        os.truncate(home / "pixels.bin", 100)
    elif fault == "bit":
        pixels = bytearray((home / "pixels.bin").read_bytes())
        pixels[-1] ^= 1  # of the last image
        (home / "pixels.bin").write_bytes(pixels)
    else:
        (home / "about.json").write_text(json.dumps([1]))
    images = Counting(paths)
    assert not read_warnings(caplog)
    np.testing.assert_array_equal(open_cache(images, SIZE, str(tmp_path / "cache"))[4], images[4])
    (warning,) = read_warnings(caplog)
    assert f"{home} is made anew: " in warning and reason in warning


def test_an_interruption_leaves_no_cache(tmp_path, paths):
    class Ending(Counting):
        def __getitem__(self, index):
            if index == 3:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        open_cache(Ending(paths), SIZE, str(tmp_path / "cache"))
    assert list((tmp_path / "cache").glob("6x4_*")) == []


def test_a_disk_that_is_too_small_is_named_before_anything_is_decoded(tmp_path, paths, monkeypatch):
    usage = namedtuple("usage", "total used free")
    needed = 5 * 3 * 6 * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, needed - 1))
    images = Counting(paths)
    with pytest.raises(UserError, match=r"need 0.0 GB in .*cache \(INPUT.CACHE\), but 0.0 GB"):
        open_cache(images, SIZE, str(tmp_path / "cache"))
    assert images.count == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, needed))
    open_cache(images, SIZE, str(tmp_path / "cache"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path, paths):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/cache"):
        open_cache(Counting(paths), SIZE, str(tmp_path / "file" / "cache"))

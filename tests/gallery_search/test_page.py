"""The search page: what it answers, what it refuses, and what it keeps."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import load_tool

from gallery_search import GalleryIndex, Hit, Item
from gallery_search.calibration import Thresholds, calibrate, read_thresholds
from gallery_search.querying import describe_hit, show_value
from gallery_search.web import images, search
from gallery_search.web.images import Decoder, RequestError, make_jpeg, read_gallery_image
from gallery_search.web.question import MAX_IMAGES, Question
from gallery_search.web.search import GallerySearch
from occluded_reid.data.image_names import make_id
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError

DIM, PARTS, COUNT = 96, 3, 12


def pixels(number: int) -> np.ndarray:
    """Eight rows of four pixels: as many values as a vector has."""
    return np.random.default_rng(number).integers(0, 256, (8, 4, 3), np.uint8)


def feature(image: np.ndarray) -> np.ndarray:
    return image.reshape(-1).astype(np.float32) / 255 - 0.5


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


def normalize(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class PixelsAsFeatures:
    """Stands in for a model of three parts whose features are the pixels."""

    stripes = True

    def embed(self, image: Image.Image) -> Embedding:
        values = feature(np.asarray(image.resize((4, 8), Image.Resampling.NEAREST)))
        return Embedding(values.reshape(1, PARTS, -1), np.full((1, PARTS), 0.25, np.float32))

    def concatenate(self, batches: Sequence[Embedding]) -> Embedding:
        assert not batches
        return Embedding(np.empty((0, PARTS, DIM // PARTS)), np.empty((0, PARTS)))

    def similarity(self, a: Embedding, b: Embedding) -> np.ndarray:
        return normalize(a.features) @ normalize(b.features).T


@pytest.fixture
def index(tmp_path: Path) -> GalleryIndex:
    """Twelve images of four identities at three cameras, an hour apart; one has no file."""
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    made = GalleryIndex.create(
        tmp_path / "index", metric="cosine", dim=DIM, num_parts=PARTS, fingerprint="0123abcd",
        weights="runs/demo", gallery=str(gallery),
    )  # fmt: skip
    items = []
    for number in range(COUNT):
        items.append(Item(f"{number}.png", str(number % 3), 3600.0 * number, str(number % 4)))
        if number:
            (gallery / f"{number}.png").write_bytes(png(pixels(number)))
    with made.writer() as writer:
        features = np.stack([feature(pixels(number)) for number in range(COUNT)])
        writer.add(items, features, np.linspace(0, 1, COUNT * PARTS).reshape(COUNT, PARTS))
    return made


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(1)


@pytest.fixture
def page(index: GalleryIndex, decoder: Decoder) -> GallerySearch:
    return GallerySearch([index], PixelsAsFeatures(), decoder)  # type: ignore[arg-type]


def key(number: int, shard: int = 0) -> str:
    return f"{shard}.{make_id(f'{number}.png')}"


def paths(answers: Any) -> list[str]:
    return [answer.hit.item.path for answer in answers]


def test_an_upload_finds_what_the_index_finds(page, index):
    asked = pixels(5)
    asked[0] //= 2
    answers = page.ask(Question((page.add_upload(png(asked)),), top=7))
    hits = index.search(feature(asked)[None], 7)[0]
    assert paths(answers) == [hit.item.path for hit in hits] and paths(answers)[0] == "5.png"
    for answer, hit in zip(answers, hits, strict=True):
        assert abs(answer.similarity - hit.similarity) < 1e-6 and answer.key == f"0.{hit.id}"


def test_several_images_are_one_query(page, index):
    """Answers are in the order of the mean similarity to all images of the query."""
    keys = tuple(page.add_upload(png(pixels(number))) for number in (3, 7))
    answers = page.ask(Question((*keys, key(8)), top=COUNT))
    gallery = normalize(np.stack([feature(pixels(number)) for number in range(COUNT)]))
    mean = (gallery @ gallery[[3, 7, 8]].T).mean(1)
    order = [number for number in np.argsort(-mean) if number != 8]
    assert paths(answers) == [f"{number}.png" for number in order]
    np.testing.assert_allclose([each.similarity for each in answers], mean[order], atol=1e-5)


def test_confirmed_images_join_the_query_and_rejected_ones_push_away(page):
    question = Question((key(1),), same=(key(3),), other=(key(5), key(7)), top=COUNT)
    answers = page.ask(question)
    gallery = normalize(np.stack([feature(pixels(number)) for number in range(COUNT)]))
    like = (gallery @ gallery[[1, 3]].T).mean(1)
    unlike = (gallery @ gallery[[5, 7]].T).max(1)
    rank = like - np.maximum(0, unlike - like)
    order = [number for number in np.argsort(-rank) if number not in (1, 3, 5, 7)]
    assert paths(answers) == [f"{number}.png" for number in order]
    assert paths(page.judge_marked(question, question.other)) == ["5.png", "7.png"]


@pytest.mark.parametrize("metric", ["euclidean", "dot", "query", "shared"])
def test_every_metric_takes_several_images(metric, tmp_path, decoder):
    made = GalleryIndex.create(
        tmp_path / "i", metric=metric, dim=DIM, num_parts=PARTS, fingerprint="x", gallery="g"
    )
    features = np.stack([feature(pixels(n)) for n in range(COUNT)]).reshape(COUNT, PARTS, -1)
    with made.writer() as writer:
        items = [Item(f"{number}.png") for number in range(COUNT)]
        writer.add(items, Embedding(features, np.ones((COUNT, PARTS), np.float32)))
    page = GallerySearch([made], PixelsAsFeatures(), decoder)  # type: ignore[arg-type]
    keys = tuple(page.add_upload(png(pixels(number))) for number in (3, 7))
    assert set(paths(page.ask(Question(keys, top=2)))) == {"3.png", "7.png"}


def test_filters_and_browsing(page):
    filters = {"cameras": ("0", "2"), "since": "3600", "until": "1970-01-01T08:00:00"}
    for asked in ((page.add_upload(png(pixels(1))),), ()):
        answers = page.ask(Question(asked, **filters))
        assert set(paths(answers)) == {f"{number}.png" for number in (2, 3, 5, 6, 8)}
    assert len(page.ask(Question(top=4))) == 4
    with pytest.raises(RequestError, match="soon"):
        page.ask(Question(since="soon"))


def test_several_indexes_are_one_gallery(index, decoder):
    both = GallerySearch([index, index], PixelsAsFeatures(), decoder)  # type: ignore[arg-type]
    answers = both.ask(Question((both.add_upload(png(pixels(5))),), top=4))
    assert [answer.key for answer in answers[:2]] == [key(5), key(5, 1)]
    assert len(both.ask(Question(top=COUNT + 3))) == COUNT + 3
    assert paths(both.ask(Question((key(5, 1),), top=1))) == ["5.png"]  # that of the other index


def test_what_is_gone_is_said(page, index):
    with index.writer() as writer:
        writer.remove([make_id("5.png")])
    gone = (key(5), key(1, 1), "0.999", "-1.1", "0.", "a", "", "0." + "9" * 19, "0." + "9" * 40)
    for each in (*gone, "0.²"):
        with pytest.raises(RequestError, match="not available any more"):
            page.ask(Question((each,)))
    assert page.render_image(key(0), "small") is None  # it has no file


def test_uploads_are_bounded_in_number_and_time(page, monkeypatch):
    monkeypatch.setattr(search, "MAX_UPLOADS", 2)
    first, second = (page.add_upload(png(pixels(number))) for number in (1, 2))
    assert page.find_image(first)  # now the one not used for longest is the second
    third = page.add_upload(png(pixels(3)))
    assert page.find_image(first) and page.find_image(third) and page.visibility(second) is None
    monkeypatch.setattr(search, "MAX_UPLOADS", 99)
    monkeypatch.setattr(search, "MAX_UPLOAD_BYTES", 2000)  # one upload, not two
    fourth = page.add_upload(png(pixels(4)))
    assert page.visibility(first) is None and page.find_image(fourth)
    monkeypatch.setattr(search, "UPLOAD_HOURS", 0)
    assert page.visibility(first) is page.visibility(third) is None
    assert not page._uploads._kept


def test_comparing_says_which_part_is_alike(page):
    image = pixels(5)
    image[:3] = 255 - image[:3]  # the first of three parts, 32 of 96 values, and a bit
    both = page.compare(Question((key(1), page.add_upload(png(image)))), key(5))
    assert both.query.hit is None and both.answer.hit.item.path == "5.png" and both.frame is None
    likeness = [part[2] for part in both.parts]
    assert likeness[0] < -0.9 and likeness[2] > 0.99 and both.parts[0][0] == 0.25


def test_a_question_survives_its_address():
    question = Question(("a", "0.1"), ("0.2",), ("0.3",), ("gate 1", "ü&="), "5", "9", "time", 80)
    from urllib.parse import parse_qsl, urlsplit

    def read(address: str) -> Question:
        return Question.read(parse_qsl(urlsplit(address).query))

    assert read(question.address("/")) == question and Question().address("/") == "/"
    assert read(question.address("/", top=40, cameras=())).cameras == ()
    odd = [("q", "x" * 999), ("top", "9" * 99), ("order", "evil"), ("same", "1"), ("other", "1")]
    expected = Question(same=("1",), top=200)
    assert Question.read([*odd, ("x", "y")]) == expected
    many = Question.read([("q", str(number)) for number in range(99)])
    assert len(many.images) == MAX_IMAGES


def test_thresholds_are_those_of_the_definition(index, tmp_path):
    found = calibrate(index)
    gallery = normalize(np.stack([feature(pixels(number)) for number in range(COUNT)]))
    similarity, who, where = gallery @ gallery.T, np.arange(COUNT) % 4, np.arange(COUNT) % 3
    others = [similarity[n, who != who[n]].max() for n in range(COUNT)]
    assert sum(value >= found.certain for value in others) <= 0.01 * COUNT
    assert abs(found.certain - max(others)) < 1e-6
    true = [similarity[n, m] for n in range(COUNT) for m in range(COUNT)
            if who[n] == who[m] and where[n] != where[m]]  # fmt: skip
    assert np.mean(np.array(true) >= found.possible - 1e-6) >= 0.9
    words = ["calibrate", "--index", str(index.folder), "--output", str(tmp_path / "t.json")]
    assert load_tool("search").command(words) == 0
    assert read_thresholds(tmp_path / "t.json", "0123abcd") == found
    with pytest.raises(UserError, match="another model"):
        read_thresholds(tmp_path / "t.json", "other")
    for text in ("[]", "{}", json.dumps({**found.__dict__, "certain": -9}), "no JSON"):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(UserError, match="search calibrate"):
            read_thresholds(tmp_path / "t.json", "0123abcd")
    judged = Thresholds("", 0.8, 0.5, 1, 1).judge
    assert [judged(value) for value in (0.8, 0.79, 0.5, 0.4)] == [
        "certain", "possible", "possible", "unlikely"
    ]  # fmt: skip


def bomb() -> bytes:
    """A PNG that says it is 60,000 pixels wide and high."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be used"),
        (b"MZ" + bytes(1000), "cannot be used"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be used"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be used"),
        (png(pixels(0))[:60], "cannot be used"),
        (bytes(images.MAX_BYTES + 1), "larger than 10 MB"),
        (bomb(), "more than 25 million pixels"),
    ],
    ids=["empty", "program", "svg", "eps", "truncated", "large", "bomb"],
)
def test_what_is_no_image_is_refused_in_words(content, message, decoder):
    with pytest.raises(RequestError, match=message):
        decoder.decode(content)
    assert decoder.decode(png(pixels(1))).size == (4, 8)  # the next one is read


def test_decoding_is_ended_when_it_takes_too_long_or_too_much(monkeypatch):
    import time

    monkeypatch.setattr(images, "SECONDS", 0.5)
    monkeypatch.setattr(images, "decode_content", lambda *_, **__: time.sleep(60))
    with pytest.raises(RequestError, match="too long"):
        Decoder(1).decode(b"x")
    monkeypatch.setattr(images, "SECONDS", 20)
    monkeypatch.setattr(images, "decode_content", lambda *_, **__: bytes(2**30))
    with pytest.raises(RequestError, match="too much memory"):
        Decoder(1).decode(b"x")
    monkeypatch.setattr(images, "decode_content", lambda *_, **__: os._exit(1))
    with pytest.raises(RequestError, match="too much memory"):  # as if the system had ended it
        Decoder(1).decode(b"x")


def test_nothing_outside_of_the_gallery_is_read(tmp_path):
    gallery, outside = tmp_path / "gallery", tmp_path / "gallery2"
    for folder in (gallery, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(png(pixels(0)))
    (gallery / "link.png").symlink_to(outside / "a.png")
    (gallery / "inside.png").symlink_to(gallery / "a.png")
    (gallery / "folder").symlink_to(outside)
    os.mkfifo(gallery / "pipe.png")
    (tmp_path / "moved").symlink_to(gallery)
    for folder, path in (
        (gallery, "a.png"),
        (gallery, "inside.png"),
        (tmp_path / "moved", "a.png"),
    ):
        assert read_gallery_image(folder, path).size == (4, 8)
    for path in ("link.png", "folder/a.png", "../gallery2/a.png", str(outside / "a.png")):
        with pytest.raises(RequestError, match="leads out of"):
            read_gallery_image(gallery, path)
    for path in ("none.png", "pipe.png", "folder", ""):
        with pytest.raises(RequestError):
            read_gallery_image(gallery, path)


def test_the_command_line_shows_dates():
    row = describe_hit(Hit(1, Item("a.png", "1", 1717172400.0), "", *np.ones((2, 3))))
    assert show_value("time", row["time"]) == "2024-05-31 16:20:00" and row["time"] == 1717172400.0
    assert show_value("time", None) is None and show_value("path", "a\x1b") == "a\\x1b"


def test_a_jpeg_is_small_and_carries_nothing_else():
    image = Image.fromarray(np.zeros((3000, 500, 3), np.uint8))
    image.info["comment"] = b"secret"
    content = make_jpeg(image, "small")
    assert Image.open(io.BytesIO(content)).size == (107, 640) and b"secret" not in content


def test_where_starlette_is_missing_one_message_says_how_to_get_it(index, monkeypatch, capsys):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = ["serve", "--index", str(index.folder)]
    assert load_tool("search").command(words) == 2
    assert "pip install '.[web]'" in capsys.readouterr().err

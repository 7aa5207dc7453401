"""One reader of images: what it reads, what it refuses, and how long that may take."""

from __future__ import annotations

import io
import os
import random
import resource
import struct
import subprocess
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from occluded_reid.data import image_parts, images
from occluded_reid.data.images import (
    BrokenImage,
    convert_image,
    decode_content,
    find_images,
    read_rgb,
)
from occluded_reid.data.prepare.image_files import inspect_file

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)


def encode(kind: str, pixels: np.ndarray = PIXELS, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def repeat_last_scan(content: bytes, times: int) -> bytes:
    """Return a progressive JPEG that holds its last scan again and again."""
    segments = list(image_parts.split_jpeg(content))
    scan = [segment for marker, segment in segments if marker == image_parts.SCAN][-1]
    head = b"".join(segment for marker, segment in segments if marker != image_parts.END)
    return b"\xff\xd8" + head + scan * times + b"\xff\xd9"


def with_segment(content: bytes, marker: int, data: bytes) -> bytes:
    """Return a JPEG with one more segment at its start."""
    return (
        content[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + content[2:]
    )


def with_chunk(content: bytes, kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """Return a PNG with one more chunk behind its header."""
    crc = zlib.crc32(kind + data) if crc is None else crc
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)
    return content[:33] + chunk + content[33:]


def with_tags(content: bytes, *tags: bytes) -> bytes:
    """Return a TIFF with more entries at the start of its list, which gets a new place."""
    start = struct.unpack("<I", content[4:8])[0]
    (count,) = struct.unpack("<H", content[start : start + 2])
    rest = content[start + 2 : start + 2 + 12 * count + 4]
    head = content[:4] + struct.pack("<I", len(content)) + content[8:]
    return head + struct.pack("<H", count + len(tags)) + b"".join(tags) + rest


def tag(number: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHII", number, kind, count, value)


EXIF = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
TURNED = EXIF + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)  # orientation 6, and one entry more
JPEG, PNG = encode("JPEG", quality=90), encode("PNG")
TIFF, WEBP = encode("TIFF", compression="tiff_lzw"), encode("WEBP", lossless=True, xmp=b"<x/>")


@pytest.mark.parametrize(
    "content",
    [
        with_segment(JPEG, 0xE1, TURNED + struct.pack("<HHI4s", 0x11A, 2, 3, b"72\0\0") + bytes(4)),
        with_segment(JPEG, 0xE1, EXIF + bytes(range(60))),
        with_segment(JPEG, 0xED, b"Photoshop 3.0\x008BIM\x04\x04"),
        with_segment(JPEG, 0xE0, b"JFIF\0"),
        with_segment(JPEG, 0xEE, b"Adobe"),
        with_segment(JPEG, 0xE2, b"MPF\0II*\0" + bytes(range(60))),
        with_chunk(PNG, b"tEXt", b"key\0text", crc=1),
        with_chunk(PNG, b"zTXt", b"key\0\0" + zlib.compress(bytes(2**21))),
        with_chunk(PNG, b"iCCP", b"name\0\1"),
        with_chunk(PNG, b"eXIf", bytes(range(40))),
        with_chunk(PNG, b"pHYs", b"1"),
        with_tags(TIFF, tag(271, 2, 20, 2**31)),  # the maker's name, somewhere else
        with_tags(TIFF, tag(296, 3, 1, 9), tag(282, 5, 14, 8)),
        with_tags(TIFF, tag(700, 1, 2**31, 8), tag(34665, 4, 1, 2**31)),
        WEBP.replace(b"XMP ", b"XMPx"),
        WEBP.replace(b"XMP \4", b"XMP \xff"),
    ],
)
def test_damaged_metadata_change_no_pixel(content) -> None:
    whole = JPEG if content[:1] == b"\xff" else PNG
    expected = np.asarray(decode_content(whole))
    pixels = np.asarray(decode_content(content))
    if b"72\0\0" in content:
        expected = np.rot90(expected, 3)  # the orientation can be read
    assert np.array_equal(pixels, expected)


def test_orientation_survives_other_damage() -> None:
    exif = TURNED + struct.pack("<HHIHH", 0x11B, 3, 1, 1, 0) + bytes(4)
    broken = with_segment(with_segment(JPEG, 0xED, b"Photoshop 3.0\x008BIM\x04\x04"), 0xE1, exif)
    assert decode_content(broken).size == (24, 16)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "circle", "nowhere", "null"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "null":
        path.symlink_to({"device": "/dev/zero", "circle": path, "nowhere": "gone"}[kind])
    with pytest.raises(BrokenImage, match=r"cannot read the image .*a\.jpg"):
        read_rgb(f"{path}\0" if kind == "null" else path)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "TGA", "SGI", "JPEG2000"])
def test_other_formats_are_refused_whatever_they_are_named(tmp_path, kind, monkeypatch) -> None:
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho $@ >> {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "a.jpg").write_bytes(encode(kind))
    with pytest.raises(BrokenImage, match="no image; it starts with"):
        read_rgb(tmp_path / "a.jpg")
    assert not started.exists()


def with_size(content: bytes, side: int) -> bytes:
    """Return a PNG that claims to be ``side`` pixels wide and high."""
    head = content[12:16] + struct.pack(">II", side, side) + content[24:29]
    return content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]


COSTLY = {
    "scans": lambda: repeat_last_scan(encode("JPEG", FLAT, progressive=True), 4000),
    "small scans": lambda: repeat_last_scan(encode("JPEG", progressive=True), 50_000),
    "chunks": lambda: PNG[:33] + with_chunk(PNG, b"teXt", b"")[33:45] * 100_000 + PNG[33:],
    "pixels": lambda: with_size(PNG, 60_000),
    "fewer pixels": lambda: with_size(PNG, 8_000),
    "run lengths": lambda: b"BM" + struct.pack("<3I", 0, 0, 54) + RUN_LENGTHS + bytes(1000),
    "plain text": lambda: b"P3 3000 3000 255\n" + b"7 " * 1000,
    "a large tile": lambda: with_tags(TIFF, tag(322, 4, 1, 50_000), tag(323, 4, 1, 40_000)),
    "a high tile": lambda: with_tags(TIFF, tag(323, 4, 1, 4_000_000)),
    "junk": lambda: JPEG[:20] + bytes(2**21) + JPEG[20:],
}
"""Small files that would take long, by what makes them costly."""
FLAT = np.full((2000, 2000), 128, np.uint8)
RUN_LENGTHS = struct.pack("<IiiHHI5I", 40, 6000, 6000, 1, 8, 1, *[0] * 5)


@pytest.mark.parametrize("name", COSTLY)
def test_what_costs_more_than_any_honest_image_is_refused_at_once(name) -> None:
    content = COSTLY[name]()
    start = time.process_time()
    with pytest.raises(BrokenImage, match=r"scans|parts|pixels|slowly"):
        decode_content(content)
    assert time.process_time() - start < 2


def test_what_follows_a_jpeg_is_not_counted() -> None:
    content = encode("JPEG", np.zeros((1000, 1500, 3), np.uint8), progressive=True)
    assert decode_content(content + b"\xff\xda" * 5000).size == (1500, 1000)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bits_keep_their_levels_or_are_refused(tmp_path, suffix, channels, bits) -> None:
    values = (PIXELS[..., :channels].astype(np.uint16) * 257) >> (16 - bits)
    (tmp_path / f"a{suffix}").write_bytes(cv2.imencode(suffix, values[..., ::-1])[1].tobytes())
    report = inspect_file(str(tmp_path / f"a{suffix}"))
    if bits < 16:
        assert "cannot be read: its 16-bit values leave the upper two bits unused" in report.fault
        return
    assert (report.fault, report.format) == ("", "16-bit")
    assert (np.asarray(read_rgb(tmp_path / f"a{suffix}")) == PIXELS[..., :channels]).all()


@pytest.mark.parametrize(
    ("low", "high", "fault"),
    [(0, 1, ""), (0, 255, ""), (0, 4095, "[0, 255]"), (-1, 1, "[0, 1]")],
)
def test_floats_are_read_by_their_range(tmp_path, low, high, fault) -> None:
    values = np.linspace(low, high, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    report = inspect_file(str(tmp_path / "a.tif"))
    assert fault in report.fault and bool(fault) == bool(report.fault)
    if not fault:
        assert report.format == "floating-point"
        assert len(np.unique(np.asarray(read_rgb(tmp_path / "a.tif")))) > 254


def test_a_twelve_bit_graymap_says_its_range(tmp_path) -> None:
    values = (np.arange(256, dtype=np.uint16) * 16).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 4095\n" + values.tobytes())
    assert len(np.unique(np.asarray(read_rgb(tmp_path / "a.pgm")))) == 256


def test_what_is_passed_over_is_named(tmp_path, caplog) -> None:
    for suffix in sorted(images.IMAGE_SUFFIXES):
        (tmp_path / f"a{suffix.upper()}").touch()
    (tmp_path / "b.avif").touch()
    assert len(find_images(tmp_path, "")) == len(images.IMAGE_SUFFIXES)
    assert "1 files in" in caplog.text and "b.avif" in caplog.text


def draw(kind: str) -> bytes:
    options = {"JPEG": {"progressive": True}, "TIFF": {"compression": "tiff_lzw"}}.get(kind, {})
    if kind in ("PNG", "WEBP", "JPEG", "TIFF"):
        exif = Image.Exif()
        exif[0x112], exif[0x10F] = 6, "camera"
        options = {**options, "exif": exif.tobytes()}
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("key", "text" * 20, zip=True)
        options["pnginfo"] = text
    return encode(kind, **options)


SEEDS = {kind: draw(kind) for kind in images.FORMATS} | {"raw TIFF": encode("TIFF")}


@pytest.mark.slow
@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "300")), deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(kind=st.sampled_from(sorted(SEEDS)), seed=st.integers(0))
def test_any_file_is_an_image_or_one_message_within_bounds(kind, seed) -> None:
    rng = random.Random(seed)
    data = bytearray(SEEDS[kind])
    for _ in range(rng.randint(1, 8)):
        where = rng.randrange(min(len(data), rng.choice((40, 200, 10**9))))
        action = rng.randrange(4)
        if action < 2:
            data[where] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
        elif action == 2:
            data[where:where] = data[where : where + rng.randrange(1, 200)] * rng.choice(
                (1, 3, 1000)
            )
        else:
            del data[where : where + rng.randrange(1, 30)]
        data = data or bytearray(b"\0")
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)  # to start a program would be a TypeError
        patch.setattr(os, "system", None)
        try:
            assert decode_content(bytes(data)).mode == "RGB"
        except BrokenImage as error:
            assert error.reason and "NoneType" not in error.reason
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_images_of_pillow_are_converted_by_the_same_rules(bits) -> None:
    gray = PIXELS[..., 0]
    deep = Image.fromarray((gray.astype(np.uint16) * 257) >> (16 - bits))
    if bits < 16:
        with pytest.raises(BrokenImage, match=r"the image it \(its 16-bit values leave the upper"):
            convert_image(deep, "it")
    else:
        assert (np.asarray(convert_image(deep, "it"))[..., 0] == gray).all()
    floats = Image.fromarray(gray.astype(np.float32) / 255)
    assert (np.asarray(convert_image(floats, "it"))[..., 1] == gray).all()
    with pytest.raises(BrokenImage, match="the image it .OSError"):
        convert_image(Image.open(io.BytesIO(JPEG[:-200])), "it")

"""Reading any file gives its content or one message; code in it never runs.

``FUZZ_EXAMPLES=10000 pytest tests/faults/test_input.py`` tries that many files of each kind.
"""

from __future__ import annotations

import ast
import contextlib
import io
import operator
import os
import pickle
import random
import re
import shutil
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from indexes import add, clustered, create
from PIL import Image
from test_structure import PYTHON, ROOT

from gallery_search import GalleryIndex
from gallery_search.store.metadata import read_table
from occluded_reid.checkpoint.reading import load_safely
from occluded_reid.config import load_config
from occluded_reid.data.datasets.base import DatasetNotFound, FolderDataset, read_images
from occluded_reid.data.datasets.registry import build_dataset, find_factory, list_dataset_names
from occluded_reid.data.images import BrokenImage, read_rgb
from occluded_reid.data.prepare.doctor import diagnose
from occluded_reid.data.prepare.occluder_sets import cut_boxes, read_boxes
from occluded_reid.data.transforms.occluder_cutouts import read_cutouts
from occluded_reid.deploy.feature_file import list_images
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import diagnose_zip

SETS = ("CSV:shop", "MSMT17", "PartialiLIDS")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 25))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


# --------------------------------------------------------------------------- index folders


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "whole"
    add(create(folder, dim=8), clustered(60, 8))
    return folder


@fuzzed
@given(data=st.data())
def test_a_damaged_index_gives_true_results_or_is_refused(index, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged") / "index"
    shutil.copytree(index, folder)
    file = data.draw(st.sampled_from(sorted(path for path in folder.iterdir() if path.is_file())))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, max(0, len(content) - 1)))
    if data.draw(st.booleans()):
        del content[at:]
    elif content:
        content[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    queries = clustered(2, 8, seed=1)
    try:
        results = GalleryIndex(folder).search(queries, 5)
    except UserError:
        return
    expected = GalleryIndex(index).search(queries, 5)
    for hits, true in zip(results, expected, strict=True):
        assert [hit.similarity for hit in hits] == [hit.similarity for hit in true]


# --------------------------------------------------------------------------- configurations

WORDS = st.sampled_from(
    ["SOLVER", "MAX_EPOCH", "MODEL", "SEED", "INPUT", "SIZE_TRAIN", "_BASE_", "DATASETS", "NAMES"]
) | st.text(max_size=6)
YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@settings(fuzzed, max_examples=EXAMPLES // 10)  # each takes 0.1 s
@given(content=st.dictionaries(WORDS, YAML, max_size=3).map(repr) | st.text() | st.binary())
@example(content="SOLVER: !!python/object/apply:os.system [exit]")
@example(content="? [1, 2]\n: 3")
@example(content="1: 2")
@example(content="SOLVER: {1: 2}")
@example(content="_BASE_: [1]")
@example(content="_BASE_: ''")
@example(content="SEED: &a [*a]")
@example(content=b"\xff\xfe\x00")
@example(content="SEED: 2001-02-30")
@example(content="[" * 3000)
def test_any_configuration(tmp_path, content):
    path = tmp_path / "run.yml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    try:
        load_config(str(path))
    except UserError as error:
        assert str(path) in str(error) or "DEVICE" in str(error)


# ------------------------------------------------------------------------------ data sets


@fuzzed
@given(
    names=st.lists(
        st.from_regex(r"-?[0-9]{0,5}_?c?[0-9]{0,3}s?[^/\x00]{0,8}(\.jpg)?", fullmatch=True)
        .filter(lambda name: name not in ("", ".", ".."))
        .filter(lambda name: len(os.fsencode(name.encode("utf-8", "replace"))) < 200),
        max_size=4,
    )
)
def test_any_file_names(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("images")
    for name in names:
        (folder / name.encode("utf-8", "replace").decode()).touch()
    try:
        images = read_images(folder, re.compile(r"(-?\d+)_c(\d+)"), num_cameras=6)
    except UserError as error:
        assert "the name has camera" in str(error)
        return
    assert all(image.pid >= 0 and 0 <= image.camid < 6 for image in images)


@fuzzed
@given(content=st.binary() | st.text().map(str.encode))
@example(content=b"image,x0,y0,x1,y1\na.jpg,1,2,3,4\n")
@example(content=b"image,x0,y0,x1,y1\na.jpg,1,2,3,4,5,6\n")
@example(content=b"image,x0,y0,x1,y1\na.jpg,1,2," + b"9" * 5000 + b",4\n")
@example(content=b"image,x0,y0,x1,y1\na\x00.jpg,1,2,3,4\n")
@example(content=b"x0,y0,x1,y1\n1,2,3,4\n")
@example(content=b'image,x0,y0,x1,y1\n"' + b"a" * 200_000 + b'",1,2,3,4\n')
def test_any_list_of_boxes(tmp_path, content):
    path = tmp_path / "boxes.csv"
    path.write_bytes(content)
    try:
        boxes = read_boxes(path)
        cut_boxes(boxes, tmp_path / "set")
    except UserError as error:
        assert str(tmp_path) in str(error)


CELL = st.sampled_from(
    ["a.jpg", "./a.jpg", "b\\..\\a.jpg", "../a.jpg", "/etc/passwd", "C:\\a.jpg", "b:1.jpg", "é.jpg"]
    + ["path", "identity", "camera", "split", "file", "class", "time", "train", "query", "gallery"]
    + [
        "0000",
        "-1",
        "7",
        "9" * 5000,
        "",
        " ",
        '"',
        "\0",
        "\udce9.jpg",
        "\x1b[2J",
        "=1+1",
        "x" * 300,
    ]
)
LISTED = st.builds(
    lambda rows, comma, end, coding: end.join(map(comma.join, rows)).encode(
        coding, "surrogatepass"
    ),
    st.lists(st.lists(CELL, max_size=6), max_size=6),
    st.sampled_from([",", ";", "\t", " ", "|"]),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"]),
)
HEADS = st.sampled_from(
    [b"", b"path,identity,camera,split\n", b"path;time\n", b"\xef\xbb\xbffile\tclass\tsplit\n"]
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders in which each reader finds its list, and an image beside."""
    root = tmp_path_factory.mktemp("sets")
    for folder in ("shop", "MSMT17_V1/train", "MSMT17_V1/test", "Partial_iLIDS"):
        (root / folder).mkdir(parents=True)
        Image.new("RGBA", (4, 8), "red").save(root / folder / "a.jpg", "PNG")
    return root


@fuzzed
@given(content=st.builds(operator.add, HEADS, LISTED) | st.binary())
def test_any_list_or_table(sets, content):
    """Every reader gives content of the folder itself or one message, in no time."""
    for path in (
        "shop/images.csv", "shop/occluders.csv", "Partial_iLIDS/Probe.txt",
        "Partial_iLIDS/Gallery.txt", *(f"MSMT17_V1/list_{n}.txt" for n in ("train", "val")),
        *(f"MSMT17_V1/list_{n}.txt" for n in ("query", "gallery")),
    ):  # fmt: skip
        (sets / path).write_bytes(content)
    options = {"root": str(sets), "allow_partial": True, "verbose": False}
    for read in (
        lambda: read_table(sets / "shop" / "images.csv"),
        lambda: list_images(sets / "shop" / "images.csv"),
        lambda: read_cutouts(sets / "shop", "train"),
        *(lambda name=name: build_dataset(name, **options) for name in SETS),
    ):
        start = time.perf_counter()
        try:
            found = read()
        except UserError as error:
            assert str(error)
        else:
            for item in (
                found.train + found.query + found.gallery if hasattr(found, "train") else ()
            ):
                assert Path(item[0]).resolve().is_relative_to(sets)
        assert time.perf_counter() - start < 2


HOST_SETS = [
    name for name in list_dataset_names() if not issubclass(find_factory(name), FolderDataset)
]
ODD_STEMS = [
    "0001_c1s1_000001_01", "-1_c1_x", "p1_s1", "0001_00_000_04_01", "cam_a", "a", "\udce9", "a\n"
]  # fmt: skip
ODD_LINES = ["0001_c1s1_1.jpg", "a b c", "1 2", "", "../../x 1", "\udce9 1", "9" * 3000, "1/2 3 4"]
ODD_SUFFIXES = [".jpg", ".png", ".jpeg", ".bmp", ".txt", ""]
ODD_FOLDERS = ["scen1", "cam1", "0001", "person_0001", "images"]


def fill(folder: Path, rng: random.Random, depth: int = 0) -> None:
    """Make odd files, folders and links in a folder."""
    for _ in range(rng.randint(1, 6)):
        path = folder / (rng.choice(ODD_STEMS) + rng.choice(ODD_SUFFIXES))
        inner = folder / rng.choice(ODD_FOLDERS)
        if rng.random() < 0.2 and not os.path.lexists(path):
            path.symlink_to(rng.choice([".", "nowhere", "/dev/zero"]))
        elif depth < 2 and rng.random() < 0.4:
            inner.mkdir(exist_ok=True)
        elif not os.path.lexists(path):
            Image.new("RGB", (4, 8)).save(path, "PNG")
    for inner in folder.iterdir():
        if inner.is_dir() and not inner.is_symlink():
            fill(inner, rng, depth + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOST_SETS)
def test_odd_folders_of_fastreids_sets_are_read_or_one_message(tmp_path, name) -> None:
    for seed in range(max(3, EXAMPLES // 100)):
        root, rng = tmp_path / str(seed), random.Random(f"{name} {seed}")
        root.mkdir()
        while True:
            try:
                diagnose(build_dataset(name, root=str(root), verbose=False))
            except DatasetNotFound as error:  # make what it misses
                path = Path(re.search(r"(/[^'\"]+)[\"']", str(error))[1])
                if path.is_symlink():  # to nowhere
                    break
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix:
                    lines = "\n".join(rng.choices(ODD_LINES, k=3))
                    path.write_bytes(os.fsencode(lines))
                else:
                    path.mkdir()
                    fill(path, rng)
                continue
            except UserError as error:
                assert name in str(error) and str(error).isprintable() and len(str(error)) < 5000
            break


# ---------------------------------------------------------------------------- checkpoints


def checkpoint() -> bytes:
    stream = io.BytesIO()
    torch.save({"model": {"weight": torch.arange(2000.0)}, "epoch": 3}, stream)
    return stream.getvalue()


WHOLE = checkpoint()


def read_weight(path: Path) -> torch.Tensor | None:
    try:
        return load_safely(str(path))["model"]["weight"]
    except UserError as error:
        assert str(path) in str(error)
        return None


@fuzzed
@given(content=st.binary() | st.builds(lambda n: WHOLE[:n], st.integers(0, len(WHOLE) - 1)))
@example(content=pickle.dumps([1, 2]))
@example(content=b"q")
@example(content=b"q\x00")
@example(content=b"\x80\x02" + b"\x8a\xff")
def test_an_incomplete_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert diagnose_zip(path)
    try:
        load_safely(str(path))
    except UserError as error:
        assert str(path) in str(error)


@fuzzed
@given(position=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_detected_or_changes_nothing(tmp_path, position, bit):
    path, data = tmp_path / "model.pth", bytearray(WHOLE)
    data[position] ^= 1 << bit
    path.write_bytes(data)
    weight = read_weight(path)
    assert weight is None or torch.equal(weight, torch.arange(2000.0))


@pytest.mark.parametrize("kind", ["zip", "pickle", "numpy"])
def test_a_malicious_checkpoint_runs_no_code(tmp_path, kind):
    path, trap = tmp_path / "model.pth", tmp_path / "trap"
    content = {"model": {"weight": torch.ones(2)}, "more": Trap(trap)}
    if kind == "zip":
        torch.save(content, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        with open(path, "wb") as stream:
            np.save(stream, np.array([Trap(trap)], dtype=object))
    with pytest.raises(UserError):
        load_safely(str(path))
    assert not trap.exists()
    if kind == "zip":
        torch.load(path, weights_only=False)
        assert trap.exists()  # plain loading runs it


# --------------------------------------------------------------------------------- images


def make_bomb() -> bytes:
    """Return a PNG of a few hundred bytes that claims to be 60,000 x 60,000."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
@pytest.mark.parametrize("size", [(1, 1), (3, 500)])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, size):
    path = tmp_path / "image.wrong"  # the content counts, not the name
    Image.new(mode, size).save(path, "TIFF" if mode not in ("LA", "P") else "PNG")
    image = read_rgb(path)
    assert (image.mode, image.size) == ("RGB", size)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\xff\xd8\xff", make_bomb()], ids=str)
def test_other_files_raise_the_errors_of_images(tmp_path, content):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(BrokenImage):
        read_rgb(path)


@fuzzed
@given(kind=st.sampled_from(["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"]), seed=st.integers(0))
def test_damaged_images_are_read_or_named(tmp_path, kind, seed):
    stream, rng = io.BytesIO(), random.Random(seed)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    data = bytearray(stream.getvalue())
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path = tmp_path / "image.jpg"
    path.write_bytes(data[: rng.choice([None, rng.randrange(len(data))])])
    with contextlib.suppress(BrokenImage):
        assert read_rgb(path).mode == "RGB"


# ---------------------------------------------------------------------------------- trust

# Files that may read what can run code, and why that is safe.
TRUSTED = {
    "occluded_reid/checkpoint/reading.py": "only with --trust-checkpoint",
}


def find_unsafe_calls(source: str) -> list[str]:
    """Return calls that unpickle, build any Python object from YAML, or unpack unchecked paths."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if (
            re.fullmatch(r"(c?[pP]ickle|dill|joblib|shelve|marshal)\.(loads?|open|Unpickler)", name)
            or (name == "torch.load" and options.get("weights_only", "True") != "True")
            or (name.endswith("load") and options.get("allow_pickle", "False") != "False")
            or re.fullmatch(r"yaml\.(load|unsafe_load|full_load)(_all)?", name)
            or name.endswith((".extractall", ".unpack_archive", "read_pickle"))
            or name in ("eval", "exec", "os.system")
        ):
            faults.append(f"{name} in line {node.lineno}")
    return faults


@pytest.mark.parametrize("path", [p for p in PYTHON if p.parts[0] != "tests"], ids=str)
def test_no_file_is_read_in_a_way_that_runs_code(path: Path) -> None:
    calls = find_unsafe_calls((ROOT / path).read_text(encoding="utf-8"))
    assert bool(calls) == (str(path) in TRUSTED), calls


@pytest.mark.parametrize(
    "source",
    [
        "pickle.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "archive.extractall(folder)",
        "eval(text)",
    ],
)
def test_unsafe_calls_are_found(source: str) -> None:
    assert find_unsafe_calls(source)
    assert not find_unsafe_calls("torch.load(f, weights_only=True); np.load(f); yaml.safe_load(f)")


def test_an_intact_zip_has_no_fault(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("part", b"content")
    assert diagnose_zip(tmp_path / "a.zip") == ""

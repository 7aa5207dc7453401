"""Extraction into Parquet files by shards and on Ray, and their import into a gallery."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import forked, kill_self, load_tool, status_of, tiny_cfg
from saved_runs import CLASSES, MEAN_OF_TIMM, draw_crops, save_run

from gallery_search import open_store
from gallery_search.store.metadata import parse_name
from occluded_reid.deploy import shards
from occluded_reid.deploy.shards import read_info, read_shard

tool, search = load_tool("extract_features"), load_tool("search")
parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A model of timm, which other processes can build, too."""
    return save_run(tiny_cfg(tmp_path_factory.mktemp("runs") / "run", *CLASSES, *MEAN_OF_TIMM))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for path in draw_crops(folder, 9):
        path.rename(folder / f"000{path.stem}_c{int(path.stem) % 3 + 1}s1_00000{path.stem}_00.png")
    (folder / "broken.png").write_text("no image")
    return folder


def words(run: Path, images: Path, output: Path, *more: Any) -> list[str]:
    given = ("--weights", run, "--input", images, "--output", output, "--workers", 0)
    return [*map(str, (*given, *more)), "--batch-size", "2"]


def rows_of(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Each image's id, camera, time, identity, vector and visibility, by path."""
    found = {}
    for path in sorted(folder.glob("*.parquet")):
        for rows in read_shard(path, read_info(path)):
            columns = zip(*rows.table.values(), rows.vectors, rows.visibility, strict=True)
            found |= {name: (number, *rest) for number, name, *rest in columns}
    return found


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for path, values in one.items():
        assert values[:4] == other[path][:4]
        for array, expected in zip(values[4:], other[path][4:], strict=True):
            np.testing.assert_allclose(array, expected, atol=1e-6)


def test_shards_of_a_killed_job_are_the_gallery(run, images, tmp_path, capsys, monkeypatch):
    """Two shards, of which one is killed after its first file and goes on."""
    output, index = tmp_path / "shards", tmp_path / "index"
    extract = words(run, images, output, "--part-size", 2)
    write = shards.write_shard

    def write_one(*given: Any) -> None:
        if list(output.glob("*.parquet")):
            kill_self()
        write(*given)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", write_one)
        killed = forked(lambda: tool.command([*extract, "--shard", "1/2"]))
        assert status_of(killed) == -signal.SIGKILL
    (first,) = output.glob("*.parquet")
    before = first.stat().st_mtime_ns
    assert tool.command([*extract, "--shard", "1/2"]) == 0
    assert "1 of 10 images cannot be read" in capsys.readouterr().out
    load = ["import", "--shards", str(output), "--index", str(index)]
    assert search.command(load) == 1
    assert "holds 6 of the 10 images of its job; repeat 'extract'" in capsys.readouterr().err
    assert tool.command([*extract, "--shard", "0/2"]) == 0  # 0/2 is 2/2
    assert first.stat().st_mtime_ns == before and len(list(output.iterdir())) == 5
    assert search.command(load) == 0
    built = ["build", "--weights", str(run), "--gallery", str(images), "--workers", "0"]
    assert search.command([*built, "--index", str(tmp_path / "built")]) == 0
    one, other = open_store(index), open_store(tmp_path / "built")
    assert len(one) == len(other) == 9 and one.info() == other.info()
    queries = np.random.default_rng(0).normal(size=(3, one.info().dim))
    for hits, expected in zip(one.search(queries), other.search(queries), strict=True):
        assert [hit.item for hit in hits] == [hit.item for hit in expected]
        np.testing.assert_allclose(
            [hit.similarity for hit in hits], [hit.similarity for hit in expected], atol=1e-5
        )
        assert all(hit.item == parse_name(hit.item.path) for hit in hits)
    gone = one.search(queries, 1)[0][0]
    assert search.command(["remove", "--index", str(index), gone.item.path]) == 0
    rows = one.info().rows
    assert search.command(load) == 0
    assert len(one) == 8 and one.info().rows == rows  # nothing is added twice, or comes back
    assert search.command([*load, "--restore", gone.item.path]) == 0 and len(one) == 9


def test_damaged_and_foreign_files_are_refused(run, images, tmp_path, capsys):
    output, index = tmp_path / "shards", str(tmp_path / "index")
    extract = words(run, images, output, "--shard", "1/1")
    assert tool.command([*extract, "--part-size", "5"]) == 0
    assert tool.command([*extract, "--part-size", "4"]) == 2
    assert "is from another job" in capsys.readouterr().err
    path = output / "part-000001.parquet"
    content = bytearray(path.read_bytes())
    table = parquet.read_table(path)
    content[len(content) // 2] ^= 1  # of the vectors
    path.write_bytes(content)
    load = ["import", "--shards", str(output), "--index", index]
    assert search.command(load) == 2
    assert "cannot read" in capsys.readouterr().err
    other = table.set_column(0, "id", table.column("id").combine_chunks().fill_null(0)).slice(0, 2)
    swapped = other.set_column(1, "path", other.column("path").take([1, 0]))
    parquet.write_table(swapped, path)
    assert search.command(load) == 2
    assert "an id is not that of its path" in capsys.readouterr().err
    parquet.write_table(table.replace_schema_metadata({}), path)
    assert search.command(load) == 2 and "cannot read" in capsys.readouterr().err
    assert search.command([*load[:2], str(tmp_path), *load[3:]]) == 2
    with pytest.raises(SystemExit):
        tool.command(words(run, images, tmp_path / "F", "--shard", "3/2"))


@pytest.mark.slow
def test_ray_writes_what_one_process_writes_also_when_it_is_killed(run, tmp_path):
    pytest.importorskip("ray")
    images, output, expected = tmp_path / "images", tmp_path / "shards", tmp_path / "expected"
    draw_crops(images, 200)
    assert tool.command(words(run, images, expected, "--part-size", 10, "--shard", "1/1")) == 0
    given = words(run, images, output, "--part-size", 10, "--ray", "local")
    script = "from occluded_reid.commands.extract_features import command as run"
    start = [sys.executable, "-c", f"{script}; raise SystemExit(run({given!r}))"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    job = subprocess.Popen(start, env=environment, start_new_session=True)
    while len(list(output.glob("*.parquet"))) < 3:
        assert job.poll() is None
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    present = {path: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert 3 <= len(present) < 20
    assert subprocess.run(start, env=environment).returncode == 0
    assert all(path.stat().st_mtime_ns == time for path, time in present.items())
    assert_equal(rows_of(output), rows_of(expected))
    assert len(rows_of(output)) == 200

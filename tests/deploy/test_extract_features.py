"""Feature extraction: the file, parts that survive a kill, several processes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import forked, kill_self, load_tool, status_of
from saved_runs import draw_crops, two_runs

import occluded_reid
from occluded_reid.deploy import bulk
from occluded_reid.deploy.feature_file import FeatureFile, list_images
from occluded_reid.utils.errors import UserError

tool = load_tool("extract_features")
GOOD = ["0.png", "1.png", "2.png", "below it/0.png", "below it/1.png", "below it/2.png"]
UNREADABLE = ["below it/half.jpg", "none.webp"]


@pytest.fixture(autouse=True)
def other_tests_log() -> Iterator[None]:
    """A rank above 0 turns off all messages of its process."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images, a truncated one, a text file named as one, and files to be skipped."""
    folder = tmp_path_factory.mktemp("images")
    draw_crops(folder, 3)
    draw_crops(folder / "below it", 3)
    draw_crops(folder / ".hidden", 1)
    whole = folder / "below it" / "half.jpg"
    Image.open(folder / "0.png").convert("RGB").save(whole)
    whole.write_bytes(whole.read_bytes()[:200])
    (folder / "none.webp").write_text("not an image")
    (folder / ".0.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "notes.txt").write_text("not an image either")
    return folder


@pytest.fixture
def words(runs, images, tmp_path, monkeypatch) -> list[str]:
    """The command for four parts of two images."""
    monkeypatch.setattr(bulk, "POLL_SECONDS", 0.05)
    given = {"--weights": runs / "run", "--input": images, "--output": tmp_path / "F.npz"}
    return [*_options(given), "--part-size", "2", "--batch-size", "2", "--workers", "0"]


def _options(given: dict[str, Path]) -> list[str]:
    return [str(word) for pair in given.items() for word in pair]


def read_arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture
def expected(words, tmp_path) -> bytes:
    """The file of an uninterrupted run, moved out of the way."""
    assert tool.command(words) == 0
    return (tmp_path / "F.npz").rename(tmp_path / "expected.npz").read_bytes()


def test_a_folder_gives_features_paths_and_unreadable_images(words, runs, images, tmp_path, capsys):
    assert tool.command(words) == 0
    arrays = read_arrays(tmp_path / "F.npz")
    model = occluded_reid.load(runs / "run", batch_size=2)
    expected = model.embed([images / path for path in GOOD])
    assert arrays["paths"].tolist() == GOOD and arrays["paths"].dtype.kind == "U"
    np.testing.assert_allclose(arrays["features"], model.make_rows(expected), atol=1e-5)
    np.testing.assert_allclose(arrays["visibility"], expected.visibility, atol=1e-5)
    assert arrays["features"].dtype == arrays["visibility"].dtype == np.float32
    assert arrays["broken"].tolist() == UNREADABLE
    assert (str(arrays["metric"]), str(arrays["fingerprint"])) == ("cosine", model.fingerprint)
    job = json.loads(str(arrays["job"]))
    assert job["precision"] == "float32" and job["model"] == model.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["F.npz"]
    printed = capsys.readouterr().out
    assert "features of 6 images" in printed and "2 of 8 images cannot be read" in printed
    assert "below it/half.jpg (OSError: " in printed and "none.webp (it is no image; " in printed


def test_a_list_keeps_its_order_and_is_relative_to_its_folder(words, images, tmp_path, capsys):
    below, full, odd = "below it/1.png", str(images / "0.png"), "ä\u2028b.png"
    away = str(tmp_path / "away.png")
    lines = [below, "gone.png", full, f"./{below}", odd, away]
    shutil.copy(full, away)
    (images / "some list").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    assert tool.command([*words, "--input", str(images / "some list")]) == 1
    arrays = read_arrays(tmp_path / "F.npz")
    assert arrays["paths"].tolist() == [below, "0.png", below, away]
    assert "some list are read that lie outside its own folder: /" in capsys.readouterr().out
    assert arrays["broken"].tolist() == ["gone.png", odd]
    np.testing.assert_allclose(arrays["features"][0], arrays["features"][2], atol=1e-5)


def test_a_name_that_is_not_unicode_survives(tmp_path):
    (tmp_path / "list").write_bytes(b"\xff\xf0 a.png\r\nb.png")
    (tmp_path / "b.png").touch()
    listed = list_images(tmp_path / "list")
    np.save(tmp_path / "paths.npy", listed.paths)
    paths = np.load(tmp_path / "paths.npy", allow_pickle=False)
    assert paths[0].encode("utf-8", "surrogateescape") == b"\xff\xf0 a.png"
    assert paths[1] == "b.png" and len(listed.sha256) == 64


def test_a_killed_run_is_continued_to_the_same_file(words, expected, tmp_path, monkeypatch):
    done = []
    write = FeatureFile.write_part

    def write_until_killed(self, number, *content):
        if number == 2:
            kill_self()
        write(self, number, *content)

    def write_and_note(self, number, *content):
        done.append(number)
        write(self, number, *content)

    monkeypatch.setattr(FeatureFile, "write_part", write_until_killed)
    assert status_of(forked(lambda: tool.command(words))) == -signal.SIGKILL
    parts = sorted(path.name for path in (tmp_path / "F.npz.parts").iterdir())
    assert parts == ["part_000000.npz", "part_000001.npz"]
    monkeypatch.setattr(FeatureFile, "write_part", write_and_note)
    assert tool.command(words) == 0
    assert done == [2, 3]
    assert (tmp_path / "F.npz").read_bytes() == expected
    assert not (tmp_path / "F.npz.parts").exists()


@pytest.mark.parametrize("step", ["occluded_reid.deploy.feature_file.write_array", "shutil.rmtree"])
def test_killed_while_the_parts_are_joined(step, words, expected, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(step, lambda *_, **__: kill_self())
        assert status_of(forked(lambda: tool.command(words))) == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} <= {"expected.npz", "F.npz", "F.npz.parts"}
    monkeypatch.setattr(FeatureFile, "write_part", None)  # no part is computed again
    assert tool.command(words) == 0
    assert ("F.npz is there already" in capsys.readouterr().out) == (step == "shutil.rmtree")
    assert (tmp_path / "F.npz").read_bytes() == expected
    assert not (tmp_path / "F.npz.parts").exists()


def test_each_process_does_its_share_and_the_first_joins_them(
    words, expected, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    first = forked(lambda: tool.command(words))  # waits
    monkeypatch.setenv("RANK", "1")
    second = forked(lambda: tool.command(words))
    assert (status_of(second), status_of(first)) == (0, 0)
    assert (tmp_path / "F.npz").read_bytes() == expected


def test_one_process_continues_what_two_have_started(words, expected, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        patch.setenv("RANK", "1")
        assert (
            status_of(forked(lambda: tool.command(words))) == 0
        )  # a fork, for it silences the log
    parts = sorted(path.name for path in (tmp_path / "F.npz.parts").iterdir())
    assert parts == ["part_000001.npz", "part_000003.npz"]
    assert tool.command(words) == 0
    assert (tmp_path / "F.npz").read_bytes() == expected


@pytest.mark.slow  # forked readers in a process with threads have hung once
def test_workers_change_nothing(words, expected, tmp_path):
    assert tool.command([*words, "--workers", "2"]) == 0
    assert (tmp_path / "F.npz").read_bytes() == expected


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        (["--weights", "other"], "model"),
        (["--input", "below it"], "images"),
        (["--bf16"], "precision"),
        (["--part-size", "3"], "part_size"),
        (["TEST.METRIC", "dot"], "model"),
    ],
)
def test_parts_and_files_of_another_job_are_refused(
    change, differing, words, runs, images, tmp_path, monkeypatch, capsys
):
    folders = {"other": runs / "other", "below it": images / "below it"}
    changed = [*words, *(str(folders.get(word, word)) for word in change)]
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")
        patch.setenv("WORLD_SIZE", "4")
        assert status_of(forked(lambda: tool.command(words))) == 0
    assert tool.command(changed) == 2
    printed = capsys.readouterr().err
    assert f"part_000001.npz is from another job (it differs in: {differing})" in printed
    assert "delete the folder" in printed
    assert tool.command(words) == 0
    before = (tmp_path / "F.npz").read_bytes()
    assert tool.command(changed) == 2
    assert f"F.npz is from another job (it differs in: {differing})" in (capsys.readouterr().err)
    assert (tmp_path / "F.npz").read_bytes() == before


def test_the_same_names_in_two_folders_are_two_lists(images, tmp_path):
    draw_crops(tmp_path, 3)
    one, other = list_images(images / "below it"), list_images(tmp_path)
    assert one.paths[:3].tolist() == other.paths.tolist()
    assert list_images(tmp_path).sha256 == other.sha256
    assert one._replace(paths=other.paths).sha256 != other.sha256


@pytest.mark.parametrize("content", [b"half of a par", b"PK\3\4half of a par", b""])
def test_a_damaged_part_is_named(content, words, tmp_path, capsys):
    part = tmp_path / "F.npz.parts" / "part_000000.npz"
    part.parent.mkdir()
    part.write_bytes(content)
    assert tool.command(words) == 2
    assert f"{part} is damaged or not one of ours" in capsys.readouterr().err


def test_a_part_that_another_process_has_just_removed_is_ignored(words, expected, tmp_path):
    part = tmp_path / "F.npz.parts" / "part_000000.npz"
    part.parent.mkdir()
    part.symlink_to(tmp_path / "gone")  # listed, but not there when it is opened
    assert tool.command(words) == 0
    assert (tmp_path / "F.npz").read_bytes() == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.update(features=np.ascontiguousarray(a["features"].T)),
        lambda a: a.update(features=a["features"].astype(np.float64)),
        lambda a: a.update(visibility=a["visibility"][:, :1]),
        lambda a: a.update(places=a["places"] + 2),
        lambda a: a.update(broken=a["places"], reasons=np.array(["", ""])),
        lambda a: a.update(reasons=np.array("")),
        lambda a: a.pop("places"),
        lambda a: a.update(job=np.array("[1]")),
        lambda a: a.update(features=np.full_like(a["features"], np.inf)),
        lambda a: a.update(places=a["places"].astype(float)),
    ],
)
def test_a_part_that_does_not_fit_is_named_before_the_work(
    words, expected, tmp_path, monkeypatch, capsys, change
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert tool.command(words) == 0
    (part,) = (tmp_path / "F.npz.parts").iterdir()
    content, whole = read_arrays(part), part.read_bytes()
    change(content)
    np.savez(part, **content)
    monkeypatch.setattr(FeatureFile, "write_part", lambda *_: pytest.fail("the work began"))
    assert tool.command(words) == 2
    assert f"{part} " in capsys.readouterr().err
    monkeypatch.undo()
    part.write_bytes(whole)
    (part.parent / "part_000009.npz").write_bytes(whole)
    assert tool.command(words) == 2
    assert "part_000009.npz does not hold 0 images" in capsys.readouterr().err
    np.savez_compressed(part.parent / "part_000009.npz", features=np.zeros(10**6))
    assert tool.command(words) == 2
    assert "part_000009.npz is damaged or not one of ours (8000128 bytes" in capsys.readouterr().err
    (part.parent / "part_000009.npz").unlink()
    assert tool.command(words) == 0
    assert (tmp_path / "F.npz").read_bytes() == expected


def test_parts_are_kept_beside_a_damaged_file(words, expected, tmp_path, capsys):
    (tmp_path / "F.npz.parts").mkdir()
    (tmp_path / "F.npz.parts" / "note").touch()
    damaged = bytearray(expected)
    damaged[200] ^= 1  # in the features
    (tmp_path / "F.npz").write_bytes(damaged)
    assert tool.command(words) == 2
    assert "F.npz is damaged (features.npy differs from" in capsys.readouterr().err
    assert (tmp_path / "F.npz.parts" / "note").exists()


def test_no_file_is_written_if_no_image_can_be_read(words, tmp_path, capsys):
    (tmp_path / "list").write_text("list\naway.png\nlost.png\n")
    assert tool.command([*words, "--input", str(tmp_path / "list")]) == 2
    printed = capsys.readouterr().err
    assert "none of the 3 images can be read" in printed and "it is no image" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list"]


def test_a_bad_list_is_named(images, tmp_path):
    with pytest.raises(UserError, match="there are no images in"):
        list_images(tmp_path)
    with pytest.raises(UserError, match="cannot read .*none"):
        list_images(tmp_path / "none")
    for content, message in (
        (b"", "is not a list of images: none of its 0 lines names a file"),
        (b"# Title\nSome text", "none of its 2 lines .the first is '# Title'. names a file"),
        (b"\x89PNG\0\0\n", "cannot read the list"),
    ):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(UserError, match=message):
            list_images(tmp_path / "file")


def test_nothing_is_left_out_in_silence(words, images, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "folder"
    shutil.copytree(images, folder)
    (folder / "notes.txt").touch()
    (folder / "closed").mkdir()
    (folder / "elsewhere").symlink_to(images)
    (folder / "circle").symlink_to(folder)
    (folder / "nowhere").symlink_to("gone")
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert tool.command([*words, "--input", str(folder)]) == 1
    printed, error = capsys.readouterr()
    assert "are passed over, by name they are no images" in printed and "notes.txt" in printed
    assert "1 links to folders in" in printed and "elsewhere" in printed
    assert "circle, nowhere, closed (Permission denied)" in printed
    assert "3 files or folders of" in error and "features of 6 images" in printed


def test_a_full_disk_leaves_the_parts(words, tmp_path, monkeypatch, capsys):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("occluded_reid.deploy.feature_file.write_array", full)
        assert tool.command(words) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert len(list((tmp_path / "F.npz.parts").iterdir())) == 4
    assert tool.command(words) == 0

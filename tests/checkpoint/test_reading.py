"""Weights files of anybody: plain numbers come out, or one message."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from occluded_reid.checkpoint.pretrained import guess_grid, read_weights
from occluded_reid.checkpoint.reading import load_safely, walk
from occluded_reid.utils.errors import UserError


def nested(depth: int) -> Any:
    content: Any = torch.ones(1)
    for _ in range(depth):
        content = [content]
    return content


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"a": torch.ones(1).expand(5, 5)}, "a of shape .* share memory"),
        ({"a": torch.ones(1).expand(10**6, 10**6)}, "share memory"),
        ({"a": torch.as_strided(torch.ones(5), (3, 3), (1, 1))}, "share memory"),
        ({"a": {"b": [torch.ones(3).to_sparse()]}}, "entry a/b/0 is no dense tensor"),
        ({"a": torch.ones(3, device="meta")}, "no plain tensor"),
        ({"a": torch.ones(3, dtype=torch.complex64)}, "no plain tensor"),
        ({"a": torch.ones(3).to(torch.float8_e5m2)}, "no plain tensor"),
        ({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, "no plain tensor"),
        ({"a": torch.tensor([1.0, float("nan")])}, "entry a is not finite"),
        ({"a": np.array([np.inf])}, "entry a is not finite"),
        (nested(30), "nested too deeply"),
    ],
)
def test_what_is_no_plain_tensor_is_named(content: Any, told: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=f"(?s)a.pth .*{told}"):
        load_safely(str(tmp_path / "a.pth"))


def test_containers_are_walked_once() -> None:
    content: Any = [1]
    for _ in range(18):
        content = [content] * 50
    content.append(content)
    assert len(list(walk(content))) == 1


def test_a_small_file_is_not_unpacked_to_a_large_one(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as whole,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in whole.infolist():
            packed.writestr(part.filename, whole.read(part))
    with pytest.raises(UserError, match="are packed into it"):
        load_safely(str(tmp_path / "b.pth"))
    np.savez_compressed(tmp_path / "c.npz", a=np.zeros(10**6))
    with pytest.raises(UserError, match="are packed into it"):
        read_weights(str(tmp_path / "c.npz"))


@pytest.mark.parametrize("name", ["a.pth", "a.npz", "a.safetensors"])
@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>404", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
    ],
)
def test_what_was_downloaded_instead_is_called_by_its_name(
    name: str, head: bytes, told: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(head)
    with pytest.raises(UserError, match=told):
        read_weights(str(tmp_path / name))


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    began = time.monotonic()
    with pytest.raises(UserError, match="it is no file, but a folder, pipe or device"):
        load_safely(str(tmp_path / "a.pth"))
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("count", [0, 17, 193, 2 * 97])
def test_position_embeddings_that_are_no_grid_are_not_called_one(count: int) -> None:
    with pytest.raises(UserError, match="no grid|no patch"):
        guess_grid(count, (16, 8), trust_own=False)
    assert guess_grid(22 * 10, (16, 8), trust_own=False) == (20, 11)

"""Result files, with the machine they were measured on, and the options of all commands."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import platform
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from occluded_reid.utils.cli import positive_int
from occluded_reid.utils.files import explain_write_errors, make_folder, write_json

PACKAGES = (
    "torch", "torchvision", "numpy", "timm", "pillow", "opencv-python-headless", "faiss-cpu",
    "fastreid", "openvino", "nncf", "onnxruntime",
)  # fmt: skip


def build_parser(description: str | None, *positive: tuple[str, int]) -> argparse.ArgumentParser:
    """Return a parser with every benchmark's options, and more with a default of at least 1."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", default="", metavar="F", help="write the numbers to a file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    for name, default in positive:
        parser.add_argument(name, type=positive_int, default=default, metavar="N")
    return parser


def check_writable(path: str) -> None:
    """Raise UserError before anything is measured if the file, if any, cannot be written."""
    if path:
        folder = make_folder(Path(path).parent)
        with explain_write_errors(path):
            if Path(path).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            tempfile.TemporaryFile(dir=folder).close()


def write_results(path: str, content: dict[str, Any]) -> None:
    """Write results and the machine as JSON, if there is a path."""
    if path:
        write_json(Path(path), {"machine": describe_machine(), **content}, allow_nan=False)


def describe_machine() -> dict[str, Any]:
    """Return processor, GPU, versions and the commit; None for what is unknown."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _read_cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "matrix_units": "AMX" if "amx_tile" in _read_cpuinfo("flags").split() else None,
        "load": list(os.getloadavg()),
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: _read_version(name) for name in PACKAGES},
        "commit": _read_commit(),
    }


def _read_cpuinfo(key: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    return ""


def _read_version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _read_commit() -> str | None:
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(
            words, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        ).strip()
    return None

"""What the figures were measured on, and the files that say so."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from occluded_reid.utils.files import make_folder, write_errors_named, write_json

PACKAGES = (
    "torch", "torchvision", "numpy", "timm", "pillow", "opencv-python-headless", "faiss-cpu",
    "fastreid", "openvino", "nncf", "onnxruntime",
)  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    """Return processor, memory, GPU, versions and the commit; None where one is not known."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_fact("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "matrix_units": "AMX" if "amx_tile" in (_cpu_fact("flags") or "").split() else None,
        "load": list(os.getloadavg()),
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def require_place(path: Path) -> None:
    """Make sure, before anything is measured, that a file can be written.

    Raises:
        UserError: it cannot.
    """
    make_folder(path.parent)
    with write_errors_named(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        tempfile.TemporaryFile(dir=path.parent).close()


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write the machine, and what was found on it, as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    write_json(path, {"machine": describe(), **content}, allow_nan=False)


def _cpu_fact(key: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith(key))
    return next(found, None)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()

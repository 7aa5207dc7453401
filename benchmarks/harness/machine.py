"""Result files, with the machine they were measured on, and the options of all commands."""

from __future__ import annotations

import argparse
import errno
import os
import platform
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from occluded_reid.utils.files import explain_write_errors, make_folder, write_json

PACKAGES = (
    "torch", "torchvision", "numpy", "timm", "pillow", "opencv-python-headless", "faiss-cpu",
    "fastreid", "openvino", "nncf", "onnxruntime",
)  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", default="", metavar="F", help="write the numbers to a file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return parser


def check_writable(path: Path) -> None:
    """Raise UserError before anything is measured if the file cannot be written."""
    make_folder(path.parent)
    with explain_write_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        tempfile.TemporaryFile(dir=path.parent).close()


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write results and the machine as JSON."""
    write_json(path, {"machine": describe_machine(), **content}, allow_nan=False)


def describe_machine() -> dict[str, Any]:
    """Return processor, GPU, versions and the commit; None for what is unknown."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _read_cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "matrix_units": "AMX" if "amx_tile" in (_read_cpuinfo("flags") or "").split() else None,
        "load": list(os.getloadavg()),
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: _read_version(name) for name in PACKAGES},
        "commit": _read_commit(),
    }


def _read_cpuinfo(key: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = (line.split(":", 1)[1].strip() for line in lines if line.startswith(key))
    return next(values, None)


def _read_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read_commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()

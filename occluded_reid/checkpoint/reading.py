"""Read weights files of anybody: no code in them runs, and what comes out is plain numbers."""

from __future__ import annotations

import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import torch
from fastreid.utils.checkpoint import Checkpointer as FastreidCheckpointer
from torch import nn

from occluded_reid.checkpoint.conversion import Weights
from occluded_reid.checkpoint.safetensors_file import read_safetensors
from occluded_reid.utils.errors import UserError, first_line
from occluded_reid.utils.files import diagnose_zip, open_regular

CONVERT = "tools/import_checkpoint.py --source fastreid --trust-checkpoint"
"""The command that makes a plain weights file of one with Python objects."""

MAX_DEPTH = 20
_MAX_LABEL = 80
_DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def load_safely(path: str, *, trust: bool = False, if_trusted: str = "--trust-checkpoint") -> Any:
    """Read a PyTorch file with ``weights_only=True``; numpy numbers and arrays are allowed.

    The checksums of its parts are verified, which PyTorch itself does not do, and all tensors are
    plain ones (:func:`require_plain_tensors`) that together are not larger than the file. ``trust``
    allows pickled Python objects, which can run code; ``if_trusted`` is the advice to who trusts
    the file. Any failure is a UserError.
    """
    try:
        with open_regular(path) as stream:
            content = _unpickle(stream, path, trust)
            size = os.fstat(stream.fileno()).st_size
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" (it asks for {match.group(1)})" if match else ""
        raise UserError(
            f"{path} is no checkpoint, or holds Python objects beside tensors{what}; such a file "
            f"can run code when it is read. If you trust its source: {if_trusted}, or convert it "
            f"once: {CONVERT} --input {path} --output NEW.pth"
        ) from error
    except Exception as error:  # invalid bytes raise almost anything
        raise UserError(f"{path} is no checkpoint or is damaged ({first_line(error)})") from error
    widened = path.endswith(".safetensors")  # half precision is read as float32
    require_plain_tensors(content, path, limit=size * 2 if widened else size)
    return content


def _unpickle(stream: BinaryIO, path: str, trust: bool) -> Any:
    if told := describe_foreign(stream.read(512)):
        raise UserError(f"{path} is no checkpoint: {told}")
    if zipfile.is_zipfile(stream) and (
        fault := diagnose_zip(stream, limit=os.fstat(stream.fileno()).st_size)
    ):
        raise UserError(f"{path} is no checkpoint or is damaged ({fault})")
    stream.seek(0)
    if path.endswith(".safetensors"):
        return read_safetensors(path)
    if trust:
        return torch.load(stream, map_location="cpu", weights_only=False)
    return FastreidCheckpointer(nn.Module())._load_file(stream)


def as_checkpoint(loaded: Any, path: str) -> dict[str, Any]:
    """Return ``loaded`` as a dict with the key ``model``; a bare state dict is wrapped in one."""
    if isinstance(loaded, dict):
        if isinstance(loaded.get("model"), dict):
            return loaded
        if loaded and all(torch.is_tensor(value) for value in loaded.values()):
            return {"model": loaded}
    raise UserError(
        f"{path} holds no weights: neither a state dict nor one under the key 'model'; "
        "tools/import_checkpoint.py reads files of other code bases"
    )


def as_weights(found: Any, path: str) -> Weights:
    """Return a state dict from a file as tensors by name, without DataParallel's ``module.``."""
    if not (isinstance(found, dict) and all(isinstance(key, str) for key in found)):
        raise UserError(f"{path} holds no weights: they have no names")
    for key, value in found.items():
        if not isinstance(value, torch.Tensor | np.ndarray):
            raise UserError(f"{path} holds no weights: {key} is no tensor")
    prefix = "module." if all(key.startswith("module.") for key in found) else ""
    return {key.removeprefix(prefix): torch.as_tensor(value) for key, value in found.items()}


def describe_foreign(head: bytes) -> str:
    """Say what a file is that was downloaded instead of weights; ``""`` if nothing is known.

    ``head`` is the file's first bytes.

    >>> describe_foreign(b"<!DOCTYPE html><html>")
    'it is a web page; download the file itself'
    """
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "it is a web page; download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; get the file itself with git lfs pull"
    return ""


def require_plain_tensors(content: Any, path: str, *, limit: float = math.inf) -> None:
    """Raise a UserError that names an entry of ``content`` unless all its tensors are plain.

    That is: dense, without elements that share memory, of integers or of finite floating-point
    numbers of at least 16 bits. Numpy arrays hold finite numbers. Together the tensors have at most
    ``limit`` bytes.
    """
    storages = {}
    for find_fault in (_find_oddity, find_not_finite):  # in this order: the latter reads the memory
        for place, value in walk(content):
            if fault := find_fault(value):
                raise UserError(f"{path} cannot be used: its entry {place or '(all)'} {fault}")
            if torch.is_tensor(value):
                storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        if sum(storages.values()) > limit:
            raise UserError(f"{path} is damaged: its tensors are larger than the file")


def _find_oddity(value: Any) -> str:
    """Return why something read from a file is no number or text, nor plain memory of numbers."""
    if isinstance(value, dict | list | tuple):
        return "is nested too deeply"
    if isinstance(value, np.ndarray):
        return "" if value.dtype.kind in "biuf" else f"is an array of {value.dtype}"
    if not torch.is_tensor(value):
        return ""
    if type(value) not in (torch.Tensor, nn.Parameter) or value.layout is not torch.strided:
        return "is no dense tensor"
    if value.dtype not in _DTYPES or value.is_nested or value.device.type != "cpu":
        return f"is no plain tensor ({value.dtype}, {value.device})"
    size = math.prod(value.shape) * value.element_size()
    if size > value.untyped_storage().nbytes() or torch._debug_has_internal_overlap(value) == 1:
        return f"of shape {tuple(value.shape)} has elements that share memory"
    return ""


def find_not_finite(value: Any) -> str:
    """Return ``is not finite`` for a tensor or array with NaN or infinity, else ``""``."""
    if isinstance(value, np.ndarray):
        return "" if np.isfinite(value).all() else "is not finite"
    return "" if not torch.is_tensor(value) or value.isfinite().all() else "is not finite"


def walk(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield what lies in nested dicts and lists, each container once, with its place.

    A place is a path of keys such as ``optimizer/state/0``. What is nested deeper than
    :data:`MAX_DEPTH` is yielded as it is.
    """
    waiting, seen = [("", 0, content)], set()
    while waiting:
        place, depth, value = waiting.pop()
        if not isinstance(value, dict | list | tuple) or depth > MAX_DEPTH:
            yield place, value
        elif id(value) not in seen:
            seen.add(id(value))
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            prefix = f"{place}/" if place else ""
            waiting += [(prefix + _label(key), depth + 1, each) for key, each in entries]


def _label(key: Any) -> str:
    if isinstance(key, int) and key.bit_length() < 64:
        return str(key)
    return key[:_MAX_LABEL] if isinstance(key, str) else type(key).__name__

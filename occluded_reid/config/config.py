"""Read configurations: merge files and overrides into fast-reid's keys and ours, check values."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from fastreid.config import CfgNode
from fastreid.config import get_cfg as get_fastreid_cfg
from fastreid.config.config import BASE_KEY

from occluded_reid.config import defaults
from occluded_reid.utils.errors import UserError, suggest
from occluded_reid.utils.files import read_regular

logger = logging.getLogger(__name__)

AddKeys = Callable[[CfgNode], None]

MAX_VALUES, MAX_DEPTH = 10_000, 20
_YAML_ERRORS = (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError)

SHIPPED = Path(__file__).parents[1] / "shipped"
"""Holds configs/ and projects/ with the configurations, also in an installed package."""


def get_cfg(add_keys: Iterable[AddKeys] = ()) -> CfgNode:
    """Return fast-reid's default configuration with our keys and those that ``add_keys`` add."""
    cfg = get_fastreid_cfg()
    for add in (defaults.add_occluded_reid_config, *add_keys):
        add(cfg)
    return cfg


def load_config(
    path: str = "",
    overrides: Sequence[str] = (),
    *,
    add_keys: Iterable[AddKeys] = (),
    also: Sequence[str] = (),
) -> CfgNode:
    """Merge configuration files and overrides; freeze the result.

    Without a GPU, ``MODEL.DEVICE: cuda`` becomes ``cpu`` with a warning.

    Args:
        path: a YAML file, possibly with ``_BASE_``; ``""`` for the defaults. One that is not in the
            working directory is taken from those that the package ships.
        overrides: ``KEY VALUE KEY VALUE ...``.
        add_keys: functions that add the keys of methods, such as ``add_fed_config``.
        also: more YAML files, merged in this order after ``path``.

    >>> load_config(overrides=["SOLVER.MAX_EPOCH", "3"]).SOLVER.MAX_EPOCH
    3
    """
    cfg = get_cfg(add_keys)
    for file in filter(None, (path, *also)):
        _merge_file(cfg, file)
    _merge_overrides(cfg, list(overrides))
    _check_choices(cfg)
    if str(cfg.MODEL.DEVICE).startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU found, using the CPU (MODEL.DEVICE cuda -> cpu)")
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def _find_file(path: str) -> str:
    """Return ``path``, or the shipped file of that name if the working directory has none."""
    found = next((file for file in (Path(path), SHIPPED / path) if file.is_file()), None)
    if found is None:
        homes = [SHIPPED / "configs", *SHIPPED.glob("projects/*/configs")]
        shipped = [file.relative_to(SHIPPED) for home in homes for file in home.rglob("*.yml")]
        files = {str(file) for file in (*Path(path).parent.glob("*.yml"), *shipped)}
        raise UserError(f"no configuration file {path}{suggest(path, sorted(files))}")
    return str(found)


def _merge_file(cfg: CfgNode, path: str) -> None:
    path = _find_file(path)
    loaded = _read_with_base(path)
    _refuse_unknown_keys(cfg, (key for key, _ in leaves(loaded)), path)
    sections = {key for key, _ in leaves(cfg)}
    for key, value in leaves(loaded):
        if key not in sections and not isinstance(value, dict):
            raise UserError(f"{path}: {key} is a section; it needs keys below it, not {value!r}")
    _merge(cfg, [(key, value) for key, value in leaves(loaded) if value != {}], path)


def _read_with_base(path: str) -> dict[str, Any]:
    """Read a configuration and what its ``_BASE_`` leads to, whose keys it overrides."""
    chain: list[str] = []
    loaded: list[dict[str, Any]] = []
    while path:
        if path in chain:
            raise UserError(f"{chain[0]}: its _BASE_ leads back to itself ({' > '.join(chain)})")
        if chain and not os.path.exists(path):
            raise UserError(f"{chain[-1]}: its _BASE_ {path} does not exist")
        chain.append(path)
        loaded.append(read_yaml(path))
        base = loaded[-1].pop(BASE_KEY, "")
        if not isinstance(base, str):
            raise UserError(f"{path}: its _BASE_ is {base!r:.80}, not a file")
        path = str(Path(path).parent.joinpath(Path(base).expanduser())) if base else ""
        path = os.path.normpath(path) if path else ""
    merged = loaded.pop()
    while loaded:
        _override(merged, loaded.pop(), chain[0])
    return merged


def _override(base: dict[str, Any], own: dict[str, Any], path: str) -> None:
    for key, value in own.items():
        if isinstance(value, dict) and key in base:
            if not isinstance(base[key], dict):
                raise UserError(f"{path}: {key} is no section in its _BASE_")
            _override(base[key], value, path)
        else:
            base[key] = value


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML mapping of at most 256 KiB, such as a run's config.yaml.

    Raises:
        UserError: it is none, or is nested or repeated (by anchors) beyond any configuration.
    """
    return parse_yaml(lambda: read_regular(path, 2**18).decode("utf-8-sig"), path)


def parse_yaml(read: Callable[[], str], source: object) -> dict[str, Any]:
    """Return the mapping that is in a YAML text, or a UserError as :func:`read_yaml` does."""
    try:
        content = yaml.safe_load(read())
        if not isinstance(content, dict):
            raise ValueError("it is a text or a list")
        if _count(content) > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES} values")
    except _YAML_ERRORS as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{source} is no configuration (YAML mapping): {reason}") from error
    return content


def _count(value: Any, depth: int = 0) -> int:
    """Count the values in nested containers, up to a little more than :data:`MAX_VALUES`."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    count = 1
    for each in value.values() if isinstance(value, dict) else value:
        count += _count(each, depth + 1) if isinstance(each, dict | list | tuple | set) else 1
        if count > MAX_VALUES:
            break
    return count


def _merge_overrides(cfg: CfgNode, overrides: list[str]) -> None:
    if overrides and overrides[0] == "--":
        overrides = overrides[1:]
    if options := [word for word in overrides if word.startswith("--")]:
        raise UserError(
            f"{options[0]} comes after KEY VALUE pairs and is read as one of them; put options "
            "before the first KEY"
        )
    if joined := [word for word in overrides[0::2] if "=" in word]:
        key, _, value = joined[0].partition("=")
        raise UserError(f"{joined[0]}: separate key and value by a space: {key} {value}")
    if len(overrides) % 2:
        raise UserError(
            f"overrides are KEY VALUE pairs, but {len(overrides)} words were given: "
            + " ".join(overrides)
        )
    _refuse_unknown_keys(cfg, iter(overrides[0::2]), "the command line")
    _merge(cfg, list(zip(overrides[0::2], overrides[1::2], strict=True)), "the command line")


def _merge(cfg: CfgNode, pairs: Iterable[tuple[str, Any]], source: str) -> None:
    """Set keys; a value may be a Python literal as text."""
    before = dict(leaves(cfg))
    for key, text in pairs:
        present, value = before.get(key), CfgNode._decode_cfg_value(text)
        if type(present) is float and type(value) is int:
            value = float(value)
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, KeyError, AssertionError) as error:
            kind = _KINDS.get(type(present), "section with keys below it")
            example = "" if present in (None, "", [], ()) else f" such as {present!r}"
            raise UserError(
                f"{source}: {key} cannot be {value!r}; it takes a {kind}{example}"
            ) from error


_KINDS = {
    bool: "truth value", float: "number with a decimal point", int: "whole number",
    list: "list", str: "text", tuple: "list",
}  # fmt: skip


def _refuse_unknown_keys(cfg: CfgNode, keys: Iterator[str], source: str) -> None:
    known = [key for key, _ in leaves(cfg)]
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in range(key.count(".") + 1)}
    for key in keys:
        if key not in nodes and key not in known:
            raise UserError(f"{source}: there is no configuration key {key}{suggest(key, known)}")


@contextlib.contextmanager
def changed_copy(cfg: CfgNode) -> Iterator[CfgNode]:
    """Yield a copy of ``cfg`` whose keys can be set inside the block; freeze it afterwards.

    >>> with changed_copy(cfg) as cfg:  # doctest: +SKIP
    ...     cfg.MODEL.EMA.ENABLED = False
    """
    copy = cfg.clone()
    copy.defrost()
    yield copy
    copy.freeze()


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a configuration with its full key, such as ``SOLVER.BASE_LR``."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def replays_cuda_graphs(cfg: CfgNode) -> bool:
    """Whether training steps are captured in CUDA graphs, if there is a GPU."""
    return cfg.MODEL.COMPILE and cfg.MODEL.COMPILE_MODE in defaults.WITH_CUDA_GRAPHS


def _check_choices(cfg: CfgNode) -> None:
    values = dict(leaves(cfg))
    for key in ("INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST"):
        _check_size(key, values[key])
    if values["INPUT.AUGMENTATION"] == "device":
        raise UserError(
            "INPUT.AUGMENTATION device is gone; INPUT.AUGMENTATION workers gives the same images"
        )
    for key, choices in defaults.CHOICES.items():
        if values[key] not in choices:
            raise UserError(f"{key} is {values[key]!r}; it can be {' or '.join(choices)}")
    for key, (least, greatest) in defaults.RANGES.items():
        if not least <= values[key] <= greatest:
            raise UserError(f"{key} is {values[key]}; it must be from {least} to {greatest}")
    losses = tuple(cfg.MODEL.LOSSES.NAME)
    if not losses or not set(losses) <= set(defaults.LOSSES):
        allowed = ", ".join(defaults.LOSSES)
        raise UserError(f"MODEL.LOSSES.NAME is {losses}; it can hold {allowed}")
    if replays_cuda_graphs(cfg) and cfg.SOLVER.ACCUMULATE > 1:
        raise UserError(
            f"MODEL.COMPILE_MODE {cfg.MODEL.COMPILE_MODE} replays CUDA graphs, which overwrite the "
            f"gradients of the last iteration; with SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE} use "
            "MODEL.COMPILE_MODE default"
        )
    if not cfg.OUTPUT_DIR:
        raise UserError("OUTPUT_DIR is empty; name the folder of the run")
    if not cfg.DATASETS.NAMES:
        raise UserError("DATASETS.NAMES is empty; name a data set to train on")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(cfg.MODEL.DEVICE)):
        raise UserError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; it can be cpu, cuda or cuda:0")
    without_gpu = not torch.cuda.is_available() or str(cfg.MODEL.DEVICE) == "cpu"
    if cfg.SOLVER.AMP.ENABLED and values["SOLVER.AMP.DTYPE"] == "float16" and without_gpu:
        raise UserError("SOLVER.AMP.DTYPE float16 needs a GPU; use bfloat16 on the CPU")


def check_ranges(section: str, node: CfgNode, rules: Mapping[str, tuple[bool, str]]) -> None:
    """Check values of a section: ``rules`` holds by key whether it fits, and what it must be.

    >>> check_ranges("MODEL.FED", fed, {"NUM_PARTS": (fed.NUM_PARTS >= 1, "at least 1")})
    """
    for key, (fits, expected) in rules.items():
        if not fits:
            raise UserError(f"{section}.{key} is {node[key]}; it must be {expected}")


def _check_size(key: str, size: Sequence[Any]) -> None:
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(f"{key} is {size}; it must be height and width in pixels: [256, 128]")
    height, width = size
    if width > height:
        logger.warning(
            f"{key} is [height, width]: images {width} wide, {height} high are no crops of people"
        )

"""Configuration: fast-reid's keys, ours beside them, and messages a person can act on."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from fastreid.config import CfgNode
from fastreid.config import get_cfg as get_fastreid_cfg

from occluded_reid.errors import UserError

logger = logging.getLogger(__name__)


def add_occluded_reid_config(cfg: CfgNode) -> None:
    """Add the keys of this package to fast-reid's configuration."""
    # Seed of everything random. One seed on one machine gives one run, whatever NUM_WORKERS is.
    # -1 draws one from the clock; the value used stands in the log and in OUTPUT_DIR/config.yaml.
    cfg.SEED = -1

    # Number type of autocast where SOLVER.AMP.ENABLED: bfloat16, or float16 (CUDA only).
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Iterations (forward and backward passes of IMS_PER_BATCH images) per optimizer step.
    # Batch statistics, hard mining and memory updates stay per iteration.
    cfg.SOLVER.ACCUMULATE = 1
    # Iterations between two readings of the losses (log line, metrics.json, TensorBoard).
    cfg.SOLVER.LOG_PERIOD = 50

    # Compile the model with torch.compile.
    cfg.MODEL.COMPILE = False
    # Exponential moving average of the weights; evaluated and saved beside the raw ones.
    cfg.MODEL.EMA = CfgNode({"ENABLED": False})
    cfg.MODEL.EMA.DECAY = 0.999

    # Protocol of every data set that is not named as `Name:protocol`; "" is its default one.
    cfg.DATASETS.PROTOCOL = ""
    # Go on with a warning where a data set's counts are not the published ones.
    cfg.DATASETS.ALLOW_PARTIAL = False
    # The drawn data set: tiny, small or paper; its own seed; where it is kept ("" = data root).
    cfg.DATASETS.SYNTHETIC = CfgNode({"SIZE": "small", "SEED": 0, "ROOT": ""})

    # An unreadable image: raise (stop and name it) or skip (name it once and go on without it).
    cfg.INPUT.ON_ERROR = "raise"


def get_cfg() -> CfgNode:
    """Return fast-reid's default configuration with our keys."""
    cfg = get_fastreid_cfg()
    add_occluded_reid_config(cfg)
    return cfg


def load_config(path: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """Read a configuration file, then the overrides; freeze the result.

    Without a GPU, ``MODEL.DEVICE: cuda`` becomes ``cpu`` and the log says so.

    Args:
        path: a YAML file, possibly with ``_BASE_``; ``""`` for the defaults.
        overrides: ``KEY VALUE KEY VALUE ...``.

    Raises:
        UserError: no such file, no YAML, an unknown key (the nearest ones are named), or a value
            of another type.
    """
    cfg = get_cfg()
    if path:
        _merge_file(cfg, path)
    _merge_overrides(cfg, list(overrides))
    _check_choices(cfg)
    if str(cfg.MODEL.DEVICE).startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU found: going on on the CPU (MODEL.DEVICE cuda -> cpu)")
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def _merge_file(cfg: CfgNode, path: str) -> None:
    if not Path(path).is_file():
        raise UserError(f"no configuration file {path}{_files_beside(Path(path))}")
    try:
        loaded = CfgNode.load_yaml_with_base(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: its _BASE_ {error.filename} does not exist") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise UserError(f"{path} is no configuration (YAML mapping): {error}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is no configuration (YAML mapping)")
    _refuse_unknown_keys(cfg, (key for key, _ in _leaves(loaded)), path)
    _merge(lambda: cfg.merge_from_other_cfg(CfgNode(loaded)), path)


def _merge_overrides(cfg: CfgNode, overrides: list[str]) -> None:
    if overrides and overrides[0] == "--":
        overrides = overrides[1:]
    if len(overrides) % 2:
        raise UserError(
            f"overrides come as KEY VALUE pairs, but {len(overrides)} words were given: "
            + " ".join(overrides)
        )
    _refuse_unknown_keys(cfg, iter(overrides[0::2]), "the command line")
    _merge(lambda: cfg.merge_from_list(overrides), "the command line")


def _merge(merge: Any, source: str) -> None:
    try:
        merge()
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(f"{source}: {error}") from error


def _refuse_unknown_keys(cfg: CfgNode, keys: Iterator[str], source: str) -> None:
    known = [key for key, _ in _leaves(cfg)]
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in range(key.count(".") + 1)}
    for key in keys:
        if key in nodes or key in known:
            continue
        near = _nearest(key, known)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"{source}: there is no configuration key {key}{hint}")


def _nearest(key: str, known: list[str]) -> list[str]:
    """The known keys that look most like ``key``, in any upper or lower case."""
    by_upper = {name.upper(): name for name in known}
    near = difflib.get_close_matches(key.upper(), by_upper, n=3, cutoff=0.6)
    return [by_upper[name] for name in near]


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _files_beside(path: Path) -> str:
    """Name the YAML files a mistyped path may have meant."""
    ours = (found for home in ("configs", "projects") for found in Path(home).rglob("*.yml"))
    candidates = [str(found) for found in (*path.parent.glob("*.yml"), *ours)]
    near = difflib.get_close_matches(str(path), candidates, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


_CHOICES = {
    "INPUT.ON_ERROR": ("raise", "skip"),
    "SOLVER.AMP.DTYPE": ("bfloat16", "float16"),
    "TEST.METRIC": ("cosine", "euclidean", "dot"),
}


def _check_choices(cfg: CfgNode) -> None:
    values = dict(_leaves(cfg))
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise UserError(f"{key} is {values[key]!r}; it can be {' or '.join(choices)}")
    for key in ("SOLVER.ACCUMULATE", "SOLVER.LOG_PERIOD", "SOLVER.IMS_PER_BATCH"):
        if values[key] < 1:
            raise UserError(f"{key} is {values[key]}; it must be at least 1")
    without_gpu = not torch.cuda.is_available() or str(cfg.MODEL.DEVICE) == "cpu"
    if cfg.SOLVER.AMP.ENABLED and values["SOLVER.AMP.DTYPE"] == "float16" and without_gpu:
        raise UserError("SOLVER.AMP.DTYPE float16 needs a GPU; use bfloat16 on the CPU")

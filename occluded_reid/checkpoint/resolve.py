"""Find the files that a run's folder, a weights file or a model's name stands for."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from occluded_reid.checkpoint import zoo
from occluded_reid.checkpoint.sources import resolve_source
from occluded_reid.utils.errors import UserError, explain_read_errors, suggest
from occluded_reid.utils.files import read_regular

logger = logging.getLogger(__name__)


def resolve_weights(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Find the config.yaml (``""``: none) and the weights file that ``path`` stands for.

    ``path`` is a weights file, or a run's folder, whose weights are model_final.pth, else the file
    that last_checkpoint names, else model_best.pth; or a published folder with one .pth file or
    weights.safetensors; or, if there is no such path, the name of a model of the zoo; or
    ``hf://user/repo`` with such a folder.

    >>> resolve_weights("logs/demo")  # doctest: +SKIP
    ('logs/demo/config.yaml', 'logs/demo/model_final.pth')
    """
    if str(path).startswith("hf://"):
        return resolve_source(f"{path}/config.yaml"), resolve_source(str(path))
    weights, named = Path(path), zoo.list_models()
    if str(path) in named:
        if not weights.exists():
            return named[str(path)].find_files()
        logger.warning(f"{path} is what is here, not the zoo's model of that name")
    if weights.is_dir():
        weights = _newest_weights(weights)
    if not weights.is_file():
        raise UserError(
            f"there are no weights {weights}; expected a run's folder, a weights file or the name "
            f"of a model{suggest(str(path), named) or ' (occluded-reid zoo list)'}"
        )
    config = weights.with_name("config.yaml")
    return str(config) if config.is_file() else "", str(weights)


def resolve_run(path: str | os.PathLike[str], config_file: str = "") -> tuple[str, str]:
    """Find weights as :func:`resolve_weights` does, with ``config_file`` or their own config.yaml.

    Raises a UserError if there are no weights, or no configuration.
    """
    config, weights = resolve_weights(path)
    if not (config_file or config):
        raise UserError(
            f"no config.yaml beside {weights}; name a configuration: --config-file FILE, or "
            "config=FILE in Python"
        )
    return config_file or config, weights


def read_run_id(folder: Path) -> str | None:
    """Return ``RUN_ID`` in the config.yaml of a run's folder.

    It is ``""`` in those of earlier versions and of published folders; None without a config.yaml.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    with explain_read_errors(path, "it is the configuration of the weights beside it"):
        found = re.search(
            r"^RUN_ID:[ \t]*['\"]?(\w*)", read_regular(path, 2**18).decode(), re.MULTILINE
        )
    return found[1] if found else ""


def get_run_id(checkpoint: Mapping[str, Any]) -> str:
    """Return the id of the run that the content of a weights file is of; ``""`` without one."""
    run = checkpoint.get("run")
    found = run.get("id") if isinstance(run, dict) else ""
    return found if isinstance(found, str) else ""


def check_run_id(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Raise a UserError if a weights file is not of the run whose config.yaml is beside it.

    Of weights alone, without the states of a training, nobody can tell: that is a warning.
    """
    own, wanted = get_run_id(checkpoint), read_run_id(path.parent)
    if wanted and not own and "epoch" not in checkpoint:
        logger.warning(f"{path} does not tell whether it is of the run of config.yaml beside it")
    elif wanted is not None and own != wanted:
        raise UserError(
            f"{path} is of {f'the run {own}' if own else 'no named run'}, but config.yaml beside "
            f"it is of {f'the run {wanted}' if wanted else 'no named run'}: keep weights with the "
            "configuration of their own run"
        )


def read_last_checkpoint(run: str | os.PathLike[str]) -> str:
    """Return the name of the file that a run's last_checkpoint names; ``""`` if there is none.

    Raises a UserError unless it is the name of a file in this folder.
    """
    path, advice = Path(run, "last_checkpoint"), "write the name of a checkpoint beside it into it"
    if not os.path.lexists(path):
        return ""
    with explain_read_errors(path, advice):
        name = read_regular(path, 255).decode().strip()
    if not name.isprintable() or name in ("", "..") or Path(name).name != name:
        raise UserError(f"{path} does not name a file in its folder; {advice}")
    return name


def _newest_weights(run: Path) -> Path:
    names = ["model_final.pth", read_last_checkpoint(run), "model_best.pth"]
    weights = [run / name for name in names if name and (run / name).is_file()]
    published = sorted(run.glob("*.pth")) or sorted(run.glob("weights.safetensors"))
    if not weights and len(published) == 1:
        return published[0]
    if not weights:
        raise UserError(
            f"there are no weights in {run}; expected model_final.pth, the file that "
            "last_checkpoint names, model_best.pth, one published .pth file, or weights.safetensors"
        )
    if weights[0].name != names[0]:
        logger.warning(f"{run} has no {names[0]}: using {weights[0].name}")
    return weights[0]

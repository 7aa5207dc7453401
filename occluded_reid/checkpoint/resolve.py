"""Find the files that a run's folder, a weights file or a model's name stands for."""

from __future__ import annotations

import logging
import os
from pathlib import Path

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

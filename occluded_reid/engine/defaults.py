"""Prepare a run: its configuration, log, output folder and seed."""

from __future__ import annotations

import argparse
import logging
import textwrap
from pathlib import Path
from typing import Any

import torch
import yaml
from fastreid.config import CfgNode
from fastreid.utils import comm
from fastreid.utils.collect_env import collect_env_info

from occluded_reid.checkpoint.resolve import resolve_run, resolve_weights
from occluded_reid.config import changed_copy, get_cfg, leaves, load_config
from occluded_reid.config.methods import installed_methods
from occluded_reid.utils.distributed import same_on_all_ranks
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_write, explain_write_errors, make_folder
from occluded_reid.utils.logs import setup_logging
from occluded_reid.utils.random import seed_everything, seed_from_clock

logger = logging.getLogger(__name__)

NO_BREAK_SPACE = "\u00a0"

DATA_KEYS = ("DATASETS.NAMES", "DATASETS.SYNTHETIC", "DATASETS.COMBINEALL")
"""Prefixes of keys that a resumed run must not change."""

RESUMABLE_KEYS = (
    "DATALOADER.NUM_WORKERS", "DATASETS.", "INPUT.AUGMENTATION", "INPUT.CACHE", "INPUT.ON_ERROR",
    "MODEL.BACKBONE.PRETRAIN", "MODEL.COMPILE", "MODEL.DEVICE", "MODEL.WEIGHTS", "OUTPUT_DIR",
    "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD", "SOLVER.SPIKE_FACTOR", "TEST.",
)  # fmt: skip
"""Prefixes of keys that may change between the parts of a run without a warning."""

TRAINING_KEYS = (
    "DATALOADER.", "INPUT.AUGMENTATION", "INPUT.CACHE", "MODEL.BACKBONE.PRETRAIN", "MODEL.COMPILE",
    "MODEL.DEVICE", "MODEL.WEIGHTS", "OUTPUT_DIR", "SEED", "SOLVER.", "TEST.EVAL_PERIOD",
    "TEST.IMS_PER_BATCH",
)  # fmt: skip
"""Prefixes of keys that do not change the result of an evaluation."""


def load_run_config(args: argparse.Namespace) -> CfgNode:
    """Read the configuration that the command line names; fix its seed for all processes.

    ``--weights`` sets ``MODEL.WEIGHTS``. If nothing is trained, ``--config-file`` may be left out:
    the config.yaml beside the weights is taken, and ``OUTPUT_DIR`` is its folder.
    """
    setup_logging()
    options = vars(args)
    config_file, output, weights = args.config_file, "", options.get("weights", "")
    if weights and not config_file and options.get("eval_only", True):
        config_file, weights = resolve_run(weights)
        if Path(options["weights"]).exists():  # not a model by name: nothing is written beside it
            output = str(Path(config_file).parent)
    elif weights:
        _, weights = resolve_weights(weights)
    cfg = load_config(config_file, args.opts, add_keys=installed_methods(), also=args.also)
    seed = cfg.SEED
    if seed < 0:
        saved = _read_yaml(Path(cfg.OUTPUT_DIR, "config.yaml")) if options.get("resume") else {}
        seed = saved["SEED"] if isinstance(saved.get("SEED"), int) else seed_from_clock()
    with changed_copy(cfg) as cfg:
        cfg.SEED = seed
        cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS
        if output and "OUTPUT_DIR" not in args.opts:
            cfg.OUTPUT_DIR = output
    return cfg


def prepare_run(cfg: CfgNode, *, training: bool, resumed: bool = False) -> CfgNode:
    """Create ``OUTPUT_DIR``, open its log, write config.yaml; return ``cfg`` with rank 0's seed.

    A run that only evaluates (not ``training``) or continues that of ``OUTPUT_DIR`` (``resumed``)
    keeps its config.yaml, which describes the weights beside it; the trainer updates that of a
    resumed run once training starts. A UserError is raised if the folder cannot be written, or the
    run cannot be resumed with this configuration.
    """
    with changed_copy(cfg) as cfg:
        cfg.SEED = same_on_all_ranks(cfg.SEED)
    folder = make_folder(cfg.OUTPUT_DIR)
    with explain_write_errors(folder / "log.txt"):
        setup_logging(str(folder))
    _log_config(cfg)
    new = training and not resumed
    if not new and (folder / "last_checkpoint").is_file():
        _compare_with_saved(cfg, folder / "config.yaml", resumed=training)
    if new and (folder / "model_final.pth").is_file():
        logger.warning(f"{folder} holds a finished run, which this one overwrites")
    if comm.is_main_process() and (new or not (folder / "config.yaml").is_file()):
        write_config(cfg)
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # else a checkpoint would hold another GPU's random state
    seed_everything(cfg.SEED)
    if training:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    return cfg


def write_config(cfg: CfgNode) -> None:
    """Write config.yaml into ``OUTPUT_DIR``."""
    with atomic_write(Path(cfg.OUTPUT_DIR, "config.yaml"), "w") as stream:
        stream.write(cfg.dump())


def _log_config(cfg: CfgNode) -> None:
    """Log the keys that differ from the defaults; all keys and the environment to log.txt only."""
    logger.debug(f"Environment:\n{collect_env_info()}")
    logger.debug(f"Configuration:\n{cfg}")
    defaults = dict(leaves(get_cfg(installed_methods())))
    sections: dict[str, list[str]] = {}
    for key, value in leaves(cfg):
        if key not in defaults or value != defaults[key]:
            section, name = key.split(".", 1) if "." in key else ("", key)
            pair = f"{name} {value}".replace(" ", NO_BREAK_SPACE)
            sections.setdefault(section, []).append(pair)
    wrapper = textwrap.TextWrapper(
        100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
    )
    lines = [wrapper.fill(f"{key} {', '.join(each)}".lstrip()) for key, each in sections.items()]
    changed = "\n".join(lines).replace(NO_BREAK_SPACE, " ")
    logger.info(f"Keys that differ from the defaults:\n{changed}")
    logger.info(
        f"Rank {comm.get_rank()} of {comm.get_world_size()}, seed {cfg.SEED}. The whole "
        f"configuration is in {cfg.OUTPUT_DIR}/log.txt"
    )


def _compare_with_saved(cfg: CfgNode, path: Path, *, resumed: bool) -> None:
    """Warn of keys that differ from the run's config.yaml; refuse to resume with other data."""
    saved = dict(leaves(_read_yaml(path)))
    changes = [
        f"{key} {saved[key]} -> {value}"
        for key, value in leaves(yaml.safe_load(cfg.dump()))
        if key in saved and value != saved[key] and (key, value) != ("MODEL.HEADS.NUM_CLASSES", 0)
    ]
    if not resumed:
        if relevant := [change for change in changes if not change.startswith(TRAINING_KEYS)]:
            logger.warning(
                f"The configuration differs from {path} ({'; '.join(relevant)}), but the results "
                "beside it are overwritten; set OUTPUT_DIR to keep them"
            )
        return
    if data := [change for change in changes if change.startswith(DATA_KEYS)]:
        raise UserError(
            f"the run in {path.parent} was trained on other data ({'; '.join(data)}): resume it "
            "with the same data, or start a new run from its weights (MODEL.WEIGHTS)"
        )
    if relevant := [change for change in changes if not change.startswith(RESUMABLE_KEYS)]:
        logger.warning(f"Resuming with another configuration: {'; '.join(relevant)}")


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a run's config.yaml; return ``{}`` if there is none or it cannot be read."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}

"""Prepare a run: its configuration, log, output folder and seed."""

from __future__ import annotations

import argparse
import logging
import os
import textwrap
from pathlib import Path

import torch
from fastreid.config import CfgNode
from fastreid.utils import comm
from fastreid.utils.collect_env import collect_env_info

from occluded_reid.checkpoint.resolve import resolve_run, resolve_weights
from occluded_reid.config import changed_copy, get_cfg, leaves, load_config, read_yaml
from occluded_reid.config.methods import installed_methods
from occluded_reid.config.resume import Change, Rule, check_changes, find_changes
from occluded_reid.engine.folder import check_start, choose_run_id, open_log, write_config
from occluded_reid.modeling.keys import dump_config
from occluded_reid.utils.distributed import run_on_first_rank
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import explain_write_errors
from occluded_reid.utils.logs import setup_logging
from occluded_reid.utils.random import seed_everything, seed_from_clock

logger = logging.getLogger(__name__)

NO_BREAK_SPACE = "\u00a0"
FILLED_FIRST = ("DATASETS.OCCLUDED.ROOT", "DATASETS.SYNTHETIC.ROOT", "INPUT.CACHE")
"""Folders that are filled before a run claims its own."""


def load_run_config(args: argparse.Namespace) -> CfgNode:
    """Read the configuration that the command line names; fix its seed for all processes.

    ``--weights`` sets ``MODEL.WEIGHTS``. If nothing is trained, ``--config-file`` may be left out:
    the config.yaml beside the weights is taken, and ``OUTPUT_DIR`` is its folder.
    """
    setup_logging()
    options = vars(args)
    if options.get("overwrite") and (args.resume or args.eval_only):
        raise UserError("--overwrite starts a new run; leave out --resume and --eval-only")
    config_file, output, weights = args.config_file, "", options.get("weights", "")
    if weights and not config_file and options.get("eval_only", True):
        config_file, weights = resolve_run(weights)
        if Path(options["weights"]).exists():  # not a model by name: nothing is written beside it
            output = str(Path(config_file).parent)
    elif weights:
        _, weights = resolve_weights(weights)
    if not config_file and "eval_only" in options:
        raise UserError(
            "name a configuration: --config-file FILE; to evaluate a run, --weights RUN"
        )
    cfg = load_config(config_file, args.opts, add_keys=installed_methods(), also=args.also)
    seed = cfg.SEED
    if seed < 0:
        path = Path(cfg.OUTPUT_DIR, "config.yaml")
        saved = read_yaml(path) if options.get("resume") and os.path.lexists(path) else {}
        seed = saved["SEED"] if isinstance(saved.get("SEED"), int) else seed_from_clock()
    with changed_copy(cfg) as cfg:
        cfg.SEED = seed
        cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS
        if output and "OUTPUT_DIR" not in args.opts:
            cfg.OUTPUT_DIR = output
    return cfg


def prepare_run(
    cfg: CfgNode, *, training: bool, resumed: bool = False, overwrite: bool = False
) -> CfgNode:
    """Check that a run may start in ``OUTPUT_DIR``; return ``cfg`` with rank 0's seed and id.

    Nothing is written: the trainer claims the folder once everything else has been checked, and
    :func:`prepare_evaluation` opens it for an evaluation. The log is kept until then.
    """
    setup_logging(keep=True)
    run_id = cfg.RUN_ID
    if training:
        run_id = run_on_first_rank(lambda: _check_folder(cfg, resumed, overwrite))
    with changed_copy(cfg) as cfg:
        cfg.SEED, cfg.RUN_ID = run_on_first_rank(lambda: cfg.SEED), run_id
    _log_config(cfg)
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # else a checkpoint would hold another GPU's random state
    seed_everything(cfg.SEED)
    if training:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    return cfg


def _check_folder(cfg: CfgNode, resumed: bool, overwrite: bool) -> str:
    """Refuse at once what the trainer would refuse after it has opened, or drawn, the data.

    Returns the id of the run.
    """
    folder = Path(cfg.OUTPUT_DIR)
    with explain_write_errors(folder):  # a name that is too long, a folder that is not ours
        if not resumed:
            _check_folders_of_data(cfg, folder.resolve())
            check_start(cfg.OUTPUT_DIR, overwrite=overwrite)
        elif (folder / "config.yaml").is_file() and any(folder.glob("*.pth")):
            changes = find_changes(read_yaml(folder / "config.yaml"), dump_config(cfg))
            check_changes(changes, epochs=0, steps=0, max_epoch=1)
        return choose_run_id(cfg.OUTPUT_DIR, resume=resumed)


def _check_folders_of_data(cfg: CfgNode, output: Path) -> None:
    """Raise a UserError if something is to be kept in the folder that a new run claims."""
    values = dict(leaves(cfg))
    for key in FILLED_FIRST:
        if values[key] and Path(values[key]).resolve().is_relative_to(output):
            raise UserError(
                f"{key} {values[key]} is inside OUTPUT_DIR, which holds nothing but the run; set a "
                "folder beside it, which other runs can use too"
            )


def prepare_evaluation(cfg: CfgNode) -> None:
    """Open the log in ``OUTPUT_DIR``; write config.yaml unless it holds one, or any weights."""
    folder = Path(cfg.OUTPUT_DIR)
    open_log(folder)
    saved = folder / "config.yaml"
    if saved.is_file():
        changes = find_changes(read_yaml(saved), dump_config(cfg))
        if relevant := [str(change) for change in changes if _changes_results(change)]:
            logger.warning(
                f"The configuration differs from {saved} ({'; '.join(relevant)}), but the results "
                "beside it are overwritten; set OUTPUT_DIR to keep them"
            )
    elif comm.is_main_process() and not any(folder.glob("*.pth")):
        with changed_copy(cfg) as cfg:
            cfg.RUN_ID = ""  # the folder is no run's
        write_config(cfg)


def _changes_results(change: Change) -> bool:
    of_evaluation = change.key.startswith(("DATASETS.", "INPUT.", "MODEL.", "TEST."))
    return of_evaluation and change.rule in (Rule.BEST, Rule.REFUSED)


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

"""From the command line to a run that can start."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from fastreid.config import CfgNode
from fastreid.engine.defaults import default_argument_parser
from fastreid.utils import comm
from fastreid.utils.collect_env import collect_env_info
from fastreid.utils.logger import setup_logger

from occluded_reid.config import AddKeys, changed_copy, leaves, load_config
from occluded_reid.engine.hooks import LOGGERS
from occluded_reid.utils.distributed import same_on_all_ranks
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import make_folder, whole_file, write_errors_named
from occluded_reid.utils.random import seed_everything, seed_from_clock

logger = logging.getLogger(__name__)


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Return fast-reid's parser with options of ours (``--also``, ``--dry-run`` and others)."""
    parser = default_argument_parser()
    parser.description = description
    parser.set_defaults(dist_url="auto")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="FILE",
        help="a configuration that is read after --config-file, such as configs/test_all.yml",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="one training and one evaluation step on generated images; no data set is needed",
    )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="read checkpoints that hold Python objects: such a file can run code",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def weights_parser(description: str, config: str) -> argparse.ArgumentParser:
    """Return a parser with the options of the commands that read weights and write a file.

    Args:
        description: of the command.
        config: what ``--config-file`` means to it.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help=config)
    add("--trust-checkpoint", action="store_true", help="read Python objects: they can run code")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... of the configuration")
    return parser


def load_run_config(args: argparse.Namespace, add_keys: Iterable[AddKeys] = ()) -> CfgNode:
    """Read the configuration and settle its seed, before any process is started."""
    setup_logging()
    cfg = load_config(args.config_file, args.opts, add_keys=add_keys, also=args.also)
    seed = cfg.SEED
    if seed < 0:
        earlier = _seed_of_earlier_run(cfg.OUTPUT_DIR) if args.resume else None
        seed = seed_from_clock() if earlier is None else earlier
    with changed_copy(cfg) as cfg:
        cfg.SEED = seed
    return cfg


def setup_logging(folder: str | None = None) -> None:
    """Send the log to the terminal and, on every rank, to a file in ``folder``."""
    setup_logger.cache_clear()
    for name in LOGGERS:
        logging.getLogger(name).handlers.clear()
        setup_logger(
            folder,
            distributed_rank=comm.get_rank(),
            name=name,
            color=sys.stdout.isatty(),
        )


def prepare_run(cfg: CfgNode, *, training: bool, resumed: bool = False) -> CfgNode:
    """Make ``OUTPUT_DIR``, open its log, write config.yaml and seed everything.

    The config.yaml of a run that is evaluated, or goes on, stays as it is: weights that are there
    belong to it. The trainer writes that of a run that goes on once it does.

    Args:
        cfg: the configuration.
        training: not an evaluation alone.
        resumed: the run goes on where it was; else a finished one that is there is written over.

    Returns:
        The configuration with rank 0's seed.

    Raises:
        UserError: the folder cannot be written, or the run cannot go on with this configuration.
    """
    with changed_copy(cfg) as cfg:
        cfg.SEED = same_on_all_ranks(cfg.SEED)
    folder = make_folder(cfg.OUTPUT_DIR)
    with write_errors_named(folder / "log.txt"):
        setup_logging(str(folder))
    logger.info(f"Environment:\n{collect_env_info()}")
    logger.info(f"Configuration:\n{cfg}")
    logger.info(f"Seed {cfg.SEED}, rank {comm.get_rank()} of {comm.get_world_size()}")
    new = training and not resumed
    if not new and (folder / "last_checkpoint").is_file():
        compare_with_earlier(cfg, folder / "config.yaml", goes_on=training)
    if new and (folder / "model_final.pth").is_file():
        logger.warning(f"{folder} holds a finished run, which this one writes over")
    if comm.is_main_process() and (new or not (folder / "config.yaml").is_file()):
        with whole_file(folder / "config.yaml", "w") as stream:
            stream.write(cfg.dump())
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # else a checkpoint would hold another GPU's random state
    seed_everything(cfg.SEED)
    if training:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    return cfg


OF_THE_DATA = ("DATASETS.NAMES", "DATASETS.SYNTHETIC", "DATASETS.COMBINEALL")
OF_NO_RESULT = (
    "DATALOADER.", "INPUT.AUGMENTATION", "INPUT.CACHE", "MODEL.BACKBONE.PRETRAIN", "MODEL.COMPILE",
    "MODEL.DEVICE", "MODEL.WEIGHTS", "OUTPUT_DIR", "SEED", "SOLVER.", "TEST.EVAL_PERIOD",
    "TEST.IMS_PER_BATCH",
)  # fmt: skip
MAY_CHANGE = (
    "DATALOADER.NUM_WORKERS", "DATASETS.", "INPUT.AUGMENTATION", "INPUT.CACHE", "INPUT.ON_ERROR",
    "MODEL.BACKBONE.PRETRAIN", "MODEL.COMPILE", "MODEL.DEVICE", "MODEL.WEIGHTS", "OUTPUT_DIR",
    "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD", "SOLVER.SPIKE_FACTOR", "TEST.",
)  # fmt: skip


def compare_with_earlier(cfg: CfgNode, path: Path, *, goes_on: bool) -> None:
    """Compare the configuration of a run that goes on, or is evaluated, with its own config.yaml.

    Keys that have changed are warned of.

    Args:
        cfg: the configuration.
        path: of config.yaml.
        goes_on: the run is resumed.

    Raises:
        UserError: it would go on with other training data.
    """
    earlier = dict(leaves(_read_yaml(path)))
    now = dict(leaves(yaml.safe_load(cfg.dump())))
    changed = [
        f"{key} {earlier[key]} -> {value}"
        for key, value in now.items()
        if key in earlier
        and value != earlier[key]
        and (key, value) != ("MODEL.HEADS.NUM_CLASSES", 0)
    ]
    if not goes_on:
        if noted := [each for each in changed if not each.startswith(OF_NO_RESULT)]:
            logger.warning(
                f"This is not what {path} says ({'; '.join(noted)}), but the results beside it are "
                "written over; OUTPUT_DIR names another folder for them"
            )
        return
    if others := [each for each in changed if each.startswith(OF_THE_DATA)]:
        raise UserError(
            f"the run in {path.parent} was trained on other data ({'; '.join(others)}): resume "
            "with those, or start a new run from its weights (MODEL.WEIGHTS)"
        )
    if noted := [each for each in changed if not each.startswith(MAY_CHANGE)]:
        logger.warning(f"The run goes on with another configuration: {'; '.join(noted)}")


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read an earlier run's config.yaml; nothing where there is none that can be read."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _seed_of_earlier_run(folder: str) -> int | None:
    """The seed in ``folder/config.yaml``, so that a run drawn from the clock can be resumed."""
    seed = _read_yaml(Path(folder, "config.yaml")).get("SEED")
    return seed if isinstance(seed, int) else None

"""From the command line to a run that can start."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import yaml
from fastreid.config import CfgNode
from fastreid.engine.defaults import default_argument_parser
from fastreid.utils import comm
from fastreid.utils.collect_env import collect_env_info
from fastreid.utils.logger import setup_logger

from occluded_reid.config import AddKeys, load_config
from occluded_reid.distributed import same_on_all_ranks
from occluded_reid.engine.hooks import LOGGERS
from occluded_reid.engine.randomness import seed_everything, seed_from_clock
from occluded_reid.files import make_folder, whole_file, write_errors_named

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


def config_of_run(args: argparse.Namespace, add_keys: Iterable[AddKeys] = ()) -> CfgNode:
    """Read the configuration and settle its seed, before any process is started."""
    show_log()
    cfg = load_config(args.config_file, args.opts, add_keys=add_keys, also=args.also)
    seed = cfg.SEED
    if seed < 0:
        earlier = _seed_of_earlier_run(cfg.OUTPUT_DIR) if args.resume else None
        seed = seed_from_clock() if earlier is None else earlier
    cfg.defrost()
    cfg.SEED = seed
    cfg.freeze()
    return cfg


def show_log(folder: str | None = None) -> None:
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

    Args:
        cfg: the configuration.
        training: not an evaluation alone.
        resumed: the run goes on where it was; else a finished one that is there is written over.

    Returns:
        The configuration with rank 0's seed.

    Raises:
        UserError: the folder cannot be written.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = same_on_all_ranks(cfg.SEED)
    cfg.freeze()
    folder = make_folder(cfg.OUTPUT_DIR)
    with write_errors_named(folder / "log.txt"):
        show_log(str(folder))
    logger.info(f"Environment:\n{collect_env_info()}")
    logger.info(f"Configuration:\n{cfg}")
    logger.info(f"Seed {cfg.SEED}, rank {comm.get_rank()} of {comm.get_world_size()}")
    if comm.is_main_process():
        if training and not resumed and (folder / "model_final.pth").is_file():
            logger.warning(f"{folder} holds a finished run, which this one writes over")
        with whole_file(folder / "config.yaml", "w") as stream:
            stream.write(cfg.dump())
    seed_everything(cfg.SEED)
    if training:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    return cfg


def _seed_of_earlier_run(folder: str) -> int | None:
    """The seed in ``folder/config.yaml``, so that a run drawn from the clock can be resumed."""
    try:
        earlier = yaml.safe_load(Path(folder, "config.yaml").read_text())
        return int(earlier["SEED"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None

"""Train a model, evaluate one, or try a configuration, as the command line asks."""

from __future__ import annotations

import argparse
import logging
from importlib import metadata

from fastreid.config import CfgNode

from occluded_reid.checkpoint.sources import resolve_source
from occluded_reid.config import leaves
from occluded_reid.config.methods import installed_methods
from occluded_reid.engine.defaults import load_run_config, prepare_evaluation, prepare_run
from occluded_reid.engine.dry_run import dry_run
from occluded_reid.engine.launch import launch
from occluded_reid.engine.trainer import Trainer
from occluded_reid.evaluation.testing import evaluate_weights
from occluded_reid.utils.distributed import check_agreement, find_differences
from occluded_reid.utils.memory import keep_freed_memory

logger = logging.getLogger(__name__)

_OF_A_MACHINE = (
    "CUDNN_BENCHMARK", "DATALOADER.NUM_WORKERS", "DATASETS.OCCLUDED.ROOT",
    "DATASETS.SYNTHETIC.ROOT", "INPUT.CACHE", "MODEL.DEVICE", "OUTPUT_DIR", "RUN_ID", "SEED",
)  # fmt: skip
"""Keys that may differ between machines; of the last two, all take rank 0's value."""
_PATHS = ("MODEL.BACKBONE.PRETRAIN_PATH", "MODEL.WEIGHTS")
"""Keys whose file may lie elsewhere on each machine."""
_OPTIONS = ("eval_only", "overwrite", "resume")


def run(args: argparse.Namespace) -> None:
    """Do what ``tools/train_net.py`` does with these options."""
    cfg = load_run_config(args)
    if args.dry_run:
        return dry_run(cfg)
    backbone = cfg.MODEL.BACKBONE
    if backbone.PRETRAIN and backbone.PRETRAIN_PATH and not args.eval_only:
        resolve_source(backbone.PRETRAIN_PATH)  # stops a run, or downloads, before anything starts
    launch(
        _run_process, cfg, args, device=cfg.MODEL.DEVICE, processes=args.num_gpus,
        machines=args.num_machines, machine_rank=args.machine_rank, url=args.dist_url,
    )  # fmt: skip


def _run_process(cfg: CfgNode, args: argparse.Namespace) -> None:
    installed_methods()  # registers their models: a spawned process starts without them
    keep_freed_memory()
    _compare_ranks(cfg, args)
    training = not args.eval_only
    cfg = prepare_run(cfg, training=training, resumed=args.resume, overwrite=args.overwrite)
    trust = args.trust_checkpoint
    if args.eval_only:
        evaluate_weights(cfg, trust_checkpoint=trust, begin=lambda: prepare_evaluation(cfg))
        return
    trainer = Trainer(cfg, trust_checkpoint=trust, overwrite=args.overwrite)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def _compare_ranks(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Refuse ranks that are to do other things, before anything is written; warn of versions."""
    options = {f"--{name.replace('_', '-')}": vars(args)[name] for name in _OPTIONS}
    keys = {
        key: bool(value) if key in _PATHS else value
        for key, value in leaves(cfg)
        if key not in _OF_A_MACHINE
    }
    check_agreement(options | keys)
    packages = ("torch", "timm", "numpy", "pillow")
    versions = {name: metadata.version(name) for name in packages}
    if differences := find_differences(versions):
        logger.warning(f"The processes of this job differ: {'; '.join(differences)}")

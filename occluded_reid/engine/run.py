"""Train a model, evaluate one, or try a configuration, as the command line asks."""

from __future__ import annotations

import argparse

from fastreid.config import CfgNode

from occluded_reid.checkpoint.sources import resolve_source
from occluded_reid.config.methods import installed_methods
from occluded_reid.engine.defaults import load_run_config, prepare_run
from occluded_reid.engine.dry_run import dry_run
from occluded_reid.engine.launch import launch
from occluded_reid.engine.trainer import Trainer
from occluded_reid.evaluation.testing import evaluate_weights


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
    cfg = prepare_run(cfg, training=not args.eval_only, resumed=args.resume)
    if args.eval_only:
        evaluate_weights(cfg, trust_checkpoint=args.trust_checkpoint)
        return
    trainer = Trainer(cfg, trust_checkpoint=args.trust_checkpoint)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()

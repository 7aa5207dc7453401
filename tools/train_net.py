#!/usr/bin/env python
"""Train a model, or evaluate one (--eval-only)."""

from __future__ import annotations

import argparse
import sys

from methods import ADD_KEYS

from occluded_reid.config import CfgNode
from occluded_reid.engine.defaults import argument_parser, load_run_config, prepare_run
from occluded_reid.engine.dry_run import dry_run
from occluded_reid.engine.launch import launch
from occluded_reid.engine.trainer import Trainer
from occluded_reid.evaluation.testing import evaluate_weights
from occluded_reid.utils.cli import run_command


def main(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What each process of the job does."""
    cfg = prepare_run(cfg, training=not args.eval_only, resumed=args.resume)
    if args.eval_only:
        evaluate_weights(cfg, trust_checkpoint=args.trust_checkpoint)
        return
    trainer = Trainer(cfg, trust_checkpoint=args.trust_checkpoint)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def start(args: argparse.Namespace) -> None:
    """Read the configuration and start the processes."""
    cfg = load_run_config(args, ADD_KEYS)
    if args.dry_run:
        dry_run(cfg)
        return
    launch(
        main,
        cfg,
        args,
        device=cfg.MODEL.DEVICE,
        processes=args.num_gpus,
        machines=args.num_machines,
        machine_rank=args.machine_rank,
        url=args.dist_url,
    )


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = argument_parser(__doc__).parse_args(words)
    return run_command(lambda: start(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

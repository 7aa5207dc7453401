"""Continue a run from its checkpoint, also with a configuration that has changed since."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from fastreid.config import CfgNode
from fastreid.engine.hooks import LRScheduler
from fastreid.utils import comm
from fastreid.utils.events import EventStorage

from occluded_reid.config import changed_copy, parse_yaml, read_yaml
from occluded_reid.config.resume import Change, Rule, check_changes, find_changes
from occluded_reid.engine.folder import Checkpoint, write_config
from occluded_reid.engine.hooks import truncate_metrics
from occluded_reid.engine.optimizer import build_lr_schedulers, build_optimizer
from occluded_reid.evaluation.results import are_results_of
from occluded_reid.modeling.keys import dump_config
from occluded_reid.utils.distributed import run_on_first_rank
from occluded_reid.utils.errors import UserError

Trainer = Any  # of engine.trainer, which imports this module

logger = logging.getLogger(__name__)


def compare_with_run(cfg: CfgNode, found: Checkpoint, data: str) -> list[Change]:
    """Return what has changed since the checkpoint; log it, or raise a UserError.

    ``data`` is the digest of the training set, which must not have changed.
    """
    if found.config:
        saved = parse_yaml(lambda: found.config, f"run/config in {found.path}")
    else:
        saved = read_yaml(Path(cfg.OUTPUT_DIR, "config.yaml"))
    changes = find_changes(saved, dump_config(cfg))
    check_changes(
        changes, epochs=found.epoch + 1, steps=found.steps, max_epoch=cfg.SOLVER.MAX_EPOCH
    )
    if found.data and found.data != data:
        raise UserError(
            f"the run in {cfg.OUTPUT_DIR} was trained on other data: the files, identities or "
            f"cameras of {', '.join(cfg.DATASETS.NAMES)} have changed. Resume it with the same "
            "data, or start a new run from its weights (MODEL.WEIGHTS)"
        )
    if relevant := [change for change in changes if change.rule not in (Rule.FREE, Rule.START)]:
        logger.warning(
            "Resuming with another configuration: "
            + "; ".join(f"{change} ({change.rule.value})" for change in relevant)
        )
    if found.processes not in (0, processes := comm.get_world_size()):
        logger.warning(
            f"The run was trained by {found.processes} processes and goes on with {processes}: "
            "batch statistics and hard mining are those of another share of a batch"
        )
    return changes


def load_run(trainer: Trainer) -> dict[str, Any]:
    """Load the checkpoint ``trainer.resumed``; return what it holds besides the states.

    After a change of the solver, the state of each parameter (momentum) goes on if the optimizer is
    of the same kind; rates and other options are those of the new configuration.
    """
    checkpointer, path, cfg = trainer.checkpointer, trainer.resumed.path, trainer.cfg
    changes = [change for change in trainer.changes if change.key.startswith("SOLVER.")]
    if not {change.rule for change in changes} & {Rule.ONWARD, Rule.OPTIMIZER, Rule.SCHEDULE}:
        return checkpointer.resume(path)
    with changed_copy(cfg) as before:
        for change in changes:
            before.merge_from_list([change.key, change.old])
    # what the file holds fits an optimizer of its own configuration
    optimizer = build_optimizer(before, checkpointer.model)
    schedulers = build_lr_schedulers(before, optimizer, trainer.iters_per_epoch)
    own = checkpointer.checkpointables
    checkpointer.checkpointables = {**own, "optimizer": optimizer, **schedulers}
    extra = checkpointer.resume(path)
    checkpointer.checkpointables = own
    if type(optimizer) is type(trainer.optimizer):
        trainer.optimizer.state.update(optimizer.state)
    _replay_schedule(trainer)
    return extra


def _replay_schedule(trainer: Trainer) -> None:
    """Bring the new schedulers to where they are after the iterations that are done."""
    hook = next(each for each in trainer._hooks if isinstance(each, LRScheduler))
    length = trainer.iters_per_epoch
    steps = min(trainer.resumed.steps, length)  # more are refused later
    with EventStorage() as trainer.storage, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch misses the steps of the optimizer
        for done in range(trainer.start_epoch * length + steps):
            trainer.iter, trainer.epoch = done, done // length
            hook.before_step()
            hook.after_step()
            if (done + 1) % length == 0 and trainer.epoch < trainer.start_epoch:
                trainer.iter = done + 1
                hook.after_epoch()


def rename_former_end(trainer: Trainer) -> None:
    """Rename the model_final.pth of a run that goes on, which has not ended after all.

    Else its folder would stand for those weights. It is model_former.pth if the run goes on from
    an earlier checkpoint.
    """
    found, former = trainer.resumed, Path(trainer.cfg.OUTPUT_DIR, "model_final.pth")
    if found is None or not former.exists():
        return
    goes_on_from_it = Path(found.path).name == former.name
    name = f"model_{found.epoch:04d}.pth" if goes_on_from_it else "model_former.pth"
    former.rename(former.with_name(name))
    if goes_on_from_it:
        trainer.checkpointer.tag_last_checkpoint(name)


def complete_epoch(trainer: Trainer) -> None:
    """Complete the epoch of the checkpoint: its evaluation failed, or the end was not reached.

    What has been done already is left out.
    """
    found, folder = trainer.resumed, Path(trainer.cfg.OUTPUT_DIR)
    evaluation, writer, saver = trainer.ending
    trainer.epoch = trainer.storage.epoch = found.epoch
    if not found.evaluated:
        if writer:
            truncate_metrics(folder / "metrics.json", trainer.storage.iter, trainer.cfg.RUN_ID)
            writer.before_train()
        evaluation.after_epoch()
        if writer:
            writer.after_epoch()
            writer.after_train()
    elif not trainer.is_last_epoch:
        return
    elif any(change.rule is Rule.BEST for change in trainer.changes) or not _has_results(trainer):
        evaluation.after_epoch()
        if writer:  # on rank 0
            write_config(trainer.cfg)
    elif Path(found.path).name == "model_final.pth":
        logger.info(
            f"The run in {folder} has finished {trainer.max_epoch} epochs, SOLVER.MAX_EPOCH is "
            f"{trainer.max_epoch}: nothing to do"
        )
        return
    saver.after_epoch()


def _has_results(trainer: Trainer) -> bool:
    path = Path(trainer.cfg.OUTPUT_DIR, "results.json")
    return run_on_first_rank(lambda: are_results_of(path, trainer.evaluated_model())) is True

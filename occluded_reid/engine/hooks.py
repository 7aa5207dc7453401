"""What the trainer does between iterations."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastreid.engine.hooks import PeriodicWriter
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from occluded_reid.checkpoint.checkpointer import Checkpointer
from occluded_reid.utils.distributed import copy_buffers_from_first_rank, unwrapped
from occluded_reid.utils.files import whole_file
from occluded_reid.utils.progress import on_terminal

logger = logging.getLogger(__name__)


class MetricsWriter(PeriodicWriter):
    """Writes an epoch's last iteration after its evaluation, with what that has found.

    fast-reid's writes it before, and never writes an iteration twice.
    """

    def after_step(self) -> None:
        """Write where it is due, unless the end of the epoch does."""
        if (self.trainer.iter + 1) % self.trainer.iters_per_epoch:
            super().after_step()


class EvaluateAndSave(HookBase):
    """Evaluate, then save; in this order, so that a checkpoint knows the metric of its weights.

    Before both, all ranks take rank 0's buffers: what is evaluated is what is saved.

    ``model_best`` is the checkpoint of the highest (Rank-1 + mAP) / 2 on the *first* data set of
    ``DATASETS.TESTS``. It is meant for validation splits: a number read off it on a test set was
    chosen on that test set.

    Args:
        checkpointer: writes the checkpoints.
        evaluate: returns the metric.
        eval_period: epochs between evaluations; 0 for the last epoch only.
        save_period: epochs between checkpoints.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        evaluate: Callable[[], float],
        eval_period: int,
        save_period: int,
    ):
        self._checkpointer = checkpointer
        self._evaluate = evaluate
        self._eval_period = eval_period
        self._save_period = save_period
        self.best_metric = -1.0

    def after_epoch(self) -> None:
        """Evaluate where it is due; save where it is due or the evaluation failed."""
        epoch, is_last = self.trainer.epoch, self.trainer.epoch + 1 == self.trainer.max_epoch
        is_best = False
        copy_buffers_from_first_rank(unwrapped(self.trainer.model))
        try:
            if is_last or _is_due(epoch, self._eval_period):
                metric = self._evaluate()
                is_best = metric > self.best_metric
                self.best_metric = max(metric, self.best_metric)
                comm.synchronize()
        except Exception:
            self._save(f"model_{epoch:04d}")
            raise
        if is_best:
            self._save("model_best")
        if is_last:
            self._save("model_final")
        elif _is_due(epoch, self._save_period):
            self._save(f"model_{epoch:04d}")

    def _save(self, name: str) -> None:
        self._checkpointer.save(name, epoch=self.trainer.epoch, best_metric=self.best_metric)


def _is_due(epoch: int, period: int) -> bool:
    return period > 0 and (epoch + 1) % period == 0


class TrainingBar(HookBase):
    """A progress bar over the iterations of the run, on a terminal."""

    def before_train(self) -> None:
        """Show the bar; log lines appear above it."""
        loggers = [logging.getLogger(name) for name in LOGGERS]
        self._redirect: Any = logging_redirect_tqdm(loggers=loggers)
        self._redirect.__enter__()
        self._bar = tqdm(
            total=self.trainer.max_iter, initial=self.trainer.start_iter, desc="Training", unit="it"
        )

    def after_step(self) -> None:
        """Advance by one iteration."""
        self._bar.update()
        latest = self.trainer.storage.latest()
        if "total_loss" in latest:
            self._bar.set_postfix(
                epoch=self.trainer.epoch, loss=f"{latest['total_loss'][0]:.3f}", refresh=False
            )

    def after_train(self) -> None:
        """Take the bar away."""
        self._bar.close()
        self._redirect.__exit__(None, None, None)


LOGGERS = ("fastreid", "occluded_reid", "fed_plugin", "aonet_plugin", "gallery_search")


def training_bar() -> TrainingBar | None:
    """A bar where a person watches the main process."""
    return TrainingBar() if on_terminal() and comm.is_main_process() else None


def forget_metrics_from(path: Path, iteration: int) -> None:
    """Drop the lines of metrics.json that a resumed run is about to write again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["iteration"] < iteration:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            logger.warning(f"Left out a damaged line of {path}")
    with whole_file(path, "w") as stream:
        stream.writelines(f"{line}\n" for line in kept)

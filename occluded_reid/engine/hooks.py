"""What the trainer does between iterations and after epochs."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fastreid.config import CfgNode
from fastreid.engine.hooks import LRScheduler, PeriodicWriter
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from PIL import Image
from tqdm import tqdm

from occluded_reid.evaluation.evaluator import Evaluator
from occluded_reid.utils.distributed import copy_buffers_from_first_rank, unwrapped
from occluded_reid.utils.errors import explain_read_errors
from occluded_reid.utils.files import atomic_write, read_json_lines
from occluded_reid.utils.progress import SECONDS_BETWEEN_LINES, on_terminal
from occluded_reid.visualization import figures
from occluded_reid.visualization.sheet import draw_sheet

logger = logging.getLogger(__name__)


class IterationScheduler(LRScheduler):
    """fast-reid's learning-rate hook, but after the warm-up each iteration steps the schedule."""

    def after_step(self) -> None:
        super().after_step()
        trainer = self.trainer
        delay = trainer.delay_epochs * trainer.iters_per_epoch
        if trainer.iter + 1 > max(trainer.warmup_iters, delay):
            self._scheduler["lr_sched"].step()

    def after_epoch(self) -> None:
        """Leave out fast-reid's step."""


class MetricsFile:
    """The file behind fast-reid's JSONWriter: metrics.json, in which each line names its run."""

    def __init__(self, path: str, run_id: str):
        self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115  (the writer closes it)
        self._run_id = run_id
        self.close = self._file.close

    def write(self, line: str) -> None:
        """Write a line of JSON."""
        self._file.write(json.dumps({**json.loads(line), "run_id": self._run_id}) + "\n")

    def flush(self) -> None:
        """Write what is buffered to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())


def adapt_writers(writers: list[Any], cfg: CfgNode) -> list[Any]:
    """Let fast-reid's writers name the run in metrics.json and group TensorBoard's scalars."""
    _, metrics, events = writers
    metrics.close()
    metrics._file_handle = MetricsFile(f"{cfg.OUTPUT_DIR}/metrics.json", cfg.RUN_ID)
    add_scalar = events._writer.add_scalar
    events._writer.add_scalar = lambda name, *rest: add_scalar(_group(name), *rest)
    return writers


def _group(name: str) -> str:
    """Return the name of a scalar in TensorBoard, which groups by what stands before a slash."""
    if "/" in name:  # a metric of one of several test sets
        return name
    group = "loss" if "loss" in name else "test" if re.match("Rank-|m[A-Z]", name) else "training"
    return f"{group}/{name}"


class MetricsWriter(PeriodicWriter):
    """Writes the metrics every ``period`` iterations; the log gets a line at least every 30 s.

    The last iteration of an epoch is written after the epoch's evaluation, together with its
    results. fast-reid writes it before, and never writes an iteration twice. ``build`` opens the
    writers when the training begins; the first writes log lines.
    """

    def __init__(self, build: Callable[[], list[Any]], period: int):
        super().__init__([], period)
        self._build = build

    def before_train(self) -> None:
        self._writers = self._build()
        self._last_line = time.monotonic()

    def after_step(self) -> None:
        iteration = self.trainer.iter + 1
        if iteration % self.trainer.iters_per_epoch == 0:
            return
        is_silent = time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES
        if iteration % self._period == 0:
            self._write(self._writers)
        elif is_silent and not on_terminal():  # a terminal has the progress bar
            self._write(self._writers[:1])

    def after_epoch(self) -> None:
        self._write(self._writers)

    def _write(self, writers: list[Any]) -> None:
        self._last_line = time.monotonic()
        for writer in writers:
            writer.write()


class EvaluationHook(HookBase):
    """Evaluates where it is due, and keeps the best metric.

    It is the highest (Rank-1 + mAP) / 2 on the *first* data set of ``DATASETS.TESTS``. Before, all
    ranks take rank 0's buffers, and those of its average, so that what is evaluated is what is
    saved.
    """

    def __init__(self) -> None:
        self.best_metric = -1.0
        self.is_best = False

    def after_epoch(self) -> None:
        """Evaluate; if that fails, save the epoch as one whose evaluation is to come."""
        trainer = self.trainer
        self.is_best = False
        copy_buffers_from_first_rank(unwrapped(trainer.model))
        if trainer.ema is not None:
            copy_buffers_from_first_rank(trainer.ema.module)
        if not (trainer.is_last_epoch or _is_due(trainer.epoch, trainer.cfg.TEST.EVAL_PERIOD)):
            return
        try:
            metric = trainer.evaluate()
        except Exception:
            trainer.save(f"model_{trainer.epoch:04d}", evaluated=False)
            raise
        self.is_best = metric > self.best_metric
        self.best_metric = max(metric, self.best_metric)
        comm.synchronize()


class CheckpointHook(HookBase):
    """Saves after the evaluation and its metrics, so that a checkpoint is of a complete epoch.

    ``model_best`` is meant for validation splits: chosen on a test set, its result on that set is
    biased.
    """

    def __init__(self, evaluation: EvaluationHook):
        self._evaluation = evaluation

    def after_epoch(self) -> None:
        """Save the best, the last and the due checkpoints."""
        trainer = self.trainer
        if self._evaluation.is_best:
            trainer.save("model_best")
        if trainer.is_last_epoch:
            trainer.save("model_final")
        elif _is_due(trainer.epoch, trainer.cfg.SOLVER.CHECKPOINT_PERIOD):
            trainer.save(f"model_{trainer.epoch:04d}")


def _is_due(epoch: int, period: int) -> bool:
    return period > 0 and (epoch + 1) % period == 0


class Pictures(HookBase):
    """Puts the first batch and, of each evaluation, the worst queries into TensorBoard's events."""

    def before_step(self) -> None:
        trainer = self.trainer
        if trainer.iter == trainer.start_iter:
            batch = trainer._trainer.peek_batch()
            self._put("batch", draw_sheet(figures.show_batch(trainer.cfg, batch)))

    def show_ranks(self, name: str, evaluator: Evaluator) -> None:
        """Show the worst queries of a test set that has been evaluated."""
        self._put(f"worst queries/{name}", figures.draw_ranked_lists(name, evaluator, worst=5))

    def _put(self, name: str, picture: Image.Image) -> None:
        self.trainer.storage.put_image(name, np.asarray(picture).transpose(2, 0, 1))


class ProgressBar(HookBase):
    """Shows the iterations of the run and the loss, on the main process's terminal."""

    def before_train(self) -> None:
        self._bar = tqdm(
            total=self.trainer.max_iter, initial=self.trainer.start_iter, desc="Training", unit="it"
        )

    def after_step(self) -> None:
        self._bar.update()
        latest = self.trainer.storage.latest()
        if "total_loss" in latest:
            loss = f"{latest['total_loss'][0]:.3f}"
            self._bar.set_postfix(epoch=self.trainer.epoch, loss=loss, refresh=False)

    def after_train(self) -> None:
        self._bar.close()


def truncate_metrics(path: Path, iteration: int, run_id: str) -> None:
    """Drop the lines of metrics.json that a run resumed at ``iteration`` will write again.

    Those of another run are dropped too.
    """
    if not path.exists():
        return
    kept = []
    with explain_read_errors(path, "move it away to go on without it"):
        lines = read_json_lines(path)
    for line, content in lines:
        number = content.get("iteration") if isinstance(content, dict) else None
        if not isinstance(number, int):
            logger.warning(f"Dropped a damaged line of {path}")
        elif number < iteration and content.get("run_id", "") == run_id:
            kept.append(line)
    with atomic_write(path, "w") as stream:
        stream.writelines(f"{line}\n" for line in kept)

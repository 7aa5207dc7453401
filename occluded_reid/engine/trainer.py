"""The trainer of every method, based on fast-reid's DefaultTrainer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fastreid.config import CfgNode
from fastreid.engine import defaults
from fastreid.engine import hooks as fastreid_hooks
from fastreid.engine.train_loop import TrainerBase
from fastreid.utils import comm
from fastreid.utils.events import EventStorage
from fastreid.utils.precision_bn import get_bn_modules
from timm.utils import ModelEmaV3

from occluded_reid.checkpoint.checkpointer import Checkpointer
from occluded_reid.config import changed_copy
from occluded_reid.data.build import build_test_loader, build_train_loader
from occluded_reid.data.loader import ReidLoader
from occluded_reid.engine import hooks, interruption
from occluded_reid.engine.defaults import write_config
from occluded_reid.engine.optimizer import build_lr_schedulers, build_optimizer
from occluded_reid.engine.train_step import TrainingStep, wrap_model
from occluded_reid.evaluation import testing
from occluded_reid.modeling.build import build_model, log_model
from occluded_reid.utils.distributed import unwrapped
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import remove_unfinished
from occluded_reid.utils.progress import on_terminal
from occluded_reid.utils.random import derive_seed, seed_everything

logger = logging.getLogger(__name__)

INTERRUPTED = "model_interrupted"  # the checkpoint that SIGTERM leaves in the middle of an epoch


class Trainer(defaults.DefaultTrainer):
    """Trains a model; a run depends on nothing but its configuration, seed and data.

    Each epoch starts from generators seeded by ``(SEED, epoch, rank)`` and from rank 0's buffers on
    every rank. A resumed run therefore equals one that was never interrupted, bit for bit.

    ``OUTPUT_DIR`` must exist and ``SEED`` not be negative. With ``trust_checkpoint`` a checkpoint
    may hold pickled Python objects, which can run code.

    >>> trainer = Trainer(prepare_run(cfg, training=True))
    >>> trainer.resume_or_load(resume=False)
    >>> reports = trainer.train()
    """

    def __init__(self, cfg: CfgNode, *, trust_checkpoint: bool = False):
        TrainerBase.__init__(self)
        self._trust = trust_checkpoint
        seed_everything(cfg.SEED)
        loader = build_train_loader(cfg)
        dataset: Any = loader.dataset
        cfg = _set_num_classes(cfg, dataset.num_classes)
        model = build_model(cfg)
        log_model(cfg, model)
        optimizer = build_optimizer(cfg, model)
        self.ema = ModelEmaV3(model, cfg.MODEL.EMA.DECAY) if cfg.MODEL.EMA.ENABLED else None
        self.cfg = cfg
        self.iters_per_epoch = len(dataset) // cfg.SOLVER.IMS_PER_BATCH
        self.start_epoch, self.max_epoch = 0, cfg.SOLVER.MAX_EPOCH
        self._partial_epoch: dict[str, Any] | None = None  # left by SIGTERM
        self.max_iter = self.max_epoch * self.iters_per_epoch
        self.warmup_iters, self.delay_epochs = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.DELAY_EPOCHS
        self._trainer = TrainingStep(
            cfg, wrap_model(cfg, model), loader, optimizer,
            iters_per_epoch=self.iters_per_epoch, ema=self.ema,
        )  # fmt: skip
        self.scheduler = build_lr_schedulers(cfg, optimizer, self.iters_per_epoch)
        states = {"ema": self.ema, "grad_scaler": self._trainer.grad_scaler, **self.scheduler}
        self.checkpointer = Checkpointer(
            model, cfg.OUTPUT_DIR, num_classes=cfg.MODEL.HEADS.NUM_CLASSES,
            trust=trust_checkpoint, save_to_disk=comm.is_main_process(), optimizer=optimizer,
            **{name: state for name, state in states.items() if state is not None},
        )  # fmt: skip
        self._last_eval_results: dict[str, Any] = {}
        self._checkpoint_hook = hooks.EvalCheckpointHook()
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[Any]:
        """Return the hooks in the order they run; evaluation sees precise batch statistics."""
        cfg = self.cfg
        model: Any = unwrapped(self.model)
        frozen, freeze_iters = cfg.MODEL.FREEZE_LAYERS, cfg.SOLVER.FREEZE_ITERS
        freeze = fastreid_hooks.LayerFreeze(self.model, frozen, freeze_iters)
        by_iteration = cfg.SOLVER.SCHED_BY == "ITERATION"
        scheduler = hooks.IterationScheduler if by_iteration else fastreid_hooks.LRScheduler
        return [
            fastreid_hooks.IterationTimer(),
            scheduler(self.optimizer, self.scheduler),
            self._build_precise_bn(),
            freeze if frozen and freeze_iters > 0 else None,
            hooks.ProgressBar() if on_terminal() and comm.is_main_process() else None,
            *(model.training_hooks(cfg) if hasattr(model, "training_hooks") else []),
            self._checkpoint_hook,
        ]

    def _build_precise_bn(self) -> Any:
        if not self.cfg.TEST.PRECISE_BN.ENABLED or not get_bn_modules(self.model):
            return None
        with changed_copy(self.cfg) as cfg:
            cfg.DATALOADER.NUM_WORKERS = 0
            cfg.DATASETS.NAMES = (cfg.TEST.PRECISE_BN.DATASET,)
        num_iter, loader = cfg.TEST.PRECISE_BN.NUM_ITER, build_train_loader(cfg)
        return fastreid_hooks.PreciseBN(self.model, loader, num_iter)

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint in ``OUTPUT_DIR`` to ``resume`` it, or else ``MODEL.WEIGHTS``.

        Raises:
            UserError: the weights do not fit, or the run cannot be resumed.
        """
        resume = resume and self.checkpointer.has_checkpoint()
        if resume and comm.is_main_process():
            interruption.skip_damaged_checkpoints(self.checkpointer, trust=self._trust)
        comm.synchronize()
        extra = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume:
            self.start_epoch = extra["epoch"] + 1
            self._checkpoint_hook.best_metric = extra.get("best_metric", -1.0)
            self._partial_epoch = interruption.read_partial_epoch(
                extra, self.cfg.OUTPUT_DIR, unwrapped(self.model)
            )

    def train(self) -> dict[str, Any]:
        """Run the remaining epochs; return the last evaluation's reports (on rank 0).

        Raises:
            UserError: a test set cannot be used (before anything is trained), a loss is not finite,
                an image cannot be read, or the disk is full.
        """
        if self.start_epoch >= self.max_epoch:
            return self._finish_run()
        testing.open_test_sets(self.cfg, {item[1] for item in self.data_loader.dataset.img_items})
        steps = self._partial_epoch["steps"] if self._partial_epoch else 0
        self.iter = self.start_iter = self.start_epoch * self.iters_per_epoch + steps
        batches = self.data_loader.batch_sampler
        batches.start_epoch, batches.start_batch = self.start_epoch, steps
        if comm.is_main_process():
            remove_unfinished(Path(self.cfg.OUTPUT_DIR))
            hooks.truncate_metrics(Path(self.cfg.OUTPUT_DIR, "metrics.json"), self.start_iter)
            period = self.cfg.SOLVER.LOG_PERIOD
            self.register_hooks([hooks.MetricsWriter(self.build_writers(), period)])
        logger.info(f"Training from epoch {self.start_epoch} to {self.max_epoch}")
        with EventStorage(self.start_iter) as self.storage, interruption.StopRequest() as stop:
            self.before_train()
            if comm.is_main_process():  # all checks have passed
                write_config(self.cfg)
            try:
                for epoch in range(self.start_epoch, self.max_epoch):
                    self.epoch = epoch
                    self.before_epoch()
                    self._run_steps(stop)
                    self.after_epoch()
            finally:
                self.after_train()
        if comm.is_main_process():
            Path(self.cfg.OUTPUT_DIR, f"{INTERRUPTED}.pth").unlink(missing_ok=True)
        return self._last_eval_results

    def _run_steps(self, stop: interruption.StopRequest) -> None:
        """Run the remaining iterations of this epoch."""
        while self.iter < (self.epoch + 1) * self.iters_per_epoch:
            self.before_step()
            self.run_step()
            self.after_step()
            self.iter += 1
            ranks_meet = comm.get_world_size() == 1 or self._trainer.reads_losses
            if stop.is_agreed(exchange=ranks_meet) and self._trainer.steps_optimizer:
                self._save_and_exit()

    def _save_and_exit(self) -> None:
        """Save the epoch as far as it has come; end the process with SIGTERM's exit code."""
        self._trainer.read_losses()
        ranks = comm.gather(interruption.capture_rank_state(unwrapped(self.model)))
        begun = {"steps": self.iter - self.epoch * self.iters_per_epoch, "ranks": ranks}
        best = self._checkpoint_hook.best_metric
        self.checkpointer.save(INTERRUPTED, epoch=self.epoch - 1, best_metric=best, begun=begun)
        comm.synchronize()  # the first process that exits ends the others
        logger.warning(
            f"SIGTERM: stopped and saved after iteration {self.iter} (epoch {self.epoch}); "
            "--resume continues there"
        )
        raise SystemExit(interruption.EXIT_CODE)

    def before_epoch(self) -> None:
        """Seed the epoch; restore the ranks' states if it was cut in two."""
        seed_everything(derive_seed(self.cfg.SEED, self.epoch, comm.get_rank()))
        super().before_epoch()
        if self._partial_epoch is not None:
            state = self._partial_epoch["ranks"][comm.get_rank()]
            interruption.restore_rank_state(unwrapped(self.model), state)
            self._partial_epoch = None

    def after_epoch(self) -> None:
        """Read the last losses before anything is saved."""
        self._trainer.read_losses()
        super().after_epoch()

    def _finish_run(self) -> dict[str, Any]:
        """Evaluate a run that has all its epochs, unless it has been already."""
        logger.info(
            f"The run in {self.cfg.OUTPUT_DIR} has finished {self.start_epoch} epochs, "
            f"SOLVER.MAX_EPOCH is {self.max_epoch}: nothing to do"
        )
        if not Path(self.cfg.OUTPUT_DIR, "results.json").is_file():
            self.epoch = self.max_epoch - 1
            self._test()
        return self._last_eval_results

    def _test(self) -> None:
        model = self.ema.module if self.ema is not None else unwrapped(self.model)
        self._last_eval_results = testing.test(self.cfg, model, epoch=self.epoch)

    def build_training_images_loader(self) -> ReidLoader:
        """Load this rank's share of the training images, once and in order, as in evaluation.

        ``targets`` are those of training. FED's hook fills the memory banks with it.
        """
        dataset = self.data_loader.dataset
        items = [(path, dataset.pid_dict[pid], 0) for path, pid, *_ in dataset.img_items]
        return build_test_loader(self.cfg, items, [])[0]

    def evaluate(self) -> float:
        """Evaluate; return (Rank-1 + mAP) / 2 on the first test set, fast-reid's ``metric``."""
        self._test()
        reports = self._last_eval_results
        if not reports:
            return -1.0
        for name, report in reports.items():
            prefix = "" if len(reports) == 1 else f"{name}/"
            values = {f"{prefix}{key}": each["value"] for key, each in report["metrics"].items()}
            self.storage.put_scalars(smoothing_hint=False, **values)
        first = next(iter(reports.values()))["metrics"]
        return (first["Rank-1"]["value"] + first["mAP"]["value"]) / 2


def _set_num_classes(cfg: CfgNode, num_classes: int) -> CfgNode:
    """Fill in ``MODEL.HEADS.NUM_CLASSES``; refuse another number of identities."""
    configured = cfg.MODEL.HEADS.NUM_CLASSES
    if configured and configured != num_classes:
        raise UserError(
            f"MODEL.HEADS.NUM_CLASSES is {configured}, but the training set has {num_classes} "
            "identities; 0 takes the number from the training set"
        )
    with changed_copy(cfg) as cfg:
        cfg.MODEL.HEADS.NUM_CLASSES = num_classes
    return cfg

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
from occluded_reid.config.resume import Change, Rule, digest_recipe
from occluded_reid.data.build import build_test_loader, build_train_loader
from occluded_reid.data.digest import digest_items
from occluded_reid.data.loader import ReidLoader
from occluded_reid.engine import hooks, interruption
from occluded_reid.engine.folder import Checkpoint, claim, find_checkpoint, write_config
from occluded_reid.engine.optimizer import build_lr_schedulers, build_optimizer
from occluded_reid.engine.resume import (
    compare_with_run,
    complete_epoch,
    load_run,
    rename_former_end,
)
from occluded_reid.engine.train_step import TrainingStep, wrap_model
from occluded_reid.evaluation import testing
from occluded_reid.evaluation.inference import try_sizes
from occluded_reid.modeling.build import build_model, log_model
from occluded_reid.modeling.keys import dump_config
from occluded_reid.utils.distributed import run_on_first_rank, unwrapped
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.progress import on_terminal
from occluded_reid.utils.random import derive_seed, seed_everything

logger = logging.getLogger(__name__)

INTERRUPTED = "model_interrupted"  # the checkpoint that SIGTERM leaves in the middle of an epoch


class Trainer(defaults.DefaultTrainer):
    """Trains a model; a run depends on nothing but its configuration, seed and data.

    Each epoch starts from generators seeded by ``(SEED, epoch, rank)`` and from rank 0's buffers on
    every rank. A resumed run therefore equals one that was never interrupted, bit for bit.

    ``SEED`` must not be negative. With ``trust_checkpoint`` a checkpoint may hold pickled Python
    objects, which can run code; with ``overwrite`` a run in ``OUTPUT_DIR`` is moved aside. Nothing
    is written before :meth:`train` has checked the rest.

    >>> trainer = Trainer(prepare_run(cfg, training=True))
    >>> trainer.resume_or_load(resume=False)
    >>> reports = trainer.train()
    """

    def __init__(self, cfg: CfgNode, *, trust_checkpoint: bool = False, overwrite: bool = False):
        TrainerBase.__init__(self)
        self._trust, self._overwrite = trust_checkpoint, overwrite
        self.resumed: Checkpoint | None = None
        self.changes: list[Change] = []  # of the configuration since then
        seed_everything(cfg.SEED)
        loader = build_train_loader(cfg)
        dataset: Any = loader.dataset
        self._data = digest_items(dataset.img_items)
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
        self._evaluation = hooks.EvaluationHook()
        shown = cfg.SOLVER.LOG_IMAGES and comm.is_main_process()
        self._pictures = hooks.Pictures() if shown else None
        writer = hooks.MetricsWriter(self.build_writers, cfg.SOLVER.LOG_PERIOD)
        saver = hooks.CheckpointHook(self._evaluation)
        self.ending = (self._evaluation, writer if comm.is_main_process() else None, saver)
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
            self._pictures,
            *self.ending,
        ]

    def build_writers(self) -> list[Any]:
        """Open the log's, metrics.json's and TensorBoard's writers."""
        return hooks.adapt_writers(super().build_writers(), self.cfg)

    def _build_precise_bn(self) -> Any:
        if not self.cfg.TEST.PRECISE_BN.ENABLED or not get_bn_modules(self.model):
            return None
        with changed_copy(self.cfg) as cfg:
            cfg.DATALOADER.NUM_WORKERS = 0
            cfg.DATASETS.NAMES = (cfg.TEST.PRECISE_BN.DATASET,)
        num_iter, loader = cfg.TEST.PRECISE_BN.NUM_ITER, build_train_loader(cfg)
        return fastreid_hooks.PreciseBN(self.model, loader, num_iter)

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the run in ``OUTPUT_DIR`` to ``resume`` it, or else ``MODEL.WEIGHTS``.

        Raises:
            UserError: the weights do not fit, or the run cannot be resumed.
        """
        cfg = self.cfg
        found = None
        if resume:
            found = run_on_first_rank(lambda: find_checkpoint(cfg.OUTPUT_DIR, trust=self._trust))
        if found is None:
            self.checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
            return
        self.resumed, self.start_epoch = found, found.epoch + 1
        self.changes = compare_with_run(cfg, found, self._data)
        extra = load_run(self)
        if not any(change.rule is Rule.BEST for change in self.changes):
            self._evaluation.best_metric = extra.get("best_metric", -1.0)
        model = unwrapped(self.model)
        self._partial_epoch = interruption.read_partial_epoch(
            extra, cfg.OUTPUT_DIR, model, self.iters_per_epoch
        )

    def train(self) -> dict[str, Any]:
        """Run the remaining epochs and the end of the run; return the last evaluation's reports.

        They are on rank 0.

        Raises:
            UserError: a test set or an image size cannot be used, or ``OUTPUT_DIR`` not be claimed
                (before anything is written), a loss is not finite, an image cannot be read, or the
                disk is full.
        """
        testing.open_test_sets(self.cfg, {item[1] for item in self.data_loader.dataset.img_items})
        try_sizes(unwrapped(self.model), (self.cfg.INPUT.SIZE_TRAIN, self.cfg.INPUT.SIZE_TEST))
        self.iter = self.start_iter = self.start_epoch * self.iters_per_epoch
        if self._partial_epoch:
            self.start_iter += self._partial_epoch["steps"]
        with claim(self.cfg, self.resumed, overwrite=self._overwrite):
            if self.resumed is not None and not self.resumed.steps:
                with EventStorage(self.start_iter - 1) as self.storage:
                    complete_epoch(self)
            if self.start_epoch < self.max_epoch:
                with EventStorage(self.start_iter) as self.storage:
                    self._run_epochs()
            if comm.is_main_process():
                Path(self.cfg.OUTPUT_DIR, f"{INTERRUPTED}.pth").unlink(missing_ok=True)
        return self._last_eval_results

    @property
    def is_last_epoch(self) -> bool:
        """Whether the run ends after this epoch."""
        return self.epoch + 1 == self.max_epoch

    def _run_epochs(self) -> None:
        self.iter = self.start_iter
        batches = self.data_loader.batch_sampler
        batches.start_epoch = self.start_epoch
        batches.start_batch = self.start_iter - self.start_epoch * self.iters_per_epoch
        if comm.is_main_process():
            hooks.truncate_metrics(
                Path(self.cfg.OUTPUT_DIR, "metrics.json"), self.start_iter, self.cfg.RUN_ID
            )
        logger.info(f"Training from epoch {self.start_epoch} to {self.max_epoch}")
        with interruption.StopRequest() as stop:
            self.before_train()
            if comm.is_main_process():  # all checks have passed
                write_config(self.cfg)
                rename_former_end(self)
            try:
                for epoch in range(self.start_epoch, self.max_epoch):
                    self.epoch = epoch
                    self.before_epoch()
                    self._run_steps(stop)
                    self.after_epoch()
            finally:
                self.after_train()

    def save(self, name: str, **extra: Any) -> None:
        """Save a checkpoint; ``extra`` replaces or adds to what it says of itself."""
        about = {
            "epoch": self.epoch, "best_metric": self._evaluation.best_metric, "evaluated": True,
            "run": {
                "id": self.cfg.RUN_ID, "recipe": digest_recipe(self.cfg), "data": self._data,
                "config": dump_config(self.cfg), "processes": comm.get_world_size(),
            },
        }  # fmt: skip
        self.checkpointer.save(name, **(about | extra))

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
        self.save(INTERRUPTED, epoch=self.epoch - 1, begun=begun)
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

    def evaluated_model(self) -> Any:
        """Return the model that is evaluated: the average, if there is one."""
        return self.ema.module if self.ema is not None else unwrapped(self.model)

    def build_training_images_loader(self) -> ReidLoader:
        """Load this rank's share of the training images, once and in order, as in evaluation.

        ``targets`` are those of training. FED's hook fills the memory banks with it.
        """
        dataset = self.data_loader.dataset
        items = [(path, dataset.pid_dict[pid], 0) for path, pid, *_ in dataset.img_items]
        return build_test_loader(self.cfg, items, [])[0]

    def evaluate(self) -> float:
        """Evaluate; return (Rank-1 + mAP) / 2 on the first test set, fast-reid's ``metric``."""
        show = self._pictures.show_ranks if self._pictures else None
        reports = testing.test(self.cfg, self.evaluated_model(), epoch=self.epoch, show=show)
        self._last_eval_results = reports
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

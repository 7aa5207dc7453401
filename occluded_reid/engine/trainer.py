"""One trainer for every method, on fast-reid's DefaultTrainer."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.engine import defaults, hooks
from fastreid.engine.train_loop import HookBase, TrainerBase
from fastreid.utils import comm
from fastreid.utils.events import EventStorage
from fastreid.utils.precision_bn import get_bn_modules
from timm.utils import ModelEmaV3
from torch import nn

from occluded_reid.checkpoint.checkpointer import Checkpointer
from occluded_reid.config import changed_copy, replays_cuda_graphs
from occluded_reid.data.build import build_train_loader
from occluded_reid.data.loader import DeviceLoader
from occluded_reid.data.reid_dataset import Item
from occluded_reid.engine.hooks import (
    EvaluateAndSave,
    MetricsWriter,
    forget_metrics_from,
    training_bar,
)
from occluded_reid.engine.interruption import (
    EXIT_CODE,
    StopRequest,
    rank_state,
    restore_rank_state,
)
from occluded_reid.engine.optimizer import build_optimizer
from occluded_reid.engine.recovery import pass_over_damaged
from occluded_reid.engine.train_step import TrainingStep
from occluded_reid.evaluation import testing
from occluded_reid.modeling.build import build_model
from occluded_reid.utils.distributed import unwrapped
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import remove_unfinished, whole_file
from occluded_reid.utils.random import derive_seed, seed_everything

logger = logging.getLogger(__name__)

INTERRUPTED = "model_interrupted"
"""The checkpoint in the middle of an epoch; an epoch that is complete has others."""


class Trainer(defaults.DefaultTrainer):
    """fast-reid's trainer with repairs, and a run that is a function of its seed.

    Each epoch starts from generators seeded by ``(SEED, epoch, rank)`` and, on every rank, from
    rank 0's buffers; so a run that was interrupted continues from its last checkpoint exactly as if
    it had not been.

    Args:
        cfg: the configuration; ``OUTPUT_DIR`` must exist and ``SEED`` must be set.
        trust_checkpoint: read checkpoints that hold Python objects.
    """

    def __init__(self, cfg: CfgNode, *, trust_checkpoint: bool = False):
        TrainerBase.__init__(self)
        self._trust = trust_checkpoint
        seed_everything(cfg.SEED)
        loader = self.build_train_loader(cfg)
        cfg = self.auto_scale_hyperparams(cfg, loader.dataset.num_classes)
        model = self.build_model(cfg)
        optimizer = build_optimizer(cfg, model)
        self.ema = ModelEmaV3(model, cfg.MODEL.EMA.DECAY) if cfg.MODEL.EMA.ENABLED else None
        self.cfg = cfg
        self.iters_per_epoch = len(loader.dataset) // cfg.SOLVER.IMS_PER_BATCH
        self.start_epoch, self.max_epoch = 0, cfg.SOLVER.MAX_EPOCH
        self._begun: dict[str, Any] | None = None  # of an epoch that SIGTERM has cut in two
        self.max_iter = self.max_epoch * self.iters_per_epoch
        self.warmup_iters, self.delay_epochs = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.DELAY_EPOCHS
        self._trainer = TrainingStep(
            cfg,
            wrap_model(cfg, model),
            loader,
            optimizer,
            iters_per_epoch=self.iters_per_epoch,
            ema=self.ema,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer, self.iters_per_epoch)
        states = {"ema": self.ema, "grad_scaler": self._trainer.grad_scaler, **self.scheduler}
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            num_classes=cfg.MODEL.HEADS.NUM_CLASSES,
            trust=trust_checkpoint,
            save_to_disk=comm.is_main_process(),
            optimizer=optimizer,
            **{name: state for name, state in states.items() if state is not None},
        )
        self._last_eval_results: dict[str, Any] = {}
        self._keeper = EvaluateAndSave(
            self.checkpointer, self._evaluate, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD
        )
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[Any]:
        """Return the hooks in the order they run; evaluation sees precise batch statistics."""
        cfg = self.cfg
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(self.optimizer, self.scheduler),
            self._precise_bn(),
            hooks.LayerFreeze(self.model, cfg.MODEL.FREEZE_LAYERS, cfg.SOLVER.FREEZE_ITERS)
            if cfg.MODEL.FREEZE_LAYERS and cfg.SOLVER.FREEZE_ITERS > 0
            else None,
            training_bar(),
            *_hooks_of(unwrapped(self.model), cfg),
            self._keeper,
        ]

    def _precise_bn(self) -> hooks.PreciseBN | None:
        if not self.cfg.TEST.PRECISE_BN.ENABLED or not get_bn_modules(self.model):
            return None
        with changed_copy(self.cfg) as cfg:
            cfg.DATALOADER.NUM_WORKERS = 0
            cfg.DATASETS.NAMES = (cfg.TEST.PRECISE_BN.DATASET,)
        loader = self.build_train_loader(cfg)
        return hooks.PreciseBN(self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue the run in ``OUTPUT_DIR`` if asked and possible, else load ``MODEL.WEIGHTS``."""
        resume = resume and self.checkpointer.has_checkpoint()
        if resume and comm.is_main_process():
            pass_over_damaged(self.checkpointer, trust=self._trust)
        comm.synchronize()
        extra = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume:
            if "epoch" not in extra:
                raise UserError(
                    f"the last checkpoint in {self.cfg.OUTPUT_DIR} holds weights alone and cannot "
                    "be resumed; start a new run from it with MODEL.WEIGHTS"
                )
            self.start_epoch = extra["epoch"] + 1
            self._keeper.best_metric = extra["best_metric"]
            self._begun = self._begun_epoch(extra)
        elif self.ema is not None and "ema" not in extra:
            self.ema.set(unwrapped(self.model))

    def train(self) -> dict[str, Any]:
        """Run the epochs that are left; return the last evaluation's reports (rank 0).

        Raises:
            UserError: a test set that cannot be used (before anything is trained), a loss that is
                not finite, an unreadable image, a disk that is full ...
        """
        if self.start_epoch >= self.max_epoch:
            return self._return_to_finished_run()
        testing.open_test_sets(self.cfg)
        steps = self._begun["steps"] if self._begun else 0
        self.iter = self.start_iter = self.start_epoch * self.iters_per_epoch + steps
        batches = self.data_loader.batch_sampler
        batches.start_epoch, batches.start_batch = self.start_epoch, steps
        if comm.is_main_process():
            remove_unfinished(Path(self.cfg.OUTPUT_DIR))
            forget_metrics_from(Path(self.cfg.OUTPUT_DIR, "metrics.json"), self.start_iter)
            period = self.cfg.SOLVER.LOG_PERIOD
            self.register_hooks([MetricsWriter(self.build_writers(), period)])
        logger.info(f"Training from epoch {self.start_epoch} to {self.max_epoch}")
        with EventStorage(self.start_iter) as self.storage, StopRequest() as stop:
            self.before_train()
            self._write_config()
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

    def _write_config(self) -> None:
        """Write config.yaml: nothing refuses this run any more."""
        if comm.is_main_process():
            with whole_file(Path(self.cfg.OUTPUT_DIR, "config.yaml"), "w") as stream:
                stream.write(self.cfg.dump())

    def _run_steps(self, stop: StopRequest) -> None:
        """Run the iterations that are left of this epoch."""
        while self.iter < (self.epoch + 1) * self.iters_per_epoch:
            self.before_step()
            self.run_step()
            self.after_step()
            self.iter += 1
            may_ask = comm.get_world_size() == 1 or self._trainer.reads_losses
            if stop.agreed(now=may_ask) and self._trainer.moves_parameters:
                self._save_and_leave()

    def _save_and_leave(self) -> None:
        """Save the epoch as far as it has come; end the process as SIGTERM would.

        Raises:
            SystemExit: with the code 143.
            UserError: a loss that nobody had looked at yet is not finite.
        """
        self._trainer.read_losses()
        ranks = comm.gather(rank_state(unwrapped(self.model)))
        begun = {"steps": self.iter - self.epoch * self.iters_per_epoch, "ranks": ranks}
        best_metric = self._keeper.best_metric
        self.checkpointer.save(
            INTERRUPTED, epoch=self.epoch - 1, best_metric=best_metric, begun=begun
        )
        comm.synchronize()  # the first process to leave takes the others along
        logger.warning(
            f"SIGTERM: stopped and saved after iteration {self.iter} (epoch {self.epoch}); "
            "--resume goes on there"
        )
        raise SystemExit(EXIT_CODE)

    def _begun_epoch(self, extra: dict[str, Any]) -> dict[str, Any] | None:
        """What the checkpoint says of an epoch that SIGTERM has cut in two.

        Raises:
            UserError: another number of processes shared its batches.
        """
        begun = extra.get("begun")
        if begun and len(begun["ranks"]) != comm.get_world_size():
            raise UserError(
                f"the run in {self.cfg.OUTPUT_DIR} was stopped in the middle of an epoch of "
                f"{len(begun['ranks'])} processes and cannot go on with {comm.get_world_size()}; "
                "take as many, or write the name of an earlier checkpoint into last_checkpoint"
            )
        return begun

    def before_epoch(self) -> None:
        """Make the epoch a function of the seed and the state it starts from."""
        seed_everything(derive_seed(self.cfg.SEED, self.epoch, comm.get_rank()))
        super().before_epoch()
        if self._begun is not None:
            restore_rank_state(unwrapped(self.model), self._begun["ranks"][comm.get_rank()])
            self._begun = None

    def after_epoch(self) -> None:
        """Read the last losses before anything is saved."""
        self._trainer.read_losses()
        super().after_epoch()

    def _return_to_finished_run(self) -> dict[str, Any]:
        logger.info(
            f"The run in {self.cfg.OUTPUT_DIR} has finished {self.start_epoch} epochs, "
            f"SOLVER.MAX_EPOCH is {self.max_epoch}: there is nothing to do"
        )
        if not Path(self.cfg.OUTPUT_DIR, "results.json").is_file():
            self.epoch = self.max_epoch - 1
            self._last_eval_results = self.test(self.cfg, self._evaluated_model(), epoch=self.epoch)
        return self._last_eval_results

    def _evaluated_model(self) -> nn.Module:
        return self.ema.module if self.ema is not None else unwrapped(self.model)

    def _evaluate(self) -> float:
        """Evaluate; return (Rank-1 + mAP) / 2 of the first data set, fast-reid's ``metric``."""
        reports = self.test(self.cfg, self._evaluated_model(), epoch=self.epoch)
        self._last_eval_results = reports
        if not reports:
            return -1.0
        first = ""
        for name, report in reports.items():
            first = first or name
            prefix = "" if len(reports) == 1 else f"{name}/"
            self.storage.put_scalars(
                smoothing_hint=False,
                **{f"{prefix}{key}": each["value"] for key, each in report["metrics"].items()},
            )
        best = reports[first]["metrics"]
        return (best["Rank-1"]["value"] + best["mAP"]["value"]) / 2

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model of ``cfg``; see :mod:`occluded_reid.modeling.build`."""
        model = build_model(cfg)
        logger.info(f"Model:\n{model}")
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, items: list[Item] | None = None) -> DeviceLoader:
        """Return the endless training loader of ``DATASETS.NAMES``, or of ``items``."""
        return build_train_loader(cfg, items)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer, iters_per_epoch: int
    ) -> dict[str, Any]:
        """Return fast-reid's schedules.

        Raises:
            UserError: the warm-up leaves the cosine no epoch.
        """
        solver = cfg.SOLVER
        before = max(math.ceil(solver.WARMUP_ITERS / iters_per_epoch), solver.DELAY_EPOCHS)
        if solver.SCHED == "CosineAnnealingLR" and before >= solver.MAX_EPOCH:
            raise UserError(
                f"SOLVER.SCHED CosineAnnealingLR begins after {before} epochs (SOLVER.WARMUP_ITERS "
                f"{solver.WARMUP_ITERS}, {iters_per_epoch} iterations an epoch, "
                f"SOLVER.DELAY_EPOCHS {solver.DELAY_EPOCHS}), SOLVER.MAX_EPOCH is "
                f"{solver.MAX_EPOCH}: shorten the warm-up"
            )
        return super().build_lr_scheduler(cfg, optimizer, iters_per_epoch)

    @staticmethod
    def auto_scale_hyperparams(cfg: CfgNode, num_classes: int) -> CfgNode:
        """Fill in ``MODEL.HEADS.NUM_CLASSES``.

        Raises:
            UserError: the configuration names more or fewer identities than the data has.
        """
        configured = cfg.MODEL.HEADS.NUM_CLASSES
        if configured == num_classes:
            return cfg
        if configured:
            raise UserError(
                f"MODEL.HEADS.NUM_CLASSES is {configured}, the training set has {num_classes} "
                "identities; 0 fills the number in"
            )
        with changed_copy(cfg) as cfg:
            cfg.MODEL.HEADS.NUM_CLASSES = num_classes
        return cfg

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, *, epoch: int | None = None) -> dict[str, Any]:
        """Evaluate ``model`` on ``DATASETS.TESTS``; see :func:`evaluation.testing.test`."""
        return testing.test(cfg, model, epoch=epoch)


def _hooks_of(model: nn.Module, cfg: CfgNode) -> list[HookBase]:
    """The hooks that a method's model brings along, ``training_hooks(cfg)``."""
    build: Any = getattr(model, "training_hooks", None)
    return [] if build is None else build(cfg)


def _check_graphs(cfg: CfgNode) -> None:
    """Say where CUDA graphs that the run asks for cannot be replayed, or are not known to be right.

    Where DDP sends gradients, PyTorch asks for iterations before the recording and a stream of its
    own; its compiler records at the second iteration.

    Raises:
        UserError: several ranks are to replay them.
    """
    if not replays_cuda_graphs(cfg):
        return
    asked = f"MODEL.COMPILE_MODE {cfg.MODEL.COMPILE_MODE}"
    if torch.device(cfg.MODEL.DEVICE).type == "cpu":
        logger.warning(f"{asked}: there are no CUDA graphs on a CPU, nothing is replayed")
    elif comm.get_world_size() > 1:
        raise UserError(
            f"{asked} replays CUDA graphs, which has not been tried with several processes; take "
            "MODEL.COMPILE_MODE default"
        )


def wrap_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Compile the model and share its gradients among the ranks, where the run asks for it.

    Raises:
        UserError: several ranks are to replay CUDA graphs.
    """
    if cfg.MODEL.COMPILE:
        _check_graphs(cfg)
        model.compile(mode=cfg.MODEL.COMPILE_MODE)
    if comm.get_world_size() == 1:
        return model
    # compat's: copies rank 0's buffers once, and takes models on the CPU. Gradients that are views
    # of the buckets they are sent in are not copied back from them, nor held twice.
    return defaults.DistributedDataParallel(
        model,
        device_ids=[comm.get_local_rank()],
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )

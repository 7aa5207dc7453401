"""One training iteration: forward and backward pass, and an optimizer step where one is due."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.engine import defaults
from fastreid.utils import comm
from fastreid.utils.events import get_event_storage
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from occluded_reid.config import replays_cuda_graphs
from occluded_reid.engine.spikes import SpikeDetector
from occluded_reid.modeling.keys import warn_of_unread_keys
from occluded_reid.utils.distributed import unwrapped
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

MIN_LOSS_SCALE = 2.0**-14
"""float16's loss scale after thirty steps in a row whose gradients were not finite."""


class TrainingStep:
    """Runs the trainer's iterations; the trainer sets ``iter``, the index of the current one.

    An optimizer step takes the mean gradient of ``SOLVER.ACCUMULATE`` iterations, or of those that
    are left in the epoch. Batch statistics, hard mining and memory updates belong to the iteration.
    The ``model`` may be wrapped in DDP; the ``data_loader`` is endless.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        data_loader: Iterable[dict[str, Any]],
        optimizer: torch.optim.Optimizer,
        *,
        iters_per_epoch: int,
        ema: ModelEmaV3 | None = None,
    ):
        _check_pairs_supported(cfg, model)
        warn_of_unread_keys(cfg)
        self.model = model.train()
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.ema = ema
        self.iter = 0
        self._batches: Any = None
        self._iters_per_epoch = iters_per_epoch
        self._accumulate = cfg.SOLVER.ACCUMULATE
        self._clip = cfg.SOLVER.CLIP_GRADIENTS
        self._freeze_iters = cfg.SOLVER.FREEZE_ITERS
        self._log_period = cfg.SOLVER.LOG_PERIOD
        self._device_type = torch.device(cfg.MODEL.DEVICE).type
        self._amp_dtype = getattr(torch, cfg.SOLVER.AMP.DTYPE) if cfg.SOLVER.AMP.ENABLED else None
        self.grad_scaler = (
            torch.amp.GradScaler(self._device_type) if self._amp_dtype == torch.float16 else None
        )
        self._replays_graphs = replays_cuda_graphs(cfg)
        self._pending: list[tuple[int, list[str], torch.Tensor]] = []
        self._spikes = SpikeDetector(cfg.SOLVER.SPIKE_FACTOR)

    def run_step(self) -> None:
        """Run iteration ``self.iter``."""
        start = time.perf_counter()
        batch = self._next_batch()
        get_event_storage().put_scalar("data_time", time.perf_counter() - start)

        if self._replays_graphs:  # the last iteration's losses and gradients are no longer needed
            torch.compiler.cudagraph_mark_step_begin()
        group_size, is_last = self._position_in_group()
        sync: Any = contextlib.nullcontext()
        if not is_last and isinstance(self.model, DistributedDataParallel):
            sync = self.model.no_sync()
        with sync:
            use_amp = self._amp_dtype is not None
            with torch.autocast(self._device_type, self._amp_dtype, enabled=use_amp):
                losses = self.model(batch)
            total = sum(losses.values()) / group_size
            (self.grad_scaler.scale(total) if self.grad_scaler else total).backward()
        # a copy, because the next replay of a CUDA graph overwrites the losses; on their device,
        # because reading them would wait for the step to end
        stacked = torch.stack([value.detach().float() for value in losses.values()])
        self._pending.append((self.iter, list(losses), stacked))
        if self.reads_losses:
            self.read_losses()
        if is_last:
            self._step_optimizer()

    def peek_batch(self) -> dict[str, Any]:
        """Return the batch of the iteration to come, which still gets it."""
        batch = self._next_batch()
        self._batches = itertools.chain([batch], self._batches)
        return batch

    def _next_batch(self) -> dict[str, Any]:
        if self._batches is None:
            self._batches = iter(self.data_loader)
        return next(self._batches)

    @property
    def reads_losses(self) -> bool:
        """Whether this iteration ends with :meth:`read_losses`, where all ranks meet."""
        return self._device_type == "cpu" or (self.iter + 1) % self._log_period == 0

    @property
    def steps_optimizer(self) -> bool:
        """Whether this iteration ends with an optimizer step, after which no gradients are left."""
        return self._position_in_group()[1]

    def read_losses(self) -> None:
        """Read the losses from the device and put them into the event storage.

        Raises:
            UserError: a loss is not finite, or float16's gradients have not been for many steps.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        values = torch.stack([stacked for _, _, stacked in pending]).cpu().numpy()
        for (iteration, names, _), row in zip(pending, values, strict=True):
            self._check_finite(iteration, names, row)
        self._check_loss_scale()
        rows = np.mean(comm.all_gather(values), axis=0)
        storage = get_event_storage()
        current = storage.iter
        for (iteration, names, _), row in zip(pending, rows, strict=True):
            self._spikes.update(iteration, names, row)
            storage.iter = iteration
            storage.put_scalars(total_loss=row.sum(), **dict(zip(names, row, strict=True)))
        storage.iter = current

    def _position_in_group(self) -> tuple[int, bool]:
        """Return how many iterations share this optimizer step, and whether this is the last."""
        position = self.iter % self._iters_per_epoch
        first = position - position % self._accumulate
        size = min(self._accumulate, self._iters_per_epoch - first)
        return size, position == first + size - 1

    def _step_optimizer(self) -> None:
        if self.grad_scaler:
            self.grad_scaler.unscale_(self.optimizer)
        if self.iter < self._freeze_iters:
            for group in self.optimizer.param_groups:
                if group["freeze_status"] == "freeze":
                    for parameter in group["params"]:
                        parameter.grad = None
        if self._clip.ENABLED:
            self._clip_gradients()
        if self.grad_scaler:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(unwrapped(self.model))

    def _clip_gradients(self) -> None:
        """Clip the norm over all parameters together; fast-reid clips each group on its own."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self._clip.CLIP_TYPE == "value":
            nn.utils.clip_grad_value_(parameters, self._clip.CLIP_VALUE)
        else:
            nn.utils.clip_grad_norm_(parameters, self._clip.CLIP_VALUE, self._clip.NORM_TYPE)

    def _check_finite(self, iteration: int, names: list[str], row: np.ndarray) -> None:
        for name, value in zip(names, row, strict=True):
            if np.isfinite(value):
                continue
            advice = (
                "The first iteration already fails: check MODEL.WEIGHTS and MODEL.PIXEL_STD"
                if iteration == 0
                else "Try a smaller SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS, "
                "SOLVER.CLIP_GRADIENTS.ENABLED True or SOLVER.AMP.ENABLED False; --resume "
                "continues from the last checkpoint, if there is one"
            )
            raise UserError(
                f"{name} became {value} at iteration {iteration} (epoch "
                f"{iteration // self._iters_per_epoch}); no weights were saved since then. {advice}"
            )

    def _check_loss_scale(self) -> None:
        """Stop when float16 skips all steps; skipping one now and then is normal."""
        if self.grad_scaler and self.grad_scaler.get_scale() <= MIN_LOSS_SCALE:
            raise UserError(
                f"the gradients were not finite in float16 for many steps up to iteration "
                f"{self.iter}, so those steps were skipped. Use SOLVER.AMP.DTYPE bfloat16 or "
                "SOLVER.AMP.ENABLED False, and --resume from the last checkpoint"
            )


def _check_pairs_supported(cfg: CfgNode, model: nn.Module) -> None:
    """Refuse to make pairs of images for a model that ignores the occluded ones."""
    npo = cfg.INPUT.NPO
    if npo.ENABLED and npo.MODE == "pair" and not getattr(unwrapped(model), "reads_pairs", False):
        raise UserError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} does not train on pairs; use "
            "INPUT.NPO.MODE replace, which occludes the training images themselves"
        )


def wrap_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Compile the model and let ranks share its gradients, as far as the configuration asks."""
    if replays_cuda_graphs(cfg):
        mode = f"MODEL.COMPILE_MODE {cfg.MODEL.COMPILE_MODE}"
        if torch.device(cfg.MODEL.DEVICE).type == "cpu":
            logger.warning(f"{mode} has no effect on a CPU, which has no CUDA graphs")
        elif comm.get_world_size() > 1:
            # PyTorch asks DDP for warm-up iterations on a stream of their own before recording, but
            # its compiler records the second iteration
            raise UserError(
                f"{mode} replays CUDA graphs, which is untested with several processes; use "
                "MODEL.COMPILE_MODE default"
            )
    if cfg.MODEL.COMPILE:
        model.compile(mode=cfg.MODEL.COMPILE_MODE)
    if comm.get_world_size() == 1:
        return model
    # compat's wrapper, which copies rank 0's buffers once and takes models on the CPU. As views of
    # DDP's buckets, gradients are neither copied back nor held twice.
    return defaults.DistributedDataParallel(
        model,
        device_ids=[comm.get_local_rank()],
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )

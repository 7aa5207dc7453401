"""One iteration of training: forward, backward, and now and then an optimizer step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.utils import comm
from fastreid.utils.events import get_event_storage
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from occluded_reid.config import replays_cuda_graphs
from occluded_reid.engine.spikes import SpikeWatch
from occluded_reid.utils.distributed import unwrapped
from occluded_reid.utils.errors import UserError

LEAST_LOSS_SCALE = 2.0**-14
"""Thirty gradients in a row that were not finite bring float16's loss scale down to here."""


class TrainingStep:
    """Runs iterations for the trainer, which reads its attributes.

    ``SOLVER.ACCUMULATE`` iterations make one optimizer step with the mean of their gradients; a
    step ends at the latest with its epoch. Batch statistics, hard mining and memory updates belong
    to the iteration.

    Attributes:
        model: the (possibly DDP-wrapped) model in training mode.
        data_loader: an endless loader.
        optimizer: what moves the parameters.
        grad_scaler: the loss scaler of float16, else None.
        ema: the averaged weights, or None.
        iter: the current iteration, set by the trainer.
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
        _check_pairs_are_read(cfg, model)
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
        self._replays = replays_cuda_graphs(cfg)
        self._unread: list[tuple[int, list[str], torch.Tensor]] = []
        self._spikes = SpikeWatch(cfg.SOLVER.SPIKE_FACTOR)

    def run_step(self) -> None:
        """Run iteration ``self.iter``."""
        if self._batches is None:
            self._batches = iter(self.data_loader)
        start = time.perf_counter()
        batch = next(self._batches)
        get_event_storage().put_scalar("data_time", time.perf_counter() - start)

        if self._replays:  # losses and gradients of the iteration before are not used any more
            torch.compiler.cudagraph_mark_step_begin()
        group_size, is_last = self._place_in_group()
        with self._gradients_stay_local(not is_last):
            with self._autocast():
                losses = self.model(batch)
            total = sum(losses.values()) / group_size
            (self.grad_scaler.scale(total) if self.grad_scaler else total).backward()
        self._remember(losses)
        if is_last:
            self._move_parameters()

    @property
    def reads_losses(self) -> bool:
        """Whether the iteration ends with :meth:`read_losses`, for which all ranks wait."""
        return self._device_type == "cpu" or (self.iter + 1) % self._log_period == 0

    @property
    def moves_parameters(self) -> bool:
        """Whether the iteration ends with an optimizer step: no gradients are left over then."""
        return self._place_in_group()[1]

    def read_losses(self) -> None:
        """Write the losses of the iterations since the last reading to the event storage.

        Raises:
            UserError: one of them is not finite; the message names the term and the iteration. Or
                float16's gradients were not for long.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        values = torch.stack([stacked for _, _, stacked in unread]).cpu().numpy()
        for (iteration, names, _), row in zip(unread, values, strict=True):
            self._refuse_non_finite(iteration, names, row)
        self._refuse_lost_gradients()
        rows = np.mean(comm.all_gather(values), axis=0)
        storage = get_event_storage()
        now = storage.iter
        for (iteration, names, _), row in zip(unread, rows, strict=True):
            self._spikes.look(iteration, names, row)
            storage.iter = iteration
            storage.put_scalars(total_loss=row.sum(), **dict(zip(names, row, strict=True)))
        storage.iter = now

    def _remember(self, losses: dict[str, torch.Tensor]) -> None:
        """Keep a copy of the losses on their device; reading one would wait for the step.

        The losses themselves may lie where a CUDA graph writes at the next iteration.
        """
        stacked = torch.stack([value.detach().float() for value in losses.values()])
        self._unread.append((self.iter, list(losses), stacked))
        if self.reads_losses:
            self.read_losses()

    def _place_in_group(self) -> tuple[int, bool]:
        """How many iterations share this optimizer step, and whether this one is the last."""
        position = self.iter % self._iters_per_epoch
        first = position - position % self._accumulate
        size = min(self._accumulate, self._iters_per_epoch - first)
        return size, position == first + size - 1

    def _gradients_stay_local(self, local: bool) -> contextlib.AbstractContextManager[None]:
        if local and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        if self._amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device_type, self._amp_dtype)

    def _move_parameters(self) -> None:
        if self.grad_scaler:
            self.grad_scaler.unscale_(self.optimizer)
        if self.iter < self._freeze_iters:
            self._drop_frozen_gradients()
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

    def _drop_frozen_gradients(self) -> None:
        for group in self.optimizer.param_groups:
            if group["freeze_status"] == "freeze":
                for parameter in group["params"]:
                    parameter.grad = None

    def _clip_gradients(self) -> None:
        """Clip over all parameters together, as fast-reid's flat buffers did per group."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self._clip.CLIP_TYPE == "value":
            nn.utils.clip_grad_value_(parameters, self._clip.CLIP_VALUE)
        else:
            nn.utils.clip_grad_norm_(parameters, self._clip.CLIP_VALUE, self._clip.NORM_TYPE)

    def _refuse_non_finite(self, iteration: int, names: list[str], row: np.ndarray) -> None:
        for name, value in zip(names, row, strict=True):
            if not np.isfinite(value):
                epoch = iteration // self._iters_per_epoch
                advice = (
                    "Nothing was learned yet: look at MODEL.WEIGHTS and MODEL.PIXEL_STD"
                    if iteration == 0
                    else "Try a smaller SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS, "
                    "SOLVER.CLIP_GRADIENTS.ENABLED True or SOLVER.AMP.ENABLED False; --resume "
                    "goes on from the last checkpoint, if there is one"
                )
                raise UserError(
                    f"{name} became {value} at iteration {iteration} (epoch {epoch}); nothing was "
                    f"saved since. {advice}"
                )

    def _refuse_lost_gradients(self) -> None:
        """A step now and then is skipped in float16; when all of them are, nothing is learned."""
        if self.grad_scaler and self.grad_scaler.get_scale() <= LEAST_LOSS_SCALE:
            raise UserError(
                f"the gradients were not finite in float16 for many steps up to iteration "
                f"{self.iter}, though the losses were; nothing is learned so. Use "
                "SOLVER.AMP.DTYPE bfloat16 or SOLVER.AMP.ENABLED False, and --resume from the "
                "last checkpoint"
            )


def _check_pairs_are_read(cfg: CfgNode, model: nn.Module) -> None:
    """Refuse to make occluded copies of images for a model that would never look at them."""
    npo = cfg.INPUT.NPO
    if npo.ENABLED and npo.MODE == "pair" and not getattr(unwrapped(model), "reads_pairs", False):
        raise UserError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} does not train on pairs; "
            "INPUT.NPO.MODE replace occludes its training images instead"
        )

"""Run a model over a test set."""

from __future__ import annotations

import logging
from typing import Any

import torch
from fastreid.evaluation.evaluator import inference_context
from torch import nn

from occluded_reid.evaluation.evaluator import Evaluator
from occluded_reid.modeling.outputs import embed_batch
from occluded_reid.utils.progress import progress

logger = logging.getLogger(__name__)


@torch.no_grad()
def run_inference(
    model: nn.Module, loader: Any, evaluator: Evaluator, *, name: str, flip: bool = False
) -> dict[str, Any]:
    """Give every batch of ``loader`` to the model and what it returns to ``evaluator``.

    A compiled model (``MODEL.COMPILE``) is run as it was written, as weights from a file are. Hooks
    of the model itself are not called; those of its modules are.

    Args:
        model: the unwrapped model; its mode is restored afterwards, also after an error.
        loader: batches with ``images`` (B, 3, H, W) in 0-255.
        evaluator: collects features and reports.
        name: the data set's name, shown beside the progress.
        flip: average what is said of an image and of its mirror image.

    Returns:
        The evaluator's report; empty on ranks other than 0.
    """
    evaluator.reset()
    with inference_context(model):
        for batch in progress(
            loader, total=len(loader), description=f"Features of {name}", unit="batches",
            logger=logger,
        ):  # fmt: skip
            embedding = embed_batch(model.forward, batch, flip=flip)
            evaluator.process(batch, embedding)
    return evaluator.evaluate()

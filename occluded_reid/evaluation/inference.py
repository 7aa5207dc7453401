"""Run a model over a test set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

import occluded_reid.compat  # noqa: F401

# isort: split
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
    """Pass every batch of ``loader`` through the model, and the embeddings to ``evaluator``.

    Calls ``model.forward``: a compiled model (``MODEL.COMPILE``) runs uncompiled, as weights from a
    file do, and hooks of the model itself are skipped.

    Args:
        model: the unwrapped model; its mode is restored afterwards, even after an error.
        loader: batches with ``images`` (B, 3, H, W) in 0-255.
        evaluator: collects the embeddings; its report is returned, empty on ranks other than 0.
        name: of the test set, shown beside the progress.
        flip: average the embeddings of an image and its mirror image.
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


@torch.no_grad()
def try_sizes(model: nn.Module, sizes: Sequence[Sequence[int]]) -> None:
    """Embed a blank image of each of ``sizes`` (height, width): what the model refuses shows early.

    The model is unwrapped; its mode is restored.
    """
    device = next(model.parameters()).device
    with inference_context(model):
        for size in {tuple(size): None for size in sizes}:
            blank = torch.zeros(1, 3, *size, device=device)
            model.forward({"images": blank, "camids": blank.new_zeros(1, dtype=torch.int64)})

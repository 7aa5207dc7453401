"""Fill the memory banks before the first training step (Sec. 3.2)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Any

import torch
from fastreid.engine.train_loop import HookBase
from fastreid.evaluation.evaluator import inference_context

from fed_plugin.memory import IdentityMemory
from occluded_reid.utils.distributed import unwrapped
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.progress import progress

logger = logging.getLogger(__name__)

DIFFUSION_BATCH = 1024  # images


class FillMemories(HookBase):
    """Sets every centre to its identity's mean feature over the training set (Sec. 3.2).

    Features are computed in evaluation mode and transforms. Each rank reads its share, and all
    ranks end with the same banks. A resumed run keeps the banks of its checkpoint.
    """

    def before_train(self) -> None:
        """Fill the banks, or check that those of the checkpoint belong to the training set."""
        model: Any = unwrapped(self.trainer.model)
        identities = self.trainer.data_loader.dataset.pid_dict
        digest = digest_identities(identities)
        memory: IdentityMemory = model.erased_memory
        if self.trainer.start_iter > 0 and bool(memory.initialized):
            if int(memory.identities) != digest:
                raise UserError(
                    "the checkpoint's memory banks hold other identities than the training set "
                    f"{', '.join(self.trainer.cfg.DATASETS.NAMES)}: resume with the data of the "
                    "run, or start a new run from its weights (MODEL.WEIGHTS)"
                )
            return
        logger.info("Filling the memory banks with the mean features of the training set")
        try:
            with inference_context(model):
                fill_memories(model, self.trainer.build_training_images_loader(), digest)
        except ValueError as error:
            raise UserError(
                f"cannot fill the memory banks: {error}; the training set has {len(identities)}, "
                f"the model {len(memory.centres)} (MODEL.HEADS.NUM_CLASSES; 0 takes the number "
                "from the training set)"
            ) from error


@torch.no_grad()
def fill_memories(model: Any, loader: Any, digest: int) -> None:
    """Initialize the banks of a FED model in evaluation mode.

    The ``loader`` yields this rank's share of the training set. The second bank takes the features
    after diffusion with the first bank, once that is filled. A ValueError is raised if an identity
    has no image.
    """
    rows = []
    for batch in progress(
        loader, total=len(loader), description="Features of the training set", unit="batches",
        logger=logger,
    ):  # fmt: skip
        parts = model.part_features(batch["images"])
        rows.append((parts.embedding, parts.visibility, batch["targets"]))
    embedding, visibility, identities = map(torch.cat, zip(*rows, strict=True))
    model.erased_memory.initialize(embedding, identities, digest)
    if model.diffused_memory in (None, model.erased_memory):
        return
    inputs = (each.split(DIFFUSION_BATCH) for each in (embedding, visibility, identities))
    centres = model.erased_memory.centres
    diffused = [model.diffusion(*chunk, centres) for chunk in zip(*inputs, strict=True)]
    model.diffused_memory.initialize(torch.cat(diffused), identities, digest)


def digest_identities(identities: Iterable[str]) -> int:
    """Return a digest in [0, 2**63) of identity names, whatever their order.

    >>> digest_identities(["a_1", "a_2"]) == digest_identities(["a_2", "a_1"])
    True
    """
    names = "\n".join(sorted(str(name) for name in identities))
    return int.from_bytes(hashlib.sha256(names.encode()).digest()[:8], "big") >> 1

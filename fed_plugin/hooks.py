"""Fill the memory banks before the first step."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase

from fed_plugin.memory import IdentityMemory
from occluded_reid.data.build import build_test_loader
from occluded_reid.evaluation.inference import evaluating
from occluded_reid.utils.distributed import unwrapped
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.progress import progress

logger = logging.getLogger(__name__)

IMAGES_AT_A_TIME = 1024  # of features that are diffused


class FillMemories(HookBase):
    """Sets every centre to its identity's mean feature over the training set (Sec. 3.2).

    The images come in evaluation transforms and through the model in evaluation mode, each rank
    reading its share; all ranks end with the same banks. The second bank takes the features after
    diffusion with the filled first one. A resumed run keeps the banks of its checkpoint.

    Args:
        cfg: the run's configuration.
    """

    def __init__(self, cfg: CfgNode):
        self._cfg = cfg

    def before_train(self) -> None:
        """Fill the banks, or check that those of the checkpoint belong to the training set.

        Raises:
            UserError: they do not, or an identity has no image.
        """
        model: Any = unwrapped(self.trainer.model)
        dataset = self.trainer.data_loader.dataset
        digest = digest_of(dataset.pid_dict)
        memory = model.erased_memory
        if self.trainer.start_iter > 0 and bool(memory.initialized):
            self._check(memory, digest)
            return
        items = [(path, dataset.pid_dict[pid], 0) for path, pid, *_ in dataset.img_items]
        loader, _ = build_test_loader(self._cfg, items, [])
        logger.info(f"Filling the memory banks with the mean features of {len(items)} images")
        try:
            with evaluating(model):
                fill_memories(model, loader, digest)
        except ValueError as error:
            raise UserError(
                f"cannot fill the memory banks: {error}; the training set has "
                f"{len(dataset.pid_dict)}, the model {len(memory.centres)} "
                "(MODEL.HEADS.NUM_CLASSES, where 0 takes the training set's number)"
            ) from error

    def _check(self, memory: IdentityMemory, digest: int) -> None:
        if int(memory.identities) != digest:
            raise UserError(
                "the checkpoint's memory banks hold other identities than the training set "
                f"{', '.join(self._cfg.DATASETS.NAMES)}: resume with the data the run began with, "
                "or start a new run from its weights (MODEL.WEIGHTS)"
            )


@torch.no_grad()
def fill_memories(model: Any, loader: Any, digest: int) -> None:
    """Initialise a FED model's banks from this rank's share of the training set.

    Args:
        model: in evaluation mode.
        loader: batches with ``images`` and ``targets``, the latter in 0..I-1.
        digest: of the identities.

    Raises:
        ValueError: an identity has no image.
    """
    embeddings, visibilities, targets = [], [], []
    for batch in progress(
        loader, total=len(loader), description="Features of the training set", unit="batches",
        logger=logger,
    ):  # fmt: skip
        parts = model.part_features(batch["images"])
        embeddings.append(parts.embedding)
        visibilities.append(parts.visibility)
        targets.append(batch["targets"])
    embedding, visibility, identities = map(torch.cat, (embeddings, visibilities, targets))
    model.erased_memory.initialize(embedding, identities, digest)
    if model.diffused_memory in (None, model.erased_memory):
        return
    diffused = [
        model.diffusion(*some, model.erased_memory.centres)
        for some in zip(
            embedding.split(IMAGES_AT_A_TIME),
            visibility.split(IMAGES_AT_A_TIME),
            identities.split(IMAGES_AT_A_TIME),
            strict=True,
        )
    ]
    model.diffused_memory.initialize(torch.cat(diffused), identities, digest)


def digest_of(identities: Iterable[str]) -> int:
    """Return a number in [0, 2**63) that tells this sorted list of identities from others."""
    names = "\n".join(sorted(str(name) for name in identities))
    return int.from_bytes(hashlib.sha256(names.encode()).digest()[:8], "big") >> 1

"""Which images make a batch, as a function of the seed and the epoch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from fastreid.config import CfgNode
from fastreid.data import samplers
from fastreid.utils import comm
from torch.utils.data import Sampler

from occluded_reid.data.reid_dataset import Item, SampleIndex
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.random import PrivateRandomness, derive_seed

_IDENTITY_SAMPLERS = ("BalancedIdentitySampler", "NaiveIdentitySampler")


class EpochBatches(Sampler[list[SampleIndex]]):
    """An endless stream of batches in which epoch ``e`` depends on ``(seed, e)`` alone.

    ``build`` builds one of fast-reid's samplers from a seed that all ranks share; ``batch_size``
    counts images on this rank, ``length`` the batches of an epoch. A resumed run begins with batch
    ``start_batch`` of epoch ``start_epoch``.
    """

    def __init__(
        self, build: Callable[[int], Sampler[int]], batch_size: int, length: int, seed: int
    ):
        self._build = build
        self._batch_size, self._length = batch_size, length
        self._seed, self._rank = seed, comm.get_rank()
        self.start_epoch, self.start_batch = 0, 0

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        for epoch in itertools.count(self.start_epoch):
            shared_seed = derive_seed(self._seed, epoch)
            positions = iter(self._build(shared_seed))
            # fast-reid's samplers seed the global generators and draw from them
            randomness = PrivateRandomness(shared_seed)
            for batch in range(self._length):
                with randomness:
                    chosen = list(itertools.islice(positions, self._batch_size))
                if (epoch, batch) < (self.start_epoch, self.start_batch):
                    continue
                yield [
                    SampleIndex(int(position), derive_seed(self._seed, epoch, self._rank, batch, i))
                    for i, position in enumerate(chosen)
                ]


def build_sampler(cfg: CfgNode, items: list[Item], seed: int) -> Sampler[int]:
    """Build fast-reid's sampler ``DATALOADER.SAMPLER_TRAIN`` with a seed.

    SetReWeightSampler is none of them: its own check allows no batch that it can fill.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    batch = (cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), cfg.DATALOADER.NUM_INSTANCE)
    arguments = {
        "TrainingSampler": (len(items),),
        "ImbalancedDatasetSampler": (items,),
        **dict.fromkeys(_IDENTITY_SAMPLERS, (items, *batch)),
    }
    if name not in arguments:
        raise UserError(f"DATALOADER.SAMPLER_TRAIN is {name}; it can be {', '.join(arguments)}")
    return getattr(samplers, name)(*arguments[name], seed=seed)


def check_batch_size(cfg: CfgNode, items: list[Item]) -> None:
    """Check that ``items`` can fill a batch that can be trained on; else samplers never return."""
    batch, ranks = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if batch % ranks:
        raise UserError(f"SOLVER.IMS_PER_BATCH {batch} cannot be shared by {ranks} processes")
    per_rank = f"{batch // ranks} images per process (SOLVER.IMS_PER_BATCH {batch}, {ranks} "
    per_rank += "processes)" if ranks > 1 else "process)"
    if batch // ranks < 2:
        raise UserError(f"a batch of {per_rank}; batch normalization needs 2 at least")
    if len(items) < batch:
        raise UserError(
            f"the training set has {len(items)} images, SOLVER.IMS_PER_BATCH asks for {batch}"
        )
    identities = len({item[1] for item in items})
    if identities < 2:
        raise UserError(
            f"the training set has {identities} identity; training tells people apart and needs 2 "
            "at least"
        )
    if cfg.DATALOADER.SAMPLER_TRAIN not in _IDENTITY_SAMPLERS:
        return
    instances = cfg.DATALOADER.NUM_INSTANCE
    if instances < 1 or (batch // ranks) % instances:
        raise UserError(
            f"a batch of {per_rank} is no multiple of DATALOADER.NUM_INSTANCE {instances}"
        )
    needed = batch // instances
    if identities < needed:
        raise UserError(
            f"a batch needs {needed} identities (SOLVER.IMS_PER_BATCH {batch} / "
            f"DATALOADER.NUM_INSTANCE {instances}), the training set has {identities}: lower "
            "SOLVER.IMS_PER_BATCH"
        )

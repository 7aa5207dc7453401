"""What a resumed run may change: one rule for each key of the configuration."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml
from fastreid.config import CfgNode

from occluded_reid.config.config import leaves
from occluded_reid.utils.errors import UserError


class Rule(enum.Enum):
    """What happens to a run that is resumed with another value of a key."""

    FREE = "free: it does not change the weights, but for rounding"
    START = "free: only the start of a run reads it"
    ONWARD = "free: the new value holds from there on"
    SCHEDULE = "the schedule begins anew, as if the run had always had the new value"
    OPTIMIZER = "the state of the optimizer begins anew"
    BEST = "the best metric begins anew"
    EPOCH = "the new value holds from there on; refused in the middle of an epoch"
    REFUSED = "refused: start a new run"


RULES = {
    "CUDNN_BENCHMARK": Rule.FREE,
    "DATALOADER.": Rule.EPOCH,
    "DATALOADER.NUM_WORKERS": Rule.FREE,
    "DATASETS.": Rule.REFUSED,
    "DATASETS.ALLOW_PARTIAL": Rule.FREE,
    "DATASETS.OCCLUDED.": Rule.BEST,
    "DATASETS.OCCLUDED.ROOT": Rule.FREE,
    "DATASETS.PROTOCOL": Rule.BEST,
    "DATASETS.SKIP_MISSING": Rule.FREE,
    "DATASETS.SYNTHETIC.ROOT": Rule.FREE,
    "DATASETS.TESTS": Rule.BEST,
    "INPUT.": Rule.ONWARD,
    "INPUT.AUGMENTATION": Rule.FREE,
    "INPUT.CACHE": Rule.FREE,
    "INPUT.ON_ERROR": Rule.FREE,
    "INPUT.SIZE_TEST": Rule.BEST,
    "INPUT.SIZE_TRAIN": Rule.REFUSED,
    "KD.": Rule.REFUSED,
    "MODEL.": Rule.REFUSED,
    "MODEL.BACKBONE.PRETRAIN": Rule.START,
    "MODEL.BACKBONE.PRETRAIN_NAME": Rule.START,
    "MODEL.BACKBONE.PRETRAIN_PATH": Rule.START,
    "MODEL.BACKBONE.POSITION_RESIZE": Rule.START,
    "MODEL.BACKBONE.RECOMPUTE": Rule.FREE,
    "MODEL.CHANNELS_LAST": Rule.FREE,
    "MODEL.COMPILE": Rule.FREE,
    "MODEL.COMPILE_MODE": Rule.FREE,
    "MODEL.DEVICE": Rule.FREE,
    "MODEL.EMA.DECAY": Rule.ONWARD,
    "MODEL.LOSSES.": Rule.ONWARD,
    "MODEL.WEIGHTS": Rule.START,
    "OUTPUT_DIR": Rule.FREE,
    "RUN_ID": Rule.FREE,
    "SEED": Rule.REFUSED,
    "SOLVER.": Rule.REFUSED,
    "SOLVER.ACCUMULATE": Rule.EPOCH,
    "SOLVER.AMP.": Rule.ONWARD,
    "SOLVER.BASE_LR": Rule.SCHEDULE,
    "SOLVER.BIAS_LR_FACTOR": Rule.SCHEDULE,
    "SOLVER.CHECKPOINT_PERIOD": Rule.FREE,
    "SOLVER.CLIP_GRADIENTS.": Rule.ONWARD,
    "SOLVER.DELAY_EPOCHS": Rule.SCHEDULE,
    "SOLVER.ETA_MIN_LR": Rule.SCHEDULE,
    "SOLVER.FREEZE_ITERS": Rule.ONWARD,
    "SOLVER.GAMMA": Rule.SCHEDULE,
    "SOLVER.HEADS_LR_FACTOR": Rule.SCHEDULE,
    "SOLVER.LOG_IMAGES": Rule.FREE,
    "SOLVER.LOG_PERIOD": Rule.FREE,
    "SOLVER.MAX_EPOCH": Rule.SCHEDULE,
    "SOLVER.MOMENTUM": Rule.ONWARD,
    "SOLVER.NESTEROV": Rule.ONWARD,
    "SOLVER.OPT": Rule.OPTIMIZER,
    "SOLVER.SCHED": Rule.SCHEDULE,
    "SOLVER.SCHED_BY": Rule.SCHEDULE,
    "SOLVER.SPIKE_FACTOR": Rule.FREE,
    "SOLVER.STEPS": Rule.SCHEDULE,
    "SOLVER.WARMUP_FACTOR": Rule.SCHEDULE,
    "SOLVER.WARMUP_ITERS": Rule.SCHEDULE,
    "SOLVER.WARMUP_METHOD": Rule.SCHEDULE,
    "SOLVER.WEIGHT_DECAY": Rule.ONWARD,
    "SOLVER.WEIGHT_DECAY_BIAS": Rule.ONWARD,
    "SOLVER.WEIGHT_DECAY_NORM": Rule.ONWARD,
    "TEST.": Rule.BEST,
    "TEST.EVAL_PERIOD": Rule.FREE,
    "TEST.IMS_PER_BATCH": Rule.FREE,
    "TEST.PRECISE_BN.": Rule.ONWARD,
}
"""The rule of a key, or of all keys that begin so; of several the longest name holds."""


def find_rule(key: str) -> Rule:
    """Return the rule of a key; one that the table does not know is refused.

    >>> find_rule("SOLVER.BASE_LR").name
    'SCHEDULE'
    """
    names = [name for name in RULES if key == name or (name[-1] == "." and key.startswith(name))]
    return RULES[max(names, key=len)] if names else Rule.REFUSED


class Change(NamedTuple):
    """A key whose value is not that of the run's last part."""

    key: str
    old: Any
    new: Any

    @property
    def rule(self) -> Rule:
        """What the change does to the run."""
        return find_rule(self.key)

    def __str__(self) -> str:
        return f"{self.key} {self.old} -> {self.new}"


def find_changes(saved: dict[str, Any], config: str) -> list[Change]:
    """Return the keys of ``config`` (YAML) that differ from a saved configuration, as it was read.

    Keys that ``saved`` does not hold, of a later version, count as equal; so does a number of
    classes that is yet to be filled in.
    """
    before = dict(leaves(saved))
    return [
        Change(key, before[key], value)
        for key, value in leaves(yaml.safe_load(config))
        if key in before and value != before[key] and (key, value) != ("MODEL.HEADS.NUM_CLASSES", 0)
    ]


def check_changes(changes: Iterable[Change], *, epochs: int, steps: int, max_epoch: int) -> None:
    """Raise a UserError if a run may not be resumed with these changes.

    The run has finished ``epochs`` epochs of ``max_epoch``, and ``steps`` iterations of the next.
    """
    aside = (Rule.FREE, Rule.START, Rule.BEST)
    for rules, reason in (
        ([Rule.REFUSED], "these keys cannot change"),
        ([Rule.EPOCH] if steps else [], "they cannot change in the middle of an epoch"),
        (
            [rule for rule in Rule if rule not in aside] if epochs >= max_epoch else [],
            f"all {max_epoch} epochs (SOLVER.MAX_EPOCH) are trained, so they would not be used",
        ),
    ):
        if faults := [str(change) for change in changes if change.rule in rules]:
            raise UserError(
                f"the run cannot be resumed with {'; '.join(faults)}: {reason}. Take the values of "
                "its config.yaml, or start a new run from its weights (MODEL.WEIGHTS)"
            )


def digest_recipe(cfg: CfgNode) -> str:
    """Return the sha256 of the keys that determine the weights of a training.

    Where it runs, what it logs, tests and saves, and its name are not among them.
    """
    aside = (Rule.FREE, Rule.BEST)
    recipe = sorted(
        (key, list(value) if isinstance(value, tuple) else value)
        for key, value in leaves(cfg)
        if find_rule(key) not in aside
    )
    return hashlib.sha256(repr(recipe).encode()).hexdigest()

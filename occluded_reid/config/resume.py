"""What a resumed run may change: one rule for each key of the configuration."""

from __future__ import annotations

import enum
import hashlib

from fastreid.config import CfgNode

from occluded_reid.config.config import leaves


class Rule(enum.Enum):
    """What changing a key does to a run that is resumed."""

    FREE = "free: it does not change the weights"
    START = "free: only a new run reads it"
    ONWARD = "free: it holds from the resumed epoch on"
    SCHEDULE = "the schedule begins anew, as if it had had this value from the start"
    OPTIMIZER = "the optimizer's state begins anew"
    BEST = "the best metric begins anew"
    WHOLE_EPOCHS = "holds from the resumed epoch on; refused within an epoch"
    REFUSED = "refused: start a new run"


RULES = {
    "CUDNN_BENCHMARK": Rule.FREE,
    "DATALOADER.": Rule.WHOLE_EPOCHS,
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
    "INPUT.SIZE_TEST": Rule.REFUSED,
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
    "SOLVER.": Rule.SCHEDULE,
    "SOLVER.ACCUMULATE": Rule.WHOLE_EPOCHS,
    "SOLVER.AMP.": Rule.ONWARD,
    "SOLVER.CHECKPOINT_PERIOD": Rule.FREE,
    "SOLVER.CLIP_GRADIENTS.": Rule.ONWARD,
    "SOLVER.IMS_PER_BATCH": Rule.REFUSED,
    "SOLVER.LOG_PERIOD": Rule.FREE,
    "SOLVER.OPT": Rule.OPTIMIZER,
    "SOLVER.SPIKE_FACTOR": Rule.FREE,
    "TEST.": Rule.BEST,
    "TEST.EVAL_PERIOD": Rule.FREE,
    "TEST.IMS_PER_BATCH": Rule.FREE,
}
"""The rule of a key, or of all keys that begin so; of several the longest name holds."""


def find_rule(key: str) -> Rule:
    """Return the rule of a key; one that the table does not know is refused.

    >>> find_rule("SOLVER.BASE_LR").name
    'SCHEDULE'
    """
    names = [name for name in RULES if key == name or (name[-1] == "." and key.startswith(name))]
    return RULES[max(names, key=len)] if names else Rule.REFUSED


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

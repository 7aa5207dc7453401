"""A checkpoint that the disk has damaged is passed over by --resume."""

from __future__ import annotations

import logging
from pathlib import Path

from occluded_reid.checkpoint.checkpointer import Checkpointer, load_safely
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)


def pass_over_damaged(checkpointer: Checkpointer, *, trust: bool = False) -> None:
    """Let ``last_checkpoint`` name the newest checkpoint that can be read.

    Where there is none, nothing changes: loading says what is wrong with the last one.

    Args:
        checkpointer: of the run.
        trust: allow pickled Python objects, which can run code.
    """
    last = Path(checkpointer.get_checkpoint_file())
    if not last.is_file() or not (fault := _fault_of(last, trust)):
        return
    others = [path for path in last.parent.glob("model_*.pth") if path != last]
    for path in sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if not _fault_of(path, trust):
            logger.warning(f"{fault}; going on from the newest one that is whole, {path}")
            checkpointer.tag_last_checkpoint(path.name)
            return


def _fault_of(path: Path, trust: bool) -> str:
    try:
        load_safely(str(path), trust=trust)
    except UserError as error:
        return str(error)
    return ""

"""Progress of long work: a bar on a terminal, a few plain log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 30.0


def on_terminal() -> bool:
    """Whether a person watches stderr."""
    return sys.stderr.isatty()


def progress(
    items: Iterable[T], *, total: int | None = None, description: str, unit: str = "it",
    logger: logging.Logger | None = None,
) -> Iterator[T]:  # fmt: skip
    """Yield ``items``, ``total`` of them if they have no length, and show how far the work is.

    Where stderr is no terminal, ``logger`` receives one line each 30 seconds and one at the end.
    """
    total = len(items) if total is None else total  # type: ignore[arg-type]
    if on_terminal():
        yield from tqdm(items, total=total, desc=description, unit=unit, leave=False)
        return
    logger = logger or logging.getLogger(__name__)
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done < total:
            last = now
            left = (now - start) / done * (total - done)
            logger.info(f"{description}: {done}/{total} {unit}, about {left:.0f} s left")
    logger.info(f"{description}: {done} {unit} in {time.monotonic() - start:.1f} s")

#!/usr/bin/env python
"""How a training scales to N processes: arithmetic from the messages that distributed.py counted.

The step's time and the links are given. Nothing is measured here: docs/scaling.md has the formulas.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.options import positive, whole
from tabulate import tabulate

from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError

# Of the ways in which distributed.py lets gradients be sent, those that differ in what is sent.
AS_TRAINED, LARGE, BF16 = "as trained", "100 MiB buckets", "bf16 gradients"


@dataclass(frozen=True)
class Link:
    """The slowest connection in the ring of processes.

    Attributes:
        gbit: Gbit/s, in each direction.
        latency: of one hop, in seconds.
    """

    gbit: float
    latency: float

    def seconds(self, size: float) -> float:
        """Return how long a neighbour waits for ``size`` bytes."""
        return self.latency + 8 * size / (self.gbit * 1e9)


@dataclass(frozen=True)
class Training:
    """What one process computes and sends.

    Attributes:
        step: seconds of an iteration alone; a third of it is the forward pass.
        gradients: bytes of each message, in the order in which they are sent.
        memories: likewise; they are sent between the forward and the backward pass.
        gathered: bytes of what is gathered there instead.
        accumulate: iterations of an optimizer step.
    """

    step: float
    gradients: tuple[int, ...]
    memories: tuple[int, ...]
    gathered: tuple[int, ...] = ()
    accumulate: int = 1


def all_reduce(size: int, ranks: int, link: Link) -> float:
    """Return the seconds of a ring all-reduce: 2 (N - 1) hops of a share of the bytes each."""
    return 2 * (ranks - 1) * link.seconds(size / ranks)


def all_gather(size: int, ranks: int, link: Link) -> float:
    """Return the seconds of a ring all-gather: N - 1 hops of one rank's bytes each."""
    return (ranks - 1) * link.seconds(size)


def iteration(training: Training, ranks: int, link: Link, *, overlap: bool) -> float:
    """Return the mean seconds of an iteration.

    Args:
        training: what a process computes and sends.
        ranks: N.
        link: between them.
        overlap: gradients are sent during the backward pass, but for the last message, which can
            only follow it; else all of them do.
    """
    memories = sum(all_reduce(size, ranks, link) for size in training.memories)
    memories += sum(all_gather(size, ranks, link) for size in training.gathered)
    gradients = [all_reduce(size, ranks, link) for size in training.gradients]
    backward = 2 / 3 * training.step
    after = max(backward + gradients[-1], sum(gradients)) - backward if overlap else sum(gradients)
    return training.step + memories + after / training.accumulate


def by_ranks(training: Training, numbers: list[int], links: list[Link]) -> list[dict[str, str]]:
    """Return a row per link: the share of its time that a process computes, by number of ranks."""
    return [
        {"link": named(link)} | {f"N = {ranks}": shares(training, ranks, link) for ranks in numbers}
        for link in links
    ]


def by_means(trainings: dict[str, Training], ranks: int, links: list[Link]) -> list[dict[str, str]]:
    """Return a row per way to send less: the same shares, by link."""
    return [
        {f"N = {ranks}": name} | {named(link): shares(training, ranks, link) for link in links}
        for name, training in trainings.items()
    ]


def shares(training: Training, ranks: int, link: Link) -> str:
    """Return the share of the time that is computing, in %: with overlap, without."""
    each = (
        100 * training.step / iteration(training, ranks, link, overlap=x) for x in (True, False)
    )
    return " / ".join(f"{share:.0f}" if share > 9.5 else f"{share:.1f}" for share in each)


def named(link: Link) -> str:
    """Return the link in words."""
    return f"{link.gbit:g} Gbit/s"


def hiding(training: Training, ranks: int) -> float:
    """Return the Gbit/s from which the gradients need no longer than the backward pass."""
    size = 2 * (ranks - 1) / ranks * sum(training.gradients)
    return 8 * size / (2 / 3 * training.step) / 1e9


def ways(found: dict[str, Any], args: argparse.Namespace) -> dict[str, Training]:
    """Return the training as it is, and with less to send, or fewer messages.

    Args:
        found: as distributed.py writes it.
        args: the command's.
    """
    trainings = {
        name: Training(
            args.step_ms / 1e3, tuple(each["gradient_messages"]), tuple(each["memory_messages"])
        )
        for name, each in found["variants"].items()
        if name in (AS_TRAINED, LARGE, BF16)
    }
    plain = trainings[AS_TRAINED]
    rows = tuple(args.images * size for size in found["memory_row_bytes"])
    return {
        **trainings,
        f"SOLVER.ACCUMULATE {args.accumulate}": replace(plain, accumulate=args.accumulate),
        "memories in one message": replace(plain, memories=(sum(plain.memories),)),
        "memories gathered": replace(plain, memories=(), gathered=rows),
        "no memories": replace(plain, memories=()),
    }


def report(args: argparse.Namespace) -> str:
    """Return both tables, and what goes with them, as text.

    Raises:
        UserError: as for :func:`read`.
    """
    if len(set(map(named, args.links))) < len(args.links):
        raise UserError("--links: two of them have the same Gbit/s")
    found = read(Path(args.measured))
    trainings = ways(found, args)
    plain = trainings[AS_TRAINED]
    return "\n".join(
        [
            f"{found['method']}, {args.step_ms:g} ms an iteration alone, "
            f"{amount(plain.gradients)} of gradients, {amount(plain.memories)} of memories.\n",
            tabulate(by_ranks(plain, args.numbers, args.links), "keys", "pipe") + "\n",
            tabulate(by_means(trainings, args.ranks, args.links), "keys", "pipe") + "\n",
            f"With N = {args.ranks} the gradients take as long as the backward pass at "
            f"{hiding(plain, args.ranks):.0f} Gbit/s.",
        ]
    )


def amount(messages: tuple[int, ...]) -> str:
    """Return how much is sent."""
    return f"{sum(messages) / 1e6:.3g} MB in {len(messages)}"


def read(path: Path) -> dict[str, Any]:
    """Return what distributed.py wrote.

    Raises:
        UserError: the file is none of its own.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        needed = found["method"], found["memory_row_bytes"], found["variants"][AS_TRAINED]
        needed[2]["gradient_messages"], needed[2]["memory_messages"]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no file that distributed.py --json has written") from error
    return found


def link(word: str) -> Link:
    """Read ``Gbit/s:microseconds``; raises ``ValueError`` as argparse expects it."""
    gbit, microseconds = word.split(":")
    return Link(positive(gbit), positive(microseconds) / 1e6)


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", metavar="F", help="what distributed.py --json has written")
    parser.add_argument("--step-ms", type=positive, required=True, help="of an iteration alone")
    parser.add_argument("--images", type=whole, default=64, help="of a process (FED: pairs)")
    parser.add_argument("--numbers", type=whole, nargs="+", default=[2, 4, 8, 16, 32, 64], help="N")
    parser.add_argument("--ranks", type=whole, default=8, help="N of the second table")
    parser.add_argument("--accumulate", type=whole, default=4)
    parser.add_argument(
        "--links", type=link, nargs="+", metavar="GBIT:US", help="Gbit/s and latency of a hop",
        default=[link(word) for word in ("1:50", "10:30", "25:20", "100:10", "400:5", "3200:5")],
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    args = parser.parse_args(words)
    return run_command(lambda: print(report(args)), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

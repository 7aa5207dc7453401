#!/usr/bin/env python
"""What it costs that several processes train one model: messages counted, steps timed.

By itself it starts --ranks processes on this machine, on gloo, or on NCCL with --device cuda.
Under torchrun it measures the job that torchrun has started, on all of its machines.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import aonet_case, fed_case
from cases.aonet_case import AONetCase
from cases.fed_case import FEDCase
from fastreid.utils import comm
from harness.machine import require_place, write_results
from harness.options import argument_parser, whole
from scaling import AS_TRAINED
from synchronised import VARIANTS, measure_collectives, measure_variant
from tabulate import tabulate

from occluded_reid.engine.launch import launch
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError


def of_method(name: str, images: int) -> FEDCase | AONetCase:
    """Return a method at its paper's sizes, but for the images of a rank.

    Raises:
        UserError: FED cannot make pairs of them.
    """
    if name == "FED" and images % 2:
        raise UserError(f"--images {images}: FED makes pairs of them, so give an even number")
    return FEDCase(pairs=images // 2) if name == "FED" else AONetCase(images=images)


def start(args: argparse.Namespace) -> None:
    """Start the ranks.

    Raises:
        UserError: an option that does not fit the method or the machine.
    """
    of_method(args.method, args.images)
    gpus, starts_them = torch.cuda.device_count(), "TORCHELASTIC_RUN_ID" not in os.environ
    if args.device == "cuda" and starts_them and gpus < args.ranks:
        raise UserError(f"--ranks {args.ranks} on --device cuda: this machine has {gpus} GPUs")
    if args.json:
        require_place(Path(args.json))
    launch(run, args, device=args.device, processes=args.ranks)


def run(args: argparse.Namespace) -> None:
    """Measure on one rank of the job; the first one prints and writes.

    Raises:
        UserError: there is no other rank.
    """
    if comm.get_world_size() < 2:
        raise UserError("one process sends no messages: --ranks 2, or torchrun with two")
    if args.device == "cpu":
        torch.set_num_threads(1)
    case = of_method(args.method, args.images)
    found = measure(case, args.variants, args.rounds, args.device)
    if not comm.is_main_process():
        return
    print(tables(found))
    if args.json:
        about = {"method": args.method, "ranks": comm.get_world_size()}
        write_results(Path(args.json), {**about, "backend": dist.get_backend(), **found})


def measure(
    case: FEDCase | AONetCase, variants: list[str], rounds: int, device: str
) -> dict[str, Any]:
    """Return messages and times of one method, the same on every rank.

    Args:
        case: its sizes; the batch is that of one rank.
        variants: beside the trainer's own way.
        rounds: how often everything is timed.
        device: ``cpu`` or ``cuda``.
    """
    if isinstance(case, FEDCase):
        model, batch = fed_case.build_fed(case, device), fed_case.build_batch(case, device)
        sums = case.identities
    else:
        model, batch = aonet_case.build_aonet(case, device), aonet_case.build_batch(case, device)
        sums = 1
    found: dict[str, Any] = {}
    for variant in (AS_TRAINED, *variants):
        if comm.is_main_process():
            print(f"{variant} ...", file=sys.stderr, flush=True)
        found[variant] = measure_variant(variant, model, batch, rounds=rounds, device=device)
        gc.collect()  # DDP's buckets go with their wrapper
    first = found[AS_TRAINED]
    row = [size // sums for size in first["memory_messages"]]
    gathered = [size * len(batch["targets"]) for size in row]
    return {
        "case": dataclasses.asdict(case),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "variants": found,
        "memory_row_bytes": row,
        "collectives": measure_collectives(first, gathered, rounds=rounds, device=device),
    }


def tables(found: dict[str, Any]) -> str:
    """Return what was measured as tables in Markdown."""
    messages = found["variants"][AS_TRAINED]["messages"]
    steps = [
        {
            "variant": variant,
            "messages": len(each["gradient_messages"]),
            "MB sent": sum(each["gradient_messages"]) / 1e6,
            "MB held": each["gradient_bytes_held"] / 1e6,
            **{
                f"{work}, {clock} s": seconds(spread)
                for work, clocks in each["times"].items()
                for clock, spread in clocks.items()
            },
        }
        for variant, each in found["variants"].items()
    ]
    collectives = [
        {"collective": work, **{f"{clock} s": seconds(clocks[clock]) for clock in clocks}}
        for work, clocks in found["collectives"].items()
    ]
    title = f"{found['parameters']:,} parameters"
    parts = [tabulate(rows, "keys", "pipe") for rows in (messages, steps, collectives)]
    return "\n\n".join([title, *parts])


def seconds(spread: list[float]) -> str:
    """Return median, least and largest."""
    middle, least, largest = spread
    return f"{middle:.3g} ({least:.3g} - {largest:.3g})"


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--ranks", type=whole, default=2, help="processes, unless under torchrun")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--method", choices=("FED", "AONet"), default="FED")
    parser.add_argument(
        "--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
        help=f"beside the trainer's own way: {', '.join(VARIANTS)}",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=whole, default=4, help="of a rank; FED makes pairs of them"
    )
    parser.add_argument("--rounds", type=whole, default=5)
    args = parser.parse_args(words)
    return run_command(lambda: start(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

#!/usr/bin/env python
"""Train the rows of a table with several seeds; rows whose results are there are passed over.

    python projects/train_rows.py projects/FED/market_split_rows.yml --seeds 1 2 3
    python tools/compare.py --table projects/results/fed_market_split/*.json

A file of rows names the folder of the results, what all rows share, and each row, as arguments of
tools/train_net.py:

    output: projects/results/fed_market_split
    common: DATASETS.TESTS "('MarketSplit:report',)"
    rows:
      baseline: --config-file configs/market_split_baseline.yml SOLVER.MAX_EPOCH 6

All rows are trained with the first seed, then with the second, each in logs/ROWS/ROW_sSEED, one
after the other; a run that was killed is resumed. The results of each go to ROW_sSEED.json of the
output folder. Several of these commands at once share the rows among them.
"""

import argparse
import contextlib
import shlex
import subprocess
import sys
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError, explain_read_errors
from occluded_reid.utils.files import atomic_write, make_folder

ROOT = Path(__file__).resolve().parent.parent
ERRORS = (OSError, ValueError, KeyError, TypeError, yaml.YAMLError)


def main(args: argparse.Namespace) -> None:
    """Train the chosen rows with each seed."""
    with explain_read_errors(args.rows, "it names output, common and rows", ERRORS):
        table = yaml.safe_load(args.rows.read_text(encoding="utf-8"))
        rows, shared = dict(table["rows"]), shlex.split(table["common"])
        output = make_folder(table["output"])
    if unknown := set(args.only) - set(rows):
        raise UserError(f"{args.rows} has no row {min(unknown)}; it has {', '.join(rows)}")
    runs = make_folder(Path("logs", args.rows.stem))
    for seed in args.seeds:
        for row in args.only or rows:
            name = f"{row}_s{seed}"
            lock = FileLock(runs / f"{name}.lock")
            with contextlib.suppress(Timeout), lock.acquire(timeout=0):  # another command's row
                if not (output / f"{name}.json").exists():
                    words = [*shlex.split(rows[row]), *shared, "SEED", str(seed)]
                    train(runs / name, words, output / f"{name}.json")


def train(run: Path, arguments: list[str], target: Path) -> None:
    """Train a run, or go on with it, and copy its results to ``target``."""
    resume = ["--resume"] if (run / "last_checkpoint").exists() else []
    words = [sys.executable, str(ROOT / "tools/train_net.py"), *resume, *arguments]
    print(f"{run.name}: {shlex.join(words[1:])}", flush=True)
    if subprocess.run([*words, "OUTPUT_DIR", str(run)]).returncode:
        raise UserError(f"the training of {run.name} failed; its messages are above")
    with atomic_write(target) as file:
        file.write((run / "results.json").read_bytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, metavar="ROWS.yml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW")
    sys.exit(run_command(lambda: main(parser.parse_args())))

#!/usr/bin/env python
"""Make a model-zoo entry of a run: weights for evaluation, configuration, results, a table row.

The folder appears only if --eval-only on the published weights gives the numbers of the run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import train_net
from methods import ADD_KEYS
from torch import nn

from occluded_reid.config import CfgNode, changed_copy, load_config
from occluded_reid.modeling.build import build_inference_model
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import whole_file, whole_folder

TOLERANCE = 0.05  # per cent points: the rounding of another machine, or of autocast
SHOWN = ("Rank-1", "mAP", "mINP")


def publish(args: argparse.Namespace) -> None:
    """Write the folder, evaluate from it, compare; print the row."""
    run = Path(args.run)
    weights = Path(args.weights) if args.weights else run / "model_final.pth"
    config, reported = run / "config.yaml", run / "results.json"
    for path in (config, reported, weights):
        if not path.is_file():
            raise UserError(f"there is no {path}: a finished run has it; --run names its folder")
    words = ["MODEL.DEVICE", args.device] if args.device else []
    cfg = load_config(str(config), words, add_keys=ADD_KEYS)
    model = build_inference_model(cfg, str(weights), trust=args.trust_checkpoint)
    name = args.name or run.resolve().name
    with whole_folder(args.output) as folder:
        file = write_weights(folder, name, model)
        (folder / "config.yaml").write_text(published(cfg, name).dump(), encoding="utf-8")
        results = evaluate(folder, file, words)
        refuse_other_numbers(_json(reported), results)
    print(f"\nEvaluated from {args.output}: the numbers of {reported}")
    row = table_row(name, Path(args.output), file, results)
    print(row)
    if args.zoo:
        append_row(Path(args.zoo), row)


def write_weights(folder: Path, name: str, model: nn.Module) -> str:
    """Write the weights in fast-reid's form; return the file's name, which ends in its sha256."""
    stream = io.BytesIO()
    torch.save({"model": {key: value.cpu() for key, value in model.state_dict().items()}}, stream)
    digest = hashlib.sha256(stream.getbuffer()).hexdigest()
    file = f"{name}-{digest[:8]}.pth"
    (folder / file).write_bytes(stream.getbuffer())
    return file


def published(cfg: CfgNode, name: str) -> CfgNode:
    """The run's configuration without what it had on its own machine alone.

    The weights that are published are the average where a run keeps one.
    """
    with changed_copy(cfg) as cfg:
        cfg.MODEL.WEIGHTS = cfg.MODEL.BACKBONE.PRETRAIN_PATH = ""
        cfg.MODEL.BACKBONE.PRETRAIN = cfg.MODEL.EMA.ENABLED = False
        cfg.OUTPUT_DIR = f"logs/{name}"
    return cfg


def evaluate(folder: Path, file: str, words: list[str]) -> dict[str, Any]:
    """Run ``train_net.py --eval-only`` on the published files; keep its results beside them."""
    with tempfile.TemporaryDirectory() as output:
        command = ["--eval-only", "--config-file", str(folder / "config.yaml"), *words]
        command += ["MODEL.WEIGHTS", str(folder / file), "OUTPUT_DIR", output]
        train_net.start(train_net.argument_parser(train_net.__doc__).parse_args(command))
        for name in ("results.json", "per_query.npz"):
            if Path(output, name).is_file():
                shutil.copyfile(Path(output, name), folder / name)
    return _json(folder / "results.json")


def refuse_other_numbers(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raise a UserError unless both hold the same data sets with the same counts and metrics."""
    faults = []
    for name in sorted({*before["data_sets"], *after["data_sets"]}):
        one, other = (each["data_sets"].get(name) for each in (before, after))
        if one is None or other is None:
            faults.append(f"{name} was tested {'before' if other is None else 'now'} alone")
            continue
        if one["counts"] != other["counts"]:
            faults.append(f"{name} has {other['counts']}, not {one['counts']}")
        for metric, values in one["metrics"].items():
            found = other["metrics"][metric]["value"]
            if not abs(found - values["value"]) <= TOLERANCE:
                faults.append(f"{metric} on {name} is {found:.2f}, not {values['value']:.2f}")
    if faults:
        raise UserError(
            f"the published weights do not give the numbers of the run: {'; '.join(faults)}. "
            "Nothing was published; are these the weights that results.json is of?"
        )


def table_row(name: str, folder: Path, file: str, results: dict[str, Any]) -> str:
    """Return the rows of a model for MODEL_ZOO.md, one for each data set."""
    rows = []
    for data_set, report in results["data_sets"].items():
        numbers = " | ".join(f"{report['metrics'][key]['value']:.1f}" for key in SHOWN)
        rows.append(f"| {name} | {data_set} | {numbers} | `{folder.name}/{file}` |")
    return "\n".join(rows)


def append_row(path: Path, row: str) -> None:
    """Add rows at the end of the first table of a page.

    Raises:
        UserError: the page has no table.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    table = [number for number, line in enumerate(lines) if line.startswith("|")]
    if not table:
        raise UserError(f"{path} has no table to add a row to; MODEL_ZOO.md has one")
    end = next(number for number in table if number + 1 not in table) + 1
    with whole_file(path, "w") as stream:
        stream.write("\n".join([*lines[:end], row, *lines[end:]]) + "\n")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--run", required=True, metavar="DIR", help="folder of a run that has been evaluated")
    add("--output", required=True, metavar="DIR", help="folder to make")
    add("--weights", default="", metavar="W", help="default: model_final.pth of the run")
    add("--name", default="", help="of the model; default: the name of the run's folder")
    add("--zoo", default="", metavar="FILE", help="page that the row is added to: MODEL_ZOO.md")
    add("--device", default="", help="to evaluate on; default: that of the run")
    add("--trust-checkpoint", action="store_true", help="read Python objects: they can run code")
    add("--debug", action="store_true", help="show the traceback of an error")
    return options


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_args(words)
    return run_command(lambda: publish(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())

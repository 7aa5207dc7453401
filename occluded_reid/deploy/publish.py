"""Make a model-zoo entry of a run: in fast-reid's form, and as a folder for the Hub."""

from __future__ import annotations

import hashlib
import io
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from occluded_reid.checkpoint import zoo
from occluded_reid.checkpoint.safetensors_file import NAME, write_safetensors
from occluded_reid.config import CfgNode, changed_copy, load_config
from occluded_reid.config.methods import installed_methods
from occluded_reid.deploy.hub import METRICS, name_architecture, write_descriptions
from occluded_reid.evaluation.results import AGAIN, read_results
from occluded_reid.evaluation.testing import evaluate_weights
from occluded_reid.modeling.build import build_inference_model
from occluded_reid.modeling.keys import dump_config
from occluded_reid.utils.errors import UserError, explain_read_errors
from occluded_reid.utils.files import atomic_folder, atomic_write, hash_file
from occluded_reid.utils.terminal import show

TOLERANCE = 0.05
"""Percentage points by which another machine, or autocast, may round a metric."""
PACKAGED_TOLERANCE = 1.0
"""The same for weights in half precision, with which a few queries may change."""
PACKAGED_SIZE = 8_000_000
"""Bytes that the weights of a model in the package may have."""


def publish(
    weights: str, output: str, *, run: str = "", name: str = "", device: str = "",
    data_license: str = "", notes: str = "", trust_checkpoint: bool = False,
    overrides: Sequence[str] = (),
) -> str:  # fmt: skip
    """Write weights for inference, configuration and results of a run into a new folder.

    It is an entry in fast-reid's form and, with weights.safetensors, reid_config.json and a card,
    a folder for the Hub. It appears only if evaluating the published weights gives the numbers of
    the run; so does a model of the package, which has fewer files.

    Args:
        weights: A run's folder, or a weights file.
        output: the folder to make; ``""`` for a model of the package, with weights in half
            precision and an entry in its registry.
        run: the folder of config.yaml and results.json, if they are not beside the weights.
        name: of the model; by default that of the run's folder.
        device: to evaluate on; by default that of the run.
        data_license: of the training data, for the card.
        notes: file with paragraphs for the card.
        trust_checkpoint: allow pickled Python objects, which can run code.
        overrides: ``KEY VALUE ...``, such as the DATASETS.TESTS that the run was evaluated on.

    Returns:
        The table rows for MODEL_ZOO.md, one per data set.
    """
    file = Path(weights)
    if file.is_dir():  # only a finished run: no fallback to the last or the best checkpoint
        file = file / "model_final.pth"
    folder_of_run = Path(run or file.parent)
    config, reported = folder_of_run / "config.yaml", folder_of_run / "results.json"
    for path in (file, config, reported):
        if not path.is_file():
            raise UserError(f"there is no {path}; publish a run that is finished and evaluated")
    name = name or folder_of_run.resolve().name
    if Path(name).name != name:
        raise UserError(f"--name {name} is no file name")
    with explain_read_errors(notes, "--notes is text for the card"):
        text = Path(notes).read_text(encoding="utf-8") if notes else ""
    before = read_results(reported)
    overrides = [*overrides, *(["MODEL.DEVICE", device] if device else [])]
    cfg = load_config(str(config), overrides, add_keys=installed_methods())
    _check_reports(reported, before, cfg)
    model = build_inference_model(cfg, str(file), trust=trust_checkpoint)
    packaged = not output
    folder = Path(output or zoo.HOME / name)
    with atomic_folder(folder) as made:
        (made / "config.yaml").write_text(dump_config(_clean_config(cfg, name)), encoding="utf-8")
        architecture = name_architecture(model, cfg)
        by_timm = architecture.startswith("timm:")
        write_safetensors(made / NAME, model, half=packaged, timm_names=by_timm)
        published = NAME if packaged else _write_weights(made, name, model)
        size = (made / published).stat().st_size
        if packaged and size > PACKAGED_SIZE:
            raise UserError(f"{name} has {size:,} bytes in half precision; {PACKAGED_SIZE:,} fit")
        results = _evaluate(made, published, overrides, keep=not packaged)
        _require_same_results(before, results, PACKAGED_TOLERANCE if packaged else TOLERANCE)
        about = write_descriptions(
            made, model, cfg, name, architecture, results, data_license, text
        )
    if packaged:
        _register(name, about)
    return format_rows(name, name if packaged else f"{folder.name}/{published}", about["results"])


def _register(name: str, about: dict[str, Any]) -> None:
    """Enter a model whose folder is in the package's zoo into the registry."""
    weights = zoo.HOME / name / NAME
    zoo.add_model(
        zoo.ZooModel(
            name=name, file=f"{name}/{NAME}", sha256=hash_file(weights),
            size=weights.stat().st_size, config=f"{name}/config.yaml", card=f"{name}/README.md",
            **about,
        )
    )  # fmt: skip


def _write_weights(folder: Path, name: str, model: nn.Module) -> str:
    """Write the weights; return the file's name, which ends in 8 digits of its sha256."""
    stream = io.BytesIO()
    torch.save({"model": {key: value.cpu() for key, value in model.state_dict().items()}}, stream)
    digest = hashlib.sha256(stream.getbuffer()).hexdigest()
    file = f"{name}-{digest[:8]}.pth"
    (folder / file).write_bytes(stream.getbuffer())
    return file


def _clean_config(cfg: CfgNode, name: str) -> CfgNode:
    """Remove the run's own paths; the published weights are the average if the run keeps one."""
    with changed_copy(cfg) as cfg:
        cfg.MODEL.WEIGHTS = cfg.MODEL.BACKBONE.PRETRAIN_PATH = ""
        cfg.MODEL.BACKBONE.PRETRAIN = cfg.MODEL.EMA.ENABLED = False
        cfg.OUTPUT_DIR, cfg.RUN_ID = f"logs/{name}", ""
    return cfg


def _check_reports(reported: Path, results: dict[str, Any], cfg: CfgNode) -> None:
    """Raise a UserError if the results cannot be what an evaluation by ``cfg`` gives."""
    tested, asked = set(results["data_sets"]), set(cfg.DATASETS.TESTS)
    if not tested or tested - asked or (asked - tested and not cfg.DATASETS.SKIP_MISSING):
        names = (show(", ".join(sorted(each)) or "none") for each in (tested, asked))
        raise UserError(
            f"{reported} has results of {next(names)}, but DATASETS.TESTS are {next(names)}; "
            f"name the same ones, or {AGAIN}"
        )
    for name, report in results["data_sets"].items():
        if lacking := ", ".join(key for key in METRICS if key not in report["metrics"]):
            raise UserError(f"{reported} lacks {lacking} of {name}; {AGAIN}")


def _evaluate(folder: Path, weights: str, overrides: list[str], *, keep: bool) -> dict[str, Any]:
    """Evaluate the published files, as ``--eval-only`` does; ``keep`` the results beside them."""
    with tempfile.TemporaryDirectory() as output:
        overrides = [*overrides, "MODEL.WEIGHTS", str(folder / weights), "OUTPUT_DIR", output]
        cfg = load_config(str(folder / "config.yaml"), overrides, add_keys=installed_methods())
        evaluate_weights(cfg)
        results = Path(output, "results.json")
        if keep:
            shutil.copyfile(results, folder / results.name)
        return read_results(results)


def _require_same_results(before: dict[str, Any], after: dict[str, Any], tolerance: float) -> None:
    """Raise a UserError unless both hold the same data sets, counts and metrics."""
    faults = []
    for name in sorted({*before["data_sets"], *after["data_sets"]}):
        one, other = (each["data_sets"].get(name) for each in (before, after))
        if one is None or other is None:
            faults.append(f"{name} was tested only {'before' if other is None else 'now'}")
            continue
        if one["counts"] != other["counts"]:
            faults.append(f"{name} has {other['counts']}, not {one['counts']}")
        for metric, values in one["metrics"].items():
            value = other["metrics"].get(metric, {"value": math.nan})["value"]
            if not abs(value - values["value"]) <= tolerance:
                faults.append(f"{metric} on {name} is {value:.2f}, not {values['value']:.2f}")
    if faults:
        raise UserError(
            f"the published weights do not give the numbers of the run: {'; '.join(faults)}. "
            "Nothing was published. Is results.json of these weights?"
        )


def format_rows(name: str, files: str, results: dict[str, dict[str, float]]) -> str:
    """Return the rows of a model in MODEL_ZOO.md, one per data set."""
    rows = []
    for data_set, values in results.items():
        numbers = " | ".join(f"{values[key]:.1f}" for key in METRICS)
        rows.append(f"| {name} | {data_set} | {numbers} | `{files}` |")
    return "\n".join(rows)


def add_rows(page: Path, rows: str) -> None:
    """Add rows at the end of the first table of a page."""
    lines = page.read_text(encoding="utf-8").splitlines() if page.is_file() else []
    table = [number for number, line in enumerate(lines) if line.startswith("|")]
    if not table:
        raise UserError(f"{page} has no table to add a row to; MODEL_ZOO.md has one")
    end = next(number for number in table if number + 1 not in table) + 1
    with atomic_write(page, "w") as stream:
        stream.write("\n".join([*lines[:end], rows, *lines[end:]]) + "\n")

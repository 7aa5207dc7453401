"""Evaluate a model on the test sets of a configuration.

``tools/train_net.py --eval-only`` calls :func:`evaluate_weights`, the trainer calls :func:`test`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import occluded_reid.compat  # noqa: F401

# isort: split
from fastreid.config import CfgNode
from fastreid.utils import comm
from torch import nn

from occluded_reid.checkpoint.resolve import get_run_id, resolve_weights
from occluded_reid.config import changed_copy
from occluded_reid.data.build import build_test_loader, open_dataset
from occluded_reid.data.datasets.base import (
    NOTHING_SCORED,
    DatasetNotFound,
    find_shared_people,
    find_unmatched,
)
from occluded_reid.data.datasets.registry import resolve_protocol
from occluded_reid.data.digest import name_items
from occluded_reid.data.loader import ReidLoader
from occluded_reid.evaluation.evaluator import Evaluator
from occluded_reid.evaluation.inference import run_inference
from occluded_reid.evaluation.results import are_results_of, format_results, write_results
from occluded_reid.modeling.build import build_untrained, load_trained, log_model
from occluded_reid.utils.distributed import check_agreement, run_on_first_rank
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

TestSet = tuple[ReidLoader, Evaluator]


def evaluate_weights(
    cfg: CfgNode, *, trust_checkpoint: bool = False, begin: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Build the model, load ``MODEL.WEIGHTS`` (their average if ``MODEL.EMA.ENABLED``), and test.

    Pretrained backbone weights are not loaded. ``trust_checkpoint`` allows checkpoints with pickled
    Python objects, which can run code. ``begin`` is called once everything has been opened. In the
    folder of a run, its results are kept if they are of other weights: those of ``x.pth`` are then
    in results-x.json. Returns what :func:`test` returns.
    """
    if not cfg.MODEL.WEIGHTS:
        raise UserError("--eval-only needs weights: MODEL.WEIGHTS path/to/model_final.pth")
    model = build_untrained(cfg)
    log_model(cfg, model)
    weights = run_on_first_rank(lambda: resolve_weights(cfg.MODEL.WEIGHTS)[1])
    loaded = load_trained(model, cfg, weights, trust=trust_checkpoint)
    with changed_copy(cfg) as cfg:
        cfg.RUN_ID = get_run_id(loaded)  # the configuration may be another run's
    open_test_sets(cfg)
    begin()
    return test(cfg, model, weights=weights)


def _choose_suffix(folder: Path, model: nn.Module, weights: str) -> str:
    """Return what to add to the names of results, so that those of a run's own weights stay.

    Asked when they are written: the run may be in training.
    """
    results = folder / "results.json"
    if are_results_of(results, model) is not False:
        return ""
    suffix = ""
    if any(folder.glob("*.pth")):
        logger.warning(f"{results} is of other weights and is kept; OUTPUT_DIR sets another folder")
        suffix = f"-{Path(weights).stem}"
        results = folder / f"results{suffix}.json"
        if are_results_of(results, model) is not False:
            return suffix
    logger.warning(f"{results} is of other weights and is replaced; set OUTPUT_DIR to keep it")
    return suffix


def test(
    cfg: CfgNode, model: nn.Module, *, epoch: int | None = None, weights: str = "",
    show: Callable[[str, Evaluator], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate ``model`` on ``DATASETS.TESTS``, print a table and write results.json.

    >>> reports = test(cfg, model)
    >>> reports["OccludedDuke"]["metrics"]["Rank-1"]["value"]  # in per cent

    Args:
        cfg: the configuration. With ``DATASETS.SKIP_MISSING``, test sets that are not on the disk
            are logged and skipped.
        model: the unwrapped model.
        epoch: the last finished epoch, for results.json.
        weights: the file that the model's weights are from, for results.json; ``""`` in training.
        show: called on rank 0 with the name and the evaluator of each test set.

    Returns:
        On rank 0 the report of each test set by name, with the protocol in use; elsewhere an empty
        dict.
    """
    start = time.perf_counter()
    test_sets, missing = open_test_sets(cfg)
    reports = {}
    for name in list(test_sets):
        loader, evaluator = test_sets.pop(name)  # frees the features of the previous test set
        report = run_inference(model, loader, evaluator, name=name, flip=cfg.TEST.FLIP.ENABLED)
        reports[name] = {"protocol": resolve_protocol(name, cfg.DATASETS.PROTOCOL), **report}
        if show and comm.is_main_process():
            show(name, evaluator)
    if not comm.is_main_process():
        return {}
    if reports:
        logger.info("Results in per cent, with 95 % intervals:\n" + format_results(reports))
    for name, reason in missing.items():
        logger.warning(f"Not tested on {name}: {reason}")
    seconds = time.perf_counter() - start
    path = write_results(
        cfg, model, reports, seconds=seconds, epoch=epoch, missing=missing, weights=weights,
        suffix=_choose_suffix(Path(cfg.OUTPUT_DIR), model, weights) if weights else "",
    )  # fmt: skip
    logger.info(f"Wrote {path}")
    return reports


def open_test_sets(
    cfg: CfgNode, training: Collection[str] = ()
) -> tuple[dict[str, TestSet], dict[str, str]]:
    """Open all of ``DATASETS.TESTS`` at once, so that a mistake in the last one shows early.

    Identities that are among the labels of ``training`` too are named in a warning. Returns the
    opened sets by name; for each missing one the reason, if ``DATASETS.SKIP_MISSING``.
    """
    _check_cameras(cfg)
    test_sets, missing = {}, {}
    for name in cfg.DATASETS.TESTS:
        try:
            test_sets[name] = build_evaluator(cfg, name, training)
        except DatasetNotFound as error:
            if not cfg.DATASETS.SKIP_MISSING:
                raise
            missing[name] = str(error)
    lists: dict[str, Any] = {name: loader.dataset for name, (loader, _) in test_sets.items()}
    check_agreement({f"the list of {name}": name_items(s.img_items) for name, s in lists.items()})
    if missing and not test_sets:
        raise UserError(f"none of DATASETS.TESTS exists: {'; '.join(missing.values())}")
    return test_sets, missing


def _check_cameras(cfg: CfgNode) -> None:
    """Refuse a camera embedding across data sets: there, a camera's number is another camera."""
    names = {name.partition(":")[0] for name in (*cfg.DATASETS.NAMES, *cfg.DATASETS.TESTS)}
    if cfg.MODEL.BACKBONE.CAMERA_EMBEDDING and len(names) > 1:
        raise UserError(
            "MODEL.BACKBONE.CAMERA_EMBEDDING knows the cameras of one data set, but DATASETS.NAMES "
            f"and DATASETS.TESTS name {', '.join(sorted(names))}: train and test on one, or train "
            "without (CAMERA_EMBEDDING 0)"
        )


def build_evaluator(cfg: CfgNode, name: str, training: Collection[str] = ()) -> TestSet:
    """Return the loader and the evaluator of one test set, ``Name`` or ``Name:protocol``."""
    # the table of a set that is trained on has been shown
    verbose = name not in cfg.DATASETS.NAMES
    dataset = open_dataset(cfg, name, training=False, verbose=verbose)
    if not (dataset.query and dataset.gallery):
        raise UserError(
            f"{name} has {len(dataset.query)} queries and {len(dataset.gallery)} gallery images "
            "with readable names; run tools/check_dataset.py to see what is there"
        )
    if len(find_unmatched(dataset.query, dataset.gallery)) == len(dataset.query):
        raise UserError(f"{name}: {NOTHING_SCORED}")
    if both := find_shared_people(dataset, training):
        logger.warning(
            f"{len(both)} identities of {name} are in the training set too, such as "
            f"{', '.join(both[:5])}: the results on it are too good"
        )
    loader, num_query = build_test_loader(cfg, dataset.query, dataset.gallery)
    return loader, Evaluator(cfg, num_query, getattr(dataset, "truth", None))

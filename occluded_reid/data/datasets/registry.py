"""Data sets by name; importing this package registers ours with fast-reid."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
from operator import itemgetter
from typing import Any

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from tabulate import tabulate

from occluded_reid.data.datasets.base import Counts, DatasetNotFound, FolderDataset
from occluded_reid.data.datasets.csv_table import CSV
from occluded_reid.data.datasets.dukemtmc import DukeMTMC, OccludedDuke
from occluded_reid.data.datasets.market1501 import Market1501, MarketSplit
from occluded_reid.data.datasets.msmt17 import MSMT17
from occluded_reid.data.datasets.p_dukemtmc import PDukeMTMC
from occluded_reid.data.datasets.partial_ilids import PartialiLIDS
from occluded_reid.data.datasets.pasted_queries import (
    OccludedMarket1501,
    OccludedMarketSplit,
    PastedQueries,
)
from occluded_reid.data.datasets.synthetic import SyntheticOccluded
from occluded_reid.data.datasets.two_sided import OccludedREID, PartialREID
from occluded_reid.utils.errors import UserError

__all__ = [
    "CSV",
    "Counts",
    "DatasetNotFound",
    "DukeMTMC",
    "FolderDataset",
    "MSMT17",
    "Market1501",
    "MarketSplit",
    "OccludedDuke",
    "OccludedMarket1501",
    "OccludedMarketSplit",
    "OccludedREID",
    "PDukeMTMC",
    "PartialREID",
    "PartialiLIDS",
    "PastedQueries",
    "SyntheticOccluded",
    "build_dataset",
    "chosen_protocol",
    "dataset_names",
    "dataset_root",
    "summary",
    "summary_table",
]

logger = logging.getLogger(__name__)

# fast-reid has registered these names already, and its registry cannot be overruled.
_IN_PLACE_OF_FASTREID: dict[str, type[FolderDataset]] = {
    "DukeMTMC": DukeMTMC,
    "MSMT17": MSMT17,
    "Market1501": Market1501,
}


def dataset_root() -> str:
    """The folder of all data sets: ``$FASTREID_DATASETS`` as it is now, or ``datasets``."""
    return os.environ.get("FASTREID_DATASETS") or "datasets"


def dataset_names() -> list[str]:
    """The names that :func:`build_dataset` knows, fast-reid's and ours."""
    return sorted(DATASET_REGISTRY._obj_map)


def build_dataset(
    name: str,
    *,
    root: str,
    protocol: str = "",
    allow_partial: bool = False,
    synthetic_size: str = "small",
    synthetic_seed: int = 0,
    synthetic_root: str = "",
    occluders: str = "",
    occluded_seed: int = 0,
    occluded_root: str = "",
    paste: bool = True,
    combineall: bool = False,
    verbose: bool = True,
) -> ImageDataset:
    """Read a data set.

    Args:
        name: a registered name, or ``Name:protocol``.
        root: the folder of all data sets, see :func:`dataset_root`.
        protocol: for a set that has several and is not named as ``Name:protocol``; ``""`` is its
            default. A set that has just one way to be evaluated takes no notice of it.
        allow_partial: warn instead of refusing where counts are not the published ones.
        synthetic_size: size of the drawn set.
        synthetic_seed: seed of the drawn set.
        synthetic_root: where the drawn set is kept; ``""`` is ``root``.
        occluders: the occluder set pasted over queries of ``Occluded<Base>``; ``""`` is drawn.
        occluded_seed: what is pasted where.
        occluded_root: where pasted queries are kept; ``""`` is ``root``.
        paste: False keeps the queries of ``Occluded<Base>`` as they are and writes nothing.
        combineall: train on queries and gallery too.
        verbose: write a table of what was found to the log.

    Returns:
        The set; its lists are sorted by path, so that no run depends on the order of a disk.
        ``.truth`` is None, or what is known of each image by its absolute path.

    Raises:
        DatasetNotFound: the set is not on the disk.
        UserError: no such set or protocol, or other counts than published.
    """
    name, _, named_protocol = name.partition(":")
    factory = _find(name)
    options: dict[str, Any] = {"combineall": combineall, "verbose": verbose}
    if issubclass(factory, FolderDataset):
        options["protocol"] = _choose(factory, named_protocol, protocol)
        options["allow_partial"] = allow_partial
    elif "protocol" in inspect.signature(factory).parameters:
        options["protocol"] = named_protocol or protocol
    elif named_protocol:
        raise UserError(f"{name} has no protocol {named_protocol!r}; it has just one way")
    if issubclass(factory, SyntheticOccluded):
        options.update(
            synthetic_size=synthetic_size,
            synthetic_seed=synthetic_seed,
            synthetic_root=synthetic_root,
        )
    if issubclass(factory, PastedQueries):
        options.update(
            occluders=occluders,
            occluded_seed=occluded_seed,
            occluded_root=occluded_root,
            paste=paste,
        )
    dataset = _read(name, factory, root, options)
    if verbose:
        logger.info(f"{name}{_protocol_suffix(dataset)}:\n{summary_table(dataset)}")
    return dataset


def chosen_protocol(name: str, protocol: str = "") -> str:
    """Return the protocol by which :func:`build_dataset` would read a set, without reading it.

    Args:
        name: a registered name, or ``Name:protocol``.
        protocol: the protocol of sets that are not named as ``Name:protocol``.

    Raises:
        UserError: no such set or protocol.
    """
    name, _, named_protocol = name.partition(":")
    factory = _find(name)
    if issubclass(factory, FolderDataset):
        return _choose(factory, named_protocol, protocol)
    return named_protocol


def summary(dataset: ImageDataset) -> dict[str, dict[str, int]]:
    """Count images, identities (without distractors) and cameras of each subset."""
    junk = set(dataset._junk_pids)
    rows = {}
    for subset in ("train", "query", "gallery"):
        items = getattr(dataset, subset)
        rows[subset] = {
            "images": len(items),
            "identities": len({item[1] for item in items} - junk),
            "cameras": len({item[2] for item in items}),
        }
    return rows


def summary_table(dataset: ImageDataset) -> str:
    """Return :func:`summary` as a table for the log."""
    rows = [{"subset": subset, **counts} for subset, counts in summary(dataset).items()]
    return tabulate(rows, headers="keys", tablefmt="pipe")


def _choose(factory: type[FolderDataset], named: str, general: str) -> str:
    return factory.choose_protocol(named or (general if factory.protocols else ""))


def _find(name: str) -> type[ImageDataset]:
    if name in _IN_PLACE_OF_FASTREID:
        return _IN_PLACE_OF_FASTREID[name]
    names = dataset_names()
    if name in names:
        return DATASET_REGISTRY.get(name)
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(by_lower[match] for match in near)}?" if near else ""
    raise UserError(f"there is no data set {name!r}; {hint or 'there are ' + ', '.join(names)}")


def _read(
    name: str, factory: type[ImageDataset], root: str, options: dict[str, Any]
) -> ImageDataset:
    try:
        dataset = factory(root=root, **options)
        subsets = (dataset.train, dataset.query, dataset.gallery)
    except RuntimeError as error:  # fast-reid's sets: '"PATH" is not found'
        if not str(error).endswith("is not found"):
            raise
        raise DatasetNotFound(
            f"{name}: {error}. Download the data set and unpack it there, or point "
            f"FASTREID_DATASETS to the folder of your data sets (now {os.path.abspath(root)})"
        ) from error
    for items in subsets:
        items.sort(key=itemgetter(0))
    if not isinstance(dataset, FolderDataset):  # these have it, and read it when asked
        dataset.truth = None
    return dataset


def _protocol_suffix(dataset: ImageDataset) -> str:
    protocol = getattr(dataset, "protocol", "")
    return f" ({protocol})" if protocol else ""

"""Opens data sets by name; importing it registers ours with fast-reid."""

from __future__ import annotations

import logging
import os
import traceback
from operator import itemgetter
from typing import Any

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from tabulate import tabulate

from occluded_reid.data.datasets import (  # noqa: F401  (importing them registers their sets)
    csv_table,
    p_dukemtmc,
    partial_ilids,
    pasted_queries,
    synthetic,
    two_sided,
)
from occluded_reid.data.datasets.base import (
    OWN_DATA,
    DatasetNotFound,
    FolderDataset,
    count_images,
)
from occluded_reid.data.datasets.dukemtmc import DukeMTMC
from occluded_reid.data.datasets.market1501 import Market1501
from occluded_reid.data.datasets.msmt17 import MSMT17
from occluded_reid.utils.errors import UserError, suggest

logger = logging.getLogger(__name__)

# fast-reid has registered these names already, and its registry cannot be overridden
_REPLACED = {each.__name__: each for each in (DukeMTMC, MSMT17, Market1501)}


def get_dataset_root() -> str:
    """Return the folder of all data sets: ``$FASTREID_DATASETS``, or ``datasets``."""
    return os.environ.get("FASTREID_DATASETS") or "datasets"


def list_dataset_names() -> list[str]:
    """Return the names that :func:`build_dataset` accepts, fast-reid's and ours."""
    return sorted(DATASET_REGISTRY._obj_map)


def build_dataset(
    name: str, *, root: str, protocol: str = "", allow_partial: bool = False,
    combineall: bool = False, verbose: bool = True, training: bool = True, **options: Any,
) -> ImageDataset:  # fmt: skip
    """Read a data set.

    Args:
        name: a registered name, or ``Name:protocol``.
        protocol: used by sets with several protocols where ``name`` gives none; ``""`` is the
            set's default.
        allow_partial: warn instead of failing where counts differ from the published ones.
        combineall: train on queries and gallery too.
        training: False if only queries and gallery are needed; see :attr:`FolderDataset.training`.
        options: of ``SyntheticOccluded`` and ``PastedQueries``; other sets ignore them.

    Returns:
        The set. Its lists are sorted by path, so that no run depends on the order of a disk.
        ``.truth`` is None, or the known occlusion of each image by its absolute path.

    Raises:
        DatasetNotFound: the set is not on the disk.
        UserError: its files are not as they were published.

    >>> build_dataset("Market1501", root="datasets").query[0]  # doctest: +SKIP
    LabeledImage(path='.../query/0001_c1s1_001051_00.jpg', pid=1, camid=0)
    """
    protocol = resolve_protocol(name, protocol)
    name = name.partition(":")[0]
    factory = find_factory(name)
    used: dict[str, Any] = {"combineall": combineall, "verbose": verbose}
    if issubclass(factory, FolderDataset):
        used |= {"protocol": protocol, "allow_partial": allow_partial, "training": training}
        used |= {key: options[key] for key in factory.options if key in options}
    elif protocol:
        raise UserError(f"{name} has no protocol {protocol!r}; it has only one")
    dataset = _read(name, factory, root, used)
    if verbose:
        of_protocol = getattr(dataset, "protocol", "")
        suffix = f" ({of_protocol})" if of_protocol else ""
        logger.info(f"{name}{suffix}:\n{format_summary(dataset)}")
    return dataset


def resolve_protocol(name: str, protocol: str = "") -> str:
    """Return the protocol that :func:`build_dataset` would use, without reading the set."""
    name, _, named_protocol = name.partition(":")
    factory = find_factory(name)
    if not issubclass(factory, FolderDataset):
        return named_protocol
    return factory.resolve_protocol(named_protocol or (protocol if factory.protocols else ""))


def summarize(dataset: ImageDataset) -> dict[str, dict[str, int]]:
    """Count images, identities (without distractors) and cameras of each subset."""
    rows = {}
    for subset in ("train", "query", "gallery"):
        items = getattr(dataset, subset)
        counts = count_images(items, dataset._junk_pids)._asdict()
        rows[subset] = {**counts, "cameras": len({item[2] for item in items})}
    return rows


def format_summary(dataset: ImageDataset) -> str:
    """Return :func:`summarize` as a table for the log."""
    rows = [{"subset": subset, **counts} for subset, counts in summarize(dataset).items()]
    return tabulate(rows, headers="keys", tablefmt="pipe")


def find_factory(name: str) -> type[ImageDataset]:
    """Return the class of a data set, ours before fast-reid's; suggest similar names."""
    if name in _REPLACED:
        return _REPLACED[name]
    names = list_dataset_names()
    if name in names:
        return DATASET_REGISTRY.get(name)
    hint = suggest(name, names) or f"; there are {', '.join(names)}"
    raise UserError(f"there is no data set {name!r}{hint}")


def _read(
    name: str, factory: type[ImageDataset], root: str, options: dict[str, Any]
) -> ImageDataset:
    try:
        dataset = factory(root=root, **options)
        for items in (dataset.train, dataset.query, dataset.gallery):
            items.sort(key=itemgetter(0))
    except Exception as error:
        if isinstance(error, UserError) or issubclass(factory, FolderDataset):
            raise
        raise _explain_failure(name, os.path.abspath(root), error) from error
    if not isinstance(dataset, FolderDataset):  # which has it, and reads it on demand
        dataset.truth = None
    return dataset


def _explain_failure(name: str, root: str, error: Exception) -> UserError:
    """Return what to tell of an error in one of fast-reid's readers, which check next to nothing.

    The texts that its failing function had at hand are the list, its line or the image.
    """
    if isinstance(error, FileNotFoundError) or str(error).endswith('" is not found'):
        return DatasetNotFound(
            f"{name}: {error}. Download the data set and unpack it there, or point "
            f"FASTREID_DATASETS to the folder of your data sets (now {root})"
        )
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [frame for frame in frames if "fastreid" in frame.f_code.co_filename] or frames
    texts = {key: each for key, each in own[-1].f_locals.items() if isinstance(each, str)}
    where = ", ".join(f"{key} {each[:200]!r}" for key, each in texts.items())
    return UserError(
        f"{name}: fast-reid's reader does not understand the files below {root} "
        f"({type(error).__name__}: {error}; {where or 'no file was open'}). Compare them with the "
        f"published ones. {OWN_DATA}"
    )

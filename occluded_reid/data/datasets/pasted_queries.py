"""Holistic sets asked with queries that are pasted over, so that their occlusion is known."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from fastreid.data.datasets import DATASET_REGISTRY
from PIL import Image

from occluded_reid.data.datasets.base import FolderDataset, LabelledImage
from occluded_reid.data.datasets.dukemtmc import DukeMTMC
from occluded_reid.data.datasets.market1501 import Market1501, MarketSplit
from occluded_reid.data.datasets.msmt17 import MSMT17
from occluded_reid.data.images import read_errors_named, read_rgb
from occluded_reid.data.transforms.occluder_cutouts import Cutout, drawn_cutouts, read_cutouts
from occluded_reid.data.transforms.paste import SHARES, Pasted, paste_one, person_zone
from occluded_reid.synthetic.truth import Occluder, Truth, bound_mask, measure_masks, read_truth
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import make_once, whole_file, write_errors_named
from occluded_reid.utils.progress import progress

logger = logging.getLogger(__name__)

VERSION = 1
"""Version of the pasting. It rises whenever the same seed would give other pixels."""

_ANEW = "delete the folder, and the queries are pasted anew"


class PastedQueries(FolderDataset):
    """What a holistic set inherits from besides its own class to become ``Occluded<Base>``.

    Training images and gallery are the base's. Protocol ``occluded`` asks with the base's queries,
    each behind a *held-out* occluder, ``holistic`` with the queries as they are; so both search the
    same gallery. The occluders are the ``test`` split of an occluder set, or drawn in the styles
    that NPO augmentation never shows. A real picture has no silhouette: what the truth calls the
    person is the person zone of :mod:`occluded_reid.data.transforms.paste`, the middle
    60 % of the picture's width. ``stripe_coverage`` is of the whole area. ``train`` with
    ``combineall`` holds the queries
    as they are.

    The pictures depend on the base's queries, the occluders, the seed and :data:`VERSION`, and so
    does the name of the folder that keeps them; they have the base's file names.

    Args:
        root: the folder of all data sets.
        protocol: ``occluded`` (default) or ``holistic``.
        occluders: an occluder set, see :mod:`~occluded_reid.data.transforms.occluder_cutouts`;
            ``""`` is the drawn one.
        occluded_seed: what is pasted where; not negative.
        occluded_root: where the pictures are kept; ``""`` is ``root``.
        paste: ask with the pasted queries, and make them where they are not there yet. Otherwise
            nothing is written and ``query`` holds the queries as they are.

    Attributes:
        pasted: the folder of the pasted queries, also where it is not there yet; None for
            ``holistic``.
        pasted_queries: the pasted queries in that folder.
    """

    protocols = ("occluded", "holistic")

    def __init__(
        self,
        root: str = "datasets",
        protocol: str = "",
        *,
        occluders: str = "",
        occluded_seed: int = 0,
        occluded_root: str = "",
        paste: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, protocol, **kwargs)
        self.pasted: Path | None = None
        self.pasted_queries: list[LabelledImage] = []
        self._truth: dict[str, Any] | None = None
        if self.protocol != "occluded":
            return
        if occluded_seed < 0:
            raise UserError(f"DATASETS.OCCLUDED.SEED is {occluded_seed}; it must be 0 or more")
        cutouts = _cutouts(occluders)
        base = {os.path.relpath(image.path, self.home): image for image in self.query}
        name = f"{type(self).__name__}-seed{occluded_seed}-{_digest(base, cutouts)}-v{VERSION}"
        kept = os.path.abspath(os.path.expanduser(occluded_root or self.root))
        folder = self.pasted = Path(kept, "Occluded", name)
        self.pasted_queries = [q._replace(path=str(folder / name)) for name, q in base.items()]
        if paste:
            make_once(folder, lambda made: _paste_all(made, base, cutouts, occluded_seed))
            self._query = self.pasted_queries
            self._check_complete(folder)

    def _check_complete(self, folder: Path) -> None:
        missing = [image.path for image in self.query if not os.path.isfile(image.path)]
        if missing:
            raise UserError(
                f"{folder} lacks {len(missing)} of its {len(self.query)} pictures, such as "
                f"{os.path.basename(missing[0])}; {_ANEW}"
            )

    @property
    def truth(self) -> dict[str, Any] | None:
        """What was pasted over each query by its absolute path; None where nothing was.

        Raises:
            UserError: the file is missing or damaged.
        """
        if self._truth is None and self.pasted is not None:
            try:
                records = read_truth(self.pasted)
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"cannot read {self.pasted / 'truth.jsonl'} ({error!r}); {_ANEW}"
                ) from error
            self._truth = {str(self.pasted / path): truth for path, truth in records.items()}
        return self._truth


@DATASET_REGISTRY.register()
class OccludedMarket1501(PastedQueries, Market1501):
    """Market-1501 with pasted queries."""


@DATASET_REGISTRY.register()
class OccludedDukeMTMC(PastedQueries, DukeMTMC):
    """DukeMTMC-reID with pasted queries; ``OccludedDuke`` is another set, with real occlusion."""


@DATASET_REGISTRY.register()
class OccludedMSMT17(PastedQueries, MSMT17):
    """MSMT17 with pasted queries."""


@DATASET_REGISTRY.register()
class OccludedMarketSplit(PastedQueries, MarketSplit):
    """The validation split of Market-1501's training images, with pasted queries."""


def _cutouts(occluders: str) -> list[Cutout]:
    if occluders:
        return read_cutouts(Path(occluders).expanduser(), "test")
    logger.info(
        "DATASETS.OCCLUDED.OCCLUDERS names no folder: queries are pasted over with drawn occluders "
        "(the test styles of occluded_reid.synthetic)"
    )
    return drawn_cutouts()


def _digest(base: dict[str, LabelledImage], cutouts: list[Cutout]) -> str:
    """Ten hexadecimal digits that change with any query and any cut-out."""
    digest = hashlib.sha256()
    for name, image in base.items():
        with read_errors_named(f"the image {image.path}", "replace or remove it"):
            content = Path(image.path).read_bytes()
        digest.update(f"{name}\0".encode() + hashlib.sha256(content).digest())
    for cutout in cutouts:
        digest.update(f"{cutout.kind}{cutout.pixels.shape}".encode())
        digest.update(cutout.pixels.tobytes())
    return digest.hexdigest()[:10]


def _paste_all(
    folder: Path, base: dict[str, LabelledImage], cutouts: list[Cutout], seed: int
) -> None:
    """Write the pasted queries and ``truth.jsonl``."""
    by_occlusion = {
        occlusion: [c for c in cutouts if c.occlusion == occlusion] for occlusion in SHARES
    }
    choice = {occlusion: found for occlusion, found in by_occlusion.items() if found}
    truths = []
    for name, image in progress(
        base.items(), total=len(base), description="pasting over queries", logger=logger
    ):
        # by its name: the same whatever else is in the set
        own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        pasted = paste_one(_read(image.path), choice, np.random.default_rng([VERSION, seed, own]))
        path = folder / name
        with write_errors_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pasted.pixels).save(path, quality=95)
        truths.append(_truth(name, image, pasted))
    with whole_file(folder / "truth.jsonl", "w") as stream:
        stream.writelines(truth.to_json() + "\n" for truth in truths)


def _read(path: str) -> np.ndarray:
    with read_errors_named(f"the image {path}", "replace or remove it"):
        return np.asarray(read_rgb(path))


def _truth(name: str, image: LabelledImage, pasted: Pasted) -> Truth:
    covered, cutout = pasted.covered, pasted.cutout
    zone = person_zone((covered.shape[0], covered.shape[1]))
    return Truth(
        path=name,
        identity=image.pid,
        camera=image.camid + 1,
        split="query",
        size=(covered.shape[1], covered.shape[0]),
        occluders=(Occluder(cutout.kind, cutout.orientation, bound_mask(covered)),),
        occlusion=cutout.occlusion,
        **measure_masks(zone, covered),
    )

"""Holistic sets whose queries are pasted over, so that their occlusion is known exactly."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from fastreid.data.datasets import DATASET_REGISTRY
from PIL import Image

from occluded_reid.data.datasets.base import FolderDataset, LabeledImage
from occluded_reid.data.datasets.dukemtmc import DukeMTMC
from occluded_reid.data.datasets.market1501 import Market1501, MarketSplit
from occluded_reid.data.datasets.msmt17 import MSMT17
from occluded_reid.data.images import read_content, read_rgb
from occluded_reid.data.transforms.occluder_cutouts import Cutout, read_cutouts, render_cutouts
from occluded_reid.data.transforms.paste import SHARES, paste_cutout, person_zone
from occluded_reid.synthetic.truth import Occluder, Truth, bound_mask, measure_masks, read_truth
from occluded_reid.utils.errors import UserError, explain_read_errors
from occluded_reid.utils.files import atomic_write, explain_write_errors, make_folder_once
from occluded_reid.utils.progress import progress

logger = logging.getLogger(__name__)

VERSION = 1
"""Version of the pasting. It rises whenever the same seed gives other pixels."""

_REMEDY = "delete the folder to paste the queries again"


class PastedQueries(FolderDataset):
    """Mixed into the class of a holistic set, makes it ``Occluded<Base>``.

    Training images and gallery are the base's. Protocol ``occluded`` asks with the base's queries,
    each behind a *held-out* occluder, ``holistic`` with the original queries. Both search the same
    gallery. The occluders are the ``test`` split of an occluder set, or synthetic ones in styles
    that NPO augmentation never uses. A photograph has no silhouette: the person in the truth is the
    person zone of :mod:`occluded_reid.data.transforms.paste`, the middle 60 % of the width.
    ``stripe_coverage`` refers to the whole area. With ``combineall``, ``train`` holds the original
    queries.

    The images, and the name of the folder that keeps them, depend on the base's queries, the
    occluders, the seed and :data:`VERSION`. They have the base's file names.

    Args:
        occluders: an occluder set, see :mod:`~occluded_reid.data.transforms.occluder_cutouts`;
            ``""`` uses synthetic occluders.
        occluded_seed: decides what is pasted where; not negative.
        occluded_root: where the images are kept; ``""`` is ``root``.
        paste: ask with the pasted queries, and create them if necessary. If False, nothing is
            written and ``query`` holds the original queries.

    Attributes:
        pasted: folder of the pasted queries, even if it does not exist yet; None for ``holistic``.
        pasted_queries: the pasted queries in that folder.
    """

    protocols: ClassVar[Sequence[str]] = ("occluded", "holistic")
    options = ("occluders", "occluded_seed", "occluded_root", "paste")

    def __init__(
        self, root: str = "datasets", protocol: str = "", *, occluders: str = "",
        occluded_seed: int = 0, occluded_root: str = "", paste: bool = True, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(root, protocol, **kwargs)
        self.pasted: Path | None = None
        self.pasted_queries: list[LabeledImage] = []
        if self.protocol == "holistic":
            return
        if occluded_seed < 0:
            raise UserError(f"DATASETS.OCCLUDED.SEED is {occluded_seed}; it must be 0 or more")
        if occluders:
            cutouts = read_cutouts(Path(occluders).expanduser(), "test")
        else:
            logger.info(
                "DATASETS.OCCLUDED.OCCLUDERS names no folder: pasting synthetic occluders over "
                "queries (the test styles of occluded_reid.synthetic)"
            )
            cutouts = render_cutouts()
        base = {os.path.relpath(image.path, self.home): image for image in self.query}
        digest = _compute_digest(base, cutouts)
        folder_name = f"{type(self).__name__}-seed{occluded_seed}-{digest}-v{VERSION}"
        parent = os.path.abspath(os.path.expanduser(occluded_root or self.root))
        folder = self.pasted = Path(parent, "Occluded", folder_name)
        self.pasted_queries = [q._replace(path=str(folder / name)) for name, q in base.items()]
        if paste:
            make_folder_once(folder, lambda empty: _paste_all(empty, base, cutouts, occluded_seed))
            self._query = self.pasted_queries
            missing = [image.path for image in self.query if not os.path.isfile(image.path)]
            if missing:
                raise UserError(
                    f"{folder} lacks {len(missing)} of its {len(self.query)} images, such as "
                    f"{os.path.basename(missing[0])}; {_REMEDY}"
                )

    @cached_property
    def truth(self) -> dict[str, Any] | None:
        """The occlusion of each pasted query by its absolute path; None for ``holistic``."""
        if self.pasted is None:
            return None
        errors = (OSError, KeyError, TypeError, ValueError)
        with explain_read_errors(self.pasted / "truth.jsonl", _REMEDY, errors):
            records = read_truth(self.pasted)
        return {str(self.pasted / path): truth for path, truth in records.items()}


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
    """The validation split of Market-1501's training images, with pasted queries.

    Protocols ``choose`` and ``report`` ask with the pasted queries of one half of the identities.
    """

    protocols = (*PastedQueries.protocols, "choose", "report")


def _compute_digest(base: dict[str, LabeledImage], cutouts: list[Cutout]) -> str:
    """Return ten hexadecimal digits that change with any query and any cut-out."""
    digest = hashlib.sha256()
    for name, image in base.items():
        content = read_content(image.path)
        digest.update(f"{name}\0".encode() + hashlib.sha256(content).digest())
    for cutout in cutouts:
        digest.update(f"{cutout.kind}{cutout.pixels.shape}".encode())
        digest.update(cutout.pixels.tobytes())
    return digest.hexdigest()[:10]


def _paste_all(
    folder: Path, base: dict[str, LabeledImage], cutouts: list[Cutout], seed: int
) -> None:
    """Write the pasted queries and ``truth.jsonl``."""
    by_occlusion = {name: [c for c in cutouts if c.occlusion == name] for name in SHARES}
    candidates = {name: same for name, same in by_occlusion.items() if same}
    truths = []
    for name, image in progress(base.items(), description="Pasting over queries", logger=logger):
        pixels = np.asarray(read_rgb(image.path))
        # seeded by the name, so that a query does not depend on the rest of the set
        name_seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        rng = np.random.default_rng([VERSION, seed, name_seed])
        occluded = paste_cutout(pixels, candidates, rng)
        path = folder / name
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(occluded.pixels).save(path, quality=95)
        covered, cutout = occluded.covered, occluded.cutout
        height, width = covered.shape
        truth = Truth(
            path=name, identity=image.pid, camera=image.camid + 1, split="query",
            size=(width, height), occlusion=cutout.occlusion,
            occluders=(Occluder(cutout.kind, cutout.orientation, bound_mask(covered)),),
            **measure_masks(person_zone((height, width)), covered),
        )  # fmt: skip
        truths.append(truth)
    with atomic_write(folder / "truth.jsonl", "w") as stream:
        stream.writelines(truth.to_json() + "\n" for truth in truths)

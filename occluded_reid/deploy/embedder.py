"""A trained model as a function from pictures to vectors.

Shapes: N images, H, W height and width in pixels, D feature dimensions, P parts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.data.transforms import build_transforms
from PIL import Image
from torch import nn

from occluded_reid.checkpoint.checkpointer import build_inference_model, weights_sha256
from occluded_reid.config import AddKeys, get_cfg, load_config
from occluded_reid.config.methods import installed_methods
from occluded_reid.data.images import read_rgb
from occluded_reid.evaluation.distances import FeatureDistances
from occluded_reid.modeling.outputs import Embedding, embedding_of
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

# What a model that is only evaluated does not need, and what might not be at hand.
_EVALUATED = ("MODEL.BACKBONE.PRETRAIN", "False", "SOLVER.AMP.ENABLED", "False")

# Keys of MODEL that no feature depends on.
_WITHOUT_EFFECT = (
    "BACKBONE.PRETRAIN",  # and PRETRAIN_PATH, PRETRAIN_NAME
    "BACKBONE.RECOMPUTE",
    "COMPILE",
    "DEVICE",
    "EMA.",  # which weights are read is seen from the weights
    "FREEZE_LAYERS",
    "HEADS.NUM_CLASSES",
    "LOSSES.",
    "WEIGHTS",
)


class Embedded(NamedTuple):
    """What a model says of N images.

    Attributes:
        features: (N, D) float32, compared by the model's metric.
        visibility: (N, P) float32 in [0, 1], 1 = visible; P is 0 where a model does not tell.
    """

    features: np.ndarray
    visibility: np.ndarray


class Embedder:
    """A model that takes pictures as cv2 and trackers give them; see :func:`load`.

    Args:
        model: with its weights, in evaluation mode, on the device of ``cfg``.
        cfg: the model's configuration.
        fingerprint: of weights and configuration.
        batch_size: images that go through the model at a time.
        bf16: compute in bfloat16 where autocast does.

    Attributes:
        metric: ``cosine``, ``euclidean`` or ``dot``.
        dim: D.
        num_parts: P.
        stripes: whether the parts are stripes, from the top, or others, such as landmarks.
        input_size: (H, W) that every picture is brought to.
        fingerprint: 64 hex digits; those of another model, input size or metric are others.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: CfgNode,
        *,
        fingerprint: str,
        batch_size: int = 64,
        bf16: bool = False,
    ):
        self.metric: str = cfg.TEST.METRIC
        self.fingerprint = fingerprint
        self.batch_size = batch_size
        self.device = torch.device(cfg.MODEL.DEVICE)
        self._model = model
        self._transform = build_transforms(cfg, is_train=False)
        self._flip = cfg.TEST.FLIP.ENABLED
        self._bf16 = bf16
        blank = self.prepare(np.zeros((2, 1, 3), np.uint8))[None]
        self.input_size: tuple[int, int] = (blank.shape[2], blank.shape[3])
        said = self._said_of(blank)
        self.dim, self.num_parts = said.features.shape[1], said.visibility.shape[1]
        self.stripes = said.stripes

    def embed(self, images: Iterable[np.ndarray]) -> Embedded:
        """Return features and visibility of ``images``, in their order.

        Args:
            images: N arrays (H, W, 3) of uint8, blue first, of any sizes.

        Raises:
            UserError: one of them is no such array, or the weights are broken.
        """
        prepared = (self.prepare(image, place) for place, image in enumerate(images))
        found = [self.embed_prepared(torch.stack(batch)) for batch in self._batches(prepared)]
        none = Embedded(*(np.empty((0, width), np.float32) for width in (self.dim, self.num_parts)))
        features, visibility = zip(none, *found, strict=True)
        return Embedded(np.concatenate(features), np.concatenate(visibility))

    def similarity(self, a: Embedded | np.ndarray, b: Embedded | np.ndarray) -> np.ndarray:
        """Return the (Na, Nb) float32 similarities by the model's metric; higher is more alike.

        They are cosines in [-1, 1], inner products, or minus squared Euclidean distances.

        Args:
            a: what :meth:`embed` returned, or (Na, D) features.
            b: likewise, Nb of them.

        Raises:
            UserError: features of another shape.
        """
        one, other = self._features_of(a), self._features_of(b)
        distances = FeatureDistances(one, other, self.metric, self.device)[:, :]
        return 1 - distances if self.metric == "cosine" else -distances

    def prepare(self, image: np.ndarray, place: int = 0) -> torch.Tensor:
        """Return a picture as evaluation gives it to the model: (3, H, W) in 0-255, red first.

        Args:
            image: (H, W, 3) uint8, blue first, of any size.
            place: its number, for the message.

        Raises:
            UserError: it is no such array.
        """
        _check_image(image, place)
        return self._transform(Image.fromarray(np.ascontiguousarray(image[:, :, ::-1])))

    def embed_prepared(self, images: torch.Tensor) -> Embedded:
        """Return what the model says of one batch of prepared images (N, 3, H, W).

        Raises:
            UserError: features that are not finite.
        """
        said = self._said_of(images)
        return Embedded(said.features.float().cpu().numpy(), said.visibility.float().cpu().numpy())

    @torch.inference_mode()
    def _said_of(self, images: torch.Tensor) -> Embedding:
        images = images.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            said = embedding_of(self._model, {"images": images}, flip=self._flip)
        if not said.features.isfinite().all():
            raise UserError("the model's features are not finite: broken weights")
        return said

    def _batches(self, items: Iterator[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        while batch := list(islice(items, self.batch_size)):
            yield batch

    def _features_of(self, given: Embedded | np.ndarray) -> torch.Tensor:
        features = given.features if isinstance(given, Embedded) else given
        features = np.ascontiguousarray(features, np.float32)
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise UserError(
                f"features of shape {features.shape} cannot be compared by this model: "
                f"(N, {self.dim}) is expected; were they made by another one?"
            )
        return torch.from_numpy(features)


def load(
    weights_or_run: str | os.PathLike[str],
    device: str | None = "cpu",
    *,
    config: str | os.PathLike[str] = "",
    overrides: Sequence[str] = (),
    batch_size: int = 64,
    bf16: bool = False,
    trust_checkpoint: bool = False,
    add_keys: Iterable[AddKeys] | None = None,
) -> Embedder:
    """Read a trained model; what only training needs is left out.

    Args:
        weights_or_run: a run's folder, or a weights file.
        device: such as ``cpu`` or ``cuda:0``; None for what the configuration says, and the CPU
            where there is no GPU.
        config: the configuration; ``""`` for the config.yaml in the run's folder or beside the
            weights.
        overrides: of the configuration, ``KEY VALUE KEY VALUE ...``.
        batch_size: images that go through the model at a time.
        bf16: compute in bfloat16 where autocast does; features stay float32.
        trust_checkpoint: read a file that holds Python objects, which can run code.
        add_keys: the methods; None for all that are installed.

    Raises:
        UserError: no weights, no configuration, no such device, or weights that do not fit.
    """
    weights, config = _files_of(Path(weights_or_run), str(config))
    methods = installed_methods() if add_keys is None else tuple(add_keys)
    if not methods:
        logger.warning("No method is installed: pip install . (or -e .) in the repository")
    words = [*overrides, *_EVALUATED]
    if device is not None:
        _check_device(device)
        words += ["MODEL.DEVICE", device]
    cfg = load_config(config, words, add_keys=methods)
    if len(cfg.INPUT.SIZE_TEST) != 2 or min(cfg.INPUT.SIZE_TEST) < 1:
        raise UserError(f"INPUT.SIZE_TEST is {cfg.INPUT.SIZE_TEST}; height and width are expected")
    model = build_inference_model(cfg, str(weights), trust=trust_checkpoint)
    fingerprint = _fingerprint(model, cfg, get_cfg(methods))
    return Embedder(model, cfg, fingerprint=fingerprint, batch_size=batch_size, bf16=bf16)


def read_bgr(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as :meth:`Embedder.embed` asks: (H, W, 3) of uint8, blue first.

    Raises:
        OSError, SyntaxError, ValueError, DecompressionBombError: see :data:`images.READ_ERRORS`.
    """
    return np.ascontiguousarray(np.asarray(read_rgb(path))[:, :, ::-1])


def _files_of(given: Path, config: str) -> tuple[Path, str]:
    """Return the weights file and the configuration that ``given`` stands for."""
    folder = given if given.is_dir() else given.parent
    weights = _weights_in(given) if given.is_dir() else given
    if not weights.is_file():
        raise UserError(f"there are no weights {weights}: name a run's folder or a weights file")
    beside = folder / "config.yaml"
    if not config and not beside.is_file():
        raise UserError(
            f"there is no {beside}; keep a run's config.yaml beside its weights, or name a "
            "configuration: config=... (--config-file)"
        )
    return weights, config or str(beside)


def _weights_in(run: Path) -> Path:
    """The weights a run has ended with; of one that has not, the last or the best."""
    names = ["model_final.pth", "model_best.pth"]
    last = run / "last_checkpoint"
    if last.is_file():
        names.insert(1, last.read_text(encoding="utf-8").strip())
    found = [run / name for name in names if name and (run / name).is_file()]
    if not found:
        raise UserError(
            f"there are no weights in {run}: model_final.pth, the one that last_checkpoint names, "
            "or model_best.pth is expected"
        )
    if found[0].name != names[0]:
        logger.warning(f"{run} has no {names[0]}: using {found[0].name}")
    return found[0]


def _check_device(device: str) -> None:
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"there is no device {device!r}; it can be cpu, cuda or cuda:0") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"the device is {device}, but PyTorch finds {torch.cuda.device_count()} GPUs; "
            "choose another, such as cpu"
        )


def _check_image(image: Any, place: int) -> None:
    expected = "an array (H, W, 3) of uint8, blue first, is expected, as cv2 gives"
    if not isinstance(image, np.ndarray):
        raise UserError(f"image {place} is a {type(image).__name__}; {expected}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"image {place} has shape {image.shape} of {image.dtype}; {expected}")
    if not image.size:
        raise UserError(f"image {place} is empty, {image.shape}; a box outside of its frame?")


def _fingerprint(model: nn.Module, cfg: CfgNode, defaults: CfgNode) -> str:
    """Return the sha256 over the weights and all that decides what becomes of a picture.

    The weights are those of inference: a run's and the published ones have the same fingerprint. Of
    MODEL only what is not at its default counts, so that a method or a key that is added later
    leaves the fingerprints of other models as they are.
    """
    changed = _changed(cfg.MODEL, defaults.MODEL)
    description = {
        "weights": weights_sha256(model),
        "model": {key: value for key, value in changed if not key.startswith(_WITHOUT_EFFECT)},
        "metric": cfg.TEST.METRIC,
        "flip": cfg.TEST.FLIP.ENABLED,
        "size": cfg.INPUT.SIZE_TEST,
        "crop": cfg.INPUT.CROP.SIZE if cfg.INPUT.CROP.ENABLED else None,
        "pixels": "red first, 0-255, resized by Pillow's bicubic",
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _changed(
    node: Mapping[str, Any], default: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _changed(value, default.get(key, {}), f"{prefix}{key}.")
        elif key not in default or value != default[key]:
            yield f"{prefix}{key}", value

"""A trained model as a function from images to feature vectors.

Shapes: N images, H, W height and width in pixels, P parts, C channels of a part, D dimensions of a
row, the vector by which an image is compared.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from fastreid.data.transforms import build_transforms
from PIL import Image
from torch import nn

from occluded_reid.checkpoint.checkpointer import weights_sha256
from occluded_reid.checkpoint.resolve import resolve_run
from occluded_reid.config import AddKeys, CfgNode, get_cfg, leaves, load_config
from occluded_reid.config.methods import installed_methods
from occluded_reid.deploy.crops import iterate_crops
from occluded_reid.modeling.build import build_inference_model
from occluded_reid.modeling.outputs import Embedding, embed_batch
from occluded_reid.modeling.similarity import (
    NO_VISIBILITY,
    PART_METRICS,
    make_query_rows,
    make_rows,
    resolve_metric,
)
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.terminal import show

# Training needs these, inference does not, and the files may be missing.
_INFERENCE_OVERRIDES = ("MODEL.BACKBONE.PRETRAIN", "False", "SOLVER.AMP.ENABLED", "False")

# Prefixes of the MODEL keys that leave the features unchanged; the hash of the weights covers EMA.
_IRRELEVANT_KEYS = (
    "BACKBONE.PRETRAIN", "BACKBONE.RECOMPUTE", "COMPILE", "DEVICE", "EMA.", "FREEZE_LAYERS",
    "HEADS.NUM_CLASSES", "LOSSES.", "WEIGHTS",
)  # fmt: skip


class Embedder:
    """Embed crops of people; :func:`load` builds one.

    Any number of threads may call it at once: nothing in it changes after it is built.

    Args:
        model: the trained model, in evaluation mode, on the device of ``cfg``.
        cfg: its configuration.
        fingerprint: hash of the weights and of every setting that affects the features.
        batch_size: images per forward pass.
        bf16: run the forward pass under bfloat16 autocast.

    Attributes:
        metric: one of :data:`occluded_reid.modeling.similarity.METRICS`, which compares rows.
        dim: D.
        num_parts: of the visibility; 0 for a model without.
        stripes: whether the parts are horizontal stripes from the top, not, say, landmarks.
        input_size: (H, W) that every image is resized to.
        transform: turn an RGB PIL image into the model's input, (3, H, W) in 0-255.
        precision: ``float32`` or ``bfloat16``, of the forward pass.
        fingerprint: 64 hex digits; never compare features with different fingerprints.
    """

    def __init__(
        self, model: nn.Module, cfg: CfgNode, *, fingerprint: str, batch_size: int = 64,
        bf16: bool = False,
    ):  # fmt: skip
        self.metric = resolve_metric(cfg.TEST)
        self.fingerprint = fingerprint
        self.batch_size = batch_size
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.precision = "bfloat16" if bf16 else "float32"
        self.transform = build_transforms(cfg, is_train=False)
        self._model = model
        self._flip = cfg.TEST.FLIP.ENABLED
        self._mean = tuple(cfg.MODEL.PIXEL_MEAN)
        blank = self.transform(Image.new("RGB", (1, 2)))[None]
        self.input_size: tuple[int, int] = (blank.shape[2], blank.shape[3])
        self._example = embedding = self.embed_batch(blank)
        self.num_parts, self.stripes = embedding.visibility.shape[1], embedding.stripes
        self.dim = self.make_rows(embedding).shape[1]

    def embed(
        self, images: Any, boxes: Any = None, *, colour: str = "bgr", hide_overlaps: bool = False
    ) -> Embedding:
        """Compute features and visibility of crops, in their order.

        Args:
            images: crops of people, of any size: uint8 arrays (H, W, 3), PIL images or paths, one
                or an iterable. With ``boxes`` they are frames.
            boxes: (N, 4) of x0, y0, x1, y1 in pixels for one frame, or an object whose ``xyxy`` is
                that; for several frames, one of these for each. They are clipped to the frame.
            colour: order of the channels of arrays: ``bgr``, as cv2 reads them, or ``rgb``.
            hide_overlaps: paint over what other people cover of a box, by ``boxes.mask`` if there
                is one, (N, height, width), else by the boxes that end lower in the frame: see
                :func:`~occluded_reid.deploy.crops.hide_others`.

        Returns:
            float32 arrays: features (N, P, C), or (N, 1, C) of a model that compares one vector
            per image, and visibility (N, P), or (N, 0). With boxes, an entry per box, frame by
            frame.

        Raises:
            UserError: an image or a box is none, a box shows nothing of its frame, or the features
                are not finite.

        >>> model = occluded_reid.load("logs/demo")  # doctest: +SKIP
        >>> model.embed(["a.png", "b.png"]).features.shape  # doctest: +SKIP
        (2, 4, 192)
        >>> model.embed(cv2.imread("street.png"), boxes=detections).features.shape  # doctest: +SKIP
        (5, 4, 192)
        """
        paint = self._mean if hide_overlaps else ()
        crops = iterate_crops(images, boxes, colour=colour, paint=paint)
        prepared = ((name, self.transform(crop)) for name, crop in crops)
        batches = []
        while batch := list(islice(prepared, self.batch_size)):
            names, inputs = zip(*batch, strict=True)
            batches.append(self.embed_batch(torch.stack(inputs), names))
        return self.concatenate(batches)

    def similarity(self, a: Embedding | np.ndarray, b: Embedding | np.ndarray) -> np.ndarray:
        """Compare two sets of images by the model's metric; higher is more similar.

        Args:
            a: what :meth:`embed` returned, or rows (Na, D); ``shared`` and ``query`` need the
                visibility too, as in ``Embedding(rows, visibility)``.
            b: the same for Nb images.

        Returns:
            (Na, Nb) float32: cosines or, of parts, their weighted means in [-1, 1], inner products,
            or negated squared Euclidean distances.

        Raises:
            UserError: features of another shape, not finite, or too large for their products.
        """
        from occluded_reid.evaluation.distances import FeatureDistances

        (query, own), (gallery, others) = self._check_features(a), self._check_features(b)
        parts = own, others
        distances = FeatureDistances(query, gallery, self.metric, self.device, parts)[:, :]
        if not np.isfinite(distances).all():
            raise UserError(
                "the features are not finite, or too large: their similarities overflow float32"
            )
        # rounding may exceed the range of a cosine
        return np.clip(1 - distances, -1, 1) if self.metric == "cosine" else -distances

    @torch.inference_mode()
    def embed_batch(self, images: torch.Tensor, names: Sequence[str] = ()) -> Embedding:
        """Embed one batch (N, 3, H, W) of prepared images; see :meth:`embed`.

        ``names`` (N,) are those of the images in an error.
        """
        images = images.to(self.device, non_blocking=True)
        bf16 = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            embedding = embed_batch(self._model, {"images": images}, flip=self._flip)
        finite = embedding.features.flatten(1).isfinite().all(1)
        if not finite.all():
            first = int(finite.int().argmin())
            name = names[first] if names else f"image {first}"
            raise UserError(f"the features of {show(name)} are not finite; the weights are broken")
        return embedding.numpy()

    def concatenate(self, batches: Sequence[Embedding]) -> Embedding:
        """Concatenate what :meth:`embed_batch` returned; no batch gives empty arrays."""
        columns = ([each[:0] for each in self._example[:2]], *(batch[:2] for batch in batches))
        features, visibility = map(np.concatenate, zip(*columns, strict=True))
        return Embedding(features, visibility, self.stripes)

    def make_rows(self, embedding: Embedding) -> np.ndarray:
        """Return the vectors (N, D) of an embedding that a gallery, a tracker or a file holds.

        ``metric`` compares them; ``shared`` and ``query`` also need the visibility: see
        :meth:`make_query_rows`.
        """
        return make_rows(embedding.tensors(), self.metric).numpy()

    def make_query_rows(self, embedding: Embedding) -> np.ndarray:
        """Return the vectors (N, D) of queries, for an index of vectors elsewhere.

        For ``query`` and ``dot``, their inner products with rows are the similarity.
        """
        return make_query_rows(embedding.tensors(), self.metric).numpy()

    def _check_features(self, given: Embedding | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows (N, D) and visibility (N, P)."""
        if not isinstance(given, Embedding):
            if self.metric in PART_METRICS:
                raise UserError(
                    f"TEST.SIMILARITY {self.metric} needs the visibility of the parts: give what "
                    "embed returned, or Embedding(rows, visibility)"
                )
            given = Embedding(given, NO_VISIBILITY.numpy())
        embedding, parts = given.tensors(), self._example.features.shape[1:]
        features, visibility, _ = embedding
        weighted = self.metric in PART_METRICS or (self.metric == "dot" and features.dim() > 2)
        fits = not weighted or visibility.shape == (len(features), self.num_parts)
        if not fits or features.shape[1:] not in (parts, (self.dim,)):
            raise UserError(
                f"features of shape {tuple(features.shape)} cannot be compared by this model; "
                f"expected rows (N, {self.dim}), or an embedding (N, {parts[0]}, {parts[1]}) with "
                "its visibility. Are they from another model?"
            )
        return make_rows(embedding, self.metric), visibility


def load(
    weights_or_run: str | os.PathLike[str], device: str | None = "cpu", *,
    config: str | os.PathLike[str] = "", overrides: Sequence[str] = (), batch_size: int = 64,
    bf16: bool = False, trust_checkpoint: bool = False,
    add_keys: Iterable[AddKeys] | None = None,
) -> Embedder:  # fmt: skip
    """Load a trained model, without the parts that only training needs.

    Args:
        weights_or_run: a run's folder, a weights file, or the name of a model of the zoo.
        device: such as ``cpu`` or ``cuda:0``; None takes ``MODEL.DEVICE``, or the CPU where there
            is no GPU.
        config: the configuration; by default the config.yaml in the run or beside the weights.
        overrides: configuration overrides, ``KEY VALUE KEY VALUE ...``.
        batch_size: images per forward pass.
        bf16: run the forward pass under bfloat16 autocast; features stay float32.
        trust_checkpoint: allow pickled Python objects, which can run code.
        add_keys: the methods' configuration functions; None for all that are installed.

    Raises:
        UserError: no weights, no configuration, no such device, or weights that do not fit.

    >>> model = load("logs/demo", "cuda", bf16=True)  # doctest: +SKIP
    """
    config, weights = resolve_run(weights_or_run, str(config))
    methods = installed_methods() if add_keys is None else tuple(add_keys)
    overrides = [*overrides, *_INFERENCE_OVERRIDES]
    if device is not None:
        overrides += ["MODEL.DEVICE", str(device)]
    cfg = load_config(config, overrides, add_keys=methods)
    _check_gpu(str(device or cfg.MODEL.DEVICE))
    model = build_inference_model(cfg, weights, trust=trust_checkpoint)
    fingerprint = _compute_fingerprint(model, cfg, get_cfg(methods))
    return Embedder(model, cfg, fingerprint=fingerprint, batch_size=batch_size, bf16=bf16)


def _check_gpu(device: str) -> None:
    requested = torch.device(device)
    if requested.type == "cuda" and (requested.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"the device is {device}, but PyTorch finds {torch.cuda.device_count()} GPUs; "
            "choose another, such as cpu"
        )


def _compute_fingerprint(model: nn.Module, cfg: CfgNode, defaults: CfgNode) -> str:
    """Hash the weights and every setting that affects the features.

    The weights are those of inference, so a run and its published file share a fingerprint. MODEL
    keys at their default are left out, so a new method or key leaves other fingerprints unchanged.
    """
    unchanged = list(leaves(defaults.MODEL))
    changed = {
        key: value
        for key, value in leaves(cfg.MODEL)
        if not key.startswith(_IRRELEVANT_KEYS) and (key, value) not in unchanged
    }
    description = {
        "weights": weights_sha256(model),
        "model": changed,
        "metric": resolve_metric(cfg.TEST),
        "flip": cfg.TEST.FLIP.ENABLED,
        "size": cfg.INPUT.SIZE_TEST,
        "crop": cfg.INPUT.CROP.SIZE if cfg.INPUT.CROP.ENABLED else None,
        # part of the hash: rewording it would invalidate every index and feature file
        "pixels": "red first, 0-255, resized by Pillow's bicubic",
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()

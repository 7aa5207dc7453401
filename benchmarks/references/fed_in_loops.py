"""FED's training step organised as in research code: view by view, image by image.

Each view goes through the backbone by itself, in plain attention. The memory search and the update
of the banks are loops over the batch. The keys and values of every image's neighbours are projected
anew. What is computed is what :class:`fed_plugin.FED` computes, but for two points: batch
statistics are a view's own, and a bank takes an identity's images one after the other.

Shapes: B images in the view, P parts, C channels, D = P * C, I identities, K neighbours.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import nn


def plain_copy(model: nn.Module) -> Any:
    """Return a copy of a FED model whose backbone's attention is written out in matrices."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, Attention):
            module.fused_attn = False  # type: ignore[misc]  # final only for TorchScript
    return copied


def training_step(
    model: Any, batch: dict[str, torch.Tensor], dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Return the loss terms; their gradients are in the parameters, the banks are moved.

    Args:
        model: gives its layers and its banks.
        batch: pairs, as the model takes them.
        dtype: of autocast; None for float32 throughout.
    """
    with torch.autocast(batch["images"].device.type, dtype, enabled=dtype is not None):
        terms, holistic = losses(model, batch)
    torch.stack(list(terms.values())).sum().backward()
    for name, memory in banks(model).items():
        update(memory, holistic[name].detach(), batch["targets"])
    return terms


def losses(
    model: Any, batch: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the weighted loss terms, and the features of the holistic view by name."""
    terms: dict[str, torch.Tensor] = {}
    of_view: dict[str, dict[str, torch.Tensor]] = {}
    identities, occluded_labels = batch["targets"], batch["part_visibility"]
    for view, images, labels in (
        ("holistic", batch["images"], torch.ones_like(occluded_labels)),
        ("occluded", batch["occluded_images"], occluded_labels),
    ):
        features, visibility = view_features(model, images, identities)
        of_view[view] = features
        terms[f"loss_visibility_{view}"] = 0.5 * F.mse_loss(visibility, labels)
        for name, feature in features.items():
            identity = F.cross_entropy(model.classifiers[name](feature), identities)
            terms[f"loss_identity_{name}_{view}"] = 0.5 * identity
        for name, memory in banks(model).items():
            contrast = contrast_loss(features[name], memory.centres, identities, model.temperature)
            terms[f"loss_contrast_{name}_{view}"] = 0.5 * contrast
    return terms, of_view["holistic"]


def banks(model: Any) -> dict[str, Any]:
    """The two memory banks by the features that they hold."""
    return {"erased": model.erased_memory, "diffused": model.diffused_memory}


def view_features(
    model: Any, images: torch.Tensor, identities: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return one view's features by name and its parts' visibility (B, P)."""
    tokens = model.backbone((images - model.normalization.mean) / model.normalization.std)
    num_parts = model.heads.num_parts
    size = (tokens.shape[1] - 1) // num_parts
    scores, erased = [], []
    for part in range(num_parts):
        stripe = tokens[:, 1 + part * size : 1 + (part + 1) * size].mean(dim=1)
        score = torch.sigmoid(model.heads.erasing.scorers[part](stripe))
        scores.append(score)
        erased.append(stripe * score)
    visibility = torch.cat(scores, dim=1)
    embedding = model.heads.neck(torch.cat(erased, dim=1))
    features = {"class_token": tokens[:, 0], "erased": embedding}
    features["diffused"] = diffuse(model, embedding, visibility, identities)
    return features, visibility


def search(
    features: torch.Tensor, centres: torch.Tensor, identities: torch.Tensor, num_neighbors: int
) -> torch.Tensor:
    """Return the nearest centres (B, K, D) of other identities, found image by image."""
    similarities = F.normalize(features, dim=1) @ centres.T
    found = []
    for row, own in zip(similarities, identities, strict=True):
        nearest = row.topk(min(num_neighbors + 1, len(centres))).indices
        if own in nearest:
            nearest = nearest[nearest != own]
        found.append(centres[nearest[:num_neighbors]])
    return torch.stack(found)


def diffuse(
    model: Any, embedding: torch.Tensor, visibility: torch.Tensor, identities: torch.Tensor
) -> torch.Tensor:
    """Return f'_d (B, D) of one view."""
    diffusion, attention = model.diffusion, model.diffusion.attention
    centres = F.normalize(model.erased_memory.centres, dim=1)
    with torch.no_grad():
        others = search(embedding, centres, identities, diffusion.num_neighbors)  # (B, K, D)
    batch, heads = len(embedding), attention.num_heads
    query = attention.query(embedding).reshape(batch, 1, heads, -1).transpose(1, 2)
    key = attention.key(others).reshape(batch, others.shape[1], heads, -1).transpose(1, 2)
    value = attention.value(others).reshape(batch, others.shape[1], heads, -1).transpose(1, 2)
    weights = torch.softmax(query @ key.transpose(2, 3) * attention.scale, dim=3)
    mixed = attention.output((weights @ value).transpose(1, 2).reshape(batch, -1))
    mixed = diffusion.first_ffn(mixed.reshape(batch, diffusion.num_parts, -1))
    person = embedding.reshape(batch, diffusion.num_parts, -1)
    diffused = diffusion.second_ffn(person + mixed * visibility.unsqueeze(2))
    return diffusion.neck(diffused.reshape(batch, -1))


def contrast_loss(
    features: torch.Tensor, centres: torch.Tensor, identities: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return the cross entropy of the cosines to all centres, over the temperature."""
    cosines = F.normalize(features, dim=1) @ F.normalize(centres, dim=1).T
    return F.cross_entropy(cosines / temperature, identities)


@torch.no_grad()
def update(memory: Any, features: torch.Tensor, identities: torch.Tensor) -> None:
    """Move the centres (I, D) one image after the other, in the order of the batch."""
    for feature, identity in zip(features, identities, strict=True):
        kept = memory.momentum * memory.centres[identity]
        memory.centres[identity] = kept + (1 - memory.momentum) * feature

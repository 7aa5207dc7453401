"""FED's training step and optimizer as in research code: view by view, image by image.

One backbone pass per view with plain attention; loops over the batch for memory search and bank
update; keys and values projected per image. Two results differ from :class:`fed_plugin.FED`: batch
statistics are per view, and a bank is updated with one image after the other.

Shapes: B images in the view, P parts, C channels, D = P * C, I identities, K neighbours.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from cases.training import THIN, Batch, our_step
from fastreid.config import CfgNode
from harness.comparison import require_equal
from timm.models.vision_transformer import Attention
from torch import nn


def check_steps(device: str = "cpu") -> None:
    """Raise MismatchError if losses, gradients or banks of both steps differ.

    They must agree if both views are equal, which makes batch statistics equal, and if no identity
    occurs twice, which makes the order of bank updates irrelevant. Thin layers keep rounding small.
    A GPU sums in varying order, so its bounds are wider; TF32 is off because it depends on the
    batch size.
    """
    tolerance = 1 if device == "cpu" else 10
    case = THIN.smaller(pairs=8, drop_path=0.0, instances=1)
    ours, batch = case.build_model(device), case.build_batch(device)
    reference = plain_copy(ours)
    batch["occluded_images"] = batch["images"]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        our_terms, terms = our_step(ours, batch), training_step(reference, batch)
    require_equal("number of loss terms", len(our_terms), len(terms), atol=0)
    for name, value in terms.items():
        require_equal(name, our_terms[name], value, atol=tolerance * 1e-4)
    parameters = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        other = parameters[name].grad
        if parameter.grad is not None and other is not None:
            # before a neck, some gradients are 0 up to rounding
            atol = 1e-6 + tolerance * 1e-3 * float(other.abs().max())
            require_equal(f"gradient of {name}", parameter.grad, other, atol=atol)
        else:
            require_equal(f"no gradient of {name}", parameter.grad is None, other is None, atol=0)
    for name, memory in banks(reference).items():
        centres = banks(ours)[name].centres
        require_equal(
            f"the bank of {name} features", centres, memory.centres, atol=tolerance * 1e-4
        )


def plain_copy(model: nn.Module) -> Any:
    """Return a copy of a FED model with attention as plain matrix products."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, Attention):
            module.fused_attn = False  # type: ignore[misc]  # final only for TorchScript
    return copied


def training_step(
    model: Any, batch: Batch, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Run forward and backward pass and bank update, as :func:`cases.training.our_step` does."""
    with torch.autocast(batch["images"].device.type, dtype, enabled=dtype is not None):
        terms, holistic = losses(model, batch)
    torch.stack(list(terms.values())).sum().backward()
    for name, memory in banks(model).items():
        update(memory, holistic[name].detach(), batch["targets"])
    return terms


def losses(model: Any, batch: Batch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
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
    """Return the two memory banks by feature."""
    return {"erased": model.erased_memory, "diffused": model.diffused_memory}


def view_features(
    model: Any, images: torch.Tensor, identities: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the features of one view by name, and its visibility (B, P)."""
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
    """Return the nearest centres (B, K, D) of other identities, image by image."""
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
    """Return f'_d (B, D) of one view (FDM)."""
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
    """Update the centers (I, D) with one image after the other."""
    for feature, identity in zip(features, identities, strict=True):
        kept = memory.momentum * memory.centres[identity]
        memory.centres[identity] = kept + (1 - memory.momentum) * feature


def build_sgd(model: nn.Module, cfg: CfgNode) -> torch.optim.Optimizer:
    """Return PyTorch's default SGD with a parameter group per tensor."""
    solver, groups = cfg.SOLVER, []
    for prefix, module in model.named_modules():
        is_norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.requires_grad:
                group = {"params": [parameter], "lr": solver.BASE_LR}
                group["weight_decay"] = solver.WEIGHT_DECAY
                if name.endswith("bias"):
                    group["lr"] *= solver.BIAS_LR_FACTOR
                    group["weight_decay"] = solver.WEIGHT_DECAY_BIAS
                if is_norm:
                    group["weight_decay"] = solver.WEIGHT_DECAY_NORM
                groups.append(group)
    return torch.optim.SGD(groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)

"""``lever_*``: a training step as it is, in bf16, against the same step without one of its levers.

Time is that of the forward and the backward pass, memory what is kept for the latter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from cases.aonet_case import AONetCase, build_aonet
from cases.aonet_case import build_batch as build_images
from cases.fed_case import THIN, FEDCase, build_batch, build_fed
from cases.training import Batch, clear_gradients, our_step
from harness.comparison import Figure, figure, require_equal, time_alternately
from references.fed_in_loops import plain_copy
from timm.layers import Mlp
from torch import nn

from figures.activations import kept_per_image
from occluded_reid.modeling.vit import LeanMlp

FED_CASE = FEDCase(pairs=4, instances=1, identities=32)
AONET_CASE = AONetCase(images=8)
SMALL_FED = THIN.smaller(pairs=4, instances=1, identities=8, drop_path=0.0)
SMALL_AONET = AONetCase(images=8, identities=4, depth="18x", channels=512, image=(64, 32))
BF16 = torch.bfloat16


Step = Callable[[], dict[str, torch.Tensor]]
Change = Callable[[Any], Any]


class PassPerView(nn.Module):
    """Takes each view through a backbone by itself, and leaves the rest as it is."""

    def __init__(self, backbone: Any):
        super().__init__()
        self.backbone, self.grid = backbone, backbone.grid

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tokens of both halves of ``images``."""
        return torch.cat([self.backbone(view) for view in images.chunk(2)])


def pass_per_view(model: Any) -> Any:
    """Return a copy whose backbone sees one view at a time."""
    copied = copy.deepcopy(model)
    copied.backbone = PassPerView(copied.backbone)
    return copied


def common_mlp(model: nn.Module) -> nn.Module:
    """Return a copy whose feed-forward layers keep all that timm's keep."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, LeanMlp):
            module.__class__ = Mlp  # type: ignore[assignment]
    return copied


def recomputing(model: Any) -> Any:
    """Return a copy with ``MODEL.BACKBONE.RECOMPUTE``."""
    copied = copy.deepcopy(model)
    copied.backbone.set_grad_checkpointing(True)
    return copied


def unchanged(model: Any) -> Any:
    """Return the model itself."""
    return model


def channels_last(model: Any) -> Any:
    """Return the model with ``MODEL.CHANNELS_LAST``."""
    return model.to(memory_format=torch.channels_last)


# ours and the reference: what becomes of the model, and the number type
Levers = dict[str, tuple[tuple[Change, torch.dtype | None], ...]]
FED_LEVERS: Levers = {
    "one_pass": ((unchanged, BF16), (pass_per_view, BF16)),
    "attention": ((unchanged, BF16), (plain_copy, BF16)),
    "mlp": ((unchanged, BF16), (common_mlp, BF16)),
    "bfloat16": ((unchanged, BF16), (unchanged, None)),
    "recompute": ((recomputing, BF16), (unchanged, BF16)),
}
AONET_LEVERS: Levers = {
    "channels_last": ((channels_last, BF16), (unchanged, BF16)),
    "aonet_bfloat16": ((channels_last, BF16), (channels_last, None)),
}
NAMES = (
    *(f"lever_{name}{what}" for name in FED_LEVERS for what in ("", "_memory")),
    *(f"lever_{name}" for name in AONET_LEVERS),
)


def measure(
    fed: FEDCase = FED_CASE, aonet: AONetCase = AONET_CASE, rounds: int = 2
) -> dict[str, Figure]:
    """Compare seconds and, for FED, megabytes per image."""
    found = {}
    for name, (ours, reference) in FED_LEVERS.items():
        check(name, *(_fed_step(*side, SMALL_FED) for side in (ours, reference)))
        works = _fed_step(*ours, fed), _fed_step(*reference, fed)
        unit = f"s per FED step, {fed.pairs} pairs"
        found[f"lever_{name}"] = figure(time_alternately(*works, rounds=rounds), unit)
        kept = [[_megabytes(*side, fed)] for side in (ours, reference)]
        found[f"lever_{name}_memory"] = figure(kept, "MB kept per image, FED")
    for name, (ours, reference) in AONET_LEVERS.items():
        check(name, *(_aonet_step(*side, SMALL_AONET) for side in (ours, reference)))
        works = _aonet_step(*ours, aonet), _aonet_step(*reference, aonet)
        unit = f"s per AONet step, {aonet.images} images"
        found[f"lever_{name}"] = figure(time_alternately(*works, rounds=rounds), unit)
    return found


def check(name: str, ours: Step, reference: Step) -> None:
    """Check the losses up to bf16's rounding.

    Raises:
        Unequal: one differs.
    """
    terms, expected = ours(), reference()
    for term, value in expected.items():
        require_equal(f"{name}: {term}", terms[term], value, atol=0.03, rtol=0.03)


def _fed_step(change: Change, dtype: torch.dtype | None, case: FEDCase) -> Step:
    return _step(change(build_fed(case)), build_batch(case), dtype)


def _aonet_step(change: Change, dtype: torch.dtype | None, case: AONetCase) -> Step:
    return _step(change(build_aonet(case)), build_images(case), dtype)


def _step(model: Any, batch: Batch, dtype: torch.dtype | None) -> Step:
    def work() -> dict[str, torch.Tensor]:
        clear_gradients(model)
        return our_step(model, batch, dtype)

    return work


def _megabytes(change: Change, dtype: torch.dtype | None, case: FEDCase) -> float:
    model = change(build_fed(case))
    return kept_per_image(lambda batch: our_step(model, batch, dtype), model, case)

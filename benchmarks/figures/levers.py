"""``lever_*``: a bf16 training step as it is, against the step without one of its optimizations.

Time covers the forward and backward pass; ``*_memory`` is what FED keeps between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases.aonet_case import AONetCase, build_aonet
from cases.aonet_case import build_batch as build_aonet_batch
from cases.fed_case import THIN, FEDCase, build_batch, build_fed
from cases.training import clear_gradients, our_step
from harness.comparison import Figure, make_figure, require_equal, time_alternately
from references.fed_in_loops import plain_copy
from timm.layers import Mlp
from torch import nn

from figures.activations import kept_per_image
from occluded_reid.modeling.vit import LeanMlp

SMALL_FED = THIN.smaller(pairs=4, instances=1, identities=8, drop_path=0.0)
SMALL_AONET = AONetCase(images=8, identities=4, depth="18x", channels=512, image=(64, 32))
BF16, FLOAT32 = torch.bfloat16, None

Side = tuple[Callable[[Any], Any], torch.dtype | None]  # changes the model; dtype of autocast
Step = Callable[[], dict[str, torch.Tensor]]


class PassPerView(nn.Module):
    """Run the backbone on each view separately."""

    def __init__(self, backbone: Any):
        super().__init__()
        self.backbone, self.grid = backbone, backbone.grid

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tokens of both halves of ``images``."""
        return torch.cat([self.backbone(view) for view in images.chunk(2)])


def keep_model(model: Any) -> Any:
    """Return the model unchanged."""
    return model


def split_views(model: Any) -> Any:
    """Return the model with one backbone pass per view."""
    model.backbone = PassPerView(model.backbone)
    return model


def use_timm_mlp(model: Any) -> Any:
    """Return the model with timm's feed-forward layers, which keep more activations."""
    for module in model.modules():
        if isinstance(module, LeanMlp):
            module.__class__ = Mlp  # type: ignore[assignment]
    return model


def recompute(model: Any) -> Any:
    """Return the model with ``MODEL.BACKBONE.RECOMPUTE``."""
    model.backbone.set_grad_checkpointing(True)
    return model


def use_channels_last(model: Any) -> Any:
    """Return the model with ``MODEL.CHANNELS_LAST``."""
    return model.to(memory_format=torch.channels_last)


FED_LEVERS: dict[str, tuple[Side, Side]] = {
    "one_pass": ((keep_model, BF16), (split_views, BF16)),
    "attention": ((keep_model, BF16), (plain_copy, BF16)),
    "mlp": ((keep_model, BF16), (use_timm_mlp, BF16)),
    "bfloat16": ((keep_model, BF16), (keep_model, FLOAT32)),
    "recompute": ((recompute, BF16), (keep_model, BF16)),
}
AONET_LEVERS: dict[str, tuple[Side, Side]] = {
    "channels_last": ((use_channels_last, BF16), (keep_model, BF16)),
    "aonet_bfloat16": ((use_channels_last, BF16), (use_channels_last, FLOAT32)),
}
NAMES = (
    *(f"lever_{name}{what}" for name in FED_LEVERS for what in ("", "_memory")),
    *(f"lever_{name}" for name in AONET_LEVERS),
)


def measure(
    fed: FEDCase = FEDCase(pairs=4, instances=1, identities=32),  # noqa: B008
    aonet: AONetCase = AONetCase(images=8),  # noqa: B008
    rounds: int = 2,
) -> dict[str, Figure]:
    """Compare seconds and, for FED, megabytes per image."""
    figures = {}
    for name, sides in FED_LEVERS.items():
        check(name, *(_build_fed_step(side, SMALL_FED) for side in sides))
        times = time_alternately(*(_build_fed_step(side, fed) for side in sides), rounds=rounds)
        figures[f"lever_{name}"] = make_figure(times, f"s per FED step, {fed.pairs} pairs")
        kept = [[_measure_megabytes(side, fed)] for side in sides]
        figures[f"lever_{name}_memory"] = make_figure(kept, "MB kept per image, FED")
    for name, sides in AONET_LEVERS.items():
        check(name, *(_build_aonet_step(side, SMALL_AONET) for side in sides))
        times = time_alternately(*(_build_aonet_step(side, aonet) for side in sides), rounds=rounds)
        figures[f"lever_{name}"] = make_figure(times, f"s per AONet step, {aonet.images} images")
    return figures


def check(name: str, ours: Step, reference: Step) -> None:
    """Raise MismatchError if a loss differs by more than bf16's rounding."""
    terms = ours()
    for term, expected in reference().items():
        require_equal(f"{name}: {term}", terms[term], expected, atol=0.03, rtol=0.03)


def _build_fed_step(side: Side, case: FEDCase) -> Step:
    return _build_step(side, build_fed(case), build_batch(case))


def _build_aonet_step(side: Side, case: AONetCase) -> Step:
    return _build_step(side, build_aonet(case), build_aonet_batch(case))


def _build_step(side: Side, model: Any, batch: dict[str, torch.Tensor]) -> Step:
    change, dtype = side
    changed = change(model)

    def run() -> dict[str, torch.Tensor]:
        clear_gradients(changed)
        return our_step(changed, batch, dtype)

    return run


def _measure_megabytes(side: Side, case: FEDCase) -> float:
    change, dtype = side
    model = change(build_fed(case))
    return kept_per_image(lambda batch: our_step(model, batch, dtype), model, case)

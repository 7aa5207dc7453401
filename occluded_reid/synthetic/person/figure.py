"""A person while being drawn: layer, joints, light, and the colors of cloth and skin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from occluded_reid.synthetic.paint.canvas import Layer, Region
from occluded_reid.synthetic.paint.palette import RGB
from occluded_reid.synthetic.paint.texture import Light, sample_noise, shade_tube, weigh_pattern
from occluded_reid.synthetic.person.appearance import Appearance, Cloth
from occluded_reid.synthetic.person.pose import Joint, Projection
from occluded_reid.synthetic.streams import Rng


@dataclass(frozen=True)
class Figure:
    """The state that all parts of the drawing share."""

    layer: Layer
    look: Appearance
    joints: dict[str, Joint]  # see pose.build_skeleton
    projection: Projection
    light: Light
    rng: Rng  # for folds and the like

    @property
    def yaw(self) -> float:
        """0 faces the camera, pi shows the back."""
        return self.projection.yaw

    @property
    def facing(self) -> float:
        """1 faces the camera, -1 shows the back."""
        return float(np.cos(self.projection.yaw))

    def px(self, meters: float) -> float:
        """Convert a length to pixels."""
        return meters * self.projection.scale

    def compute_angles(self, region: Region) -> np.ndarray:
        """Return the (h, w) angles of a region around the trunk; 0 is the middle of the front."""
        angle = np.arcsin(region.across * np.float32(0.98)) - np.float32(self.yaw)
        return (angle + np.float32(np.pi)) % np.float32(2 * np.pi) - np.float32(np.pi)

    def shade_cloth(
        self, region: Region, cloth: Cloth, u: np.ndarray, v: np.ndarray, folds: float = 0.06
    ) -> np.ndarray:
        """Return the (h, w, 3) colors of a garment with pattern, shading and folds.

        ``u`` and ``v`` are (h, w) meters around the body and down, ``folds`` is their strength.
        """
        color: np.ndarray = np.asarray(cloth.color, np.float32)
        weights = weigh_pattern(cloth.pattern, u, v, cloth.frequency)
        if weights is not None:
            for other, weight in zip((cloth.second, cloth.third), weights, strict=True):
                color = color + (np.asarray(other, np.float32) - color) * weight[..., None]
        elif cloth.pattern == "heather":
            grain = sample_noise(self.rng, region.mask.shape, 2)
            color = color * (1 + 0.16 * grain[..., None])
        return self.shade(region, color, folds)

    def shade(self, region: Region, color: np.ndarray | RGB, folds: float = 0.0) -> np.ndarray:
        """Return the (h, w, 3) colors under the light, with soft folds."""
        factor = shade_tube(region, self.light)
        if folds:
            wave = sample_noise(self.rng, region.mask.shape, 8, 3)
            factor = factor * (1 + np.float32(folds) * wave[..., None])
        return np.asarray(color, np.float32) * factor

    def paint_plain(self, region: Region, color: RGB, folds: float = 0.0) -> None:
        """Paint a region in one shaded color."""
        self.layer.paint(region, self.shade(region, color, folds))

    def darken(self, region: Region, strength: float) -> None:
        """Lay a soft shadow over what is painted already."""
        self.layer.paint(region, (12.0, 12.0, 16.0), strength, inside=True)

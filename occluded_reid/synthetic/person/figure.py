"""One person while being drawn: layer, joints, light, and how cloth and skin are coloured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from occluded_reid.synthetic.paint.canvas import Layer, Region
from occluded_reid.synthetic.paint.palette import RGB
from occluded_reid.synthetic.paint.texture import Light, noise, pattern_weights, round_shading
from occluded_reid.synthetic.person.appearance import Appearance, Cloth
from occluded_reid.synthetic.person.pose import Joint, Projection


@dataclass(frozen=True)
class Figure:
    """What each part of the drawing needs.

    Attributes:
        layer: where the person is painted.
        look: who the person is.
        joints: see :func:`occluded_reid.synthetic.person.pose.skeleton`.
        projection: the camera's view of the body.
        light: direction and contrast of the light.
        rng: chance for folds and the like.
    """

    layer: Layer
    look: Appearance
    joints: dict[str, Joint]
    projection: Projection
    light: Light
    rng: np.random.Generator

    @property
    def yaw(self) -> float:
        """0 faces the camera, pi shows the back."""
        return self.projection.yaw

    @property
    def facing(self) -> float:
        """1 faces the camera, -1 shows the back."""
        return float(np.cos(self.projection.yaw))

    def px(self, metres: float) -> float:
        """A length in pixels."""
        return metres * self.projection.scale

    def angle(self, region: Region) -> np.ndarray:
        """(h, w) angle around the trunk of each point of a region; 0 is the middle of the front."""
        angle = np.arcsin(region.across * np.float32(0.98)) - np.float32(self.yaw)
        return (angle + np.float32(np.pi)) % np.float32(2 * np.pi) - np.float32(np.pi)

    def cloth(
        self, region: Region, cloth: Cloth, u: np.ndarray, v: np.ndarray, folds: float = 0.06
    ) -> np.ndarray:
        """(h, w, 3) colours of a garment with pattern, shading and folds.

        Args:
            region: where it lies.
            cloth: colours and pattern.
            u: (h, w) metres around the body.
            v: (h, w) metres downwards.
            folds: strength of the folds.
        """
        colour: np.ndarray = np.asarray(cloth.colour, np.float32)
        weights = pattern_weights(cloth.pattern, u, v, cloth.frequency)
        if weights is not None:
            second = np.asarray(cloth.second, np.float32)
            third = np.asarray(cloth.third, np.float32)
            colour = colour + (second - colour) * weights[0][..., None]
            colour = colour + (third - colour) * weights[1][..., None]
        elif cloth.pattern == "heather":
            grain = noise(self.rng, region.mask.shape, 2)
            colour = colour * (1 + 0.16 * grain[..., None])
        return self.shaded(region, colour, folds)

    def shaded(self, region: Region, colour: np.ndarray | RGB, folds: float = 0.0) -> np.ndarray:
        """(h, w, 3) colours under the light, with soft folds."""
        factor = round_shading(region, self.light)
        if folds:
            wave = noise(self.rng, region.mask.shape, 8, 3)
            factor = factor * (1 + np.float32(folds) * wave[..., None])
        return np.asarray(colour, np.float32) * factor

    def paint_plain(self, region: Region | None, colour: RGB, folds: float = 0.0) -> None:
        """Paint a region in one shaded colour."""
        if region is not None:
            self.layer.paint(region, self.shaded(region, colour, folds))

    def darken(self, region: Region | None, strength: float) -> None:
        """A soft shadow on what is painted already."""
        self.layer.paint(region, (12.0, 12.0, 16.0), strength, inside=True)

"""The pose of a person: a walking skeleton, turned, and projected to pixels.

Body axes: X to the person's left, Y up, Z forward, in meters, the origin on the ground. Screen
axes: x to the right, y down, in pixels, and a depth in meters that grows toward the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from occluded_reid.synthetic.person.appearance import Body
from occluded_reid.synthetic.streams import Rng, bernoulli, uniform

ARM_MODES = ("swing", "pocket", "phone", "call", "down")
_ARM_WEIGHTS = (0.62, 0.12, 0.1, 0.05, 0.11)


@dataclass(frozen=True)
class Pose:
    """One moment of a walk."""

    yaw: float  # 0 faces the camera, pi/2 walks to the right, pi shows the back (radians)
    pitch: float  # how far the camera looks down (radians)
    phase: float  # phase of the gait cycle (radians)
    stride: float  # swing of the thighs (radians); about 0.05 for a standing person
    lean: float  # forward lean of the trunk (radians)
    arms: tuple[str, str]  # modes of the left and the right arm, of ARM_MODES


@dataclass(frozen=True)
class Joint:
    """A joint on the screen."""

    x: float
    y: float
    depth: float

    @property
    def point(self) -> tuple[float, float]:
        """(x, y)"""
        return self.x, self.y


@dataclass(frozen=True)
class Projection:
    """Projection from body axes to the screen."""

    foot: tuple[float, float]  # point on the ground between the feet, in pixels
    scale: float  # pixels per meter
    yaw: float  # as in Pose; likewise pitch
    pitch: float

    def project(self, left: float, up: float, forward: float) -> Joint:
        """Return the screen position of a point of the body."""
        side = left * np.cos(self.yaw) + forward * np.sin(self.yaw)
        depth = forward * np.cos(self.yaw) - left * np.sin(self.yaw)
        down = depth * np.sin(self.pitch) - up * np.cos(self.pitch)
        x, y = self.foot[0] + side * self.scale, self.foot[1] + down * self.scale
        return Joint(float(x), float(y), float(depth))

    def project_width(self, half_breadth: float, half_depth: float) -> float:
        """Return half the width in pixels of an elliptic section of the turned trunk."""
        breadth, depth = half_breadth * np.cos(self.yaw), half_depth * np.sin(self.yaw)
        return float(np.hypot(breadth, depth) * self.scale)


def sample_pose(rng: Rng, yaw: float, pitch: float, arms: tuple[str, str] | None = None) -> Pose:
    """Sample a pose of a walk in a given direction, and the modes of the arms unless given."""
    walking = bernoulli(rng, 0.85)
    return Pose(
        yaw=yaw,
        pitch=pitch,
        phase=uniform(rng, 0, 2 * np.pi),
        stride=uniform(rng, 0.3, 0.52) if walking else uniform(rng, 0.03, 0.1),
        lean=uniform(rng, 0.0, 0.09),
        arms=arms or sample_arms(rng),
    )


def sample_arms(rng: Rng) -> tuple[str, str]:
    """Sample the modes of the two arms."""
    left, right = rng.choice(len(ARM_MODES), size=2, p=_ARM_WEIGHTS)
    return ARM_MODES[int(left)], ARM_MODES[int(right)]


def build_skeleton(body: Body, pose: Pose, projection: Projection) -> dict[str, Joint]:
    """Build the joints on the screen.

    Returns:
        ``pelvis``, ``waist``, ``chest``, ``neck``, ``head``, and for each side (such as
        ``left knee``) ``hip``, ``knee``, ``ankle``, ``toe``, ``shoulder``, ``elbow``, ``hand``.
    """
    points = _place_legs(body, pose)
    lift = 0.075 - min(points[f"{side} ankle"][1] for side in ("left", "right"))
    pelvis = body.height * body.leg
    neck = body.height - 2.75 * body.head
    for name, up in (("pelvis", pelvis), ("waist", pelvis + 0.11), ("chest", neck - 0.20)):
        points[name] = (0.0, up, (up - pelvis) * np.sin(pose.lean))
    points["neck"] = (0.0, neck, (neck - pelvis) * np.sin(pose.lean))
    middle = body.height - 1.32 * body.head
    points["head"] = (0.0, middle, (middle - pelvis) * np.sin(pose.lean) + 0.02)
    points.update(_place_arms(body, pose, neck))
    return {
        name: projection.project(left, up + lift, forward)
        for name, (left, up, forward) in points.items()
    }


def _swing(joint: tuple[float, float, float], length: float, angle: float) -> tuple[float, float]:
    """Return height and forward position of the end of a limb that hangs from a joint."""
    return joint[1] - length * np.cos(angle), joint[2] + length * np.sin(angle)


def _place_legs(body: Body, pose: Pose) -> dict[str, tuple[float, float, float]]:
    points = {}
    length = body.height * body.leg - 0.075
    for side, sign in (("left", 1), ("right", -1)):
        cycle = pose.phase if sign > 0 else pose.phase + np.pi
        thigh = pose.stride * np.sin(cycle) + 0.06
        bend = 0.08 + 2.0 * pose.stride * max(np.sin(cycle - 0.5 + np.pi / 2), 0) ** 2
        hip = (sign * body.hip * 0.52, length + 0.075, 0.0)
        knee = (sign * body.hip * 0.5, *_swing(hip, 0.51 * length, thigh))
        calf = thigh - bend
        ankle = (sign * body.hip * 0.46, *_swing(knee, 0.49 * length, calf))
        tip = min(calf + 0.12, 0.25)
        up, forward = ankle[1] - 0.045 + 0.19 * np.sin(tip), ankle[2] + 0.19 * np.cos(tip)
        toe = (sign * (body.hip * 0.46 + 0.05), up, forward)
        joints = {"hip": hip, "knee": knee, "ankle": ankle, "toe": toe}
        points.update({f"{side} {name}": point for name, point in joints.items()})
    return points


def _place_arms(body: Body, pose: Pose, neck: float) -> dict[str, tuple[float, float, float]]:
    points = {}
    upper, fore = 0.172 * body.height, 0.155 * body.height
    for side, sign, mode in (("left", 1, pose.arms[0]), ("right", -1, pose.arms[1])):
        swing = -0.95 * pose.stride * np.sin(pose.phase if sign > 0 else pose.phase + np.pi)
        swing, bend, spread, inward = {
            "swing": (swing, 0.25 + 0.5 * max(swing, 0.0), 0.13, 0.0),
            "pocket": (-0.42, 0.85, 0.34, 0.16),
            "phone": (0.35, 1.65, 0.12, 0.24),
            "call": (0.75, 2.25, 0.3, 0.16),
            "down": (0.15 * swing, 0.1, 0.1, 0.0),
        }[mode]
        forward = (neck - body.height * body.leg - 0.06) * np.sin(pose.lean)
        shoulder = (sign * (body.shoulder - 0.035), neck - 0.065, forward)
        elbow = (
            shoulder[0] + sign * upper * np.sin(spread),
            shoulder[1] - upper * np.cos(swing) * np.cos(spread),
            forward + upper * np.sin(swing),
        )
        x = elbow[0] + sign * fore * (0.25 * np.sin(spread)) - sign * fore * np.sin(inward) * 1.6
        hand = (x, *_swing(elbow, fore, swing + bend))
        points.update({f"{side} shoulder": shoulder, f"{side} elbow": elbow, f"{side} hand": hand})
    return points

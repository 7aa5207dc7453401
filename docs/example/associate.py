"""Identities of drawn people who walk behind drawn occluders, with and without their visibility.

Boxes are the truth's, so that only association is measured, and only appearance decides: each
frame's boxes are matched with all tracks so far (Hungarian method), and what is less similar than a
threshold to every track begins a new one. Visibility can enter twice: a pair is compared part by
part, weighted by how much both saw of the part, and a track's part moves toward a new one as far
as the box shows it. The visibility is the model's, or the truth: the share of a stripe's silhouette
that nothing covers. Thresholds are chosen on other sequences than those that are reported.

    python docs/example/associate.py --output results.json

Shapes: N boxes of a frame, P parts, C channels, K tracks. Needs motmetrics.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

import occluded_reid
from occluded_reid.synthetic.occluders.styles import paint_occluder
from occluded_reid.synthetic.paint.canvas import Layer
from occluded_reid.synthetic.person.pedestrian import draw_pedestrian
from occluded_reid.synthetic.person.pose import Pose, sample_arms
from occluded_reid.synthetic.person.wardrobe import build_appearance
from occluded_reid.synthetic.scene import scenery
from occluded_reid.synthetic.scene.camera import build_camera, develop

KINDS = (("car", 0.55, 2.3), ("bush", 0.45, 1.6), ("wall", 0.5, 1.4), ("board", 0.5, 1.2),
         ("pillar", 1.3, 0.2), ("sign", 1.2, 0.4), ("trunk", 1.3, 0.2))  # fmt: skip
"""Occluders, their height and their width as fractions of a person's height."""
SCALE, PHASES, LEAST = 80, 8, 0.3  # pixels per meter, moments of a stride, visible to be detected
RATE = 0.1  # of a track's update
VARIANTS = {"whole vectors": (0, 0), "weighted update": (0, 1), "weighted comparison": (1, 0),
            "both": (1, 1)}  # fmt: skip
THRESHOLDS = np.arange(0.05, 0.96, 0.05)


@dataclass
class Walker:
    """A person who walks to and fro, and all their pictures: (h, w, 4) by direction and phase."""

    x: float
    y: float
    speed: float
    pictures: dict[tuple[bool, int], Layer] = field(default_factory=dict)


def make_walkers(seed: int, count: int) -> list[Walker]:
    """Draw each person of a sequence once for each phase of a stride and direction."""
    rng, camera = np.random.default_rng(seed), build_camera(seed, 1)
    walkers = []
    for identity in range(count):
        look, arms = build_appearance(identity, seed), sample_arms(rng)
        y = scenery.GROUND + 60 + 110 * identity / count
        speed = float(rng.uniform(4, 9) * rng.choice([-1, 1]))
        walker = Walker(float(rng.uniform(40, scenery.WIDTH - 40)), y, speed)
        for right in (False, True):
            yaw = float((1 if right else -1) * np.pi / 2 + rng.normal(0, 0.2))
            for phase in range(PHASES):
                pose = Pose(yaw, camera.pitch, 2 * np.pi * phase / PHASES, 0.42, 0.04, arms)
                walker.pictures[right, phase] = draw_pedestrian(
                    (180, 140), look, pose, (70, 170), SCALE, camera.light, rng
                )
        walkers.append(walker)
    return walkers


def make_frames(seed: int, count: int, length: int):
    """Yield a frame (H, W, 3) in RGB, the identities (N,) in it, boxes (N, 4), truth (N, P)."""
    rng, camera = np.random.default_rng([seed, 1]), build_camera(seed, 1)
    walkers, ground = make_walkers(seed, count), scenery.render_background(seed, 1)
    front = []
    for x in range(90, scenery.WIDTH - 60, 190):
        kind, height, width = KINDS[rng.integers(len(KINDS))]
        size = round(1.75 * SCALE * height), round(1.75 * SCALE * width)
        y = float(rng.uniform(scenery.GROUND + 70, scenery.HEIGHT - 10))
        occluder = paint_occluder(kind, rng, *size, "test")
        front.append((y, x - size[1] // 2, round(y) - size[0], occluder))
    for number in range(length):
        scene, owner = ground.astype(np.float32).copy(), np.full(ground.shape[:2], -1)
        drawn = [(y, left, top, layer, -1) for y, left, top, layer in front]
        for identity, walker in enumerate(walkers):
            walker.x += walker.speed
            if not 30 < walker.x < scenery.WIDTH - 30:
                walker.speed = -walker.speed
            picture = walker.pictures[walker.speed > 0, (number + identity) // 2 % PHASES]
            drawn.append((walker.y, round(walker.x) - 70, round(walker.y) - 170, picture, identity))
        masks = {}
        for _, left, top, layer, identity in sorted(drawn, key=lambda each: each[0]):
            canvas = Layer(*owner.shape)
            canvas.composite(layer, left, top)
            scene = scene * (1 - canvas.alpha[..., None]) + canvas.color
            mask = canvas.alpha > 0.5
            owner[mask] = identity
            masks[identity] = mask
        people = [each for each in masks if each >= 0]
        seen = np.array([(owner[masks[each]] == each).mean() for each in people])
        corners = [np.argwhere(masks[each]) for each in people]
        boxes = np.array([(*c.min(0)[::-1], *(c.max(0)[::-1] + 1)) for c in corners])
        kept = seen >= LEAST
        frame = develop(scene, camera, 1.0, rng)
        boxes = boxes + rng.normal(0, 1.5, boxes.shape)  # as a detector's are
        truth = np.array([measure_stripes(masks[each], owner == each) for each in people])
        yield frame, np.array(people)[kept], boxes[kept], truth[kept]


def measure_stripes(silhouette: np.ndarray, visible: np.ndarray) -> list[float]:
    """Return the visible share of a silhouette in each of four equal stripes of its box."""
    rows = np.flatnonzero(silhouette.any(1))
    stripes = np.array_split(np.arange(rows[0], rows[-1] + 1), 4)
    whole, seen = silhouette.sum(1), (silhouette & visible).sum(1)
    return [float(seen[each].sum() / max(1, whole[each].sum())) for each in stripes]


def embed_sequence(model, seed: int, count: int, length: int) -> list[tuple[np.ndarray, ...]]:
    """Return identities (N,), parts (N, P, C), visibility and truth (N, P) of each frame."""
    rows = []
    for frame, people, boxes, truth in make_frames(seed, count, length):
        found = model.embed(frame, boxes=boxes, colour="rgb")
        rows.append((people, found.features, found.visibility, truth.astype(np.float32)))
    return rows


def compare(parts, seen, others, others_seen, weighted: bool) -> np.ndarray:
    """Return similarities (K, N): cosines of whole vectors, or weighted means of parts' cosines."""
    if not weighted:
        size = parts.shape[1] * parts.shape[2]
        return unit(parts.reshape(-1, size)) @ unit(others.reshape(-1, size)).T
    cosines = np.einsum("kpc,npc->knp", unit(parts), unit(others))
    weights = seen[:, None] * others_seen[None] + 1e-6
    return (weights * cosines).sum(2) / weights.sum(2)


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def associate(rows, weighted: bool, by_part: bool, threshold: float) -> list[np.ndarray]:
    """Return the track (N,) of each box of each frame."""
    shape = rows[0][1].shape[1:]
    tracks, seen = np.zeros((0, *shape), np.float32), np.zeros((0, shape[0]), np.float32)
    assigned = []
    for _, parts, visible in rows:
        similarity = compare(tracks, seen, parts, visible, weighted)
        pairs = [p for p in zip(*linear_sum_assignment(-similarity), strict=True)
                 if similarity[p] >= threshold]  # fmt: skip
        own = np.full(len(parts), -1)
        for track, box in pairs:
            rate = RATE * (visible[box] if by_part else np.ones(shape[0]))
            tracks[track] += rate[:, None] * (parts[box] - tracks[track])
            seen[track] += rate * (visible[box] - seen[track])
            own[box] = track
        new = np.flatnonzero(own < 0)
        own[new] = len(tracks) + np.arange(len(new))
        tracks, seen = np.concatenate([tracks, parts[new]]), np.concatenate([seen, visible[new]])
        assigned.append(own)
    return assigned


def score(sequences: Sequence, weighted: bool, by_part: bool, threshold: float) -> dict[str, float]:
    """Return identity switches and IDF1 of sequences of (people, parts, visibility) together."""
    import motmetrics

    accumulators = []
    for rows in sequences:
        accumulator = motmetrics.MOTAccumulator(auto_id=True)
        for (people, *_), tracks in zip(
            rows, associate(rows, weighted, by_part, threshold), strict=True
        ):
            distances = np.where(np.eye(len(people), dtype=bool), 0.0, np.nan)
            accumulator.update(people.tolist(), tracks.tolist(), distances)
        accumulators.append(accumulator)
    metrics = motmetrics.metrics.create().compute_many(
        accumulators, metrics=["num_switches", "idf1", "num_objects"], generate_overall=True
    )
    return {name: float(value) for name, value in metrics.loc["OVERALL"].items()}


def describe(sequences: Sequence) -> dict[str, float]:
    """Return how the model's visibility relates to the truth, over all stripes."""
    said, true = (
        np.concatenate([row[column] for rows in sequences for row in rows]) for column in (2, 3)
    )
    hidden = true < 0.5
    return {
        "stripes hidden by more than half": float(hidden.mean()),
        "of these, the model says less than half": float((said[hidden] < 0.5).mean()),
        "mean visibility of hidden stripes": float(said[hidden].mean()),
        "mean visibility of other stripes": float(said[~hidden].mean()),
    }


def main(words: Sequence[str] | None = None) -> dict:
    """Choose thresholds, report both numbers, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="fed-lite0-drawn")
    parser.add_argument("--output", default="")
    parser.add_argument("--people", type=int, default=14)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--sequences", type=int, default=4, help="reported; half as many more")
    args = parser.parse_args(words)
    model = occluded_reid.load(args.weights)
    first = 1000  # seeds that no data set has
    numbers = range(first, first + args.sequences + max(1, args.sequences // 2))
    embedded = [embed_sequence(model, seed, args.people, args.frames) for seed in numbers]
    reported, chosen_on = embedded[: args.sequences], embedded[args.sequences :]
    results: dict[str, dict[str, float]] = {}
    for source, column in (("the model's", 2), ("true", 3)):
        first, second = (
            [[(row[0], row[1], row[column]) for row in rows] for rows in each]
            for each in (reported, chosen_on)
        )
        for name, (weighted, by_part) in VARIANTS.items():
            curve = [score(second, weighted, by_part, each)["idf1"] for each in THRESHOLDS]
            best = float(THRESHOLDS[int(np.argmax(curve))])
            key = f"{name}, {source} visibility" if weighted or by_part else name
            results[key] = {"threshold": round(best, 2), **score(first, weighted, by_part, best)}
            print(key, results[key], flush=True)
    report = {
        "arguments": vars(args), "seeds": list(numbers), "results": results,
        "visibility": describe(reported),
    }  # fmt: skip
    if args.output:
        with open(args.output, "w") as stream:
            json.dump(report, stream, indent=1)
    return report


if __name__ == "__main__":
    main()

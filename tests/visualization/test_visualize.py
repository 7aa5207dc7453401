"""Sheets show what they are given; the command draws batches, results, landmarks and curves."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from aonet.tiny import aonet_batch, aonet_model
from PIL import Image
from runs import TINY, draw_market, load_tool

from occluded_reid.config import load_config
from occluded_reid.config.methods import installed_methods
from occluded_reid.modeling.build import build_untrained
from occluded_reid.visualization.curves import (
    COLORS,
    draw_curves,
    group_curves,
    spans_powers_of_ten,
)
from occluded_reid.visualization.figures import (
    group_queries,
    show_batch,
    show_heat_maps,
    show_lowest_score,
)
from occluded_reid.visualization.sheet import (
    BLUE,
    FRAME,
    HEAT_OPACITY,
    HIDDEN,
    ORANGE,
    TILE,
    VISIBLE,
    Section,
    Tile,
    draw_sheet,
    map_heat,
)

visualize = load_tool("visualize")
train_net = load_tool("train_net")


def count_colors(image: Image.Image) -> dict[tuple[int, ...], int]:
    return {color: count for count, color in image.getcolors(maxcolors=2**24)}


def solid(*color: int) -> np.ndarray:
    return np.full((40, 20, 3), color, np.uint8)


def test_a_tile_shows_its_image_frame_and_visibility():
    plain = draw_sheet([Section("title", [Tile(solid(9, 8, 7), ["caption"], BLUE)], 1)])
    counts = count_colors(plain)
    assert counts[(9, 8, 7)] == TILE[0] * TILE[1]
    assert counts[BLUE] == (TILE[0] + 2 * FRAME) * (TILE[1] + 2 * FRAME) - TILE[0] * TILE[1]
    assert VISIBLE not in counts
    with_bars = Tile(solid(9, 8, 7), (), BLUE, visibility=[1, 1, 0.5, 0])
    counts = count_colors(draw_sheet([Section("title", [with_bars], 1)]))
    legend = 12 * 12
    share = (counts[VISIBLE] - legend) / (counts[VISIBLE] + counts[HIDDEN] - 2 * legend)
    assert share == pytest.approx(2.5 / 4, abs=0.02)


def test_predicted_visibility_stands_beside_the_true_one():
    tile = Tile(solid(9, 8, 7), (), BLUE, visibility=[1, 1, 1, 1], truth=[0, 0, 0, 0])
    image = np.asarray(draw_sheet([Section("title", [tile], 1)]))
    body = image[-TILE[1] // 2 :]  # below the legend
    predicted = np.flatnonzero((body == VISIBLE).all(-1).any(0))
    true = np.flatnonzero((body == HIDDEN).all(-1).any(0))
    assert len(predicted) and len(true) and predicted.max() < true.min()
    assert (body == (255, 255, 255)).all(-1).any()  # the numbers


def test_tiles_fill_rows_and_sections_stand_below_each_other():
    tiles = [Tile(solid(n, n, 1)) for n in range(5)]
    one = draw_sheet([Section("one", tiles, 3)])
    two = draw_sheet([Section("one", tiles, 3), Section("two", tiles, 3, [("kind", ORANGE)])])
    assert one.height > 2 * TILE[1] and one.width > 3 * TILE[0]
    assert two.height > 2 * one.height - 40
    assert count_colors(two)[ORANGE] == 12 * 12
    assert all(count_colors(one)[(n, n, 1)] == TILE[0] * TILE[1] for n in range(5))


def test_a_heat_map_lies_over_a_gray_image_and_its_scale_is_shown():
    heat = np.repeat([[0.0, 1.0]], 4, axis=0)
    tiles = [Tile(solid(200, 0, 100)), Tile(solid(200, 0, 100), heat=heat)]
    image = draw_sheet([Section("title", tiles, 2, scale="response")])
    body = np.asarray(image)[-TILE[1] // 2]  # a line through both tiles
    left = 10 + 2 * FRAME + TILE[0] + 10 + FRAME
    assert (body[10 + FRAME] == (200, 0, 100)).all()
    gray = Image.new("RGB", (1, 1), (200, 0, 100)).convert("L").getpixel((0, 0))
    ends = [map_heat(np.full((1, 1), end)).getpixel((0, 0)) for end in (0.0, 1.0)]
    for column, color in zip((left, left + TILE[0] - 1), ends, strict=True):
        expected = HEAT_OPACITY * np.array(color) + (1 - HEAT_OPACITY) * gray
        np.testing.assert_allclose(body[column], expected, atol=1.5)
    plain = draw_sheet([Section("title", tiles, 2)])
    assert image.height > plain.height  # the scale has a line of its own
    assert all(count_colors(image)[end] >= 12 and end not in count_colors(plain) for end in ends)


def test_queries_are_chosen_by_kind_of_occlusion():
    kinds = ["none"] * 5 + ["vertical"] * 2
    paths = [f"/data/{number}.jpg" for number in range(7)]
    query = [(path, number, 0) for number, path in enumerate(paths)]
    truth = {p: SimpleNamespace(occlusion=kind) for p, kind in zip(paths, kinds, strict=True)}
    groups = group_queries(SimpleNamespace(query=query, truth=truth), 3)
    assert {kind: [item[1] for item in items] for kind, items in groups.items()} == {
        "none": [0, 2, 4], "vertical": [5, 6]
    }  # fmt: skip
    unknown = group_queries(SimpleNamespace(query=query, truth=None), 3)
    assert [item[1] for item in unknown[""]] == [0, 3, 6]


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    return draw_market(tmp_path_factory.mktemp("market"))


@pytest.fixture
def words(tmp_path, market, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(market))
    path = tmp_path / "tiny.yml"
    path.write_text(TINY)
    folder = str(tmp_path / "run")
    return ["--config-file", str(path), "OUTPUT_DIR", folder, "MODEL.DEVICE", "cpu"]


def untrained(words: list[str], *overrides: str) -> list[str]:
    """``words`` and ``overrides`` with weights of such a model."""
    overrides = ("MODEL.HEADS.NUM_CLASSES", "8", *overrides)
    cfg = load_config(words[1], [*words[2:], *overrides], add_keys=installed_methods())
    path = Path(words[1]).with_name("untrained.pth")
    torch.save({"model": build_untrained(cfg).state_dict()}, path)
    return [*words, *overrides, "MODEL.WEIGHTS", str(path)]


AONET = ("MODEL.META_ARCHITECTURE", "AONet", "MODEL.AONET.NUM_LANDMARKS", "5", "TEST.METRIC", "dot")
FED = ("MODEL.META_ARCHITECTURE", "FED")


def test_tensorboard_groups_its_scalars_and_shows_images_on_request(tmp_path, words):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def train(run: str, *more: str) -> tuple[EventAccumulator, str]:
        command = [*words, "OUTPUT_DIR", str(tmp_path / run), "SOLVER.MAX_EPOCH", "1", *more]
        assert train_net.command(command) == 0
        events = EventAccumulator(str(tmp_path / run), size_guidance={"images": 0}).Reload()
        results = json.loads((tmp_path / run / "results.json").read_text())
        return events, results["weights_sha256"]

    plain, sha256 = train("plain")
    groups = {name.partition("/")[0] for name in plain.Tags()["scalars"]}
    assert groups == {"loss", "test", "training"}
    assert {"loss/total_loss", "test/mAP", "training/lr"} < set(plain.Tags()["scalars"])
    assert plain.Tags()["images"] == []
    shown, same = train("shown", "SOLVER.LOG_IMAGES", "True")
    assert shown.Tags()["images"] == ["batch", "worst queries/Market1501"]
    assert same == sha256  # drawing changes nothing


def test_a_batch_of_pairs_shows_the_occluded_copies_too():
    views = {name: torch.zeros(3, 3, 8, 4) for name in ("images", "occluded_images")}
    batch = {**views, "targets": torch.arange(3), "camids": torch.zeros(3, dtype=torch.int64)}
    sections = show_batch(load_config("", ["DATASETS.NAMES", "('A',)"], add_keys=()), batch)
    assert [len(each.tiles) for each in sections] == [3, 3]
    assert sections[0].tiles[2].captions == ["class 2  cam 0"]
    assert sections[1].title == "Training batch of A after augmentation, occluded copies"


def test_the_command_draws_batches_and_ranked_lists(tmp_path, words, capsys):
    assert visualize.command(["--kind", "batch", *words]) == 0
    assert str(tmp_path / "run" / "batch.png") in capsys.readouterr().out
    assert train_net.command([*words, "SOLVER.MAX_EPOCH", "1"]) == 0
    weights = ["MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth")]
    output = str(tmp_path / "figures" / "ranks.png")
    assert visualize.command(["--kind", "ranks", "--output", output, *words, *weights]) == 0
    counts = count_colors(Image.open(output))
    assert counts[BLUE] > 1000 and counts[ORANGE] > 1000  # some hits, some misses
    run = ["--weights", str(tmp_path / "run")]
    assert visualize.command(["--kind", "worst", *run]) == 0
    worst = Image.open(tmp_path / "run" / "worst.png")
    assert worst.height > 2 * Image.open(output).height  # twenty lists, not six
    assert visualize.command(["--kind", "visibility", *words, *weights]) == 2
    assert "Baseline does not predict the visibility" in capsys.readouterr().err
    assert visualize.command(["--kind", "curves", *words]) == 0
    assert count_colors(Image.open(tmp_path / "run" / "curves.png"))[(0, 0, 0)] > 100  # total_loss


def test_the_command_draws_what_fed_sees(tmp_path, words, capsys):
    words = untrained(words, *FED)
    assert visualize.command(["--kind", "visibility", *words]) == 0
    counts = count_colors(Image.open(tmp_path / "run" / "visibility.png"))
    assert counts[VISIBLE] > 1000 and counts[HIDDEN] > 1000
    assert visualize.command(["--kind", "landmarks", *words]) == 2
    assert "FED has no landmarks; AONet has" in capsys.readouterr().err


def test_the_visibility_of_landmarks_is_written_below_the_image():
    scores = [0.1, 0.25, 0.5, 1.0]
    as_stripes, landmarks = (
        Tile(solid(9, 8, 7), ("caption",), BLUE, scores, stripes=stripes)
        for stripes in (True, False)
    )
    assert as_stripes.lines == ["caption"]
    assert landmarks.lines == ["caption", "0.10 0.25 0.50", "1.00"]
    of_stripes, of_landmarks = (
        count_colors(draw_sheet([Section("", [tile], 1)])) for tile in (as_stripes, landmarks)
    )
    assert of_landmarks[(9, 8, 7)] == TILE[0] * TILE[1] > of_stripes[(9, 8, 7)]
    assert of_landmarks[VISIBLE] == of_stripes[VISIBLE]  # the bars


def test_the_command_draws_every_landmark_and_the_least_visible_one(tmp_path, words):
    assert visualize.command(["--kind", "landmarks", *untrained(words, *AONET)]) == 0
    image = Image.open(tmp_path / "run" / "landmarks.png")
    step = (TILE[0] + 2 * FRAME + 10, TILE[1] + 2 * FRAME + 10 + 2 * 15)
    # of three queries: all landmarks of each, then three times three tiles
    assert (image.width // step[0], image.height // step[1]) == (9, 3 + 1)
    without = ("MODEL.AONET.OCCLUSION_AWARE_FEATURES", "False", "MODEL.AONET.VISIBILITY", "maximum")
    assert visualize.command(["--kind", "landmarks", *untrained(words, *AONET, *without)]) == 0
    standard = Image.open(tmp_path / "run" / "landmarks.png")
    # nothing refers to an average response
    assert (standard.width // step[0], standard.height // step[1]) == (1 + 5, 3)


def test_landmarks_are_drawn_as_equations_2_to_4_say(tmp_path):
    path = tmp_path / "0001_c1.png"
    Image.fromarray(solid(9, 8, 7)).save(path)
    model = aonet_model().eval()
    model.heads.memory.features.mul_(10)  # so that some landmarks are hidden
    batch = {**aonet_batch(4), "img_paths": [str(path)] * 4}
    with torch.no_grad():
        expected = model.landmarks(batch["images"])
        landmarks = list(visualize.read_landmarks(model, batch, None))
    for index, (query, heats, visibility, beta) in enumerate(landmarks):
        np.testing.assert_allclose(visibility, expected.visibility[index], rtol=1e-5)
        assert heats.max(axis=(1, 2)) == pytest.approx(1)
        standard = heats / heats.sum(axis=(1, 2), keepdims=True)
        referenced = beta[:, None, None] * standard
        np.testing.assert_allclose(referenced, expected.maps[index], rtol=1e-4, atol=1e-8)
        tiles = show_heat_maps(query, heats, visibility)
        assert tiles[1].captions == ["landmark 2", f"visibility {visibility[1]:.2f}"]
        without, with_reference = show_lowest_score(query, heats, beta)
        assert without.heat.max() == pytest.approx(1)
        assert with_reference.heat.max() == pytest.approx(beta.min())
    assert len(landmarks) == 4 and min(beta.min() for *_, beta in landmarks) < 0.9


LINES = [
    {"iteration": 9, "total_loss": 3.0, "loss_cls": 3.0, "lr": 0.1, "time": 1.0},
    {"iteration": 19, "total_loss": 0.2, "loss_cls": 0.2, "lr": 0.1, "Rank-1": 50.0, "mAP": 40.0},
    {"iteration": 29, "total_loss": 0.1, "loss_cls": 0.1, "lr": 0.1, "A/Rank-1": 1.0, "mINP": 1.0},
]


def test_curves_are_grouped_by_what_they_measure():
    panels = group_curves(LINES)
    assert panels["loss"]["total_loss"] == ([9, 19, 29], [3.0, 0.2, 0.1])
    assert set(panels["loss"]) == {"total_loss", "loss_cls"}
    assert panels["learning rate"] == {"lr": ([9, 19, 29], [0.1, 0.1, 0.1])}
    assert panels["percent"] == {
        "Rank-1": ([19], [50.0]), "mAP": ([19], [40.0]), "A/Rank-1": ([29], [1.0])
    }  # fmt: skip
    assert set(group_curves(LINES[:1])) == {"loss", "learning rate"}
    assert spans_powers_of_ten(panels["loss"]) and not spans_powers_of_ten(panels["learning rate"])
    assert not spans_powers_of_ten({"loss": ([1, 2], [0.0, 5.0])})
    assert spans_powers_of_ten({"loss": ([1, 2, 3], [0.1, float("nan"), 5.0])})


def test_every_curve_is_drawn_in_its_color():
    terms = {f"loss_{number}": 2.0**number for number in range(len(COLORS))}
    lines = [{"iteration": n, "total_loss": 70.0, **terms} for n in range(3)]
    image = draw_curves(lines, "a run")
    counts = count_colors(image)
    for color in ("#000000", *COLORS):
        assert counts[tuple(bytes.fromhex(color[1:]))] > 100, color
    evaluated = draw_curves([*lines, {"iteration": 2, "mAP": 50.0}], "a run")
    assert evaluated.height > 1.5 * image.height  # a panel of its own


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "there is no"),
        ("", "is empty: the run has not reached"),
        (json.dumps(LINES[0]) + '\n{"iteration": 19, "total_l', "line 2 of"),
        ('{"total_loss": 1.0}\n', "line 1 of"),
        ("[1]\n", "line 1 of"),
    ],
)
def test_missing_and_damaged_metrics_are_named(tmp_path, words, capsys, content, fault):
    if content is not None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "metrics.json").write_text(content)
    assert visualize.command(["--kind", "curves", *words]) == 2
    message = capsys.readouterr().err
    assert fault in message and "metrics.json" in message
    assert not (tmp_path / "run" / "curves.png").exists()


@pytest.mark.parametrize("kind", ["landmarks", "ranks", "visibility", "worst"])
def test_drawing_a_model_needs_weights(kind, words, capsys):
    assert visualize.command(["--kind", kind, *words]) == 2
    assert f"--kind {kind} needs weights" in capsys.readouterr().err

"""Pictures show what they are given, where they say; the command draws what the loader yields."""

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
from occluded_reid.modeling.build import build_untrained
from occluded_reid.visualization.curves import COLOURS, curves_of, draw_curves, spans_powers_of_ten
from occluded_reid.visualization.figures import queries_by_occlusion
from occluded_reid.visualization.sheet import (
    BLUE,
    FRAME,
    HEAT_COLOURS,
    HEAT_SHARE,
    HIDDEN,
    ORANGE,
    TILE,
    VISIBLE,
    Section,
    Tile,
    sheet,
)

visualize = load_tool("visualize")
train_net = load_tool("train_net")


def colours(picture: Image.Image) -> dict[tuple[int, ...], int]:
    return {colour: count for count, colour in picture.getcolors(maxcolors=2**24)}


def solid(*colour: int) -> np.ndarray:
    return np.full((40, 20, 3), colour, np.uint8)


def test_a_tile_shows_its_image_frame_and_visibility():
    plain = sheet([Section("title", [Tile(solid(9, 8, 7), ["caption"], BLUE)], 1)])
    found = colours(plain)
    assert found[(9, 8, 7)] == TILE[0] * TILE[1]
    assert found[BLUE] == (TILE[0] + 2 * FRAME) * (TILE[1] + 2 * FRAME) - TILE[0] * TILE[1]
    assert VISIBLE not in found
    barred = Tile(solid(9, 8, 7), (), BLUE, visibility=[1, 1, 0.5, 0])
    found = colours(sheet([Section("title", [barred], 1)]))
    legend = 12 * 12
    shares = (found[VISIBLE] - legend) / (found[VISIBLE] + found[HIDDEN] - 2 * legend)
    assert shares == pytest.approx(2.5 / 4, abs=0.02)


def test_predicted_visibility_stands_beside_the_true_one():
    tile = Tile(solid(9, 8, 7), (), BLUE, visibility=[1, 1, 1, 1], truth=[0, 0, 0, 0])
    picture = np.asarray(sheet([Section("title", [tile], 1)]))
    body = picture[-TILE[1] // 2 :]  # below the legend
    predicted = np.flatnonzero((body == VISIBLE).all(-1).any(0))
    true = np.flatnonzero((body == HIDDEN).all(-1).any(0))
    assert len(predicted) and len(true) and predicted.max() < true.min()
    assert (body == (255, 255, 255)).all(-1).any()  # the numbers


def test_tiles_fill_rows_and_sections_stand_below_each_other():
    tiles = [Tile(solid(n, n, 1)) for n in range(5)]
    one = sheet([Section("one", tiles, 3)])
    two = sheet([Section("one", tiles, 3), Section("two", tiles, 3, [("kind", ORANGE)])])
    assert one.height > 2 * TILE[1] and one.width > 3 * TILE[0]
    assert two.height > 2 * one.height - 40
    assert colours(two)[ORANGE] == 12 * 12
    assert all(colours(one)[(n, n, 1)] == TILE[0] * TILE[1] for n in range(5))


def test_a_heat_map_lies_over_a_grey_image_and_its_scale_is_shown():
    heat = np.repeat([[0.0, 1.0]], 4, axis=0)
    tiles = [Tile(solid(200, 0, 100)), Tile(solid(200, 0, 100), heat=heat)]
    picture = sheet([Section("title", tiles, 2, scale="response")])
    body = np.asarray(picture)[-TILE[1] // 2]  # a line through both tiles
    left = 10 + 2 * FRAME + TILE[0] + 10 + FRAME
    assert (body[10 + FRAME] == (200, 0, 100)).all()
    grey = Image.new("RGB", (1, 1), (200, 0, 100)).convert("L").getpixel((0, 0))
    for place, value in ((left, 0.0), (left + TILE[0] - 1, 1.0)):
        colour = 255 * np.array(HEAT_COLOURS(value)[:3])
        expected = HEAT_SHARE * colour + (1 - HEAT_SHARE) * grey
        np.testing.assert_allclose(body[place], expected, atol=1.5)
    plain = sheet([Section("title", tiles, 2)])
    assert picture.height > plain.height  # the scale has a line of its own
    ends = [
        tuple((255 * np.array(HEAT_COLOURS(end)[:3])).round().astype(int)) for end in (0.0, 1.0)
    ]
    assert all(colours(picture)[end] >= 12 and end not in colours(plain) for end in ends)


def test_queries_are_chosen_by_kind_of_occlusion():
    kinds = ["none"] * 5 + ["vertical"] * 2
    paths = [f"/data/{number}.jpg" for number in range(7)]
    query = [(path, number, 0) for number, path in enumerate(paths)]
    truth = {p: SimpleNamespace(occlusion=kind) for p, kind in zip(paths, kinds, strict=True)}
    found = queries_by_occlusion(SimpleNamespace(query=query, truth=truth), 3)
    assert {kind: [item[1] for item in items] for kind, items in found.items()} == {
        "none": [0, 2, 4], "vertical": [5, 6]
    }  # fmt: skip
    unknown = queries_by_occlusion(SimpleNamespace(query=query, truth=None), 3)
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
    cfg = load_config(words[1], [*words[2:], *overrides], add_keys=visualize.ADD_KEYS)
    path = Path(words[1]).with_name("untrained.pth")
    torch.save({"model": build_untrained(cfg).state_dict()}, path)
    return [*words, *overrides, "MODEL.WEIGHTS", str(path)]


AONET = ("MODEL.META_ARCHITECTURE", "AONet", "MODEL.AONET.NUM_LANDMARKS", "5", "TEST.METRIC", "dot")
FED = ("MODEL.META_ARCHITECTURE", "FED")


def test_the_command_draws_batches_and_ranked_lists(tmp_path, words, capsys):
    assert visualize.command(["--kind", "batch", *words]) == 0
    assert str(tmp_path / "run" / "batch.png") in capsys.readouterr().out
    assert train_net.command([*words, "SOLVER.MAX_EPOCH", "1"]) == 0
    weights = ["MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth")]
    output = str(tmp_path / "pictures" / "ranks.png")
    assert visualize.command(["--kind", "ranks", "--output", output, *words, *weights]) == 0
    found = colours(Image.open(output))
    assert found[BLUE] > 1000 and found[ORANGE] > 1000  # some hits, some misses
    assert visualize.command(["--kind", "worst", *words, *weights]) == 0
    worst = Image.open(tmp_path / "run" / "worst.png")
    assert worst.height > 2 * Image.open(output).height  # twenty lists, not six
    assert visualize.command(["--kind", "visibility", *words, *weights]) == 2
    assert "Baseline does not tell the visibility" in capsys.readouterr().err
    assert visualize.command(["--kind", "curves", *words]) == 0
    assert colours(Image.open(tmp_path / "run" / "curves.png"))[(0, 0, 0)] > 100  # total_loss


def test_the_command_draws_what_fed_sees(tmp_path, words, capsys):
    words = untrained(words, *FED)
    assert visualize.command(["--kind", "visibility", *words]) == 0
    found = colours(Image.open(tmp_path / "run" / "visibility.png"))
    assert found[VISIBLE] > 1000 and found[HIDDEN] > 1000
    assert visualize.command(["--kind", "landmarks", *words]) == 2
    assert "FED has no landmarks; AONet has" in capsys.readouterr().err


def test_landmarks_have_no_place_on_an_image_to_write_their_visibility_at():
    scores = [0.1, 0.25, 0.5, 1.0]
    as_stripes, landmarks = (
        Tile(solid(9, 8, 7), ("caption",), BLUE, scores, stripes=stripes)
        for stripes in (True, False)
    )
    assert as_stripes.lines == ["caption"]
    assert landmarks.lines == ["caption", "0.10 0.25 0.50", "1.00"]
    of_stripes, of_landmarks = (
        colours(sheet([Section("", [tile], 1)])) for tile in (as_stripes, landmarks)
    )
    assert of_landmarks[(9, 8, 7)] == TILE[0] * TILE[1] > of_stripes[(9, 8, 7)]
    assert of_landmarks[VISIBLE] == of_stripes[VISIBLE]  # the bars


def test_the_command_draws_every_landmark_and_the_least_visible_one(tmp_path, words):
    assert visualize.command(["--kind", "landmarks", *untrained(words, *AONET)]) == 0
    picture = Image.open(tmp_path / "run" / "landmarks.png")
    step = (TILE[0] + 2 * FRAME + 10, TILE[1] + 2 * FRAME + 10 + 2 * 15)
    # of three queries: all landmarks of each, then three times three pictures
    assert (picture.width // step[0], picture.height // step[1]) == (9, 3 + 1)
    without = ("MODEL.AONET.OCCLUSION_AWARE_FEATURES", "False", "MODEL.AONET.VISIBILITY", "maximum")
    assert visualize.command(["--kind", "landmarks", *untrained(words, *AONET, *without)]) == 0
    standard = Image.open(tmp_path / "run" / "landmarks.png")
    # nothing refers to an average response
    assert (standard.width // step[0], standard.height // step[1]) == (1 + 5, 3)


def test_what_is_drawn_of_landmarks_are_equations_2_to_4(tmp_path):
    path = tmp_path / "0001_c1.png"
    Image.fromarray(solid(9, 8, 7)).save(path)
    model = aonet_model().eval()
    model.heads.memory.features.mul_(10)  # so that some landmarks are hidden
    batch = {**aonet_batch(4), "img_paths": [str(path)] * 4}
    with torch.no_grad():
        expected = model.landmarks(batch["images"])
        found = list(visualize._landmarks(model, batch, None))
    for place, (query, heats, visibility, beta) in enumerate(found):
        np.testing.assert_allclose(visibility, expected.visibility[place], rtol=1e-5)
        assert heats.max(axis=(1, 2)) == pytest.approx(1)
        standard = heats / heats.sum(axis=(1, 2), keepdims=True)
        referenced = beta[:, None, None] * standard
        np.testing.assert_allclose(referenced, expected.maps[place], rtol=1e-4, atol=1e-8)
        tiles = visualize._heated(query, heats, visibility)
        assert tiles[1].captions == ["landmark 2", f"visibility {visibility[1]:.2f}"]
        without, with_reference = visualize._without_and_with(query, heats, beta)
        assert without.heat.max() == pytest.approx(1)
        assert with_reference.heat.max() == pytest.approx(beta.min())
    assert len(found) == 4 and min(beta.min() for *_, beta in found) < 0.9


LINES = [
    {"iteration": 9, "total_loss": 3.0, "loss_cls": 3.0, "lr": 0.1, "time": 1.0},
    {"iteration": 19, "total_loss": 0.2, "loss_cls": 0.2, "lr": 0.1, "Rank-1": 50.0, "mAP": 40.0},
    {"iteration": 29, "total_loss": 0.1, "loss_cls": 0.1, "lr": 0.1, "A/Rank-1": 1.0, "mINP": 1.0},
]


def test_curves_are_sorted_by_what_they_measure():
    found = curves_of(LINES)
    assert found["loss"]["total_loss"] == ([9, 19, 29], [3.0, 0.2, 0.1])
    assert set(found["loss"]) == {"total_loss", "loss_cls"}
    assert found["learning rate"] == {"lr": ([9, 19, 29], [0.1, 0.1, 0.1])}
    assert found["per cent"] == {
        "Rank-1": ([19], [50.0]), "mAP": ([19], [40.0]), "A/Rank-1": ([29], [1.0])
    }  # fmt: skip
    assert set(curves_of(LINES[:1])) == {"loss", "learning rate"}
    assert spans_powers_of_ten(found["loss"]) and not spans_powers_of_ten(found["learning rate"])
    assert not spans_powers_of_ten({"loss": ([1, 2], [0.0, 5.0])})
    assert spans_powers_of_ten({"loss": ([1, 2, 3], [0.1, float("nan"), 5.0])})


def test_every_curve_is_drawn_in_its_colour():
    terms = {f"loss_{number}": 2.0**number for number in range(len(COLOURS))}
    lines = [{"iteration": n, "total_loss": 70.0, **terms} for n in range(3)]
    picture = draw_curves(lines, "a run")
    found = colours(picture)
    for colour in ("#000000", *COLOURS):
        assert found[tuple(bytes.fromhex(colour[1:]))] > 100, colour
    evaluated = draw_curves([*lines, {"iteration": 2, "mAP": 50.0}], "a run")
    assert evaluated.height > 1.5 * picture.height  # a panel of its own


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "there is no"),
        ("", "is empty: the run has not come to"),
        (json.dumps(LINES[0]) + '\n{"iteration": 19, "total_l', "line 2 of"),
        ('{"total_loss": 1.0}\n', "line 1 of"),
        ("[1]\n", "line 1 of"),
    ],
)
def test_a_run_without_sound_metrics_has_no_curves(tmp_path, words, capsys, content, fault):
    if content is not None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "metrics.json").write_text(content)
    assert visualize.command(["--kind", "curves", *words]) == 2
    message = capsys.readouterr().err
    assert fault in message and "metrics.json" in message
    assert not (tmp_path / "run" / "curves.png").exists()


@pytest.mark.parametrize("kind", ["landmarks", "ranks", "visibility", "worst"])
def test_what_a_model_says_is_not_drawn_without_weights(kind, words, capsys):
    assert visualize.command(["--kind", kind, *words]) == 2
    assert f"--kind {kind} needs weights" in capsys.readouterr().err

"""Pictures show what they are given, where they say; the command draws what the loader yields."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from runs import TINY, draw_market, load_tool

from occluded_reid.visualization import (
    BLUE,
    FRAME,
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


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(draw_market(tmp_path / "data")))
    path = tmp_path / "tiny.yml"
    path.write_text(TINY)
    folder = str(tmp_path / "run")
    return ["--config-file", str(path), "OUTPUT_DIR", folder, "MODEL.DEVICE", "cpu"]


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


@pytest.mark.parametrize("kind", ["ranks", "visibility", "worst"])
def test_what_a_model_says_is_not_drawn_without_weights(kind, words, capsys):
    assert visualize.command(["--kind", kind, *words]) == 2
    assert f"--kind {kind} needs weights" in capsys.readouterr().err

"""NPO augmentation: what is pasted where, its labels, and its batches."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import batches, tiny_cfg, train

from occluded_reid.config import load_config
from occluded_reid.data.build import build_train_loader
from occluded_reid.data.reid_dataset import ReidDataset, SampleIndex, Unreadable
from occluded_reid.data.transforms.color import adjust_color
from occluded_reid.data.transforms.npo import (
    NpoAugmentation,
    Rectangle,
    build_npo,
    label_stripes,
    resize,
    sample_factors,
    sample_rectangle,
    sample_window,
)
from occluded_reid.data.transforms.occluder_patches import (
    MAX_SIDE,
    Patch,
    load_occlusion_sets,
    load_patches,
    render_patches,
)
from occluded_reid.synthetic.occluders import styles as styles_module
from occluded_reid.utils.errors import UserError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def flat(height: int, width: int, value: int = 200) -> Patch:
    return Patch(np.full((height, width, 3), value, np.uint8), height / width)


def count_labels(clean: np.ndarray, occluded: np.ndarray, stripes: int) -> list[int]:
    """Sec. 3.1, pixel by pixel: d = |x - x'|; covered over more than three quarters -> 0.

    Rows are repeated ``stripes`` times, so that stripes of a fraction of a row can be counted.
    """
    clean, occluded = (np.repeat(view, stripes, axis=0) for view in (clean, occluded))
    tall = len(clean) // stripes
    labels = []
    for stripe in range(stripes):
        count = total = 0
        for row in range(stripe * tall, (stripe + 1) * tall):
            for column in range(clean.shape[1]):
                count += abs(clean[row, column] - occluded[row, column]) > 0
                total += 1
        labels.append(0 if 4 * count > 3 * total else 1)
    return labels


# --------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(("height", "stripes"), [(12, 4), (10, 4), (9, 3), (7, 1), (5, 8)])
@pytest.mark.parametrize("width", [4, 5])
def test_stripe_labels_equal_a_count_of_pixels(height, stripes, width):
    for top in range(height):
        for tall in range(1, height - top + 1):
            clean = np.zeros((height, 5), int)
            occluded = clean.copy()
            occluded[top : top + tall, :width] = 9
            actual = label_stripes(Rectangle(top, 0, tall, width), (height, 5), stripes)
            assert actual.dtype == torch.float32
            assert actual.tolist() == count_labels(clean, occluded, stripes), (top, tall)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (64, [1, 1, 1, 0]),  # a quarter: the last stripe whole
        (112, [1, 1, 1, 0]),  # 48 of the 64 rows above it: three quarters, not more
        (113, [1, 1, 0, 0]),
        (128, [1, 1, 0, 0]),
        (48, [1, 1, 1, 1]),
    ],
)
def test_exactly_three_quarters_is_not_more(rows, expected):
    actual = label_stripes(Rectangle(256 - rows, 0, rows, 128), (256, 128), 4)
    assert actual.tolist() == expected


def test_covered_is_a_key():
    rectangle = Rectangle(0, 0, 60, 128)
    assert label_stripes(rectangle, (256, 128), 4, covered=0.95).tolist() == [1, 1, 1, 1]
    assert label_stripes(rectangle, (256, 128), 4, covered=0.9).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("size", [(64, 32), (50, 23), (3, 2)])
def test_labels_of_whole_samples_equal_the_difference_of_the_views(size):
    npo = NpoAugmentation([flat(20, 30), flat(90, 20)], jitter=(0, 0, 0))
    image = torch.zeros(3, *size)
    for seed in range(60):
        sample = npo({"images": image}, seed)
        changed = (sample["occluded_images"] != image).any(dim=0).numpy().astype(int)
        labels = count_labels(np.zeros_like(changed), changed, 4)
        vertical = changed.all(axis=0).any() and not changed.all()
        assert sample["part_visibility"].tolist() == ([1] * 4 if vertical else labels)
        assert changed.any()


def test_vertical_occluders_leave_all_stripes_visible_whatever_they_cover():
    image = torch.zeros(3, 40, 20)
    assert NpoAugmentation([flat(90, 20)], covered=0.1).occlude(image, rng())[1].tolist() == [1] * 4
    assert NpoAugmentation([flat(20, 30)], covered=0.1).occlude(image, rng())[1].min() == 0


# ------------------------------------------------------------------------------ rectangles


@pytest.mark.parametrize("vertical", [False, True])
def test_rectangles_are_flush_in_corners_and_span_the_image(vertical):
    generator, corners = rng(), Counter()
    for _ in range(2000):
        top, left, height, width = sample_rectangle(vertical, (64, 48), (0.25, 0.5), generator)
        assert top in (0, 64 - height) and left in (0, 48 - width)
        if vertical:
            assert height == 64 and 12 <= width <= 24
        else:
            assert width == 48 and 16 <= height <= 32
        corners[top > 0, left > 0] += 1
    assert len(corners) == 2  # the other two corners give the same rectangle
    assert all(900 < count < 1100 for count in corners.values())


@pytest.mark.parametrize("vertical", [False, True])
def test_all_sizes_between_a_quarter_and_half_are_equally_likely(vertical):
    generator = rng(1)
    rectangles = [sample_rectangle(vertical, (64, 64), (0.25, 0.5), generator) for _ in range(8500)]
    sizes = Counter(r.width if vertical else r.height for r in rectangles)
    assert set(sizes) == set(range(16, 33))
    assert all(abs(count - 500) < 110 for count in sizes.values())  # five standard deviations


def test_bounds_are_whole_pixels_inside_the_extent():
    sizes = {sample_rectangle(False, (10, 4), (0.25, 0.5), rng(seed)).height for seed in range(99)}
    assert sizes == {3, 4, 5}
    assert sample_rectangle(True, (2, 1), (0.25, 0.5), rng()).width == 1


def test_every_patch_is_equally_likely():
    generator, npo = rng(), NpoAugmentation([flat(1, 1)] * 5)
    counts = Counter(npo.sample_params((8, 4), generator).patch for _ in range(5000))
    assert sorted(counts) == [0, 1, 2, 3, 4]
    assert all(abs(count - 1000) < 150 for count in counts.values())


@pytest.mark.parametrize(
    ("patch", "ratio", "vertical"),
    [
        (flat(30, 10), 3.0, False),  # alpha = 3 is not larger than 3
        (flat(31, 10), 3.0, True),
        (flat(30, 10), 2.0, True),
        (flat(10, 30), 3.0, False),
    ],
)
def test_the_aspect_decides_the_direction(patch, ratio, vertical):
    npo = NpoAugmentation([patch], vertical_ratio=ratio)
    for seed in range(8):
        image = torch.full((3, 40, 20), -1.0)
        occluded, _ = npo.occlude(image, rng(seed))
        changed = occluded[0] >= 0
        assert bool(changed.all(dim=0).any()) is vertical  # a column from top to bottom
        assert bool(changed.all(dim=1).any()) is not vertical


# --------------------------------------------------------------------------------- patches


def test_crops_lie_inside_and_vary_in_position_and_size():
    generator, sizes, corners = rng(), set(), set()
    for _ in range(500):
        top, left, height, width = sample_window((20, 10), 0.5, generator)
        assert top >= 0 and left >= 0 and top + height <= 20 and left + width <= 10
        sizes.add((height, width))
        corners.add((top, left))
    assert {height for height, _ in sizes} == set(range(10, 21))
    assert {width for _, width in sizes} == set(range(5, 11))
    assert len(corners) > 40
    assert sample_window((20, 10), 1.0, generator) == (0, 0, 20, 10)


def test_the_window_of_the_patch_is_pasted():
    pixels = rng().integers(0, 256, (20, 10, 3), dtype=np.uint8)
    npo = NpoAugmentation([Patch(pixels, 2)], jitter=(0, 0, 0), flip=0)
    pasting = npo.sample_params((32, 16), rng())._replace(window=Rectangle(3, 2, 9, 7))
    expected = resize(pixels[3:12, 2:9], pasting.rectangle.height, pasting.rectangle.width)
    assert torch.equal(npo.prepare_patch(pasting), expected.float())


def test_resizing_a_crop_equals_pillow():
    pixels = rng().integers(0, 256, (50, 40, 3), dtype=np.uint8)
    window = pixels[5:45, 3:38]
    actual = resize(window, 30, 50).permute(1, 2, 0).numpy().astype(int)
    expected = np.asarray(Image.fromarray(window).resize((50, 30), Image.Resampling.BILINEAR))
    assert np.abs(actual - expected).max() <= 1


def test_color_jitter_equals_three_steps_pixel_by_pixel():
    patch = torch.from_numpy(rng(4).integers(90, 160, (3, 4, 5)).astype(np.uint8))
    strength = (0.2, 0.3, 0.4)
    b, c, s = factors = sample_factors(strength, rng(7))
    assert all(1 - x <= factor <= 1 + x for factor, x in zip(factors, strength, strict=True))

    def gray(pixel):
        return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]

    bright = [[b * float(v) for v in patch[:, y, x]] for y in range(4) for x in range(5)]
    mean = sum(gray(pixel) for pixel in bright) / len(bright)
    contrasted = [[c * v + (1 - c) * mean for v in pixel] for pixel in bright]
    expected = [[s * v + (1 - s) * gray(pixel) for v in pixel] for pixel in contrasted]
    actual = adjust_color(patch, factors).reshape(3, -1).T
    assert np.abs(actual.numpy() - np.array(expected)).max() <= 0.501  # rounded to whole numbers
    assert torch.equal(actual, actual.round())


def test_color_jitter_stays_in_range_and_zero_strength_changes_nothing():
    patch = torch.from_numpy(rng().integers(0, 256, (3, 9, 9)).astype(np.uint8))
    assert sample_factors((0, 0, 0), rng()) == (1, 1, 1)
    assert torch.equal(adjust_color(patch, (1, 1, 1)), patch.float())
    for seed in range(20):
        changed = adjust_color(patch, sample_factors((1, 1, 1), rng(seed)))
        assert changed.min() >= 0 and changed.max() <= 255


def test_patches_are_flipped_as_often_as_configured():
    ramp = Patch(
        np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], 9, 0).repeat(3, 2), 1
    )
    for flip, expected in ((0.0, 0), (1.0, 400), (0.5, 200)):
        npo = NpoAugmentation([ramp], flip=flip, jitter=(0, 0, 0))
        generator = rng()
        mirrored = 0
        for _ in range(400):
            row = npo.prepare_patch(npo.sample_params((36, 30), generator))[0, 0]
            mirrored += int(row[0] > row[-1])
        assert abs(mirrored - expected) <= (50 if flip == 0.5 else 0)


def test_vertical_patches_keep_their_colors_on_request():
    patch = flat(90, 20, 100)
    for jitter_vertical in (True, False):
        npo = NpoAugmentation([patch], jitter_vertical=jitter_vertical)
        views = [npo.occlude(torch.zeros(3, 20, 10), rng(seed))[0] for seed in range(9)]
        assert any(bool(((view > 0) & (view != 100)).any()) for view in views) is jitter_vertical


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (900, 1400), (3000, 40)])
def test_patches_of_any_size_are_pasted_and_the_clean_view_stays(size):
    image = torch.rand(3, 32, 16) * 255
    before = image.clone()
    sample = {"images": image, "targets": 3}
    actual = NpoAugmentation([flat(*size)])(sample, 5)
    assert actual["occluded_images"].shape == image.shape
    assert actual["images"] is image and torch.equal(image, before)
    assert actual["targets"] == 3 and "occluded_images" not in sample
    assert not torch.equal(actual["occluded_images"], image)


def test_a_selection_is_the_rectangle_and_nothing_else():
    image = torch.zeros(3, 6, 5)
    Rectangle(4, 2, 2, 3).select(image).fill_(7)
    assert image.sum() == 7 * 18 and (image[:, 4:6, 2:5] == 7).all()


# --------------------------------------------------------------------------------- loader


pytestmark = pytest.mark.usefixtures("data_root")


PAIR = ("INPUT.NPO.ENABLED", True, "INPUT.NPO.MODE", "pair")
REPLACE = ("INPUT.NPO.ENABLED", True, "INPUT.NPO.MODE", "replace")


def test_a_pair_holds_the_image_of_the_unpaired_loader(tmp_path):
    pairs, plain = batches(tmp_path, 4, *PAIR), batches(tmp_path, 4)
    for pair, single in zip(pairs, plain, strict=True):
        assert torch.equal(pair["images"], single["images"])  # random erasing included
        assert torch.equal(pair["targets"], single["targets"])
        assert pair["occluded_images"].shape == (8, 3, 32, 16)
        assert pair["occluded_images"].dtype == torch.float32
        assert pair["part_visibility"].shape == (8, 4)
        assert pair["part_visibility"].dtype == torch.float32
        changed = (pair["occluded_images"] != pair["images"]).flatten(1).any(dim=1)
        assert changed.all()
        assert "part_visibility" not in single
    labels = torch.cat([pair["part_visibility"] for pair in pairs])
    assert 0.02 < (1 - labels).mean() < 0.4 and set(labels.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_replacing_occludes_as_many_images_as_asked(tmp_path, prob):
    replaced = batches(tmp_path, 25, *REPLACE, "INPUT.NPO.PROB", prob)
    plain = batches(tmp_path, 25)
    changed = []
    for one, other in zip(replaced, plain, strict=True):
        assert "occluded_images" not in one
        changed.append((one["images"] != other["images"]).flatten(1).any(dim=1))
        assert (one["part_visibility"][~changed[-1]] == 1).all()
    fraction = torch.cat(changed).float().mean().item()
    assert abs(fraction - prob) <= (0.1 if prob == 0.3 else 0)


@pytest.mark.parametrize("mode", [PAIR, REPLACE])
def test_views_do_not_depend_on_workers_or_on_what_ran_before(tmp_path, mode):
    np.random.seed(1)
    first = batches(tmp_path, 7, *mode)
    np.random.seed(2)
    torch.rand(3)
    second = batches(tmp_path, 7, *mode, "DATALOADER.NUM_WORKERS", 2)
    other = batches(tmp_path, 7, *mode, "SEED", 8)
    view = "occluded_images" if mode is PAIR else "images"
    for one, two, three in zip(first, second, other, strict=True):
        assert torch.equal(one[view], two[view])
        assert torch.equal(one["part_visibility"], two["part_visibility"])
        assert not torch.equal(one[view], three[view])


def test_an_unreadable_image_stays_an_unreadable_image():
    npo = NpoAugmentation([flat(9, 9)])
    dataset = ReidDataset([("gone.jpg", "1", "1")], transform=lambda image: image, npo=npo)
    assert isinstance(dataset[SampleIndex(0, 5)], Unreadable)


def test_a_plain_baseline_trains_on_occluded_images(tmp_path):
    run = train(tiny_cfg(tmp_path / "run", *REPLACE, "SOLVER.MAX_EPOCH", 1))
    assert (tmp_path / "run" / "results.json").is_file() and run.epoch == 0


# ------------------------------------------------------------------------- occlusion sets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "OS1"
    root.mkdir()
    for name, (height, width), value in (("b.png", (30, 20), 40), ("a.jpg", (80, 20), 90)):
        Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(root / name)
    (root / "notes.txt").write_text("where they come from")
    return root


def build_cfg(*folders):
    words = ["INPUT.NPO.ENABLED", "True", "MODEL.DEVICE", "cpu"]
    return load_config("", [*words, "INPUT.NPO.OCCLUDERS", str([str(name) for name in folders])])


def test_images_of_all_folders_are_read_in_order(folder, tmp_path):
    other = tmp_path / "OS2"
    other.mkdir()
    Image.new("L", (5, 4), 7).save(other / "gray.bmp")
    patches = load_occlusion_sets([str(folder), str(other)])
    assert [round(patch.aspect, 2) for patch in patches] == [4.0, 1.5, 0.8]
    assert all(patch.pixels.dtype == np.uint8 for patch in patches)
    assert [int(patch.pixels[0, 0, 0]) for patch in patches] == [90, 40, 7]


def test_images_are_decoded_once(folder, monkeypatch):
    npo = build_npo(build_cfg(folder))
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened again"))
    for seed in range(5):
        npo({"images": torch.zeros(3, 16, 8)}, seed)


def test_large_images_are_shrunk_but_keep_their_aspect(tmp_path):
    Image.new("RGB", (400, 1201)).save(tmp_path / "tall.png")
    (patch,) = load_patches(tmp_path)
    assert patch.pixels.shape == (MAX_SIDE, 128, 3)  # of which 384 / 128 is no more than 3
    assert patch.aspect == 1201 / 400 > 3


def test_without_a_folder_the_synthetic_set_is_used_and_logged(caplog):
    logging.getLogger("occluded_reid").propagate = True
    with caplog.at_level(logging.INFO):
        npo = build_npo(build_cfg())
    assert "names no folder: pasting 44 synthetic occluders" in caplog.text
    aspects = [patch.aspect for patch in npo.patches]
    assert sum(aspect > 3 for aspect in aspects) == 16
    assert all(patch.pixels.min() < patch.pixels.max() for patch in npo.patches)


def test_the_synthetic_set_has_no_held_out_style(monkeypatch):
    def held_out(*_):
        pytest.fail("a style of the test set was rendered")

    styles = {kind: (*draws[:-1], held_out) for kind, draws in styles_module.STYLES.items()}
    monkeypatch.setattr(styles_module, "STYLES", styles)
    again = render_patches.__wrapped__()
    for one, other in zip(render_patches(), again, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_off_by_default():
    assert build_npo(load_config("", ["MODEL.DEVICE", "cpu"])) is None


def break_set(kind, folder, monkeypatch):
    """Break the set ``folder`` in one way; return the folder to name in the configuration."""
    if kind == "missing":
        return folder / "gone"
    if kind == "a file":
        return folder / "a.jpg"
    if kind == "empty":
        for path in folder.glob("*.*g"):
            path.unlink()
    if kind == "unreadable":

        def refuse(self):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", refuse)
    if kind == "broken":
        (folder / "c.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    if kind == "no image":
        (folder / "c.png").write_text("no image")
    if kind == "transparent":
        Image.new("RGBA", (9, 9), (5, 5, 5, 254)).save(folder / "c.png")
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"OS1/gone \(No such file.*make_occluders.py window .* --output .*OS1/gone"),
        ("a file", r"a.jpg \(Not a directory.*expects folders with images"),
        ("empty", r"OS1 holds no images \(.bmp, .*\); INPUT.NPO.OCCLUDERS expects"),
        ("unreadable", r"OS1 \(Permission denied\)"),
        ("broken", r"cannot read the image .*c.jpg \(.*replace or remove it"),
        ("no image", r"cannot read the image .*c.png"),
        ("transparent", r"c.png has transparent pixels"),
    ],
)
def test_an_invalid_set_stops_the_run_at_its_start(kind, message, folder, monkeypatch, tmp_path):
    cfg = build_cfg(break_set(kind, folder, monkeypatch))
    with pytest.raises(UserError, match=message):
        build_npo(cfg)


def test_the_loader_reads_the_set_before_the_first_batch(tmp_path):
    sets = ("INPUT.NPO.OCCLUDERS", f"['{tmp_path / 'gone'}']")
    with pytest.raises(UserError, match="cannot read .*gone.*INPUT.NPO.OCCLUDERS"):
        build_train_loader(tiny_cfg(tmp_path / "run", *PAIR, *sets))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("PROB", "1.5", "a probability"),
        ("VERTICAL_RATIO", "0.0", "above 0"),
        ("EXTENT", "[0.5, 0.25]", "two increasing fractions"),
        ("EXTENT", "[0.5]", "two increasing fractions"),
        ("EXTENT", "[0.0, 0.5]", "two increasing fractions"),
        ("CROP", "0.0", "a fraction in"),
        ("FLIP", "-0.5", "a probability"),
        ("JITTER", "[0.5, 0.5]", "three numbers"),
        ("JITTER", "[0.5, 0.5, -0.1]", "three numbers"),
        ("NUM_STRIPES", "0", "at least 1"),
        ("COVERED", "75.0", "a fraction in"),
    ],
)
def test_values_out_of_range_are_named(key, value, expected):
    words = ["INPUT.NPO.ENABLED", "True", f"INPUT.NPO.{key}", value]
    with pytest.raises(UserError, match=f"INPUT.NPO.{key} is .*; it must be {expected}"):
        build_npo(load_config("", words))


def test_the_mode_is_one_of_two():
    with pytest.raises(UserError, match="INPUT.NPO.MODE is 'both'; it can be pair or replace"):
        load_config("", ["INPUT.NPO.MODE", "both"])

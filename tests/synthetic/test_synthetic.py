"""The drawn data set: equal pixels each time, exact truth, and safe generation."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from occluded_reid.synthetic import (
    SIZES,
    VERSION,
    generate,
    generation,
    read_truth,
    render_pool,
    verify,
)
from occluded_reid.synthetic.occluders.styles import (
    OCCLUDER_KINDS,
    ORIENTATION,
    STYLES,
    Use,
    draw_occluder,
    get_styles,
)
from occluded_reid.synthetic.person.wardrobe import GROUP_SIZE, build_appearance
from occluded_reid.synthetic.plan import SPLITS, plan_images
from occluded_reid.synthetic.scene.composition import render
from occluded_reid.synthetic.truth import Truth, count_stripe_pixels, measure_visible_fraction
from occluded_reid.utils.errors import UserError

TINY_NAME = f"tiny-seed0-v{VERSION}"
# Generates `tiny`. It has no `if __name__ == "__main__"`, as in a notebook.
SCRIPT = """
import sys
from occluded_reid.synthetic import generate
print(generate(sys.argv[1], "tiny", workers=2))
"""
# Stops in the middle of the work and reports it.
SLOW_SCRIPT = """
import sys
import time
from occluded_reid.synthetic import generate, generation
original = generation.store_images
def slow(*arguments):
    for number, report in enumerate(original(*arguments)):
        if number == 20:
            print("drawing", flush=True)
            time.sleep(60)
        yield report
generation.store_images = slow
generate(sys.argv[1], "tiny", workers=1)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The size `tiny`, generated once for all tests that only read it."""
    return generate(tmp_path_factory.mktemp("shared"), "tiny", workers=1)


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `tiny` a set of ten images, where the content does not matter."""
    monkeypatch.setitem(SIZES, "tiny", type(SIZES["tiny"])(1, 4, 1, 1, 1, 1, 3))


def start_script(root: Path, script: str) -> subprocess.Popen[str]:
    """Start a script in a working folder whose modules a worker must not import."""
    path, folder = root / "script.py", root / "working_folder"
    folder.mkdir(exist_ok=True)
    (folder / "cv2.py").write_text("raise ImportError('imported from the working folder')")
    path.write_text(script)
    command = [sys.executable, path, root]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)


def visible_entries(root: Path) -> list[str]:
    folder = root / "SyntheticOccluded"
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_folder_holds_the_planned_files(tiny: Path) -> None:
    assert tiny.name == TINY_NAME
    assert tiny.parent.name == "SyntheticOccluded"
    for split, count in SIZES["tiny"].count_images().items():
        names = [path.name for path in (tiny / split).iterdir()]
        assert len(names) == count
        for name in names:
            identity, camera, number = name.removesuffix(".jpg").split("_")
            assert len(identity) == 4 and identity.isdigit()
            assert camera[0] == "c" and int(camera[1:]) in SIZES["tiny"].cameras
            assert len(number) == 6 and number.isdigit()


def test_paper_size_has_the_counts_of_occluded_duke() -> None:
    size = SIZES["paper"]
    assert (size.train_ids, size.train_images) == (702, 15618)
    assert (size.query_ids, size.query_images) == (519, 2210)
    assert (size.gallery_ids, size.gallery_images) == (1110, 17661)
    images = plan_images(size, seed=0)
    for split, count in size.count_images().items():
        assert sum(image.split == split for image in images) == count
    identities = {split: {i.identity for i in images if i.split == split} for split in SPLITS}
    assert [len(identities[split]) for split in SPLITS] == [702, 519, 519, 1110]
    assert identities["query"] < identities["bounding_box_test"]
    assert not identities["bounding_box_train"] & identities["bounding_box_test"]
    assert len({image.path for image in images}) == len(images)


@pytest.mark.parametrize(
    ("size", "seed"),
    [("tiny", 0), ("tiny", 7), ("small", 0), ("small", 7), ("paper", 7), ("large", 7)],
)
def test_each_query_has_a_true_match_in_another_camera(size: str, seed: int) -> None:
    images = plan_images(SIZES[size], seed)
    gallery = {(i.identity, i.camera) for i in images if i.split == "bounding_box_test"}
    for query in images:
        if query.split in ("query", "query_holistic"):
            cameras = {camera for identity, camera in gallery if identity == query.identity}
            assert cameras - {query.camera}


def test_pixels_do_not_depend_on_the_order_of_the_work() -> None:
    first, second = plan_images(SIZES["tiny"], seed=3)[:2]
    image = render(first, seed=3).image
    render(second, seed=3)
    assert np.array_equal(image, render(first, seed=3).image)
    other_seed = cv2.resize(render(first, seed=4).image, image.shape[1::-1])
    assert not np.array_equal(image, other_seed)


def test_one_worker_and_two_give_the_same_files(tiny: Path, tmp_path: Path) -> None:
    other = generate(tmp_path, "tiny", workers=2)
    for name in ("truth.jsonl", "manifest.json"):
        assert (other / name).read_bytes() == (tiny / name).read_bytes()
    for path in read_truth(tiny):
        assert (other / path).read_bytes() == (tiny / path).read_bytes()


def test_identities_differ_and_some_look_alike() -> None:
    looks = [build_appearance(identity, seed=0) for identity in range(1, 600)]
    assert len(set(looks)) == len(looks)
    assert build_appearance(1, seed=0) != build_appearance(1, seed=1)
    colors = np.array([look.upper.cloth.color + look.lower.cloth.color for look in looks])
    groups = np.arange(1, 600) // GROUP_SIZE
    apart = np.abs(colors[:, None] - colors[None]).sum(axis=2)
    pairs = ~np.eye(len(looks), dtype=bool)
    fellows = pairs & (groups[:, None] == groups[None])
    assert (apart[fellows] < 60).mean() > 6 * (apart[pairs] < 60).mean()


def test_truth_agrees_with_the_masks() -> None:
    for planned in plan_images(SIZES["tiny"], seed=1)[60:100]:
        rendering = render(planned, seed=1)
        truth = rendering.truth
        person, covered = rendering.person, rendering.covered
        assert truth.size == rendering.image.shape[1::-1]
        assert truth.visible_fraction == measure_visible_fraction(person, covered)
        visible = person & ~covered
        assert truth.visible_fraction == pytest.approx(visible.sum() / person.sum(), abs=1e-4)
        assert sum(truth.stripe_person_pixels) == person.sum()
        assert sum(truth.stripe_visible_pixels) == visible.sum()
        x0, y0, x1, y1 = truth.person_box
        assert person[y0:y1, x0:x1].sum() == person.sum()
        assert person[y0].any() and person[y1 - 1].any()
        assert person[:, x0].any() and person[:, x1 - 1].any()
        outside = covered.copy()
        for occluder in truth.occluders:
            left, top, right, bottom = occluder.box
            outside[top:bottom, left:right] = False
        assert not outside.any()


def test_covered_pixels_show_the_occluder() -> None:
    """Removing the occluder changes the covered pixels and hardly any other."""
    planned = next(i for i in plan_images(SIZES["tiny"], 0) if i.occlusion == "horizontal")
    occluded = render(planned, seed=0)
    clear = render(dataclasses.replace(planned, occlusion="none"), seed=0)
    assert clear.truth.visible_fraction == 1.0
    assert np.array_equal(clear.person, occluded.person)
    change = np.abs(occluded.image.astype(int) - clear.image).mean(axis=2)
    assert change[occluded.covered].mean() > 3 * change[~occluded.covered].mean()


def test_truth_of_the_splits(tiny: Path) -> None:
    truths = read_truth(tiny).values()
    assert {truth.split for truth in truths} == set(SPLITS)
    for truth in truths:
        assert len(truth.stripe_person_pixels) == len(truth.stripe_visible_pixels) == 16
        assert len(truth.stripe_coverage) == 4
        if truth.split == "query":
            assert 0.1 < truth.visible_fraction < 0.9
            assert truth.occluders and truth.occlusion != "none"
            assert max(truth.stripe_coverage) > 0
        if truth.split == "query_holistic" or truth.occlusion == "none":
            assert truth.visible_fraction == 1.0
            assert not truth.occluders
            assert truth.stripe_coverage == (0, 0, 0, 0)
        assert 28 <= truth.size[0] <= 128 and 64 <= truth.size[1] <= 256


def test_truth_survives_json(tiny: Path) -> None:
    for truth in read_truth(tiny).values():
        assert Truth.from_json(truth.to_json()) == truth


@pytest.mark.parametrize("height", [128, 131, 200, 255])
def test_stripes_of_sixteen_add_up_to_four(height: int) -> None:
    mask = np.random.default_rng(height).random((height, 60)) < 0.4
    fine, coarse = count_stripe_pixels(mask, 16), count_stripe_pixels(mask, 4)
    assert coarse == tuple(sum(fine[4 * k : 4 * k + 4]) for k in range(4))
    expected = [0] * 16
    for row in range(height):
        expected[int((row + 0.5) / height * 16)] += int(mask[row].sum())
    assert list(fine) == expected


@pytest.mark.parametrize("kind", OCCLUDER_KINDS)
@pytest.mark.parametrize("use", ["training", "test"])
def test_each_occluder_is_a_solid_object(kind: str, use: Use) -> None:
    size = (160, 40) if ORIENTATION[kind] == "vertical" else (80, 140)
    image = draw_occluder(kind, np.random.default_rng(5), *size, use=use)
    assert image.shape == (*size, 4) and image.dtype == np.uint8
    alpha = image[..., 3] > 127
    assert alpha.mean() > 0.1
    assert alpha.any(axis=1).mean() > 0.8 and alpha.any(axis=0).mean() > 0.8
    assert image[..., :3][alpha].std() > 3
    again = draw_occluder(kind, np.random.default_rng(5), *size, use=use)
    assert np.array_equal(image, again)


def test_tests_use_other_drawings_than_training() -> None:
    for kind in OCCLUDER_KINDS:
        training, test = set(get_styles(kind, "training")), set(get_styles(kind, "test"))
        assert training and test and not training & test
        assert STYLES[kind][-1] in test


def test_unknown_occluder_is_named() -> None:
    with pytest.raises(UserError, match="'dragon'.*car"):
        draw_occluder("dragon", np.random.default_rng(0), 50, 50)


def test_unknown_size_lists_the_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'huge'.*tiny, small, paper, large"):
        generate(tmp_path, "huge")


def test_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="-1"):
        generate(tmp_path, "tiny", seed=-1)


def test_missing_truth_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="truth.jsonl"):
        read_truth(tmp_path)


def test_existing_set_is_not_drawn_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw_again(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(generation, "store_images", draw_again)
    assert generate(tiny.parents[1], "tiny") == tiny


def test_importing_the_renderer_does_not_import_torch() -> None:
    code = (
        "import sys, occluded_reid.synthetic.render_pool\n"
        "print(sorted({'torch', 'fastreid', 'matplotlib'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout == "[]\n", output.stderr


def test_two_scripts_generate_one_folder(tmp_path: Path) -> None:
    processes = [start_script(tmp_path, SCRIPT) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    assert visible_entries(tmp_path) == [TINY_NAME]
    assert verify(outputs[0]) == []


def test_killed_process_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    process = start_script(tmp_path, SLOW_SCRIPT)
    assert process.stdout is not None
    assert process.stdout.readline() == "drawing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (leftover,) = visible_entries(tmp_path)
    assert leftover.startswith(f".{TINY_NAME}.tmp-")
    generate(tmp_path, "tiny", workers=1)
    assert visible_entries(tmp_path) == [TINY_NAME]


def test_orphaned_worker_ends(tmp_path: Path) -> None:
    for split in SPLITS:
        (tmp_path / split).mkdir()
    process = render_pool._start_worker(tmp_path, "paper", 0, 0, 1)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=20) == 1


def test_full_disk_is_one_message_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.endswith("000009.jpg"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="the disk is full"):
        generate(tmp_path, "tiny", workers=1)
    assert visible_entries(tmp_path) == []


def test_write_error_in_a_worker_reaches_the_caller(tmp_path: Path) -> None:
    for split in SPLITS[1:]:
        (tmp_path / split).mkdir()
    (tmp_path / SPLITS[0]).touch()
    with pytest.raises(UserError, match="is a file, not a folder"):
        list(render_pool.store_images(tmp_path, "tiny", 0, 2))


def test_dead_worker_leaves_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_pool, "_WORKER", "import sys; sys.exit(3)")
    with pytest.raises(UserError, match=r"has ended \(exit code 3\). If nobody stopped it"):
        generate(tmp_path, "tiny", workers=2)
    assert visible_entries(tmp_path) == []


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "SyntheticOccluded").touch()
    with pytest.raises(UserError, match="cannot write"):
        generate(tmp_path, "tiny")


@pytest.mark.usefixtures("few_images")
def test_missing_and_truncated_images_are_named(tmp_path: Path) -> None:
    folder = generate(tmp_path, "tiny")
    assert verify(folder) == []
    first, second, third = sorted(read_truth(folder))[:3]
    content = (folder / first).read_bytes()
    (folder / first).write_bytes(content[:-40])
    (folder / second).unlink()
    problems = verify(folder)
    assert [problem.split()[0] for problem in sorted(problems)] == [first, second]
    assert all(f"delete {folder}" in problem for problem in problems)
    with pytest.raises(UserError, match=f"delete {folder}"):
        generate(tmp_path, "tiny")
    assert third not in "".join(problems)


@pytest.mark.usefixtures("few_images")
def test_replaced_image_is_detected(tmp_path: Path) -> None:
    folder = generate(tmp_path, "tiny")
    path, truth = next(iter(read_truth(folder).items()))
    width, height = truth.size
    encoded = cv2.imencode(".jpg", np.zeros((height, width, 3), np.uint8))[1]
    (folder / path).write_bytes(encoded.tobytes())
    (problem,) = verify(folder)
    assert "differ" in problem


@pytest.mark.usefixtures("few_images")
def test_set_without_manifest_is_drawn_again(tmp_path: Path) -> None:
    folder = generate(tmp_path, "tiny")
    (folder / "manifest.json").unlink()
    assert "manifest.json" in verify(folder)[0]
    before = time.time_ns()
    assert generate(tmp_path, "tiny") == folder
    assert (folder / "manifest.json").stat().st_mtime_ns >= before - 10**9
    assert verify(folder) == []

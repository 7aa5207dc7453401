"""Augmentation by batch gives the pixels of fast-reid's transforms and NPO, bit for bit."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import batches, draw_market, tiny_cfg, train
from torchvision import transforms as T
from torchvision.transforms import functional as torchvision

from occluded_reid.data import loader
from occluded_reid.data.build import build_train_loader
from occluded_reid.data.cache import DecodedImages
from occluded_reid.data.reid_dataset import BatchDataset, SampleIndex
from occluded_reid.data.transforms.augmentation import (
    RandomValueErasing,
    build_augmentation,
    build_train_transforms,
)
from occluded_reid.data.transforms.color import enhance
from occluded_reid.data.workers import read_batches
from occluded_reid.utils.errors import UserError

PAIR = ("INPUT.NPO.ENABLED", True, "INPUT.NPO.MODE", "pair")
REPLACE = ("INPUT.NPO.ENABLED", True, "INPUT.NPO.MODE", "replace")
PADDED = ("INPUT.PADDING.ENABLED", True, "INPUT.PADDING.SIZE", 5)
JITTER = ("INPUT.CJ.ENABLED", True, "INPUT.CJ.HUE", 0.0, "INPUT.CJ.CONTRAST", 0.6)
NO_ERASING = ("INPUT.REA.ENABLED", False)
KEYS = {
    "flip": NO_ERASING,
    "erasing": PADDED,
    "erasing with random values": (*PADDED, "INPUT.REA.RANDOM", True, "INPUT.REA.PROB", 1.0),
    "the paper's FED": (*PAIR, *PADDED, *NO_ERASING),
    "the authors' FED": (*PAIR, *PADDED, *NO_ERASING, *JITTER, "INPUT.NPO.JITTER_VERTICAL", False),
    "all in pairs": (*PAIR, *PADDED, *JITTER),
    "all in place": (*REPLACE, *PADDED, *JITTER),
}


pytestmark = pytest.mark.usefixtures("data_root")


def require_same(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if torch.is_tensor(value):
                assert one[name].dtype == value.dtype
                assert torch.equal(one[name], value), name
            else:
                assert one[name] == value


# --------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_batches_equal_those_of_the_transforms(tmp_path, keys):
    expected = batches(tmp_path, 4, *keys)
    require_same(batches(tmp_path, 4, *keys, "INPUT.AUGMENTATION", "workers"), expected)


def test_batches_depend_neither_on_workers_nor_on_the_cache(tmp_path):
    keys = (*KEYS["the paper's FED"], "INPUT.AUGMENTATION", "workers")
    expected = batches(tmp_path, 7, *keys)
    cached = (*keys, "INPUT.CACHE", tmp_path / "cache")
    require_same(batches(tmp_path, 7, *cached, "DATALOADER.NUM_WORKERS", 2), expected)
    require_same(batches(tmp_path, 7, *cached), expected)


def test_images_stay_uint8_unless_erased(tmp_path):
    for erasing, dtype in ((False, torch.uint8), (True, torch.float32)):
        keys = ("INPUT.AUGMENTATION", "workers", "INPUT.REA.ENABLED", erasing, *PAIR)
        batch = next(read_batches(build_train_loader(tiny_cfg(tmp_path / "run", *keys))))
        assert batch["images"].dtype == batch["occluded_images"].dtype == dtype


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (("INPUT.CROP.ENABLED", True), "INPUT.CROP.ENABLED"),
        (("INPUT.AFFINE.ENABLED", True), "INPUT.AFFINE.ENABLED"),
        (("INPUT.AUGMIX.ENABLED", True), "INPUT.AUGMIX.ENABLED"),
        (("INPUT.AUTOAUG.ENABLED", True), "INPUT.AUTOAUG.ENABLED"),
        (("INPUT.RPT.ENABLED", True), "INPUT.RPT.ENABLED"),
        (("INPUT.CJ.ENABLED", True, "INPUT.CJ.HUE", 0.1), "INPUT.CJ.HUE"),
        ((*PADDED, "INPUT.PADDING.MODE", "reflect"), "INPUT.PADDING.MODE"),
        (("INPUT.REA.VALUE", [0.0]), "INPUT.REA.VALUE"),
        (
            ("INPUT.RPT.ENABLED", True, "INPUT.CROP.ENABLED", True),
            "INPUT.CROP.ENABLED, INPUT.RPT.ENABLED",
        ),
    ],
)
def test_unsupported_transforms_are_refused(tmp_path, keys, named):
    with pytest.raises(
        UserError, match=f"workers does not support {named} as set; use .* transforms$"
    ):
        build_train_loader(tiny_cfg(tmp_path / "run", *keys, "INPUT.AUGMENTATION", "workers"))


def test_augmentation_on_the_device_is_gone(tmp_path):
    with pytest.raises(UserError, match="is gone; INPUT.AUGMENTATION workers gives the same"):
        tiny_cfg(tmp_path / "run", "INPUT.AUGMENTATION", "device")


def test_random_values_are_of_whole_images_range():
    torch.manual_seed(0)
    black = torch.zeros(3, 64, 64)
    erased = RandomValueErasing(p=1.0, value=[1.0, 2.0, 3.0])(black)
    values = erased[:, erased.amax(dim=0) > 0]
    assert values.numel() > 100 and 0 <= values.min() < 30 and 225 < values.max() <= 255
    assert values.mean().item() == pytest.approx(127.5, abs=15) and not black.any()
    thin = torch.zeros(3, 1, 1)  # no rectangle fits
    assert torch.equal(RandomValueErasing(p=1.0, value=[9.0])(thin), thin)


def test_unsupported_transforms_that_are_off_are_ignored(tmp_path):
    cfg = tiny_cfg(tmp_path / "run", "INPUT.PADDING.MODE", "reflect", "INPUT.CJ.HUE", 0.1)
    assert build_augmentation(cfg, None).size == (32, 16)


def test_unreadable_images_are_named_or_skipped(tmp_path, monkeypatch):
    root = draw_market(tmp_path / "data")
    monkeypatch.setenv("FASTREID_DATASETS", str(root))
    broken = next((root / "Market-1501-v15.09.15" / "bounding_box_train").glob("0003_c2*"))
    broken.write_bytes(b"no image")
    keys = ("INPUT.AUGMENTATION", "workers")
    for cache in ((), ("INPUT.CACHE", tmp_path / "cache")):
        expected = batches(tmp_path, 12, "INPUT.ON_ERROR", "skip")
        assert {len(batch["images"]) for batch in expected} == {7, 8}
        require_same(batches(tmp_path, 12, *keys, *cache, "INPUT.ON_ERROR", "skip"), expected)
        with pytest.raises(UserError, match=f"{broken.name} [(]it is no image"):
            batches(tmp_path, 12, *keys, *cache)


def test_a_batch_without_readable_images_is_empty(tmp_path):
    cfg = tiny_cfg(tmp_path / "run", "INPUT.AUGMENTATION", "workers")
    gone = [("gone.jpg", "1", "1")]
    augmentation = build_augmentation(cfg, None)
    images = DecodedImages(["gone.jpg"], augmentation.resize)
    dataset = BatchDataset(gone, images, augmentation)
    batch = dataset.__getitems__([SampleIndex(0, 5)])
    assert batch.keys() == {"unreadable"} and batch["unreadable"][0].path == "gone.jpg"


def test_global_generators_are_not_advanced(tmp_path):
    loader = build_train_loader(tiny_cfg(tmp_path / "run", "INPUT.AUGMENTATION", "workers", *PAIR))
    stream = iter(loader)
    torch.manual_seed(3)
    next(stream)
    actual = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(actual, torch.rand(1))


def test_a_training_gives_the_same_losses(tmp_path):
    keys = ("SOLVER.MAX_EPOCH", 1, *REPLACE, *PADDED, "SOLVER.LOG_PERIOD", 1)
    first = train(tiny_cfg(tmp_path / "one", *keys))
    cached = ("INPUT.AUGMENTATION", "workers", "INPUT.CACHE", tmp_path / "cache")
    second = train(tiny_cfg(tmp_path / "two", *keys, *cached))
    histories = [run.storage.history("total_loss").values() for run in (first, second)]
    assert histories[0] == histories[1] and len(histories[0]) > 3


# ------------------------------------------------------------------------------ on a device


def test_a_batch_waits_for_its_copy_and_its_memory_for_the_work(monkeypatch):
    notes = []

    @contextlib.contextmanager
    def beside(stream):
        notes.append("copy begins")
        yield
        notes.append("copy is under way")

    working = SimpleNamespace(wait_stream=lambda stream: notes.append("wait"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "beside")
    monkeypatch.setattr(torch.cuda, "stream", beside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: working)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, _: notes.append(f"keep {int(x)}"))
    batches = ({"images": torch.tensor(n), "img_paths": ["x"]} for n in range(2))
    for batch in loader.prefetch(batches, torch.device("cuda")):
        notes.append(f"use {int(batch['images'])}")
    copy = ["copy begins", "copy is under way"]
    assert notes == [
        *copy, "wait", "keep 0", *copy, "use 0", "wait", "keep 1", *copy, "use 1",
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_batches_on_a_gpu_equal_those_of_the_transforms(tmp_path, keys):
    expected = batches(tmp_path, 6, *keys)
    on_gpu = (*keys, "INPUT.AUGMENTATION", "workers", "MODEL.DEVICE", "cuda")
    actual = batches(tmp_path, 6, *on_gpu)
    assert actual[0]["images"].device.type == "cuda"
    to_cpu = [{k: x.cpu() if torch.is_tensor(x) else x for k, x in b.items()} for b in actual]
    require_same(to_cpu, expected)


def test_enhancement_equals_pillow():
    steps = (
        torchvision.adjust_brightness, torchvision.adjust_contrast, torchvision.adjust_saturation,
    )  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 9, 7), generator=rng, dtype=torch.uint8)
    images[::3] //= 4
    orders = [torch.randperm(3, generator=rng).tolist() for _ in images]
    factors = 0.4 + 1.2 * torch.rand(40, 3, generator=rng, dtype=torch.float64)
    factors[::5, 1] = 1
    for image, order, factor in zip(images, orders, factors.tolist(), strict=True):
        pil = Image.fromarray(image.permute(1, 2, 0).numpy())
        for kind in order:
            pil = steps[kind](pil, factor[kind])
        expected = torch.from_numpy(np.array(pil)).permute(2, 0, 1)
        assert torch.equal(enhance(image, order, factor), expected)


# --------------------------------------------------------------------------------- resized crops


def test_resized_crops_have_a_probability(tmp_path):
    """A crop shows less of the image at the size of the whole."""
    words = (*NO_ERASING, "INPUT.FLIP.ENABLED", False, "INPUT.SIZE_TRAIN", [32, 16])
    words += ("INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [32, 16])
    words += ("INPUT.CROP.SCALE", [0.3, 0.5])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8))
    for prob in (0.0, 0.3, 1.0):
        cfg = tiny_cfg(tmp_path / "run", *words, "INPUT.CROP.PROB", prob)
        transform = build_train_transforms(cfg)
        whole = transform.transforms[-1](T.Resize((32, 16), interpolation=3)(image))
        torch.manual_seed(0)
        shown = [transform(image) for _ in range(100)]
        assert {each.shape for each in shown} == {whole.shape}
        cropped = sum(not torch.equal(each, whole) for each in shown)
        assert cropped == pytest.approx(100 * prob, abs=15 if 0 < prob < 1 else 0)
    with pytest.raises(UserError, match=r"CROP.SIZE is \[16, 16\]; .* must be INPUT.SIZE_TRAIN, "):
        build_train_transforms(
            tiny_cfg(tmp_path / "run", *words, "INPUT.CROP.PROB", 0.5, "INPUT.CROP.SIZE", [16, 16])
        )

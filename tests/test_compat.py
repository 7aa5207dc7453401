"""fast-reid's own parts on this machine, after nothing but ``import occluded_reid.compat``."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import occluded_reid.compat

# isort: split
from compat_two_processes import work
from fastreid.config import get_cfg
from fastreid.data import build as data_build
from fastreid.data import build_reid_test_loader, build_reid_train_loader
from fastreid.engine import DefaultPredictor, DefaultTrainer, hooks, launch
from fastreid.evaluation import ReidEvaluator, inference_on_dataset
from fastreid.modeling.meta_arch import build_model
from fastreid.solver import build_lr_scheduler, build_optimizer
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.events import EventStorage

compat = occluded_reid.compat
TESTS = Path(__file__).resolve().parent
SIZE = (64, 32)  # any narrower, and oneDNN's bfloat16 convolutions yield NaN on some CPUs


# ----------------------------------------------------------------------------- toy data


def write_images(folder, ids, cameras, count, generator):
    """Write JPEGs of one colour per identity, with noise, under Market-1501's file names."""
    folder.mkdir(parents=True)
    for pid in ids:
        colour = np.random.RandomState(pid).randint(40, 216, 3)
        for camera in cameras:
            for number in range(count):
                noise = generator.randint(-40, 40, (*SIZE, 3))
                pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
                name = f"{pid:04d}_c{camera}s1_{number:06d}_01.jpg"
                Image.fromarray(pixels).save(folder / name, quality=95)


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    """The root of a Market-1501 with 4 identities to train on and 4 to test on."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "Market-1501-v15.09.15"
    generator = np.random.RandomState(0)
    write_images(folder / "bounding_box_train", range(1, 5), (1, 2), 4, generator)
    write_images(folder / "query", range(11, 15), (1,), 1, generator)
    write_images(folder / "bounding_box_test", range(11, 15), (1, 2, 3), 2, generator)
    return root


@pytest.fixture(autouse=True)
def surroundings(market, monkeypatch):
    """One thread, fixed seeds, quiet logs, and the toy data as fast-reid's data folder."""
    monkeypatch.setattr(data_build, "_root", str(market))
    torch.manual_seed(0)
    np.random.seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logger = logging.getLogger("fastreid")
    handlers, level = logger.handlers[:], logger.level
    logger.setLevel(logging.INFO)  # or the trainer would set it up itself
    yield
    logger.handlers[:], logger.level = handlers, level
    torch.set_num_threads(threads)


@pytest.fixture
def cfg(tmp_path):
    """Return a function that makes a config: an 18-layer ResNet, 64x32 pixels, 2 steps an epoch."""

    def make(*opts):
        cfg = get_cfg()
        cfg.merge_from_list(
            [
                "MODEL.DEVICE",
                "cpu",
                "MODEL.BACKBONE.DEPTH",
                "18x",
                "MODEL.BACKBONE.FEAT_DIM",
                512,
                "MODEL.HEADS.WITH_BNNECK",
                True,
                "MODEL.LOSSES.NAME",
                "('CrossEntropyLoss', 'TripletLoss')",
                "INPUT.SIZE_TRAIN",
                SIZE,
                "INPUT.SIZE_TEST",
                SIZE,
                "DATALOADER.SAMPLER_TRAIN",
                "NaiveIdentitySampler",
                "DATALOADER.NUM_WORKERS",
                0,
                "SOLVER.IMS_PER_BATCH",
                16,
                "SOLVER.MAX_EPOCH",
                1,
                "SOLVER.BASE_LR",
                1e-3,
                "SOLVER.WARMUP_ITERS",
                0,
                "SOLVER.CHECKPOINT_PERIOD",
                1,
                "TEST.EVAL_PERIOD",
                100,
                "TEST.IMS_PER_BATCH",
                16,
                "OUTPUT_DIR",
                str(tmp_path),
                *opts,
            ]
        )
        return cfg

    return make


@pytest.fixture
def time_limit():
    """Return a context that raises TimeoutError after so many seconds."""

    @contextlib.contextmanager
    def limited(seconds):
        def stop(*_):
            raise TimeoutError(f"still not done after {seconds} s")

        previous = signal.signal(signal.SIGALRM, stop)
        signal.alarm(seconds)
        try:
            yield
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)

    return limited


class FixedBatches:
    """A train loader that yields the same images in the same order for ever."""

    def __init__(self, cfg):
        self.dataset = build_reid_train_loader(cfg).dataset
        items = [self.dataset[i] for i in range(0, len(self.dataset), 4)]
        self.batch = data_build.fast_batch_collator(items)

    def __iter__(self):
        while True:
            yield {k: v.clone() if torch.is_tensor(v) else v for k, v in self.batch.items()}


class FixedTrainer(DefaultTrainer):
    """The stock trainer on :class:`FixedBatches`."""

    @classmethod
    def build_train_loader(cls, cfg):
        return FixedBatches(cfg)


def parameters(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def count_moved(model, before):
    return sum(not torch.equal(value, before[name]) for name, value in parameters(model).items())


# ------------------------------------------------------------------ each patch by itself

# What each check says without its patch. None: this version does not need the patch.
CYTHON_IS_BUILT = importlib.util.find_spec("fastreid.evaluation.rank_cylib.rank_cy") is not None
FAILURES = {
    "legacy_names": "torch._six|Mapping",
    "cython_warning": None if CYTHON_IS_BUILT else "Cython rank evaluation",
    "no_runtime_compile": None if CYTHON_IS_BUILT else "'make'",
    "gdown": None if importlib.util.find_spec("gdown") else "No module named 'gdown'",
    "dataloader": "NVIDIA|CUDA",
    "loader_config": "assert loader.num_workers == 1",
    "to_tensor": "TypedStorage is deprecated",
    "random_affine": "unexpected keyword argument 'resample'",
    "preprocess_image": "AssertionError",
    "losses_in_float32": "failure occurred for item .*loss_triplet",
    "zero_grad": "the weight did not move",
    "amp": "deprecated|CUDA is required",
    "finished_run": "no attribute 'epoch'",
    "short_run": "ZeroDivisionError",
    "profiler": "use_cuda",
    "checkpoint_load": "weights_only",
    "inference_context": "assert model.training",
    "jaccard": "NVIDIA|CUDA|StandardGpuResources",
    "euclidean": "deprecated",
    "launch": "cuda is not available|assert worker.__module__",
    "ddp_wrap": "device_ids",
    "byte_storage": "TypedStorage is deprecated",
}
ORDERS = (
    "nothing_is_imported_ahead",
    "config_first",
    "transforms_first",
    "names_held_by_the_user",
    "imported_twice",
    "reloaded",
    "nothing_else_changed",
)


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory):
    """Run ``compat_checks.py`` once: every check with its patch, early and late, and without."""
    command = [
        sys.executable,
        str(TESTS / "helpers" / "compat_checks.py"),
        str(tmp_path_factory.mktemp("c")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_patch_is_listed():
    registered = (*compat._CONTEXTS.values(), *compat._PATCHES.values())
    names = {patch.__name__ for patches in registered for patch in patches}
    assert names == {*FAILURES, "torchvision_mismatch"}


@pytest.mark.parametrize("when", ["with", "late"])
@pytest.mark.parametrize("patch", FAILURES)
def test_patch_works(outcomes, patch, when):
    assert outcomes[patch][when] == "ok"


@pytest.mark.parametrize("patch", FAILURES)
def test_check_fails_without_its_patch(outcomes, patch):
    if FAILURES[patch] is None:
        pytest.skip("this installation needs no such patch")
    assert outcomes[patch]["without"] != "ok"
    assert re.search(FAILURES[patch], outcomes[patch]["without"]), outcomes[patch]["without"]


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_import(outcomes, order):
    assert outcomes[order] == "ok"


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("fastreid", "pip install --no-deps fastreid==1.4.0"),
        ("cv2", "pip install opencv-python-headless"),
    ],
)
def test_missing_package_names_the_command(package, command, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(ModuleNotFoundError, match=f": {command}$") as error:
        compat._require_packages()
    assert "\n" not in str(error.value) and error.value.name == package


def test_torchvision_of_another_torch_is_explained(monkeypatch, tmp_path):
    (tmp_path / "torchvision").mkdir()
    source = 'raise RuntimeError("operator torchvision::nms does not exist")'
    (tmp_path / "torchvision" / "__init__.py").write_text(source)
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="torchvision .* does not fit torch") as error:
        importlib.import_module("torchvision")
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------ training


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "amp"])
def test_stock_trainer_learns(cfg, amp):
    ce = ("MODEL.LOSSES.NAME", "('CrossEntropyLoss',)")
    trainer = DefaultTrainer(cfg("SOLVER.MAX_EPOCH", 4, "SOLVER.AMP.ENABLED", amp, *ce))
    before = parameters(trainer.model)
    results = trainer.train()
    assert count_moved(trainer.model, before) == len(before) == 62
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert len(losses) == 8
    assert np.mean(losses[-4:]) < 0.3 * np.mean(losses[:4])
    assert 0 < results["mAP"] <= 100


def test_flat_gradients_equal_separate_ones(cfg):
    losses = {}
    for contiguous in (True, False):
        torch.manual_seed(0)
        model = build_model(cfg("MODEL.HEADS.NUM_CLASSES", 4))
        optimizer, _ = build_optimizer(cfg(), model, contiguous=contiguous)
        batches = iter(FixedBatches(cfg()))
        losses[contiguous] = []
        with EventStorage():
            for _ in range(3):
                loss = sum(model(next(batches)).values())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[contiguous].append(loss.item())
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert len(set(losses[True])) == 3


def test_resumed_training_equals_uninterrupted(cfg, tmp_path):
    def train(folder, stop=False, resume=False):
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        trainer = FixedTrainer(
            cfg(
                "SOLVER.MAX_EPOCH",
                2,
                "SOLVER.SCHED",
                "CosineAnnealingLR",
                "OUTPUT_DIR",
                str(folder),
            )
        )
        trainer.resume_or_load(resume=resume)
        if stop:
            trainer.register_hooks(
                [hooks.CallbackHook(before_epoch=lambda it: it.epoch and sys.exit("stopped"))]
            )
        with pytest.raises(SystemExit) if stop else contextlib.nullcontext():
            return trainer, trainer.train()

    whole, _ = train(tmp_path / "whole")
    train(tmp_path / "parts", stop=True)
    resumed, results = train(tmp_path / "parts", resume=True)
    assert resumed.start_epoch == 1 and results["mAP"] > 0
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)

    finished, results = train(tmp_path / "parts", resume=True)
    assert finished.start_epoch == 2 and results is None
    torch.testing.assert_close(finished.model.state_dict(), whole.model.state_dict())


def test_precise_bn_equals_the_mean_of_the_batches(cfg):
    trainer = FixedTrainer(
        cfg("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2, "SOLVER.BASE_LR", 0.0)
    )
    trainer.train()
    model = trainer.model
    images = model.preprocess_image(FixedBatches(cfg()).batch)
    expected = model.backbone.conv1(images).mean((0, 2, 3))
    torch.testing.assert_close(model.backbone.bn1.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert not trainer.optimizer.param_groups[0]["params"][0].grad.isnan().any()


@pytest.mark.parametrize(
    "sampler",
    [
        "TrainingSampler",
        "NaiveIdentitySampler",
        "BalancedIdentitySampler",
        "ImbalancedDatasetSampler",
    ],
)
def test_samplers(cfg, sampler):
    batches = iter(build_reid_train_loader(cfg("DATALOADER.SAMPLER_TRAIN", sampler)))
    for _ in range(3):
        batch = next(batches)
        assert batch["images"].shape == (16, 3, *SIZE)
        if "IdentitySampler" in sampler:
            assert batch["targets"].bincount().tolist() == [4, 4, 4, 4]


def test_all_transforms(cfg):
    switches = [
        f"INPUT.{name}.{key}"
        for name in ("PADDING", "CJ", "AFFINE", "REA", "FLIP", "RPT", "AUTOAUG", "AUGMIX")
        for key in ("ENABLED",)
    ]
    probabilities = ["INPUT.AUTOAUG.PROB", 1.0, "INPUT.AUGMIX.PROB", 1.0, "INPUT.REA.PROB", 1.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        loader = build_reid_train_loader(
            cfg(*[v for s in switches for v in (s, True)], *probabilities)
        )
        images = next(iter(loader))["images"]
    assert images.shape == (16, 3, *SIZE) and images.dtype == torch.float32
    assert 50 < images.mean() < 200


@pytest.mark.parametrize(
    "sched, expected",
    [
        ("MultiStepLR", [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("CosineAnnealingLR", [(1 + np.cos(np.pi * t / 6)) / 2 for t in range(6)]),
    ],
)
def test_lr_schedulers(cfg, sched, expected):
    opts = [
        "SOLVER.SCHED",
        sched,
        "SOLVER.STEPS",
        [2, 4],
        "SOLVER.MAX_EPOCH",
        6,
        "SOLVER.ETA_MIN_LR",
        0.0,
    ]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = build_lr_scheduler(cfg(*opts), optimizer, 4)["lr_sched"]
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    "method, factors",
    [("linear", [0.1, 0.55, 1.0]), ("constant", [0.1, 0.1, 1.0]), ("exp", [0.1, 0.1**0.5, 1.0])],
)
def test_warmup(cfg, method, factors):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    warmup = build_lr_scheduler(
        cfg("SOLVER.WARMUP_ITERS", 2, "SOLVER.WARMUP_METHOD", method), optimizer, 4
    )["warmup_sched"]
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        warmup.step()
    assert rates == pytest.approx(factors)


@pytest.mark.slow
def test_vit_learns(cfg):
    vit = cfg(
        "MODEL.BACKBONE.NAME",
        "build_vit_backbone",
        "MODEL.BACKBONE.DEPTH",
        "small",
        "MODEL.BACKBONE.FEAT_DIM",
        768,
        "MODEL.BACKBONE.STRIDE_SIZE",
        (16, 16),
        "MODEL.HEADS.POOL_LAYER",
        "Identity",
        "MODEL.HEADS.NUM_CLASSES",
        4,
        "SOLVER.BASE_LR",
        1e-4,
    )
    model = build_model(vit)
    optimizer, _ = build_optimizer(vit, model)
    before, batches, losses = parameters(model), iter(FixedBatches(vit)), []
    with EventStorage():
        for _ in range(4):
            loss = sum(model(next(batches)).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert count_moved(model, before) == len(before) > 90
    assert losses[-1] < 0.8 * losses[0]


# ------------------------------------------------------------------------- data loading


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_raises_instead_of_hanging(cfg, tmp_path, monkeypatch, time_limit, workers):
    folder = tmp_path / "Market-1501-v15.09.15"
    for name in ("bounding_box_train", "query", "bounding_box_test"):
        write_images(folder / name, range(1, 5), (1, 2), 2, np.random.RandomState(0))
    for path in folder.glob("bounding_box_train/*.jpg"):
        path.write_bytes(b"no image")
    monkeypatch.setattr(data_build, "_root", str(tmp_path))
    loader = build_reid_train_loader(cfg("DATALOADER.NUM_WORKERS", workers))
    with time_limit(30), pytest.raises(OSError, match="cannot identify image file"):
        next(iter(loader))


def test_loaders_heed_the_config(cfg):
    loader, num_query = build_reid_test_loader(cfg(), dataset_name="Market1501")
    assert num_query == 4 and loader.num_workers == 0  # and not the four that fast-reid asks for
    assert loader.device == torch.device("cpu") and not loader.pin_memory
    assert sum(len(batch["targets"]) for batch in loader) == 28
    two, _ = build_reid_test_loader(cfg("DATALOADER.NUM_WORKERS", 2), dataset_name="Market1501")
    assert two.num_workers == 2
    for one, other in zip(loader, two, strict=True):
        assert torch.equal(one["images"], other["images"])
        assert one["img_paths"] == other["img_paths"]


# ---------------------------------------------------------------------------- evaluation


@pytest.fixture
def trained(cfg):
    """A model whose batch statistics are set, its config, its test loader and its query count."""
    settings = cfg("MODEL.HEADS.NUM_CLASSES", 4)
    model = build_model(settings)
    with EventStorage(), torch.no_grad():
        model(FixedBatches(settings).batch)
    return model.eval(), settings, *build_reid_test_loader(settings, dataset_name="Market1501")


class Collect(ReidEvaluator):
    """Keep the features instead of ranking them."""

    def evaluate(self):
        return torch.cat([prediction["feats"] for prediction in self._predictions])


def test_flip_test_is_the_mean_of_both_views(trained):
    model, settings, loader, num_query = trained
    features = {
        flip: inference_on_dataset(model, loader, Collect(settings, num_query), flip_test=flip)
        for flip in (False, True)
    }
    with torch.no_grad():
        images = torch.cat([batch["images"] for batch in loader])
        by_hand = (model(images) + model(images.flip(3))) / 2
    torch.testing.assert_close(features[True], by_hand, rtol=1e-4, atol=1e-5)
    assert (features[True] - features[False]).abs().max() > 1e-3


def test_everything_that_evaluation_offers(trained):
    model, settings, loader, num_query = trained
    settings.merge_from_list(
        [
            "TEST.RERANK.ENABLED",
            True,
            "TEST.RERANK.K1",
            5,
            "TEST.RERANK.K2",
            2,
            "TEST.AQE.ENABLED",
            True,
            "TEST.AQE.QE_K",
            2,
            "TEST.ROC.ENABLED",
            True,
            "TEST.FLIP.ENABLED",
            True,
        ]
    )
    for metric in ("cosine", "euclidean"):
        settings.TEST.METRIC = metric
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            warnings.filterwarnings("error", message="This overload of addmm_")
            results = DefaultTrainer.test(settings, model)
        assert 0 < results["mAP"] <= 100 and 0 <= results["TPR@FPR=1e-02"] <= 1


def test_model_trains_on_after_a_failed_evaluation(trained):
    model, settings, loader, num_query = trained
    model.train()

    class Failing(ReidEvaluator):
        def process(self, inputs, outputs):
            raise KeyError("camids")

    with pytest.raises(KeyError):
        inference_on_dataset(model, loader, Failing(settings, num_query))
    assert model.training


def test_predictor_leaves_its_argument_alone(trained, tmp_path):
    model, settings, loader, _ = trained
    Checkpointer(model, str(tmp_path)).save("weights")
    settings.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    predictor = DefaultPredictor(settings)
    images = next(iter(loader))["images"]
    kept = images.clone()
    first, second, from_bytes = predictor(images), predictor(images), predictor(images.byte())
    assert torch.equal(images, kept)
    assert torch.equal(first, second) and torch.equal(first, from_bytes)
    with torch.no_grad():
        torch.testing.assert_close(first, model(images))


def test_visualizer(trained, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    from fastreid.evaluation.rank import evaluate_rank
    from fastreid.utils.compute_dist import build_dist
    from fastreid.utils.visualizer import Visualizer

    model, settings, loader, num_query = trained
    features = inference_on_dataset(model, loader, Collect(settings, num_query))
    pids = np.array([item[1] for item in loader.dataset.img_items])
    cams = np.array([item[2] for item in loader.dataset.img_items])
    distances = build_dist(features[:num_query], features[num_query:], "cosine")
    sides = (pids[:num_query], pids[num_query:], cams[:num_query], cams[num_query:])
    _, all_ap, _ = evaluate_rank(distances, *sides)
    visualizer = Visualizer(loader.dataset)
    visualizer.get_model_output(all_ap, distances, *sides)
    visualizer.vis_rank_list(str(tmp_path), vis_label=False, num_vis=1, max_rank=2)
    visualizer.vis_roc_curve(str(tmp_path))
    assert (tmp_path / "0.jpg").exists() and (tmp_path / "roc.jpg").exists()


# --------------------------------------------------------------------- several processes


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_train_one_model(cfg, market, tmp_path, time_limit, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", f"{TESTS.parent}{os.pathsep}{TESTS / 'helpers'}")
    with time_limit(240):
        launch(work, 2, dist_url="auto", args=(str(tmp_path), str(market), cfg()))
    assert "Warning" not in capfd.readouterr().err
    result = json.loads((tmp_path / "result.json").read_text())
    assert [seen["rank"] for seen in result["ranks"]] == [0, 1]
    for seen in result["ranks"]:
        assert seen["backend"] == "gloo" and seen["start_method"] == "fork"
        assert seen["bank"] == [0, 0, 0] and seen["ready"] is True  # rank 0's
        assert seen["moved"] == seen["parameters"] == 62 and seen["equal"]
    assert 0 < result["results"]["mAP"] <= 100


def test_cpu_is_read_from_config_and_command_line(cfg):
    class Arguments:
        opts = ["SOLVER.MAX_EPOCH", "1", "MODEL.DEVICE", "cpu"]

    assert compat._asks_for_cpu((cfg(),)) and compat._asks_for_cpu((Arguments(),))
    assert not compat._asks_for_cpu((cfg("MODEL.DEVICE", "cuda"),))
    assert not compat._asks_for_cpu(("text", None))

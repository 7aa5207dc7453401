"""The configurations of projects/AONet: what each row of the paper's tables asks for is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.engine.hooks import LRScheduler
from fastreid.utils.events import EventStorage

from aonet_plugin import add_aonet_config
from occluded_reid.config import load_config
from occluded_reid.engine.optimizer import build_lr_schedulers
from occluded_reid.modeling.build import build_model

FOLDER = Path(__file__).parents[2] / "projects" / "AONet" / "configs"
NAMES = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for path in FOLDER.rglob("*.yml")
    if not path.stem.startswith("Base-")
)
UNTRAINED = ("MODEL.BACKBONE.PRETRAIN", False, "INPUT.SIZE_TRAIN", [64, 32])
SMALL = ("MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.FEAT_DIM", 512, *UNTRAINED)


def config(name: str, *overrides: object) -> CfgNode:
    words = ["MODEL.DEVICE", "cpu", "MODEL.HEADS.NUM_CLASSES", "12", *map(str, overrides)]
    return load_config(str(FOLDER / f"{name}.yml"), words, add_keys=[add_aonet_config])


def train_one_step(cfg: CfgNode) -> set[str]:
    model = build_model(cfg).train()
    images = torch.rand(2, 3, *cfg.INPUT.SIZE_TRAIN) * 255
    with EventStorage():
        losses = model({"images": images, "targets": torch.tensor([0, 5])})
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    return set(losses)


BEFORE, AFTER, ORTHOGONAL = "loss_identity_before", "loss_identity_after", "loss_orthogonal"
TERMS = {
    "ablation/base_gap": {"loss_cls"},
    "ablation/base_slfea": {BEFORE},
    "ablation/base_satt": {BEFORE, AFTER},
    "ablation/aonet_dagger": {BEFORE, AFTER},
    "ablation/aonet_double_dagger": {BEFORE, AFTER},
    "ablation/base_max": {BEFORE, AFTER},
    "ablation/base_regl": {BEFORE, AFTER, "loss_overlap"},
}


@pytest.mark.parametrize("name", NAMES)
def test_each_config_trains_with_the_losses_of_its_table_row(name):
    row = TERMS.get(name.removeprefix("synthetic_"), {BEFORE, AFTER, ORTHOGONAL})
    on_a_small_net = config(name).MODEL.BACKBONE.NAME == "build_timm_backbone"
    assert train_one_step(config(name, *(UNTRAINED if on_a_small_net else SMALL))) == row


ROWS = {  # Table 4 and 5: SAtt, OAFea, weighting, OLoss, RegL
    "base_slfea": ("none", False, "none", 0, 0),
    "base_satt": ("sagan", False, "none", 0, 0),
    "aonet_dagger": ("sagan", True, "none", 0, 0),
    "base_max": ("sagan", True, "maximum", 0, 0),
    "aonet_double_dagger": ("sagan", True, "awareness", 0, 0),
    "base_regl": ("sagan", True, "awareness", 0, 0.01),
    "aonet": ("sagan", True, "awareness", 0.01, 0),
}


@pytest.mark.parametrize("name", [n for n in NAMES if Path(n).name in ROWS])
def test_tables_4_and_5(name):
    cfg = config(name)
    aonet = cfg.MODEL.AONET
    actual = (
        aonet.SELF_ATTENTION, aonet.OCCLUSION_AWARE_FEATURES, aonet.VISIBILITY,
        aonet.ORTHOGONAL_WEIGHT, aonet.OVERLAP_WEIGHT,
    )  # fmt: skip
    assert actual == ROWS[Path(name).name] and cfg.TEST.METRIC == "dot"


def test_full_ablation_row_is_aonet():
    rows = [config(name).clone() for name in ("ablation/aonet", "ablation/k6", "occ_duke")]
    for row in rows:
        row.defrost()
        row.OUTPUT_DIR = "same"
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.parametrize("landmarks", [2, 4, 6, 8, 10])
def test_table_6(landmarks):
    assert landmarks == config(f"ablation/k{landmarks}").MODEL.AONET.NUM_LANDMARKS


def test_every_config_has_its_own_output_dir():
    folders = [config(name).OUTPUT_DIR for name in NAMES]
    assert len(set(folders)) == len(NAMES)
    assert all(folder.startswith("logs/aonet/") for folder in folders)


def test_paper_recipe():
    cfg = config("occ_duke")
    solver, data, aonet = cfg.SOLVER, cfg.INPUT, cfg.MODEL.AONET
    assert (solver.OPT, solver.BASE_LR, solver.MAX_EPOCH) == ("Adam", 0.00035, 120)
    assert (solver.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE) == (64, 4)
    assert (data.SIZE_TRAIN, data.SIZE_TEST) == ([256, 128], [256, 128])
    assert data.FLIP.ENABLED and data.FLIP.PROB == 0.5
    assert data.PADDING.ENABLED and data.PADDING.SIZE == 10
    assert data.REA.ENABLED and data.REA.PROB == 0.5
    assert (aonet.NUM_LANDMARKS, aonet.MEMORY_MOMENTUM, aonet.ORTHOGONAL_WEIGHT) == (6, 0.9, 0.01)
    assert cfg.MODEL.BACKBONE.DEPTH == "50x" and cfg.MODEL.BACKBONE.PRETRAIN
    assert config("occ_duke_ibn").MODEL.BACKBONE.WITH_IBN and not cfg.MODEL.BACKBONE.WITH_IBN
    npo = config("npo").INPUT
    assert npo.NPO.ENABLED and npo.NPO.MODE == "replace"


class Schedule:
    """The part of a trainer that the learning-rate hook reads."""

    grad_scaler = None

    def __init__(self, cfg: CfgNode, iters_per_epoch: int):
        parameter = torch.nn.Parameter(torch.zeros(1))
        self.optimizer = torch.optim.Adam([parameter], lr=cfg.SOLVER.BASE_LR)
        self.hook = LRScheduler(
            self.optimizer, build_lr_schedulers(cfg, self.optimizer, iters_per_epoch)
        )
        self.hook.trainer = self
        self.warmup_iters, self.delay_epochs = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.DELAY_EPOCHS
        self.iters_per_epoch, self.max_epoch = iters_per_epoch, cfg.SOLVER.MAX_EPOCH

    def rates(self) -> list[float]:
        """Return the rate at the end of each epoch, before the epoch's step of the schedule."""
        actual = []
        with EventStorage() as self.storage:
            for epoch in range(self.max_epoch):
                self.epoch = epoch
                for step in range(self.iters_per_epoch):
                    self.iter = epoch * self.iters_per_epoch + step
                    self.optimizer.step()
                    self.hook.after_step()
                actual.append(self.optimizer.param_groups[0]["lr"])
                self.hook.after_epoch()
        return actual


@pytest.mark.parametrize(
    ("name", "images"), [("occ_duke", 15618), ("market1501", 12936), ("dukemtmc", 16522)]
)
def test_learning_rate_schedule(name, images):
    """fast-reid's STEPS count from the end of the warm-up."""
    cfg = config(name)
    iters = images // cfg.SOLVER.IMS_PER_BATCH
    assert 20 * iters == cfg.SOLVER.WARMUP_ITERS
    cfg = config(name, "SOLVER.WARMUP_ITERS", 20 * 2)  # epochs of two iterations: the same shape
    rates = Schedule(cfg, 2).rates()
    expected = 30 * [3.5e-4] + 40 * [3.5e-5] + 30 * [3.5e-6]
    assert rates[20:] == pytest.approx(expected, rel=1e-6)
    assert rates[:19] == sorted(rates[:19]) and rates[9] == pytest.approx(1.925e-4, rel=0.01)


def test_market1501_test_sets():
    tests = config("market1501").DATASETS.TESTS
    assert tests == (
        "Market1501", "PartialREID:occluded", "PartialREID:partial",
        "PartialiLIDS:whole", "PartialiLIDS:crop",
    )  # fmt: skip

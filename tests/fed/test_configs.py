"""The configurations of projects/FED: what each row of the paper's tables asks for is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage

from fed_plugin import add_fed_config
from occluded_reid.config import load_config
from occluded_reid.modeling.build import build_model

FOLDER = Path(__file__).parents[2] / "projects" / "FED" / "configs"
NAMES = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for path in FOLDER.rglob("*.yml")
    if not path.stem.startswith("Base")
)
UNTRAINED = ("MODEL.BACKBONE.PRETRAIN", False)
SMALL = (
    "MODEL.BACKBONE.DEPTH", "custom", "MODEL.BACKBONE.NUM_BLOCKS", 1, "MODEL.BACKBONE.NUM_HEADS", 2,
    "MODEL.BACKBONE.FEAT_DIM", 32, *UNTRAINED,
)  # fmt: skip


def config(name: str, *overrides: object) -> CfgNode:
    words = ["MODEL.DEVICE", "cpu", "MODEL.HEADS.NUM_CLASSES", "12", *map(str, overrides)]
    return load_config(str(FOLDER / f"{name}.yml"), words, add_keys=[add_fed_config])


def train_one_step(cfg: CfgNode) -> set[str]:
    """Train on two pairs; return the names of the losses without their branch."""
    model = build_model(cfg).train()
    images = torch.rand(4, 3, *cfg.INPUT.SIZE_TRAIN) * 255
    batch = {"images": images, "targets": torch.tensor([0, 0, 5, 5])}
    if cfg.INPUT.NPO.ENABLED and cfg.INPUT.NPO.MODE == "pair":
        batch |= {"occluded_images": images.flip(-1), "part_visibility": torch.ones(4, 4)}
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    return {name.removesuffix("_holistic").removesuffix("_occluded") for name in losses}


PLAIN = {"loss_identity_class_token", "loss_identity_erased", "loss_contrast_erased"}
ERASING = {"loss_visibility"}
DIFFUSION = {"loss_identity_diffused", "loss_contrast_diffused"}
TERMS = {
    "ablation/baseline": {"loss_cls", "loss_triplet"},
    "ablation/re": {"loss_cls", "loss_triplet"},
    "ablation/npo": PLAIN,
    "ablation/npo_oem": PLAIN | ERASING,
    "ablation/npo_fdm": PLAIN | DIFFUSION,
    "dukemtmc": PLAIN | DIFFUSION,
}


@pytest.mark.parametrize("name", NAMES)
def test_each_config_trains_with_the_losses_of_its_table_row(name):
    on_a_small_net = config(name).MODEL.BACKBONE.NAME == "build_timm_backbone"
    actual = train_one_step(config(name, *(UNTRAINED if on_a_small_net else SMALL)))
    row = name.replace("synthetic_", "").removesuffix("_neck_first")
    assert actual == TERMS.get(row, PLAIN | ERASING | DIFFUSION)


def test_every_config_has_its_own_output_dir():
    folders = [config(name).OUTPUT_DIR for name in NAMES]
    assert len(set(folders)) == len(NAMES)
    assert all(folder.startswith("logs/fed/") for folder in folders)


def test_paper_recipe():
    cfg = config("occ_duke")
    solver, fed = cfg.SOLVER, cfg.MODEL.FED
    assert (solver.OPT, solver.BASE_LR, solver.MOMENTUM) == ("SGD", 0.008, 0.9)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_BIAS) == (1e-4,) * 3
    assert (solver.SCHED, solver.MAX_EPOCH) == ("CosineAnnealingLR", 120)
    assert (solver.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE) == (64, 4)
    assert (cfg.INPUT.SIZE_TRAIN, cfg.INPUT.NPO.NUM_STRIPES) == ([256, 128], fed.NUM_PARTS)
    assert (fed.NUM_NEIGHBORS, fed.NUM_HEADS, fed.TEMPERATURE) == (8, 8, 0.05)
    npo = cfg.INPUT.NPO
    assert (npo.VERTICAL_RATIO, list(npo.EXTENT), npo.COVERED) == (3, [0.25, 0.5], 0.75)
    assert (fed.NECK, fed.NORMALIZE_CENTRES, fed.FFN_RATIO) == (True, True, 4)
    assert (fed.MEMORY_MOMENTUM, cfg.MODEL.BACKBONE.DROP_PATH_RATIO) == (0.2, 0.1)
    assert (cfg.INPUT.FLIP.PROB, cfg.INPUT.PADDING.SIZE) == (0.5, 10)
    assert cfg.INPUT.REA.ENABLED is False and config("ablation/re").INPUT.REA.ENABLED


def test_official_recipe():
    cfg = config("occ_duke_official")
    npo, jitter = cfg.INPUT.NPO, cfg.INPUT.CJ
    assert pytest.approx((768 / 8) ** -0.5) == cfg.MODEL.FED.ATTENTION_SCALE
    assert (npo.VERTICAL_RATIO, npo.CROP, npo.JITTER_VERTICAL) == (2.0, 1.0, False)
    strengths = (jitter.BRIGHTNESS, jitter.CONTRAST, jitter.SATURATION, jitter.HUE)
    assert (jitter.PROB, *strengths) == (1.0, 0.1, 0.1, 0.1, 0.0)
    assert cfg.SOLVER.AMP.ENABLED is False


@pytest.mark.parametrize("neighbors", [2, 4, 6, 8])
def test_table_4(neighbors):
    assert neighbors == config(f"ablation/k{neighbors}").MODEL.FED.NUM_NEIGHBORS

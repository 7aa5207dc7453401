"""The configurations of projects/FED train with the losses of their rows; see test_paper_rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage
from tiny_runs import DIM

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
TINY = ("MODEL.BACKBONE.NAME", "build_tiny_map_backbone", "MODEL.BACKBONE.FEAT_DIM", DIM)
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
    targets, cameras = torch.tensor([0, 0, 5, 5]), torch.arange(4)
    batch = {"images": images, "targets": targets, "camids": cameras}
    if cfg.INPUT.NPO.ENABLED and cfg.INPUT.NPO.MODE == "pair":
        batch |= {"occluded_images": images.flip(-1), "part_visibility": torch.ones(4, 4)}
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    return {name.removesuffix("_holistic").removesuffix("_occluded") for name in losses}


PLAIN = {"loss_identity_class_token", "loss_identity_erased", "loss_contrast_erased"}
ERASING = {"loss_visibility"}
DIFFUSION = {"loss_identity_diffused", "loss_contrast_diffused"}
BASELINES = ["ablation/baseline", "ablation/re", *(n for n in NAMES if "baselines/" in n)]
WITHOUT_MSE = ["dukemtmc", *(f"ablation/dukemtmc_k{k}" for k in (2, 4, 6, 8))]
TERMS = {
    **dict.fromkeys(BASELINES, {"loss_cls", "loss_triplet"}),
    "ablation/npo": PLAIN,
    "ablation/npo_oem": PLAIN | ERASING,
    "ablation/npo_fdm": PLAIN | DIFFUSION,
    **dict.fromkeys(WITHOUT_MSE, PLAIN | DIFFUSION),
}


@pytest.mark.parametrize("name", NAMES)
def test_each_config_trains_with_the_losses_of_its_table_row(name):
    words = SMALL
    if config(name).MODEL.BACKBONE.NAME == "build_timm_backbone":
        words = UNTRAINED if name == "synthetic" else TINY
    actual = train_one_step(config(name, *words))
    row = name.replace("synthetic_", "").removesuffix("_neck_first")
    assert actual == TERMS.get(row, PLAIN | ERASING | DIFFUSION)


def test_every_config_has_its_own_output_dir():
    folders = [config(name).OUTPUT_DIR for name in NAMES]
    assert len(set(folders)) == len(NAMES)
    assert all(folder.startswith("logs/fed/") for folder in folders)


def test_official_recipe():
    cfg = config("occ_duke_official")
    npo, jitter = cfg.INPUT.NPO, cfg.INPUT.CJ
    assert pytest.approx((768 / 8) ** -0.5) == cfg.MODEL.FED.ATTENTION_SCALE
    assert (npo.VERTICAL_RATIO, npo.CROP, npo.JITTER_VERTICAL) == (2.0, 1.0, False)
    strengths = (jitter.BRIGHTNESS, jitter.CONTRAST, jitter.SATURATION, jitter.HUE)
    assert (jitter.PROB, *strengths) == (1.0, 0.1, 0.1, 0.1, 0.0)
    assert cfg.SOLVER.AMP.ENABLED is False

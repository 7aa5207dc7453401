"""The camera embedding: it reaches the backbone in training and evaluation, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastreid.config import CfgNode
from runs import CAMERAS, IDENTITIES, tiny_cfg, train

from occluded_reid.data.build import build_test_loader, build_train_loader, open_dataset
from occluded_reid.data.workers import read_batches
from occluded_reid.evaluation.testing import open_test_sets
from occluded_reid.modeling.build import build_model
from occluded_reid.modeling.outputs import embed_batch
from occluded_reid.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("data_root")

KEYS = (
    "MODEL.META_ARCHITECTURE", "CameraBaseline", "MODEL.BACKBONE.CAMERA_EMBEDDING", CAMERAS,
    "MODEL.BACKBONE.NAME", "build_class_token_vit_backbone", "MODEL.BACKBONE.FEAT_DIM", 12,
    "MODEL.BACKBONE.DEPTH", "custom", "MODEL.BACKBONE.NUM_BLOCKS", 1, "MODEL.BACKBONE.NUM_HEADS", 3,
    "MODEL.BACKBONE.PATCH_SIZE", "[8, 8]", "MODEL.BACKBONE.STRIDE_SIZE", "[8, 8]",
)  # fmt: skip


def camera_cfg(folder: Any, *overrides: object) -> CfgNode:
    return tiny_cfg(folder / "run", *KEYS, *overrides)


def test_each_camera_has_its_embedding_in_training_and_evaluation(tmp_path):
    cfg = camera_cfg(tmp_path, "MODEL.HEADS.NUM_CLASSES", IDENTITIES)
    model = build_model(cfg).eval()
    dataset = open_dataset(cfg, "Market1501")
    test = next(read_batches(build_test_loader(cfg, dataset.query, dataset.gallery)[0]))
    trained = next(read_batches(build_train_loader(cfg)))
    for batch in (trained, test):
        of_names = [int(path.rpartition("_c")[2][0]) - 1 for path in batch["img_paths"]]
        assert batch["camids"].tolist() == of_names
    with torch.no_grad():
        plain = model(test)
        assert torch.equal(model(test), plain)
        model.backbone.sie_embed[2] += 1
        moved = (model(test) - plain).abs().amax(dim=1) > 0
        assert torch.equal(moved, test["camids"] == 2)
        flipped = embed_batch(model, test, flip=True).features
    assert flipped.shape == plain[:, None].shape


def test_it_is_trained_and_evaluated(tmp_path):
    trainer = train(camera_cfg(tmp_path, "SOLVER.MAX_EPOCH", 1))
    weights = trainer.model.backbone.sie_embed
    before = build_model(trainer.cfg).backbone.sie_embed
    assert weights.shape == (CAMERAS, 1, 12) and not torch.equal(weights, before)
    assert (tmp_path / "run" / "results.json").is_file()


def test_it_is_refused_where_cameras_are_unknown_or_others(tmp_path):
    cfg = camera_cfg(tmp_path)
    with pytest.raises(UserError, match="CAMERA_EMBEDDING needs the camera of every image"):
        build_model(cfg).eval()({"images": torch.rand(1, 3, *cfg.INPUT.SIZE_TRAIN)})
    with pytest.raises(UserError, match="is 4, but the training images are of 3 cameras .*_00, "):
        build_train_loader(camera_cfg(tmp_path, "MODEL.BACKBONE.CAMERA_EMBEDDING", 4))
    others = ("DATASETS.TESTS", "('Market1501','PartialREID:occluded')")
    with pytest.raises(UserError, match="name Market1501, PartialREID: train and test on one"):
        open_test_sets(camera_cfg(tmp_path, *others))
    without = (*others, "MODEL.BACKBONE.CAMERA_EMBEDDING", 0, "DATASETS.SKIP_MISSING", True)
    assert list(open_test_sets(camera_cfg(tmp_path, *without))[0]) == ["Market1501"]

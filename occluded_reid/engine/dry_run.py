"""Try a configuration on generated images: does everything it names exist and fit together?"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage
from PIL import Image

from occluded_reid.config import changed_copy
from occluded_reid.data.build import build_test_loader
from occluded_reid.data.reid_dataset import Item
from occluded_reid.engine.optimizer import build_optimizer
from occluded_reid.engine.train_step import TrainingStep
from occluded_reid.engine.trainer import Trainer
from occluded_reid.modeling.outputs import as_embedding
from occluded_reid.utils.random import seed_everything

IDENTITIES = 2


def dry_run(cfg: CfgNode, trainer: type[Trainer] = Trainer) -> None:
    """Do one training and one evaluation step; print the losses and the output's shape."""
    seed_everything(cfg.SEED)
    with tempfile.TemporaryDirectory() as folder:
        items = _draw_images(Path(folder), cfg)
        cfg = _shrunk(cfg, len(items))
        loader = trainer.build_train_loader(cfg, items)
        model = trainer.build_model(cfg)
        step = TrainingStep(cfg, model, loader, build_optimizer(cfg, model), iters_per_epoch=1)
        with EventStorage() as storage:
            step.run_step()
            step.read_losses()
            losses = {key: value for key, (value, _) in storage.latest().items() if "loss" in key}
        test_items = [(path, number, 0) for number, (path, _, _) in enumerate(items)]
        batch = next(iter(build_test_loader(cfg, test_items, [])[0]))
        with torch.no_grad():
            output = as_embedding(model.eval()(batch))
    print("losses: " + "  ".join(f"{key} {value:.4f}" for key, value in losses.items()))
    for name in ("features", "visibility"):
        tensor = getattr(output, name)
        print(f"{name}: {tuple(tensor.shape)} {tensor.dtype}")


def _draw_images(folder: Path, cfg: CfgNode) -> list[Item]:
    random = np.random.default_rng(0)
    items: list[Item] = []
    for number in range(IDENTITIES * max(2, cfg.DATALOADER.NUM_INSTANCE)):
        path = folder / f"{number % IDENTITIES:04d}_c{number % 3 + 1}_{number:06d}.jpg"
        Image.fromarray(random.integers(0, 256, (128, 64, 3), np.uint8)).save(path)
        items.append((str(path), f"id_{number % IDENTITIES}", f"cam_{number % 3}"))
    return items


def _shrunk(cfg: CfgNode, images: int) -> CfgNode:
    """The configuration for a data set of ``images`` images, all of them one batch."""
    with changed_copy(cfg) as cfg:
        cfg.SOLVER.IMS_PER_BATCH = cfg.TEST.IMS_PER_BATCH = images
        cfg.DATALOADER.NUM_INSTANCE = images // IDENTITIES
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.INPUT.CACHE = ""  # the images are gone afterwards
        cfg.MODEL.HEADS.NUM_CLASSES = cfg.MODEL.HEADS.NUM_CLASSES or IDENTITIES
    return cfg

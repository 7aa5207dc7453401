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
from occluded_reid.data.build import build_test_loader, build_train_loader
from occluded_reid.data.reid_dataset import Item
from occluded_reid.engine.optimizer import build_optimizer
from occluded_reid.engine.train_step import TrainingStep
from occluded_reid.modeling.build import build_model
from occluded_reid.modeling.outputs import as_embedding
from occluded_reid.utils.random import seed_everything

IDENTITIES = 2


def dry_run(cfg: CfgNode) -> None:
    """Run one training and one evaluation step; print the losses and the shapes of the output."""
    seed_everything(cfg.SEED)
    with tempfile.TemporaryDirectory() as folder:
        items = _generate_images(Path(folder), cfg.DATALOADER.NUM_INSTANCE)
        with changed_copy(cfg) as cfg:
            cfg.SOLVER.IMS_PER_BATCH = cfg.TEST.IMS_PER_BATCH = len(items)
            cfg.DATALOADER.NUM_INSTANCE = len(items) // IDENTITIES
            cfg.DATALOADER.NUM_WORKERS = 0
            cfg.INPUT.CACHE = ""  # the images are temporary
            cfg.INPUT.NPO.OCCLUDERS = []  # no data are needed
            cfg.MODEL.BACKBONE.PRETRAIN = False  # nothing is downloaded or looked for
            cfg.MODEL.HEADS.NUM_CLASSES = cfg.MODEL.HEADS.NUM_CLASSES or IDENTITIES
        loader = build_train_loader(cfg, items)
        model = build_model(cfg)
        step = TrainingStep(cfg, model, loader, build_optimizer(cfg, model), iters_per_epoch=1)
        with EventStorage() as storage:
            step.run_step()
            step.read_losses()
            losses = {key: value for key, (value, _) in storage.latest().items() if "loss" in key}
        test_items = [(path, index, 0) for index, (path, _, _) in enumerate(items)]
        batch = next(iter(build_test_loader(cfg, test_items, [])[0]))
        with torch.no_grad():
            output = as_embedding(model.eval()(batch))
    print("losses: " + "  ".join(f"{key} {value:.4f}" for key, value in losses.items()))
    for name in ("features", "visibility"):
        tensor = getattr(output, name).flatten(1)  # as in files
        print(f"{name}: {tuple(tensor.shape)} {tensor.dtype}")


def _generate_images(folder: Path, num_instances: int) -> list[Item]:
    rng = np.random.default_rng(0)
    items: list[Item] = []
    for index in range(IDENTITIES * max(2, num_instances)):
        identity, camera = index % IDENTITIES, index % 3
        path = folder / f"{identity:04d}_c{camera + 1}_{index:06d}.jpg"
        Image.fromarray(rng.integers(0, 256, (128, 64, 3), np.uint8)).save(path)
        items.append((str(path), f"id_{identity}", f"cam_{camera}"))
    return items

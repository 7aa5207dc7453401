"""Tiny trainings for the tests: a generated data set, a small network, forked processes."""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from PIL import Image
from torch import nn

from occluded_reid.commands.main import COMMANDS
from occluded_reid.config import CfgNode, load_config
from occluded_reid.data.build import build_train_loader
from occluded_reid.engine.defaults import prepare_run
from occluded_reid.engine.trainer import Trainer

IDENTITIES, CAMERAS = 8, 3
TOOLS = Path(__file__).parents[2] / "tools"


def load_tool(name: str) -> ModuleType:
    """Import what ``tools/<name>.py`` or ``occluded-reid <name>`` runs."""
    if name in COMMANDS:
        return importlib.import_module(COMMANDS[name])
    shim = runpy.run_path(str(TOOLS / f"{name}.py"))
    return sys.modules[shim["command"].__module__]


@BACKBONE_REGISTRY.register()
def build_test_backbone(cfg: CfgNode) -> nn.Module:
    """Two convolutions, with state (batch statistics) and randomness (dropout)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
    )


def draw_market(root: Path) -> Path:
    """Write a Market-1501 tree of 8 identities, each of two colors, seen by 3 cameras."""
    rng = np.random.default_rng(0)
    colors = rng.integers(40, 216, (IDENTITIES, 2, 3))
    for split, per_camera in (("bounding_box_train", 2), ("query", 1), ("bounding_box_test", 2)):
        folder = root / "Market-1501-v15.09.15" / split
        folder.mkdir(parents=True)
        for identity in range(IDENTITIES):
            for camera in range(CAMERAS):
                for number in range(per_camera):
                    image = np.repeat(colors[identity], (32, 32), axis=0)[:, None]
                    noise = rng.integers(-40, 40, (64, 32, 3))
                    name = f"{identity + 1:04d}_c{camera + 1}s1_{number:06d}_01.jpg"
                    pixels = np.clip(image + noise, 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / name, quality=95)
    return root


TINY = """
MODEL:
  BACKBONE: {NAME: build_test_backbone, FEAT_DIM: 16}
  HEADS: {WITH_BNNECK: True}
  LOSSES:
    NAME: ("CrossEntropyLoss", "TripletLoss")
    TRI: {HARD_MINING: True}
INPUT:
  SIZE_TRAIN: [32, 16]
  SIZE_TEST: [32, 16]
  FLIP: {ENABLED: True}
  REA: {ENABLED: True}
DATASETS: {NAMES: '("Market1501",)', TESTS: '("Market1501",)', ALLOW_PARTIAL: True}
DATALOADER: {SAMPLER_TRAIN: NaiveIdentitySampler, NUM_WORKERS: 0, NUM_INSTANCE: 2}
SOLVER:
  IMS_PER_BATCH: 8
  MAX_EPOCH: 4
  BASE_LR: 0.01
  WARMUP_ITERS: 6
  CHECKPOINT_PERIOD: 1
  LOG_PERIOD: 2
TEST: {EVAL_PERIOD: 2}
SEED: 7
"""


def tiny_cfg(folder: Path, *overrides: Any) -> CfgNode:
    """Return the configuration of a training that takes a second, with its run in ``folder``."""
    file = folder.parent / f"{folder.name}.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(TINY)
    words = [str(word) for word in overrides]
    return load_config(str(file), ["OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu", *words])


def train(cfg: CfgNode, *, resume: bool = False, trainer: type[Trainer] = Trainer) -> Trainer:
    """Train as tools/train_net.py does; return the trainer."""
    run = trainer(prepare_run(cfg, training=True, resumed=resume))
    run.resume_or_load(resume=resume)
    run.train()
    return run


def batches(folder: Path, number: int, *overrides: Any) -> list[dict[str, Any]]:
    """Return the first training batches of a run."""
    stream = iter(build_train_loader(tiny_cfg(folder / "run", *overrides)))
    return [next(stream) for _ in range(number)]


def forked(work: Callable[[], object]) -> int:
    """Start ``work`` in a forked process, which need not import anything; return its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        torch.set_num_threads(1)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def status_of(pid: int) -> int:
    """Wait for a process; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_a_child(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a forked process.

    A process that has held tensors of a fake GPU starts autograd threads. Its later forks cannot
    run a backward pass, so tests that train in a fork would fail.
    """

    @functools.wraps(test)
    def forked_test(*args: Any, **kwargs: Any) -> None:
        assert status_of(forked(lambda: test(*args, **kwargs))) == 0

    return forked_test


def kill_self() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def final_states(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors and numbers in ``model_final.pth`` by their path inside it."""
    content = torch.load(folder / "model_final.pth", weights_only=True)
    return dict(_flatten("", content))


def _flatten(path: str, node: Any) -> Sequence[tuple[str, torch.Tensor]]:
    if torch.is_tensor(node):
        return [(path, node)]
    if isinstance(node, dict):
        return [pair for key, value in node.items() for pair in _flatten(f"{path}/{key}", value)]
    if isinstance(node, (list, tuple)):
        return [pair for i, value in enumerate(node) for pair in _flatten(f"{path}/{i}", value)]
    if isinstance(node, (int, float)):
        return [(path, torch.tensor(float(node), dtype=torch.float64))]
    return []


def assert_same_run(left: Path, right: Path) -> None:
    """Check that two runs ended in equal states, bit for bit."""
    one, other = final_states(left), final_states(right)
    assert one.keys() == other.keys()
    for path, tensor in one.items():
        torch.testing.assert_close(tensor, other[path], rtol=0, atol=0, msg=path)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run's metrics.json."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def build_arguments(config: str, folder: Path | str, *more: object) -> list[str]:
    options = ["OUTPUT_DIR", folder, "MODEL.DEVICE", "cpu", *more]
    return ["--config-file", config, *map(str, options)]


LAUNCHED = """
import sys
import runs  # registers the test backbone in this process and, by its import, in the spawned ones
sys.path.insert(0, {tools!r})
import train_net
if __name__ == "__main__":
    sys.exit(train_net.command(sys.argv[1:]))
"""

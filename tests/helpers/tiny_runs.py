"""Shared by the tests of both methods: backbones, configurations, interrupted runs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from runs import (
    TINY,
    assert_same_run,
    draw_market,
    final_states,
    forked,
    kill_self,
    status_of,
    train,
)
from torch import nn

from occluded_reid.config import AddKeys, load_config
from occluded_reid.engine.train_step import TrainingStep
from occluded_reid.utils.files import atomic_write

DIM = 16


class TinyTokens(nn.Module):
    """8 x 8 patches, a class token that depends on all of them, and dropout."""

    def __init__(self, size: tuple[int, int], dim: int = DIM):
        super().__init__()
        self.grid = (size[0] // 8, size[1] // 8)
        self.feature_dim = dim
        self.patches = nn.Conv2d(3, dim, 8, stride=8)
        self.mix = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.mix(tokens).relu().mean(dim=1, keepdim=True), tokens], dim=1)
        return self.norm(self.dropout(tokens))


@BACKBONE_REGISTRY.register()
def build_tiny_token_backbone(cfg: CfgNode) -> nn.Module:
    return TinyTokens(tuple(cfg.INPUT.SIZE_TRAIN))


@BACKBONE_REGISTRY.register()
def build_tiny_map_backbone(cfg: CfgNode) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, DIM, 8, stride=8), nn.BatchNorm2d(DIM))


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def cfg_of(words: Sequence[Any], add_keys: AddKeys, file: str = "") -> CfgNode:
    return load_config(file, [str(word) for word in words], add_keys=[add_keys])


def run_cfg(folder: Path, words: Sequence[Any], add_keys: AddKeys) -> CfgNode:
    """Configure a run of about a second in ``folder``, as ``runs.tiny_cfg`` does."""
    file = folder.parent / f"{folder.name}.yml"
    with atomic_write(file, "w") as stream:  # ranks may write at the same time
        stream.write(TINY)
    return cfg_of(["OUTPUT_DIR", folder, "MODEL.DEVICE", "cpu", *words], add_keys, str(file))


def check_resume_after_kill(
    cfg_in: Callable[[Path], CfgNode],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    before_resuming: Callable[[], object] = lambda: None,
) -> dict[str, torch.Tensor]:
    """Check that a killed and resumed run equals an uninterrupted one; return its final states.

    Args:
        cfg_in: returns the configuration of a run in a folder.
        folder: of the two runs.
        monkeypatch: the test's.
        before_resuming: called between the kill and the resumption.
    """
    whole, parts = folder / "whole", folder / "parts"
    assert status_of(forked(lambda: train(cfg_in(whole)))) == 0

    def train_until_killed() -> None:
        step = TrainingStep.run_step
        monkeypatch.setattr(
            TrainingStep, "run_step", lambda s: kill_self() if s.iter == 15 else step(s)
        )
        train(cfg_in(parts))

    assert status_of(forked(train_until_killed)) == -signal.SIGKILL
    before_resuming()
    # forked too: another number of threads would add in another order
    assert status_of(forked(lambda: train(cfg_in(parts), resume=True))) == 0
    assert_same_run(whole, parts)
    return final_states(whole)


@pytest.fixture
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def market_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_market(tmp_path_factory.mktemp("market"))


@pytest.fixture
def market_dataset(market_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FASTREID_DATASETS", str(market_root))
    yield market_root

"""Running a model over a test set: flipped images, and the model's mode."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from occluded_reid.evaluation.inference import run_inference
from occluded_reid.modeling.outputs import Embedding, embed_batch


def test_the_mean_with_the_mirror_image_keeps_the_kind_of_parts():
    images = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)

    def left_column(batch):
        column = batch["images"][..., 0].flatten(1)
        return Embedding(column, column / 10, stripes=False)

    for flip, value in ((False, 1), (True, 2)):
        features, visibility, stripes = embed_batch(left_column, {"images": images}, flip=flip)
        assert features.item() == value and visibility.item() == pytest.approx(value / 10)
        assert not stripes


class FirstColumn(nn.Module):
    """A model whose features differ between an image and its mirror image; records its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, batch):
        self.modes.append(self.training)
        return batch["images"][..., 0].flatten(1)


def test_flip_averages_both_views_and_leaves_the_batch_unchanged(tmp_path):
    images = torch.rand(4, 3, 5, 6)
    batch = {"images": images.clone(), "targets": torch.arange(4), "camids": torch.arange(4)}
    features = []
    evaluator = SimpleNamespace(
        reset=features.clear, process=lambda _, out: features.append(out.features), evaluate=dict
    )
    model = FirstColumn().train()
    model._compiled_call_impl = lambda *_: 1 / 0  # MODEL.COMPILE is for training
    run_inference(model, [batch], evaluator, name="test", flip=True)
    expected = (images[..., 0] + images[..., -1]).flatten(1) / 2
    torch.testing.assert_close(features[0].flatten(1), expected)
    torch.testing.assert_close(batch["images"], images, rtol=0, atol=0)
    assert model.modes == [False, False] and model.training


def test_the_mode_is_restored_after_an_error():
    model = FirstColumn().train()
    with pytest.raises(KeyError):
        run_inference(model, [{}], SimpleNamespace(reset=list), name="test")
    assert model.training

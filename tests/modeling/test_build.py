"""Models as the configuration asks for them: their layout, and what can be compiled."""

from __future__ import annotations

import pytest
import torch
from aonet.tiny import aonet_batch, aonet_cfg, aonet_model
from fed.tiny import fed_batch, fed_model

from occluded_reid.modeling.build import build_model


def test_channels_last_gives_equal_losses():
    losses = []
    for last in (False, True):
        torch.manual_seed(0)
        model = build_model(aonet_cfg("MODEL.CHANNELS_LAST", last)).train()
        weights = [
            each for each in model.parameters() if each.dim() == 4 and each[0, 0].numel() > 1
        ]
        assert weights
        for each in weights:
            assert each.is_contiguous(memory_format=torch.channels_last) == last
        losses.append(sum(model(aonet_batch()).values()))
    torch.testing.assert_close(*losses)


def test_resnet_is_compiled_once():
    torch._dynamo.reset()
    graphs = []
    words = ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "18x")
    words += ("MODEL.BACKBONE.FEAT_DIM", 512, "MODEL.BACKBONE.PRETRAIN", False)
    backbone = build_model(aonet_cfg(*words)).backbone
    backbone.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for _ in range(2):
        backbone(torch.zeros(2, 3, 32, 16))
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("build", "batch"), [(fed_model, fed_batch), (aonet_model, aonet_batch)], ids=["FED", "AONet"]
)
def test_training_step_is_one_graph(build, batch):
    """``fullgraph`` makes a graph break an error; memories are updated as without compilation."""
    torch._dynamo.reset()
    plain, compiled = build(), build()
    compiled.compile(fullgraph=True, backend="eager")
    losses = []
    for model in (plain, compiled):
        torch.manual_seed(1)  # of dropout
        losses.append(sum(model(batch()).values()))
    torch.testing.assert_close(*losses)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(compiled.get_buffer(name), buffer, msg=name)

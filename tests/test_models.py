"""Models as the configuration asks for them: their layout, and what can be compiled."""

from __future__ import annotations

import pytest
import torch
from aonet.tiny import aonet_batch, aonet_cfg, aonet_model
from fed.tiny import fed_batch, fed_model

from occluded_reid.models import build_model


def test_convolutions_with_channels_last_compute_the_same():
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


@pytest.mark.parametrize(
    ("build", "batch"), [(fed_model, fed_batch), (aonet_model, aonet_batch)], ids=["FED", "AONet"]
)
def test_a_training_step_is_one_graph(build, batch):
    """With ``fullgraph`` a break is an error; memories move as they do without compilation."""
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

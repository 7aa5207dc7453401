"""The memory banks: Eq. 3 against a loop, and what state must and must not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranks import on_ranks
from reference import fed_memory_update

from fed.tiny import build_fdm, fed_batch, fed_model
from fed_plugin.losses import memory_contrast_loss
from fed_plugin.memory import IdentityMemory


def filled(num_identities: int = 5, dim: int = 3, momentum: float = 0.2) -> IdentityMemory:
    memory = IdentityMemory(num_identities=num_identities, dim=dim, momentum=momentum)
    memory.initialize(torch.randn(num_identities, dim), torch.arange(num_identities))
    return memory


@pytest.mark.parametrize("identities", [[0], [4, 4, 4], [1, 0, 1, 3], [2, 2, 0, 0, 4, 1, 2]])
@pytest.mark.parametrize(("dim", "momentum"), [(1, 0.2), (6, 0.2), (3, 0.0), (3, 1.0)])
def test_update_is_equation_3(identities, dim, momentum):
    memory = filled(dim=dim, momentum=momentum).double()
    before = memory.centres.numpy().copy()
    features = torch.randn(len(identities), dim, dtype=torch.float64)
    memory.update(features, torch.tensor(identities))
    expected = fed_memory_update(before, features.numpy(), identities, momentum)
    np.testing.assert_allclose(memory.centres.numpy(), expected, rtol=1e-12)


def test_the_four_images_of_an_identity_weigh_the_same():
    """One by one, the last would weigh 0.80 and the first 0.006."""
    memory = filled(1, 4)
    memory.centres.zero_()
    memory.update(torch.eye(4), torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(memory.centres, torch.full((1, 4), 0.2))


def test_identities_that_are_not_in_the_batch_stay_as_they_are():
    memory = filled()
    before = memory.centres.clone()
    memory.update(torch.randn(3, 3), torch.tensor([1, 4, 1]))
    assert torch.equal(memory.centres[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.equal(memory.centres[[1, 4]], before[[1, 4]])


@pytest.mark.parametrize("normalize", [True, False])
def test_backward_after_an_update_sees_the_centres_of_the_forward(normalize):
    memory, labels = filled(dim=4), torch.tensor([0, 2])
    diffusion = build_fdm(2, 2, num_neighbors=2, normalize_centres=normalize, neck=True)
    features, visibility = torch.randn(2, 4), torch.ones(2, 2)
    gradients = []
    for update in (False, True):
        leaf = features.clone().requires_grad_()
        diffused = diffusion(leaf, visibility, labels, memory.centres)
        loss = memory_contrast_loss(leaf + diffused, memory.centres, labels, 0.05)
        if update:
            memory.update(leaf, labels)
        loss.backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert not memory.centres.requires_grad


def test_a_bank_stays_at_its_address():
    memory = filled()
    places = {name: buffer.data_ptr() for name, buffer in memory.named_buffers()}
    memory.initialize(torch.randn(5, 3), torch.arange(5), digest=7)
    before = memory.centres.clone()
    memory.update(torch.randn(2, 3), torch.tensor([0, 2]))
    assert {name: buffer.data_ptr() for name, buffer in memory.named_buffers()} == places
    assert not torch.equal(memory.centres, before)


def banks(model) -> torch.Tensor:
    return torch.stack([model.erased_memory.centres, model.diffused_memory.centres]).clone()


def test_nothing_changes_but_in_a_training_step():
    model, batch = fed_model(), fed_batch()
    before = banks(model)
    with torch.no_grad():
        model({**batch, "targets": torch.full((6,), -1)})  # PreciseBN
    model.eval()(batch)
    model.erased_memory.update(torch.ones(1, 64), torch.tensor([0]))  # in evaluation mode
    assert torch.equal(banks(model), before)
    model.train()(batch)
    assert not torch.equal(banks(model), before)


def test_a_bank_is_restored_whole():
    memory = filled()
    memory.initialize(torch.randn(5, 3), torch.arange(5), digest=2**62 + 5)
    other = IdentityMemory(num_identities=5, dim=3, momentum=0.2)
    assert not other.initialized
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.centres, memory.centres)
    assert other.initialized and int(other.identities) == 2**62 + 5
    assert set(memory.state_dict()) == {"centres", "initialized", "identities"}


def test_the_two_banks_share_nothing():
    model = fed_model()
    one, other = model.erased_memory.centres, model.diffused_memory.centres
    assert one.data_ptr() != other.data_ptr()
    before = other.clone()
    model.erased_memory.update(torch.ones(1, 64), torch.tensor([0]))
    model.erased_memory.centres.zero_()
    assert torch.equal(model.diffused_memory.centres, before)


def test_a_bank_stays_float32_under_autocast_and_moves_with_its_module():
    model, batch = fed_model(), fed_batch()
    with torch.autocast("cpu", torch.bfloat16):
        model(batch)
        model.erased_memory.update(torch.ones(1, 64, dtype=torch.bfloat16), torch.tensor([3]))
    assert model.erased_memory.centres.dtype == torch.float32
    assert model.diffused_memory.centres.dtype == torch.float32
    assert filled().to("meta").centres.is_meta


def test_half_precision_features_are_summed_in_float32():
    """In bfloat16 256 + 1 + 1 + 1 is 256."""
    memory = filled(1, 1, momentum=0.0)
    features = torch.tensor([[256.0], [1.0], [1.0], [1.0]], dtype=torch.bfloat16)
    memory.update(features, torch.zeros(4, dtype=torch.int64))
    assert memory.centres.item() == 64.75


def test_initialize_takes_the_mean_of_each_identity():
    memory = IdentityMemory(num_identities=3, dim=2, momentum=0.2)
    features = torch.tensor([[1.0, 0], [3, 0], [5, 5], [0, 7]])
    memory.initialize(features, torch.tensor([2, 2, 0, 1]))
    assert memory.centres.tolist() == [[5, 5], [0, 7], [2, 0]]
    assert memory.initialized


def test_an_identity_without_an_image_is_refused():
    memory = IdentityMemory(num_identities=3, dim=2, momentum=0.2)
    with pytest.raises(ValueError, match="1 of 3 identities have no feature"):
        memory.initialize(torch.ones(2, 2), torch.tensor([0, 2]))
    assert not memory.initialized


@pytest.mark.distributed
@pytest.mark.parametrize("share", [4, 1, 7])
def test_two_ranks_equal_one_that_sees_all(tmp_path, share):
    """Also with unequal shares, and with an identity on both ranks."""
    features, identities = torch.randn(8, 3), torch.tensor([0, 1, 1, 3, 1, 3, 0, 1])
    first = torch.arange(10) % 5
    start = torch.randn(10, 3)
    whole = filled()
    whole.initialize(start, first)
    whole.update(features, identities)

    def work(rank: int) -> None:
        own = slice(0, share) if rank == 0 else slice(share, None)
        memory = IdentityMemory(num_identities=5, dim=3, momentum=0.2)
        memory.initialize(start[own], first[own])
        memory.update(features[own], identities[own])
        torch.save(memory.centres, tmp_path / f"{rank}.pt")

    on_ranks(2, work)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(one, other)
    torch.testing.assert_close(one, whole.centres)

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


def filled_memory(num_identities: int = 5, dim: int = 3, momentum: float = 0.2) -> IdentityMemory:
    memory = IdentityMemory(num_identities=num_identities, dim=dim, momentum=momentum)
    memory.initialize(torch.randn(num_identities, dim), torch.arange(num_identities))
    return memory


@pytest.mark.parametrize("identities", [[0], [4, 4, 4], [1, 0, 1, 3], [2, 2, 0, 0, 4, 1, 2]])
@pytest.mark.parametrize(("dim", "momentum"), [(1, 0.2), (6, 0.2), (3, 0.0), (3, 1.0)])
def test_update_equals_eq_3(identities, dim, momentum):
    memory = filled_memory(dim=dim, momentum=momentum).double()
    before = memory.centres.numpy().copy()
    features = torch.randn(len(identities), dim, dtype=torch.float64)
    memory.update(features, torch.tensor(identities))
    expected = fed_memory_update(before, features.numpy(), identities, momentum)
    np.testing.assert_allclose(memory.centres.numpy(), expected, rtol=1e-12)


def test_unit_features_are_averaged_if_asked_for():
    memory = IdentityMemory(num_identities=2, dim=2, momentum=0.2, normalize=True)
    memory.initialize(torch.tensor([[3.0, 0], [0, 9], [0, 1]]), torch.tensor([0, 1, 1]))
    assert memory.centres.tolist() == [[1, 0], [0, 1]]
    memory.update(torch.tensor([[0.0, 50], [2, 0]]), torch.tensor([0, 0]))
    torch.testing.assert_close(memory.centres[0], torch.tensor([0.2 + 0.4, 0.4]))


def test_images_of_an_identity_have_equal_weight():
    """One by one, the last would have the weight 0.80 and the first 0.006."""
    memory = filled_memory(1, 4)
    memory.centres.zero_()
    memory.update(torch.eye(4), torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(memory.centres, torch.full((1, 4), 0.2))


def test_absent_identities_are_unchanged():
    memory = filled_memory()
    before = memory.centres.clone()
    memory.update(torch.randn(3, 3), torch.tensor([1, 4, 1]))
    assert torch.equal(memory.centres[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.equal(memory.centres[[1, 4]], before[[1, 4]])


@pytest.mark.parametrize("normalize", [True, False])
def test_backward_after_update_uses_the_old_centres(normalize):
    memory, labels = filled_memory(dim=4), torch.tensor([0, 2])
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


def test_bank_is_updated_in_place():
    memory = filled_memory()
    addresses = {name: buffer.data_ptr() for name, buffer in memory.named_buffers()}
    memory.initialize(torch.randn(5, 3), torch.arange(5), digest=7)
    before = memory.centres.clone()
    memory.update(torch.randn(2, 3), torch.tensor([0, 2]))
    assert {name: buffer.data_ptr() for name, buffer in memory.named_buffers()} == addresses
    assert not torch.equal(memory.centres, before)


def read_banks(model) -> torch.Tensor:
    return torch.stack([model.erased_memory.centres, model.diffused_memory.centres]).clone()


def test_only_training_steps_update():
    model, batch = fed_model(), fed_batch()
    before = read_banks(model)
    with torch.no_grad():
        model({**batch, "targets": torch.full((6,), -1)})  # PreciseBN
    model.eval()(batch)
    model.erased_memory.update(torch.ones(1, 64), torch.tensor([0]))  # in evaluation mode
    assert torch.equal(read_banks(model), before)
    model.train()(batch)
    assert not torch.equal(read_banks(model), before)


def test_bank_state_dict_round_trip():
    memory = filled_memory()
    memory.initialize(torch.randn(5, 3), torch.arange(5), digest=2**62 + 5)
    other = IdentityMemory(num_identities=5, dim=3, momentum=0.2)
    assert not other.initialized
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.centres, memory.centres)
    assert other.initialized and int(other.identities) == 2**62 + 5
    assert set(memory.state_dict()) == {"centres", "initialized", "identities"}


def test_banks_share_no_storage():
    model = fed_model()
    one, other = model.erased_memory.centres, model.diffused_memory.centres
    assert one.data_ptr() != other.data_ptr()
    before = other.clone()
    model.erased_memory.update(torch.ones(1, 64), torch.tensor([0]))
    model.erased_memory.centres.zero_()
    assert torch.equal(model.diffused_memory.centres, before)


def test_bank_stays_float32_and_follows_its_module():
    model, batch = fed_model(), fed_batch()
    with torch.autocast("cpu", torch.bfloat16):
        model(batch)
        model.erased_memory.update(torch.ones(1, 64, dtype=torch.bfloat16), torch.tensor([3]))
    assert model.erased_memory.centres.dtype == torch.float32
    assert model.diffused_memory.centres.dtype == torch.float32
    assert filled_memory().to("meta").centres.is_meta


def test_half_precision_features_are_summed_in_float32():
    """In bfloat16 256 + 1 + 1 + 1 is 256."""
    memory = filled_memory(1, 1, momentum=0.0)
    features = torch.tensor([[256.0], [1.0], [1.0], [1.0]], dtype=torch.bfloat16)
    memory.update(features, torch.zeros(4, dtype=torch.int64))
    assert memory.centres.item() == 64.75


def test_initialize_averages_each_identity():
    memory = IdentityMemory(num_identities=3, dim=2, momentum=0.2)
    features = torch.tensor([[1.0, 0], [3, 0], [5, 5], [0, 7]])
    memory.initialize(features, torch.tensor([2, 2, 0, 1]))
    assert memory.centres.tolist() == [[5, 5], [0, 7], [2, 0]]
    assert memory.initialized


def test_identity_without_image_raises():
    memory = IdentityMemory(num_identities=3, dim=2, momentum=0.2)
    with pytest.raises(ValueError, match="1 of 3 identities have no feature"):
        memory.initialize(torch.ones(2, 2), torch.tensor([0, 2]))
    assert not memory.initialized


@pytest.mark.distributed
@pytest.mark.parametrize("share", [4, 1, 7])
def test_two_ranks_equal_one(tmp_path, share):
    """Also with unequal shares, and with an identity on both ranks."""
    features, identities = torch.randn(8, 3), torch.tensor([0, 1, 1, 3, 1, 3, 0, 1])
    first = torch.arange(10) % 5
    start = torch.randn(10, 3)
    whole = filled_memory()
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

"""The memorized dictionary: Eq. 1 against a loop, and what state must and must not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranks import on_ranks
from reference import aonet_algorithm_1, aonet_binarized, aonet_feature

from aonet.tiny import aonet_batch, aonet_model
from aonet_plugin.landmarks import landmark_responses, visibility_scores
from aonet_plugin.memory import LandmarkMemory, peak_features


def filled_memory(landmarks: int = 3, dim: int = 4, momentum: float = 0.9) -> LandmarkMemory:
    memory = LandmarkMemory(num_landmarks=landmarks, dim=dim, momentum=momentum)
    memory.features = torch.randn(landmarks, dim)
    return memory


def random_inputs(images: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (B, 4, 4, 2) and responses (B, 3, 4, 2)."""
    features = torch.randn(images, 4, 4, 2)
    return features, landmark_responses(features, torch.randn(3, 4))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (1, 3, 4, 4, 2), (5, 6, 2, 2, 3), (2, 1, 3, 5, 1)]
)
@pytest.mark.parametrize("momentum", [0.9, 0.0, 1.0])
@pytest.mark.parametrize("zero", [True, False])
def test_update_equals_eq_1(shape, momentum, zero):
    images, landmarks, channels, height, width = shape
    memory = filled_memory(landmarks, channels, momentum).double()
    if zero:
        memory.features.zero_()
    features = torch.randn(images, channels, height, width, dtype=torch.float64)
    patterns = torch.randn(landmarks, channels, dtype=torch.float64)
    before = memory.features.numpy().copy()
    memory.update(features, landmark_responses(features, patterns))
    expected = aonet_algorithm_1(features.numpy(), patterns.numpy(), before, momentum)[-1]
    np.testing.assert_allclose(memory.features.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_average_responses_equal_the_loop():
    memory, patterns = filled_memory(), torch.randn(3, 4, requires_grad=True)
    average = memory.average_responses(patterns)
    expected = [torch.dot(patterns[k], memory.features[k]) for k in range(3)]
    torch.testing.assert_close(average, torch.stack(expected))
    average.sum().backward()
    assert torch.equal(patterns.grad, memory.features) and not memory.features.requires_grad


@pytest.mark.parametrize("ties", [[(0, 0)], [(0, 0), (3, 1)], [(1, 0), (1, 1), (2, 0)]])
def test_tied_pixels_are_averaged(ties):
    features, responses = torch.randn(1, 4, 4, 2).double(), torch.zeros(1, 1, 4, 2).double()
    for pixel in ties:
        responses[0, 0][pixel] = 2.0
    binarised = aonet_binarized(responses[0, 0].numpy())
    # the paper adds the pixels up; we take their mean
    expected = aonet_feature(features[0].numpy(), binarised) / len(ties)
    np.testing.assert_allclose(peak_features(features, responses)[0, 0], expected, rtol=1e-12)
    mean = torch.stack([features[0, :, h, w] for h, w in ties]).mean(dim=0)
    np.testing.assert_allclose(expected, mean, rtol=1e-12)


def test_constant_map_gives_the_mean_feature():
    features = torch.randn(2, 4, 4, 2)
    actual = peak_features(features, torch.zeros(2, 3, 4, 2))
    torch.testing.assert_close(actual, features.mean(dim=(2, 3))[:, None].expand(2, 3, 4))


def test_peak_survives_rounding_of_the_softmax():
    responses = torch.full((1, 1, 4, 2), -1e4)
    responses[..., 2, 1] = -9e3
    features = torch.randn(1, 4, 4, 2)
    assert visibility_scores(responses, torch.zeros(1)) == 0
    torch.testing.assert_close(peak_features(features, responses)[0, 0], features[0, :, 2, 1])


def test_entry_without_weight_is_unchanged():
    memory = filled_memory()
    before = memory.features.clone()
    features, responses = random_inputs(2)
    weights = torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.25, 0.5]])
    memory.update(features, responses, weights)
    assert torch.equal(memory.features[0], before[0])
    peaks = peak_features(features, responses)
    moved = 0.9 * before[1] + 0.1 * (peaks[0, 1] + 0.25 * peaks[1, 1]) / 1.25
    torch.testing.assert_close(memory.features[1], moved)
    torch.testing.assert_close(memory.features[2], 0.9 * before[2] + 0.1 * peaks[:, 2].mean(dim=0))


def test_equal_weights_equal_no_weights():
    one, other = filled_memory(), filled_memory()
    other.features = one.features.clone()
    features, responses = random_inputs()
    one.update(features, responses)
    other.update(features, responses, torch.full((5, 3), 0.3))
    torch.testing.assert_close(one.features, other.features)


def test_backward_after_update_uses_the_old_entries():
    memory = filled_memory()
    leaves = []
    features, _ = random_inputs()
    patterns = torch.randn(3, 4)
    for update in (False, True):
        leaf = patterns.clone().requires_grad_()
        responses = landmark_responses(features, leaf)
        loss = visibility_scores(responses, memory.average_responses(leaf)).square().sum()
        if update:
            memory.update(features, responses)
        loss.backward()
        leaves.append(leaf.grad)
    torch.testing.assert_close(*leaves, rtol=0, atol=0)
    assert not memory.features.requires_grad


def test_memory_is_updated_in_place():
    memory = filled_memory()
    address, before = memory.features.data_ptr(), memory.features.clone()
    memory.update(*random_inputs())
    assert memory.features.data_ptr() == address and not torch.equal(memory.features, before)


def test_only_training_steps_update():
    model, batch = aonet_model(), aonet_batch()
    before = model.heads.memory.features.clone()
    with torch.no_grad():
        model({**batch, "targets": torch.full((6,), -1)})  # PreciseBN
    model.eval()(batch)
    model.heads.memory.update(*random_inputs(1))  # in evaluation mode
    assert torch.equal(model.heads.memory.features, before)
    model.train().landmarks(batch["images"])  # a forward pass is no update
    assert torch.equal(model.heads.memory.features, before)
    model(batch)
    assert not torch.equal(model.heads.memory.features, before)


def test_step_reads_the_memory_before_updating_it():
    model, batch = aonet_model(), aonet_batch()
    landmarks = aonet_model().landmarks(batch["images"])
    first = model(batch)["loss_orthogonal"]
    again = aonet_model().losses(landmarks, batch["targets"])["loss_orthogonal"]
    torch.testing.assert_close(first, again)
    expected = aonet_model().heads.memory
    expected.update(landmarks.features, landmarks.responses)
    torch.testing.assert_close(model.heads.memory.features, expected.features)
    assert not model.heads.memory.features.requires_grad


def test_memory_state_dict_round_trip():
    memory = filled_memory()
    other = LandmarkMemory(num_landmarks=3, dim=4, momentum=0.9)
    assert not other.features.any()  # zero at first
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.features, memory.features)
    assert set(memory.state_dict()) == {"features"}


def test_models_share_no_storage():
    one, other = aonet_model(), aonet_model()
    before = other.heads.memory.features.clone()
    assert one.heads.memory.features.data_ptr() != other.heads.memory.features.data_ptr()
    one(aonet_batch())
    assert torch.equal(other.heads.memory.features, before)


def test_memory_stays_float32_and_follows_its_module():
    model, batch = aonet_model(), aonet_batch()
    with torch.autocast("cpu", torch.bfloat16):
        model(batch)
        features, responses = random_inputs()
        model.heads.memory.features = torch.zeros(3, 4)
        model.heads.memory.update(features.bfloat16(), responses.bfloat16())
    assert model.heads.memory.features.dtype == torch.float32
    assert filled_memory().to("meta").features.is_meta


def test_half_precision_features_are_summed_in_float32():
    """In bfloat16 256 + 1 + 1 + 1 is 256."""
    memory = LandmarkMemory(num_landmarks=1, dim=1, momentum=0.0)
    features = torch.tensor([256.0, 1.0, 1.0, 1.0], dtype=torch.bfloat16).view(4, 1, 1, 1)
    memory.update(features, torch.zeros(4, 1, 1, 1))
    assert memory.features.item() == 64.75


@pytest.mark.distributed
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("share", [4, 1, 7])
def test_two_ranks_equal_one(tmp_path, share, weighted):
    """Also with unequal shares."""
    features, responses = random_inputs(8)
    weights = torch.rand(8, 3) if weighted else None
    whole = filled_memory()
    start = whole.features.clone()
    whole.update(features, responses, weights)

    def work(rank: int) -> None:
        own = slice(0, share) if rank == 0 else slice(share, None)
        memory = LandmarkMemory(num_landmarks=3, dim=4, momentum=0.9)
        memory.features = start.clone()
        memory.update(features[own], responses[own], None if weights is None else weights[own])
        torch.save(memory.features, tmp_path / f"{rank}.pt")

    on_ranks(2, work)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(one, other)
    torch.testing.assert_close(one, whole.features)

"""States of a run: what has not the form of our own is refused before it is used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from occluded_reid.checkpoint.checkpointer import Checkpointer
from occluded_reid.checkpoint.states import fit_optimizer_state, require_form
from occluded_reid.utils.errors import UserError


def trained(kind: str) -> tuple[nn.Module, Any]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    model.to(memory_format=torch.channels_last)
    options: dict[str, Any] = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1, **options)
    model(torch.rand(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "Adafactor", "NAdam", "RMSprop"])
def test_an_optimizer_state_is_laid_out_as_its_parameters(kind: str) -> None:
    _, optimizer = trained(kind)
    found = copy.deepcopy(optimizer.state_dict())
    for state in found["state"].values():
        for key, value in state.items():
            state[key] = value.contiguous() if torch.is_tensor(value) else value
    fitted = fit_optimizer_state(found, optimizer)
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(fitted["state"][number][key], value, rtol=0, atol=0)
            assert fitted["state"][number][key].stride() == value.stride()


def spoil_shape(found: Any) -> None:
    found["state"][0]["exp_avg"] = torch.full((1,), 1e-8)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_shape, r"optimizer/state/0/exp_avg is \(1,\) in the file"),
        (lambda found: found["state"][0].pop("exp_avg_sq"), "optimizer/state/0 lacks exp_avg_sq"),
        (lambda found: found["state"].update({9: {}}), "parameter 9, which does not exist"),
        (lambda found: found["state"].update({"a": {}}), "parameter a, which does not exist"),
        (lambda found: found["state"].update({0: 3}), "is a whole number, not a mapping"),
        (lambda found: found.update(state=[]), "holds no state"),
        (lambda found: found.update(param_groups=[]), "has 0 entries, not 1"),
        (lambda found: found["param_groups"][0].update(lr="high"), "lr is text, not a number"),
        (lambda found: found["param_groups"][0].update(lr=float("nan")), "lr is nan"),
        (lambda found: found["param_groups"][0].pop("betas"), "lacks betas"),
        (lambda found: found["param_groups"][0]["params"].reverse(), "of other parameters"),
    ],
)
def test_an_optimizer_state_of_another_form_is_refused(
    spoil: Callable[[Any], Any], told: str
) -> None:
    _, optimizer = trained("Adam")
    found = copy.deepcopy(optimizer.state_dict())
    spoil(found)
    with pytest.raises(ValueError, match=told):
        fit_optimizer_state(found, optimizer)


def test_the_form_of_a_schedule() -> None:
    weights = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.1)
    own = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5]).state_dict()
    other = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3]).state_dict()
    require_form(other, own, "lr_sched")
    with pytest.raises(ValueError, match="lr_sched has another entry, step"):
        require_form({**own, "step": 3}, own, "lr_sched")


@pytest.mark.parametrize("epoch", ["1", 1.5, -2, 10**9, None, True])
def test_an_epoch_that_cannot_be_is_refused(epoch: Any, tmp_path: Path) -> None:
    model, optimizer = trained("SGD")
    saver = Checkpointer(model, str(tmp_path), optimizer=optimizer)
    saver.save("model_0000", epoch=epoch, best_metric=1.0)
    with pytest.raises(UserError, match="another run .*epoch is"):
        saver.resume(str(tmp_path / "model_0000.pth"))


def test_what_a_run_cannot_do_without_is_named_in_one_message(tmp_path: Path) -> None:
    model, optimizer = trained("SGD")
    Checkpointer(model, str(tmp_path)).save("model_0000")
    loader = Checkpointer(model, str(tmp_path), optimizer=optimizer, ema=model)
    with pytest.raises(UserError, match="holds no optimizer, epoch and cannot be resumed"):
        loader.resume(str(tmp_path / "model_0000.pth"))


def test_an_average_starts_from_the_loaded_weights(tmp_path: Path) -> None:
    model, optimizer = trained("SGD")
    Checkpointer(model, str(tmp_path), ema=ModelEmaV3(nn.Linear(2, 3))).save("model_0000", epoch=0)
    other, _ = trained("SGD")
    average = ModelEmaV3(other)
    loader = Checkpointer(other, ema=average, optimizer=optimizer)
    loaded = loader.load(str(tmp_path / "model_0000.pth"), [])
    assert loaded.left_out == ("ema",) and loaded.states == ()
    assert torch.equal(average.module[0].weight, model[0].weight)


@pytest.mark.parametrize("part", ["weights", "optimizer", "average"])
def test_what_is_not_finite_never_becomes_the_last_checkpoint(part: str, tmp_path: Path) -> None:
    model, optimizer = trained("SGD")
    average = ModelEmaV3(model)
    saver = Checkpointer(model, str(tmp_path), optimizer=optimizer, ema=average)
    saver.save("model_0000", epoch=0)
    before = sorted(tmp_path.iterdir())
    with torch.no_grad():
        if part == "weights":
            model[2].bias[1] = float("inf")
        elif part == "average":
            average.module[2].bias[1] = float("nan")
        else:
            optimizer.state[model[2].bias]["momentum_buffer"][0] = float("nan")
    with pytest.raises(UserError, match="diverged: .*not finite.*--resume goes on from model_0000"):
        saver.save("model_0001", epoch=1)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000.pth"

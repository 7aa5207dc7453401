"""A published folder for the Hub: what `reid` can read of it, and the upload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from saved_runs import draw_crops, save_hub_folder

from occluded_reid import load
from occluded_reid.checkpoint.safetensors_file import read_safetensors
from occluded_reid.deploy import hub
from occluded_reid.utils.errors import UserError


def test_a_plain_mean_of_timm_is_what_reid_computes(tmp_path: Path) -> None:
    """reid: timm.create_model, all weights by name, PIL's resizing, ToTensor, Normalize."""
    content = save_hub_folder(tmp_path)
    assert content["architecture"] == "timm:test_resnet"
    network = timm.create_model("test_resnet", num_classes=0).eval()
    weights = load_file(tmp_path / "weights.safetensors")
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    prepare = content["preprocessing"]
    assert (prepare["interpolation"], prepare["resize_mode"]) == ("bicubic", "stretch")
    height, width = prepare["input_size"]
    paths = draw_crops(tmp_path / "crops", 3)
    crops = [Image.open(path).resize((width, height), Image.Resampling.BICUBIC) for path in paths]
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(prepare[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = network((images - mean) / std)
    features = load(tmp_path).embed(paths).features[:, 0]
    assert np.allclose(features, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        ("MODEL.BACKBONE.LAST_STRIDE", 1),
        ("MODEL.HEADS.POOL_LAYER", "GlobalMaxPool"),
        ("MODEL.HEADS.WITH_BNNECK", True),
        ("MODEL.BACKBONE.NAME", "build_test_backbone", "MODEL.BACKBONE.FEAT_DIM", 16),
    ],
)
def test_other_models_are_not_called_timms(changes: tuple[Any, ...], tmp_path: Path) -> None:
    assert save_hub_folder(tmp_path, *changes)["architecture"] == "occluded_reid:Baseline"
    assert load(tmp_path).embed([np.zeros((64, 32, 3), np.uint8)]).features.shape[0] == 1
    assert "cannot compute these features" in (tmp_path / "README.md").read_text()


def test_card_begins_with_what_the_hub_reads(tmp_path: Path) -> None:
    save_hub_folder(tmp_path)
    _, front, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    meta = yaml.safe_load(front)
    assert (meta["license"], meta["library_name"]) == ("other", "occluded-reid")
    assert "resized to 64x32 pixels, becomes 96 numbers" in text and "{" not in text


def test_card_says_where_a_model_is_good_and_bad() -> None:
    group = {"queries": 3, "Rank-1": 33.333, "mAP": 20.0}
    pairs = {"1 to 2": group, "10 to 1": group | {"mAP": 7.25}}
    results = {
        "Street": {"by_cameras": pairs, "by_occlusion": {"visible 0.9-1.0": group, "none": group}},
        "Behind": {"by_cameras": pairs, "by_occlusion": {"horizontal": group}},
        "One camera": {"by_cameras": {}},
        "SyntheticOccluded:holistic": {"by_cameras": pairs},
    }
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in hub.format_details({"data_sets": results}).splitlines()
        if line and "--" not in line
    ]
    assert lines == [
        ["Street, mAP from camera", "to 1", "to 2", "to 10"],
        ["1", "", "20.0", ""],
        ["10", "7.2", "", ""],
        ["Behind, occlusion", "Queries", "Rank-1", "mAP"],
        ["horizontal", "3", "33.3", "20.0"],
    ]


def test_damaged_weights_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(UserError, match="w.safetensors"):
        read_safetensors(str(tmp_path / "w.safetensors"))


class StandIn:
    """Records what would be sent to the Hub."""

    calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append((repo_id, options))

    def upload_folder(self, **options: Any) -> None:
        if options["repo_id"] == "me/refused":
            raise ConnectionError("no route to host\nat all")
        self.calls.append((options["repo_id"], options))


def test_push_uploads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", StandIn)
    assert hub.push(tmp_path, "hf://me/model") == "https://huggingface.co/me/model"
    (_, created), (repository, sent) = StandIn.calls
    assert created == {"exist_ok": True} and repository == "me/model"
    assert sent["folder_path"] == tmp_path and "*.pth" in sent["ignore_patterns"]
    with pytest.raises(UserError, match=r"\(no route to host\); log in with `hf auth login`"):
        hub.push(tmp_path, "hf://me/refused")
    for wrong in ("me/model", "hf://model", "hf://me/model/file"):
        with pytest.raises(UserError, match="--push takes hf://user/repo"):
            hub.push(tmp_path, wrong)

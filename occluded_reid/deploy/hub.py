"""A published model as a folder for the Hugging Face Hub: weights, ``reid_config.json`` and card.

The package ``reid`` reads such folders, too, if it knows the architecture:
:func:`name_architecture` says which those are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from tabulate import tabulate
from torch import nn

from occluded_reid.checkpoint.safetensors_file import TIMM_PREFIX
from occluded_reid.config import CfgNode
from occluded_reid.modeling.outputs import as_embedding
from occluded_reid.modeling.similarity import resolve_metric
from occluded_reid.utils.errors import UserError, first_line
from occluded_reid.utils.files import write_json

METRICS = ("Rank-1", "mAP", "mINP")
DRAWN = "SyntheticOccluded"
NOT_UPLOADED = ("*.pth",)
"""The weights are in weights.safetensors already."""

_CARD = """\
---
{front}---

# {name}

{method} for person re-identification, also of occluded people: a crop of
a person, resized to {size} pixels, becomes {dim} numbers, which are compared by the metric
{metric}. Trained by occluded-reid on {trained_on}.

```python
import cv2, occluded_reid

model = occluded_reid.load("{name}")  # or the folder of this card
embedding = model.embed([cv2.imread("a.png"), cv2.imread("b.png")])  # BGR crops of people
print(model.similarity(embedding, embedding))
```

The package `reid` {reader}.

| Data set | Rank-1 | mAP | mINP |
|---|---|---|---|
{rows}
{details}
{notes}Licence of code and weights: {license}. Training data: {data_license}.

Measure the model on images of your own cameras before you rely on it. The law limits where
people may be recognized.
"""


def write_descriptions(
    folder: Path, model: nn.Module, cfg: CfgNode, name: str, architecture: str,
    results: Mapping[str, Any], data_license: str = "", notes: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Write reid_config.json and the card, README.md.

    Args:
        folder: of the published weights and config.yaml.
        model: for inference.
        cfg: its configuration.
        name: of the model.
        architecture: from :func:`name_architecture`.
        results: the content of results.json.
        data_license: of the training data, if it was not all drawn by this package.
        notes: paragraphs of the card on what the model is good and bad at.

    Returns:
        What the registry of the zoo says, too: ``license``, ``data_license``, ``input_size``,
        ``metric``, ``results``.
    """
    preprocessing = {
        "input_size": list(cfg.INPUT.SIZE_TEST),
        "mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "interpolation": "bicubic", "resize_mode": "stretch", "to_rgb": True,
    }  # fmt: skip
    content = {"architecture": architecture, "preprocessing": preprocessing}
    write_json(folder / "reid_config.json", content)
    drawn = all(each.startswith(DRAWN) for each in cfg.DATASETS.NAMES)
    terms = "drawn by this package, Apache-2.0" if drawn else "the terms of its data sets"
    about = {
        "license": "Apache-2.0" if drawn else "Apache-2.0, within the terms of the training data",
        "data_license": data_license or terms,
        "input_size": list(cfg.INPUT.SIZE_TEST),
        "metric": resolve_metric(cfg.TEST),
        "results": summarize(results),
    }
    card = _format_card(
        model, cfg, name, about, by_timm=architecture.startswith("timm:"),
        details=format_details(results), notes=notes and f"{notes.strip()}\n\n",
    )  # fmt: skip
    (folder / "README.md").write_text(card, encoding="utf-8")
    return about


def name_architecture(model: nn.Module, cfg: CfgNode) -> str:
    """Return ``timm:NAME`` if timm's network alone, as ``reid`` builds it, computes the features.

    That takes ``LAST_STRIDE`` as timm has it, the feature map that timm pools, ``GlobalAvgPool``
    and no neck. Anything else is ``occluded_reid:ARCHITECTURE``, which ``reid`` refuses.
    """
    ours, backbone = f"occluded_reid:{cfg.MODEL.META_ARCHITECTURE}", cfg.MODEL.BACKBONE
    if backbone.NAME != "build_timm_backbone":
        return ours
    network = timm.create_model(backbone.TIMM_NAME, num_classes=0).eval()
    own = {
        name.removeprefix(TIMM_PREFIX): tensor.cpu()
        for name, tensor in model.state_dict().items()
        if name.startswith(TIMM_PREFIX)
    }
    wanted = network.state_dict()
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in wanted.items()}:
        return ours
    network.load_state_dict(own)
    images = 255 * torch.rand(2, 3, *cfg.INPUT.SIZE_TEST)
    pixels = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in pixels)
    with torch.inference_mode():
        theirs = network((images - mean) / std)
        features = as_embedding(model({"images": images.to(cfg.MODEL.DEVICE)})).features
        features = features.flatten(1).cpu()
    same = features.shape == theirs.shape and torch.allclose(features, theirs, rtol=1e-3, atol=1e-4)
    return f"timm:{backbone.TIMM_NAME}" if same else ours


def summarize(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the metrics of results.json by data set, rounded to a tenth of a per cent."""
    return {
        name: {key: round(report["metrics"][key]["value"], 1) for key in METRICS}
        for name, report in results["data_sets"].items()
    }


def format_details(results: Mapping[str, Any]) -> str:
    """Return Rank-1 and mAP by occlusion, else mAP by pair of cameras, but not of drawn cameras."""
    tables = []
    for name, report in results["data_sets"].items():
        groups = report.get("by_occlusion", {})
        if set(groups) - {"none", "visible 0.9-1.0"}:
            rows = [
                [group, each["queries"], each["Rank-1"], each["mAP"]]
                for group, each in groups.items()
            ]
            headers = [f"{name}, occlusion", "Queries", "Rank-1", "mAP"]
        elif (pairs := report.get("by_cameras")) and not name.startswith(DRAWN):
            ends = [pair.split(" to ") for pair in pairs]
            cameras = sorted({camera for each in ends for camera in each}, key=int)
            rows = [
                [one, *(pairs.get(f"{one} to {other}", {}).get("mAP") for other in cameras)]
                for one in sorted({each[0] for each in ends}, key=int)
            ]
            headers = [f"{name}, mAP from camera", *(f"to {camera}" for camera in cameras)]
        else:
            continue
        tables.append(tabulate(rows, headers, "github", floatfmt=".1f"))
    return "".join(f"\n{table}\n" for table in tables)


def _format_card(
    model: nn.Module, cfg: CfgNode, name: str, about: Mapping[str, Any], *, by_timm: bool,
    details: str, notes: str,
) -> str:  # fmt: skip
    (height, width), backbone = cfg.INPUT.SIZE_TEST, cfg.MODEL.BACKBONE
    is_timm = backbone.NAME == "build_timm_backbone"
    network = backbone.TIMM_NAME if is_timm else backbone.NAME
    with torch.inference_mode():
        blank = torch.zeros(1, 3, height, width, device=cfg.MODEL.DEVICE)
        dim = as_embedding(model({"images": blank})).features[0].numel()
    rows = about["results"].items()
    metrics = [
        {
            "task": {"type": "image-feature-extraction", "name": "person re-identification"},
            "dataset": {"type": data_set, "name": data_set},
            "metrics": [{"type": key, "value": value} for key, value in values.items()],
        }
        for data_set, values in rows
    ]
    front = {
        "license": "apache-2.0" if about["license"] == "Apache-2.0" else "other",
        "library_name": "occluded-reid",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["person-re-identification", "occlusion", "fast-reid"],
        "model-index": [{"name": name, "results": metrics}],
    }
    reads = 'reads this folder: `ReIDModel.from_pretrained("FOLDER")`'
    return _CARD.format(
        front=yaml.safe_dump(front, sort_keys=False), name=name, dim=dim, metric=about["metric"],
        method=f"{cfg.MODEL.META_ARCHITECTURE} on {network}",
        size=f"{height}x{width}", trained_on=", ".join(cfg.DATASETS.NAMES) or "unnamed data",
        reader=reads if by_timm else "cannot compute these features",
        rows="\n".join(f"| {each} | {' | '.join(map(str, v.values()))} |" for each, v in rows),
        license=about["license"], data_license=about["data_license"], details=details, notes=notes,
    )  # fmt: skip


def require_repository(target: str) -> str:
    """Return ``user/repo`` of ``hf://user/repo``; anything else is a UserError."""
    if not re.fullmatch(r"hf://[\w.-]+/[\w.-]+", target):
        raise UserError(f"--push takes hf://user/repo, not {target}")
    return target.removeprefix("hf://")


def push(folder: Path, target: str) -> str:
    """Upload a published folder to ``hf://user/repo``; return the page of the model.

    Raises:
        UserError: ``target`` is nothing of that form, or the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    repository = require_repository(target)
    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, ignore_patterns=list(NOT_UPLOADED),
            commit_message=f"{folder.name}, by occluded-reid",
        )  # fmt: skip
    except Exception as error:  # requests', httpx's and the Hub's own
        reason = first_line(error)
        raise UserError(
            f"cannot upload {folder} to {target} ({reason}); log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may write there"
        ) from error
    return f"https://huggingface.co/{repository}"

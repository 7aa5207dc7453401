"""Models by name: what is known of them, and where their files are.

``occluded_reid/zoo/models.json`` lists them. Each has a folder of its name beside that file with
its configuration and its card, and its weights unless they are downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from occluded_reid.checkpoint.sources import resolve_source
from occluded_reid.utils.errors import UserError, suggest
from occluded_reid.utils.files import read_json, write_json

HOME = Path(__file__).parents[1] / "zoo"


class ZooModel(NamedTuple):
    """An entry of the registry.

    Attributes:
        name: as ``--weights`` takes it.
        file: the weights: below the registry's folder, or ``hf://`` or ``https://``.
        sha256: of that file.
        size: of that file, in bytes.
        config: the configuration, below the registry's folder.
        card: what a person should know of the model, below the registry's folder.
        license: of the code and the weights.
        data_license: of what the model was trained on.
        input_size: (H, W).
        metric: ``cosine``, ``euclidean`` or ``dot``.
        results: per data set ``Rank-1``, ``mAP`` and ``mINP`` in per cent.
    """

    name: str
    file: str
    sha256: str
    size: int
    config: str
    card: str
    license: str
    data_license: str
    input_size: list[int]
    metric: str
    results: dict[str, dict[str, float]]

    def read_card(self) -> str:
        """Return the card, in Markdown."""
        return (HOME / self.card).read_text(encoding="utf-8")

    def find_files(self) -> tuple[str, str]:
        """Return the paths of the configuration and the weights, which may be downloaded now."""
        file = self.file
        weights = f"{file}#sha256={self.sha256}" if "://" in file else str(HOME / file)
        return str(HOME / self.config), resolve_source(weights)


def list_models() -> dict[str, ZooModel]:
    """Return the models by name."""
    content = read_json(HOME / "models.json")
    models = [ZooModel(**entry) for entry in content["models"]]
    return {model.name: model for model in models}


def get_model(name: str) -> ZooModel:
    """Return a model by name; a UserError suggests the nearest names."""
    models = list_models()
    if name not in models:
        hint = suggest(name, models) or f"; there is {', '.join(models) or 'none'}"
        raise UserError(f"the zoo has no model {name}{hint}")
    return models[name]


def add_model(model: ZooModel) -> None:
    """Write an entry into the registry; it replaces one of that name."""
    entries: list[dict[str, Any]] = [
        each._asdict() for each in {**list_models(), model.name: model}.values()
    ]
    write_json(HOME / "models.json", {"models": entries})
